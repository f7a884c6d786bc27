"""Models in forms that other programs read, and the cards that go with them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
)
from typer.testing import CliRunner

from alignshared import InputError
from aligntrain.cli import app
from aligntrain.export.model import export_model
from aligntrain.recipes import load_recipe
from aligntrain.runs.card import licence_of, write_card
from aligntrain.runs.folder import EXPORT, RunSpec, Start, finish, write_run
from tests.trainer import rows, runs, tiny


def turns(picture: Any) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is it?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a kite"}]}
    return [{"role": "user", "content": content}, answer, {"role": "user", "content": "why?"}]


def saved(folder: Path, *, aspect: Any = "pad", template: Any = "vicuna_v1", **choices: Any) -> Any:
    """A tiny model and its processor in `folder`."""
    model = tiny.model(**{"mixing": "none", **choices})
    processor = tiny.processor(model.config, aspect=aspect, template=template)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def ours(model: Any, processor: Any, picture: Any) -> tuple[torch.Tensor, Any]:
    batch = processor.apply_chat_template(
        turns(picture), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    with torch.no_grad():
        return model(**batch).logits, batch


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"aspect": "crop"},
        {"vision_config": tiny.siglip_config()},
        {"vision_feature_select": "full", "vision_feature_layer": -1},
        {"text_config": tiny.text_config(tie_word_embeddings=True)},
    ],
    ids=["pad", "crop", "siglip", "full", "tied"],
)
def test_a_llava_of_transformers_says_the_same(tmp_path: Path, choices: dict[str, Any]) -> None:
    model, processor = saved(tmp_path / "model", **choices)
    done = export_model(tmp_path / "model", tmp_path / "llava", "llava")
    assert_same(done.output, model, processor)


def test_after_a_cooldown_a_llava_says_the_same_without_vectors(tmp_path: Path) -> None:
    model, _ = saved(tmp_path / "model", mixing="adaptive", cooldown=0.1)
    plain, processor = saved(tmp_path / "plain")
    own = {name: value for name, value in model.state_dict().items() if "alignment" not in name}
    plain.load_state_dict(own)
    done = export_model(tmp_path / "model", tmp_path / "llava", "llava")
    assert_same(done.output, plain, processor)
    batch = ours(plain, processor, tiny.picture(1))[1]
    with torch.no_grad():
        assert torch.equal(model(**batch, align=False).logits, plain(**batch).logits)
        with pytest.raises(InputError, match="0 alignment placeholders in the place of 1"):
            model(**batch)


def assert_same(folder: Path, model: Any, processor: Any) -> None:
    """`model`, of mixing `none`, and the LLaVA in `folder` read the same and say the same."""
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with_it = LlavaProcessor.from_pretrained(folder)
    # Where torchvision is installed it resizes, which rounds a few pixels the other way.
    rounded = with_it(images=tiny.picture(1), text="<image>", return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        rounded, processor.pixel_values([tiny.picture(1)]), rtol=0, atol=1.01 / 255 / 0.26
    )
    with_it.image_processor = LlavaImageProcessorPil.from_pretrained(folder)
    for picture in (tiny.picture(1), tiny.picture(2, 9, 30)):
        expected, batch = ours(model, processor, picture)
        inputs: Any = with_it.apply_chat_template(
            turns(picture), add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        assert inputs["input_ids"].tolist() == batch["input_ids"].tolist()
        torch.testing.assert_close(inputs["pixel_values"], batch["pixel_values"])
        with torch.no_grad():
            logits = theirs.eval()(**inputs).logits
        own = model.config.llm_vocab_size
        torch.testing.assert_close(logits[..., :own], expected[..., :own], rtol=1e-5, atol=1e-5)


def test_the_mark_of_a_picture_is_never_written(tmp_path: Path) -> None:
    model, _ = saved(tmp_path / "model")
    with torch.no_grad():  # every score is below that of the mark, which is 0
        norm = model.model.language_model.model.norm
        norm.weight.zero_()
        model.model.language_model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path / "model")
    done = export_model(tmp_path / "model", tmp_path / "llava", "llava")
    again = export_model(tmp_path / "model", tmp_path / "again", "llava")
    weights = "model.safetensors"
    assert (done.output / weights).read_bytes() == (again.output / weights).read_bytes()
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(done.output, dtype=torch.float32)
    with_it = LlavaProcessor.from_pretrained(done.output)
    inputs = with_it(images=tiny.picture(1), text="<image>\nwhat?", return_tensors="pt")
    ids = theirs.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert int(ids[0, inputs["input_ids"].shape[1] :].max()) < model.config.llm_vocab_size


@pytest.mark.slow
def test_it_is_loaded_without_this_package(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "llava", "llava")
    script = (
        "import sys, transformers\n"
        f"folder = {str(tmp_path / 'llava')!r}\n"
        "model = transformers.AutoModelForImageTextToText.from_pretrained(folder)\n"
        "processor = transformers.AutoProcessor.from_pretrained(folder)\n"
        "print(type(model).__name__, type(processor).__name__, 'aligntrain.model' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[:2] == ["LlavaForConditionalGeneration", "LlavaProcessor"]
    assert done.stdout.split()[2] == "False"


@pytest.mark.parametrize("mixing", ["adaptive", "global"])
def test_the_llm_alone(tmp_path: Path, mixing: str) -> None:
    model, _ = saved(tmp_path / "model", mixing=mixing)
    done = export_model(tmp_path / "model", tmp_path / "llm", "llm")
    llm = AutoModelForCausalLM.from_pretrained(done.output, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(done.output)
    ids = tokenizer("a red kite", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        own = model.config.llm_vocab_size  # without placeholders
        expected = model.model.language_model(ids).logits[..., :own]
        torch.testing.assert_close(llm(ids).logits, expected)
    assert len(tokenizer) == own
    assert done.parameters == llm.num_parameters()
    matter = front_matter(done.output / "README.md")
    assert matter["pipeline_tag"] == "text-generation"


def test_the_llm_alone_ends_its_answers_as_the_whole_model_does(tmp_path: Path) -> None:
    model, processor = saved(tmp_path / "model", mixing="adaptive")
    model.generation_config.eos_token_id = [2, 5]  # where the LLM's own settings name 257
    model.save_pretrained(tmp_path / "model")
    done = export_model(tmp_path / "model", tmp_path / "llm", "llm")
    llm = AutoModelForCausalLM.from_pretrained(done.output)
    assert llm.generation_config.eos_token_id == [2, 5]
    tokenizer: Any = AutoTokenizer.from_pretrained(done.output)
    turn = [{"role": "user", "content": "why?"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text == processor.apply_chat_template(turn, add_generation_prompt=True)
    assert text.endswith("USER: why? ASSISTANT:")


def front_matter(card: Path) -> dict[str, Any]:
    _, matter, _ = card.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(matter)


@pytest.mark.parametrize(
    ("choices", "format", "said"),
    [
        ({"mixing": "adaptive"}, "llava", "fix one with --level 1 to 4 or mean"),
        ({"mixing": "local"}, "llava", "has mixing local: its gate mixes a vector"),
        ({"vision_scales": [12, 24]}, "llava", r"at the scales \[12, 24\]"),
        ({"vision_pixel_shuffle": 3}, "llava", "has vision_pixel_shuffle 3"),
        ({}, "gguf", "no maintained package on PyPI writes GGUF"),
        ({}, "onnx", "the exporter of optimum needs transformers 4"),
        ({}, "coreml", "there are llava and llm"),
    ],
)
def test_what_has_no_place(tmp_path: Path, choices: dict[str, Any], format: str, said: str) -> None:
    saved(tmp_path / "model", **choices)
    with pytest.raises(InputError, match=said):
        export_model(tmp_path / "model", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear", encoding="utf-8")
    words = ["export", str(tmp_path / "model"), str(tmp_path / "mine")]
    answer = CliRunner().invoke(app, words, catch_exceptions=False)
    assert answer.exit_code == 2
    assert "exists already" in answer.output
    words[2] = str(tmp_path / "out")
    answer = CliRunner().invoke(app, words, catch_exceptions=False)
    assert answer.exit_code == 0
    assert "llava" in answer.output


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run on a levelled dataset, whose names would be Markdown and HTML."""
    data = runs.pairs(tmp_path / "<b>pairs`|*")
    recipe = load_recipe(runs.recipe_file(tmp_path), "pretrain", ["model.mixing=none"])
    job = RunSpec(tmp_path / "runs" / "my_*run*", recipe, data.location, data.digest)
    write_run(job)
    saved(job.folder / EXPORT)
    finish(job.folder, {"steps": 6, "loss": 1.25, "validation_loss": 1.5, "seconds": 9.0})
    return job.folder


def test_a_card_says_what_a_model_is_made_of(finished: Path, tmp_path: Path) -> None:
    done = export_model(finished, tmp_path / "llava", "llava")
    text = (done.output / "README.md").read_text(encoding="utf-8")
    matter = front_matter(done.output / "README.md")
    assert matter["library_name"] == "transformers"
    assert matter["pipeline_tag"] == "image-text-to-text"
    assert "llava" in matter["tags"]
    assert "license" not in matter  # of the tiny towers nobody says it
    assert "held-out loss: 1.5000" in text
    assert "0.25, 0.5, 0.75" in text  # the edges
    assert "mixing: none, no levels" in text
    assert "LlavaForConditionalGeneration.from_pretrained" in text
    assert "# my\\_\\*run\\*" in text
    before, _, after = text.partition("<b>pairs")
    assert before.endswith("/") and before.rpartition("- bucket: ")[2].startswith("``")  # in code
    assert after.startswith("`|*``")


def test_a_card_goes_back_to_the_pretraining(finished: Path, tmp_path: Path) -> None:
    talks = runs.talks(tmp_path / "talks")
    recipe = load_recipe(runs.recipe_file(tmp_path), "finetune")
    (finished / EXPORT / "adapter.safetensors").write_bytes(b"")
    start = Start.of(finished / EXPORT / "adapter.safetensors")
    job = RunSpec(tmp_path / "runs/tuned", recipe, talks.location, talks.digest, start)
    write_run(job)
    write_card(tmp_path, job.folder, kind="A model.", use="pass")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## Data of finetune" in text
    assert "## Data of pretrain" in text
    rows.write_rows(tmp_path / "talks", rows.talk_rows(5))
    write_card(tmp_path, job.folder, kind="A model.", use="pass")
    assert "changed since" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_card_names_no_levels_and_no_pretraining_but_its_own(
    finished: Path, tmp_path: Path
) -> None:
    file = runs.recipe_file(tmp_path)
    pairs = runs.pairs(tmp_path / "pairs")
    anew = load_recipe(file, "pretrain", ["data.levels=quantile"])
    job = RunSpec(tmp_path / "runs/anew", anew, pairs.location, pairs.digest)
    write_run(job)
    write_card(tmp_path, job.folder, kind="A model.", use="pass")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- levels: made anew for this run: quantile" in text
    assert "0.25, 0.5, 0.75" not in text  # the edges of the dataset
    column = load_recipe(file, "pretrain", ["data.levels='column:how_good'"])
    write_run(RunSpec(job.folder, column, pairs.location, pairs.digest))
    write_card(tmp_path, job.folder, kind="A model.", use="pass")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- levels: the column `how_good`" in text

    adapter = finished / EXPORT / "adapter.safetensors"
    adapter.write_bytes(b"as it was")
    start = Start.of(adapter)
    adapter.write_bytes(b"trained again")
    talks = runs.talks(tmp_path / "talks")
    tuned = RunSpec(
        tmp_path / "runs/tuned", load_recipe(file, "finetune"), talks.location, talks.digest, start
    )
    write_run(tuned)
    write_card(tmp_path, tuned.folder, kind="A model.", use="pass")
    _, _, text = (tmp_path / "README.md").read_text("utf-8").partition("## Data of pretrain")
    assert f"adapter `{start.sha256}`, changed since" in text
    assert "manifest" not in text


def test_licences_are_those_that_base_models_name(tmp_path: Path) -> None:
    assert licence_of("demo") == "apache-2.0"
    assert licence_of("meta/llama") is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nhello", encoding="utf-8")
    assert licence_of(str(tmp_path)) == "mit"
    for broken in ("---\nlicense: [mit\n---\n", "---\n- a\n---\n", "no front matter", "---\n"):
        (tmp_path / "README.md").write_text(broken, encoding="utf-8")
        assert licence_of(str(tmp_path)) is None


def test_a_run_leaves_a_card(tmp_path: Path) -> None:
    recipe = load_recipe(runs.recipe_file(tmp_path), "pretrain", ["max_steps=1"])
    data = runs.pairs(tmp_path / "pairs")
    job = RunSpec(tmp_path / "run", recipe, data.location, data.digest)
    write_run(job)
    runs.train(job.folder)
    text = (job.folder / EXPORT / "README.md").read_text(encoding="utf-8")
    assert "aligngpt" in front_matter(job.folder / EXPORT / "README.md")["tags"]
    assert "mixing: adaptive, 4 levels" in text
    assert "steps: 1" in text
