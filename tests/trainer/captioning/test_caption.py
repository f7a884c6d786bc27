"""`aligntrain caption`: one answer for each image, the old captions kept, resumed to the byte."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from threading import Event
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from alignshared import Dataset, Manifest, ModelInfo, Storage
from alignshared.manifest import write_manifest
from alignshared.stores.lock import acquire, release
from aligntrain.cli import app
from aligntrain.inference.chat import Chat
from aligntrain.inference.generate import generate_answers
from aligntrain.runs.folder import EXPORT
from tests.trainer import rows, runs, tiny

LEVELS = 4
TOKENS = 10
ENDS = [257, *range(0, 256, 13)]
"""So many ends that some captions are empty and some reach one."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training run of six steps."""
    place = tmp_path_factory.mktemp("runs")
    recipe = runs.recipe_file(place)
    runs.pairs(place / "pairs")
    arguments = ["prepare", "pretrain", "--data", place / "pairs", "--recipe", recipe]
    said = CliRunner().invoke(app, [*map(str, arguments), "--output", str(place / "pretrain")])
    assert said.exit_code == 0, said.output
    runs.train(place / "pretrain")
    return place / "pretrain"


def saved(folder: Path, template: str = "plain", **choices: Any) -> Path:
    """A model in a run's folder that says something else to every image and level."""
    text = tiny.text_config(max_position_embeddings=1024)
    model = tiny.model(3, text_config=text, **choices)
    with torch.no_grad():
        if model.model.alignment is not None:
            model.model.alignment.table.mul_(20)
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(folder / EXPORT)
    tiny.processor(model.config, template=template).save_pretrained(folder / EXPORT)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pretrain"))


@pytest.fixture(scope="module")
def chatter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("finetune"), "vicuna_v1")


def pair_rows(count: int, images: int) -> list[dict[str, Any]]:
    """Rows of `count` pairs about `images` images, each again after all others."""
    made = rows.pair_rows(count, LEVELS)
    for number, row in enumerate(made):
        row["image"] = {"bytes": rows.picture(number % images), "path": f"{number}.png"}
    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """24 pairs about 10 images in 3 shards."""
    folder = tmp_path_factory.mktemp("pairs") / "bucket"
    return rows.write_rows(folder, pair_rows(24, 10), levels=LEVELS, shards=3)


def command(*words: Any, code: int = 0) -> str:
    """What `aligntrain caption` prints."""
    said = CliRunner().invoke(app, ["caption", *map(str, words)])
    assert said.exit_code == code, said.output
    return " ".join(said.output.split())


def caption(model: Path, data: Dataset, output: Path, *words: Any, code: int = 0) -> str:
    where = ("--data", data.location, "--output", output)
    return command(model, *where, "--max-new-tokens", TOKENS, *words, code=code)


def table(location: str | Path) -> list[dict[str, Any]]:
    return [row for batch in Dataset(location).batches() for row in batch.to_pylist()]


def rejects(location: str | Path) -> list[dict[str, Any]]:
    files = sorted((Path(location) / "rejects").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def is_chat_answer(
    row: dict[str, Any], chat: Chat, file: Path, prompt: str, level: int, guidance: float = 1.0
) -> bool:
    """Whether the caption of `row` is what a chat answers, which may print the end as well."""
    file.write_bytes(row["image"]["bytes"])
    chat.reset()
    answer = chat.answer(prompt, file, level=level, max_new_tokens=TOKENS, guidance=guidance)
    said = "".join(answer)
    ends = ["", *(chat.processor.tokenizer.decode([end]) for end in ENDS[1:])]
    return " ".join(said.split()) in {" ".join((row["caption"] + end).split()) for end in ends}


@pytest.fixture(scope="module")
def captioned(model: Path, pairs: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the command says of the pairs, and where the captions lie."""
    output = tmp_path_factory.mktemp("captions") / "caption"
    return caption(model, pairs, output), output


def test_a_run_captions_what_it_was_trained_on(trained: Path, tmp_path: Path) -> None:
    data = Dataset(trained.parent / "pairs")
    said = caption(trained, data, tmp_path / "out", "--level", 2)
    config = Dataset(tmp_path / "out").manifest.config
    assert (config["level"], config["prompt"], config["precision"]) == (2, None, "float32")
    assert "48 pairs in = " in said
    assert "48 images captioned at level 2" in said


def test_the_new_caption_takes_the_place_and_the_old_one_is_kept(
    captioned: Any, pairs: Dataset
) -> None:
    said, output = captioned
    manifest = Dataset(output).manifest
    before = {row["id"]: row for row in table(pairs.location)}
    after, left = table(output), rejects(output)
    assert f"24 pairs in = {len(after)} captioned + {len(left)} rejects" in said
    assert len(after) + len(left) == manifest.rows + manifest.reject_count == 24
    assert (manifest.stage, manifest.parents[0].sha256) == ("caption", pairs.digest)
    assert list(after[0])[-4:] == [
        f"{name}_original" for name in ("caption", "score", "caption_truncated", "level")
    ]
    for row in after:
        old = before[row["id"]]
        for name in ("caption", "score", "caption_truncated", "level"):
            assert row[f"{name}_original"] == old[name]
        assert {row[name] == old[name] for name in ("image", "width", "height")} == {True}
        assert row["caption"] != old["caption"]
        assert row["caption"]
    rejected = {row["id"] for row in left}
    assert [row["id"] for row in after] == [id_ for id_ in before if id_ not in rejected]


def test_captions_are_the_answers_at_the_top_level(
    captioned: Any, model: Path, tmp_path: Path
) -> None:
    after, chat = table(captioned[1]), Chat.load(model, device="cpu")
    assert all(is_chat_answer(row, chat, tmp_path / "i.png", "", LEVELS) for row in after)
    assert not all(is_chat_answer(row, chat, tmp_path / "i.png", "", 1) for row in after)
    assert len({row["caption"] for row in after}) > 3


def test_guidance_reaches_the_captions(
    captioned: Any, model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    caption(model, pairs, tmp_path / "out", "--guidance", 4)
    guided, chat = table(tmp_path / "out"), Chat.load(model, device="cpu")
    assert all(is_chat_answer(row, chat, tmp_path / "i.png", "", LEVELS, 4.0) for row in guided)
    plain = {row["id"]: row["caption"] for row in table(captioned[1])}
    assert any(row["caption"] != plain.get(row["id"]) for row in guided)


def test_an_empty_answer_is_a_reject(captioned: Any) -> None:
    said, output = captioned
    left = rejects(output)
    assert {row["reason"] for row in left} == {"empty_caption"}
    assert f"{len(left)} empty_caption" in said
    assert Dataset(output).manifest.rejects == {"empty_caption": len(left)}


def test_an_image_of_several_rows_is_asked_once(
    captioned: Any, model: Path, pairs: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, output = captioned
    assert "10 images captioned at level 4" in said
    by_image: dict[bytes, set[str]] = {}
    for row in table(output):
        by_image.setdefault(row["image"]["bytes"], set()).add(row["caption"])
    assert {len(texts) for texts in by_image.values()} == {1}

    asked = spy(monkeypatch)
    caption(model, pairs, tmp_path / "out", "--batch-size", 3)
    assert len(asked) == len(set(asked)) == 10
    assert table(tmp_path / "out") == table(output)  # whatever the batch


def spy(patch: pytest.MonkeyPatch, stop: int | None = None) -> list[str]:
    """The names of the questions that are asked, of which the one numbered `stop` is the last."""
    asked: list[str] = []

    def answers(model: Any, processor: Any, questions: Any, **options: Any) -> Iterator[Any]:
        def noted() -> Iterator[Any]:
            for question in questions:
                if len(asked) == stop:
                    raise KeyboardInterrupt
                asked.append(question.name)
                yield question

        return generate_answers(model, processor, noted(), **options)

    patch.setattr("aligntrain.captioning.shards.generate_answers", answers)
    return asked


@pytest.mark.parametrize("stop", [1, 9])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    captioned: Any, model: Path, pairs: Dataset, tmp_path: Path, stop: int
) -> None:
    """Stopped in the first shard, and in the second, which adds the last images."""
    output = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        spy(patch, stop)
        assert "stopped" in caption(model, pairs, output, code=130)
    assert not (output / "manifest.json").exists()
    done = sorted(file.name for file in output.glob("*.parquet"))
    assert done == (["shard-00000.parquet"] if stop > 8 else [])
    if done:
        left_over = output / ".unfinished-shard-00001.parquet-0a1b2c3d"
        left_over.write_bytes(b"of a killed writer")
        assert "another level (4, now 1)" in caption(model, pairs, output, "--level", 1, code=2)
    with pytest.MonkeyPatch.context() as patch:
        asked = spy(patch)
        caption(model, pairs, output)
    assert len(asked) == 10 - 8 * len(done)
    assert content(output) == content(captioned[1])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    data = rows.write_rows(tmp_path / "pairs", pair_rows(48, 48), levels=LEVELS, shards=8)
    words = ("--data", data.location, "--max-new-tokens", "40", "--batch-size", "2", "--output")
    line = ["caption", str(model), *words]
    program = Path(sys.executable).with_name("aligntrain")
    output = tmp_path / "killed"
    with Popen([program, *line, str(output)]) as process:
        while process.poll() is None and not (output / ".run/captions/0000001.json").exists():
            time.sleep(0.01)
        process.kill()
    assert not (output / "manifest.json").exists()
    assert (output / ".run").is_dir()
    for name in ("killed", "whole"):
        command(*line[1:], tmp_path / name)
    assert content(output) == content(tmp_path / "whole")
    assert not (output / ".run").exists()


def content(output: Path) -> dict[str, bytes]:
    """The files of a dataset but its manifest."""
    files = [file for file in sorted(output.rglob("*")) if file.is_file()]
    return {
        file.relative_to(output).as_posix(): file.read_bytes()
        for file in files
        if file.name != "manifest.json"
    }


def test_a_run_that_failed_before_a_shard_leaves_the_folder_to_others(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    said = caption(model, pairs, output, "--max-new-tokens", 2000, code=2)
    assert "longer than the 1024 that the model reads" in said
    assert not list(output.iterdir())
    caption(model, pairs, output, "--level", 3)


def test_a_finished_folder_is_left_alone(captioned: Any, model: Path, pairs: Dataset) -> None:
    output = captioned[1]
    before = (output / "manifest.json").stat().st_mtime_ns
    assert "finished already; nothing was done" in caption(model, pairs, output)
    for words, said in {
        ("--level", 1): "captions of another level (4, now 1)",
        ("--max-new-tokens", 11): "another max new tokens (10, now 11)",
    }.items():
        told = caption(model, pairs, output, *words, code=2)
        assert said in told
        assert told.endswith("give another --output, or remove that folder.")
    assert (output / "manifest.json").stat().st_mtime_ns == before


def test_one_run_at_a_time_writes_to_a_folder(model: Path, pairs: Dataset, tmp_path: Path) -> None:
    output, held, over = Storage(tmp_path / "out"), Event(), Event()

    def write() -> None:
        acquire(output, ".run/lock")
        held.set()
        over.wait()
        release(output)

    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(write)
        held.wait()
        said = caption(model, pairs, tmp_path / "out", code=1)
        over.set()
    assert "is being written by process" in said
    caption(model, pairs, tmp_path / "out")


def test_a_fine_tuned_model_is_asked(chatter: Path, pairs: Dataset, tmp_path: Path) -> None:
    caption(chatter, pairs, tmp_path / "own")
    caption(chatter, pairs, tmp_path / "other", "--prompt", "Which colour is it?", "--level", 2)
    prompts = ("Give a short caption.", "Which colour is it?")
    chat = Chat.load(chatter, device="cpu")
    for name, prompt, level in zip(("own", "other"), prompts, (LEVELS, 2), strict=True):
        row = table(tmp_path / name)[0]
        assert is_chat_answer(row, chat, tmp_path / "i.png", prompt, level)
        assert not is_chat_answer(row, chat, tmp_path / "i.png", f"{prompt} Now!", 1)
        assert Dataset(tmp_path / name).manifest.config["prompt"] == prompt


def test_images_that_cannot_be_read_are_rejects(model: Path, tmp_path: Path) -> None:
    made = pair_rows(8, 4)
    for number, image in enumerate((b"", b"no image", None)):
        made[number]["image"] = None if image is None else {"bytes": image, "path": f"{number}.png"}
    made[4]["image"]["bytes"] = b"no image"  # as in row 1
    data = rows.write_rows(tmp_path / "pairs", made, levels=LEVELS, shards=1)
    caption(model, data, tmp_path / "out")
    left = [r for r in rejects(tmp_path / "out") if r["reason"] != "empty_caption"]
    assert [(r["id"], r["path"], r["reason"]) for r in left] == [
        ("pair-0000", "0.png", "empty_file"),
        ("pair-0001", "1.png", "not_an_image"),
        ("pair-0002", None, "no_image"),
        ("pair-0004", "4.png", "not_an_image"),
    ]
    manifest = Dataset(tmp_path / "out").manifest
    assert manifest.rows + manifest.reject_count == 8


def test_the_request_of_a_llava_record_goes_with_its_caption(model: Path, tmp_path: Path) -> None:
    made = pair_rows(4, 4)
    for row in made:
        row["conversations"] = [
            {"from": "human", "value": "<image>\nDescribe."},
            {"from": "gpt", "value": row["caption"]},
        ]
    data = rows.write_rows(tmp_path / "pairs", made, levels=LEVELS)
    caption(model, data, tmp_path / "out")
    assert {str(row["conversations"]) for row in table(tmp_path / "out")} == {"None"}


def rewritten(folder: Path, **changes: Any) -> Dataset:
    """The dataset in `folder` with another manifest."""
    manifest: Manifest = Dataset(folder).manifest
    write_manifest(Storage(folder), replace(manifest, **changes))
    return Dataset(folder)


def with_column(folder: Path, name: str, values: Callable[[int], Sequence[Any]]) -> Dataset:
    """A dataset of pairs in `folder` with one more column."""
    rows.write_rows(folder, pair_rows(6, 6), levels=LEVELS, shards=1)
    file = folder / "shard-00000.parquet"
    pq.write_table(pq.read_table(file).append_column(name, [values(6)]), file)
    return Dataset(folder)


def test_scores_of_several_models_are_kept(model: Path, tmp_path: Path) -> None:
    data = with_column(tmp_path / "pairs", "score_b32", lambda n: [0.5] * n)
    info = {
        "name": "ViT-B-32", "weights": "openai", "weights_sha256": "0" * 64, "image_size": 224,
        "precision": "fp32",
    }  # fmt: skip
    data = rewritten(tmp_path / "pairs", models={"b32": ModelInfo(**info)})
    caption(model, data, tmp_path / "out")
    names = Dataset(tmp_path / "out").schema.names
    assert "score_b32_original" in names
    assert "score_b32" not in names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--level", 5), "--level 5 is not one of"),
        (("--level", 0), "give one from 1 to 4"),
        (("--max-new-tokens", 0), "--max-new-tokens must be at least 1 (got 0)"),
        (("--batch-size", 0), "--batch-size must be at least 1 (got 0)"),
        (("--guidance", 0), "guidance must be above 0"),
        (("--prompt", "What?"), "only pretrained and captions without a prompt"),
    ],
)
def test_bad_options_are_refused(
    model: Path, pairs: Dataset, tmp_path: Path, words: Any, said: str
) -> None:
    assert said in caption(model, pairs, tmp_path / "out", *words, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prompt", [" ", "Look: <image>"])
def test_a_prompt_says_something(
    chatter: Path, pairs: Dataset, tmp_path: Path, prompt: str
) -> None:
    told = caption(chatter, pairs, tmp_path / "out", "--prompt", prompt, code=2)
    assert "--prompt must say something" in told


def test_models_that_cannot_caption_are_refused(pairs: Dataset, tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain", mixing="none")
    assert "mixing none and no levels" in caption(plain, pairs, tmp_path / "out", code=2)
    assert "holds no finished model" in caption(tmp_path, pairs, tmp_path / "out", code=2)
    file = plain / EXPORT / "config.json"
    config = json.loads(file.read_text())
    del config["levels"]
    file.write_text(json.dumps(config))
    assert "names no levels or no template" in caption(plain, pairs, tmp_path / "out", code=2)


def test_data_without_captions_or_images_are_refused(model: Path, tmp_path: Path) -> None:
    def refused(data: Dataset | Path, output: str = "out") -> str:
        location = data.location if isinstance(data, Dataset) else data
        told = command(model, "--data", location, "--output", tmp_path / output, code=2)
        assert not (tmp_path / "out").exists()
        return told

    talks = rows.write_rows(tmp_path / "talks", rows.talk_rows(6))
    assert "talks holds instruction data (talk-0000 is a conversation)" in refused(talks)
    made = pair_rows(6, 6)
    made[3]["conversations"] = [{"from": who, "value": "x"} for who in ("human", "gpt") * 2]
    turns = rows.write_rows(tmp_path / "turns", made, levels=LEVELS)
    assert "holds instruction data (pair-0003 is a conversation)" in refused(turns)
    bare = rows.write_rows(tmp_path / "bare", [{**r, "image": None} for r in pair_rows(6, 6)],
                           levels=LEVELS)  # fmt: skip
    assert "bare has no images to caption" in refused(bare)
    again = with_column(tmp_path / "again", "caption_original", lambda n: ["x"] * n)
    assert "has a column caption_original already" in refused(again)
    none = rewritten(tmp_path / "again", rows=0, shards=[])
    assert "is empty, so there is nothing to caption" in refused(none)
    assert "is not a dataset" in refused(tmp_path / "nowhere")


def test_outputs_that_hold_something_else_are_refused(
    model: Path, pairs: Dataset, tmp_path: Path
) -> None:
    said = caption(model, pairs, Path(pairs.location), code=2)
    assert "holds a dataset of the stage bucket; give another --output" in said
    (tmp_path / "notes.txt").write_text("mine")
    assert "not empty and holds no captions" in caption(model, pairs, tmp_path, code=2)
    other = tmp_path / "score"
    Storage(other).write_json(".run/config.json", {"input": "x", "model": "ViT-L-14"})
    assert "unfinished run of another command" in caption(model, pairs, other, code=2)
    assert json.loads((other / ".run/config.json").read_text())["model"] == "ViT-L-14"


def test_a_shard_unlike_the_others_is_refused(model: Path, tmp_path: Path) -> None:
    data = rows.write_rows(tmp_path / "pairs", pair_rows(8, 8), levels=LEVELS)
    file = tmp_path / "pairs/shard-00001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["score"]), file)
    said = caption(model, data, tmp_path / "out", code=2)
    assert "shard-00001.parquet" in said
    assert "other columns than the first shard" in said
