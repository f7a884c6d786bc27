"""Scoring as a whole: the dataset that comes out, going on after an interruption; and how a run is
executed changes no bit.
"""

import json
import logging
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aligncurate import Execution, score
from aligncurate.core.clip import ClipModel, resolve_clip
from aligncurate.scoring.execution import score_locally
from aligncurate.scoring.spec import ScoringSpec
from aligncurate.settings import OnProgress, silent
from aligncurate.sources import open_source
from alignshared import AlignError, Dataset, InputError, Storage
from alignshared.atomic import UNFINISHED
from alignshared.schema import SCORE_COLUMNS, SOURCE_COLUMNS
from tests.curation.inputs import (
    good_pairs,
    ids_of,
    record,
    reject_rows,
    rows_of,
    score_good_pairs,
    write_llava,
    write_parquet,
)
from tests.curation.pictures import photo


def tables_of(dataset: Dataset) -> list[pa.Table]:
    return [pq.read_table(f"{dataset.location}/{s.file}") for s in dataset.manifest.shards]


def manifest_of(dataset: Dataset) -> dict[str, Any]:
    """The manifest without what may differ between two runs of one configuration."""
    fields = asdict(dataset.manifest)
    fields.pop("created")
    fields["config"].pop("execution")
    return fields


def assert_same(one: Dataset, other: Dataset) -> None:
    assert manifest_of(one) == manifest_of(other)
    for a, b in zip(tables_of(one), tables_of(other), strict=True):
        assert a.equals(b, check_metadata=True)
    assert reject_rows(one) == reject_rows(other)


def test_a_scored_dataset_keeps_the_contract(tmp_path: Path, tiny_clip: str):
    dataset = score_good_pairs(tmp_path, tiny_clip, 12, shard_rows=5)
    manifest = dataset.manifest
    assert [shard.rows for shard in manifest.shards] == [5, 5, 2]
    assert (manifest.stage, manifest.rows, manifest.rejects) == ("score", 12, {})
    assert {f.name: f.type for f in dataset.schema} == SOURCE_COLUMNS | SCORE_COLUMNS
    assert manifest.model is not None
    assert manifest.model.weights_sha256 == resolve_clip(tiny_clip).weights_sha256
    assert (manifest.model.image_size, manifest.model.precision) == (48, "fp32")
    assert manifest.parents[0].location == str(tmp_path / "in" / "pairs.json")
    assert manifest.config["execution"]["engine"] == "local"
    assert ids_of(dataset) == [f"good{i}" for i in range(12)]
    assert not Storage(dataset.location).exists(".run")
    for row in rows_of(dataset):
        assert row["image"]["bytes"] == (tmp_path / "in/images" / row["image"]["path"]).read_bytes()


def test_scores_are_what_plain_open_clip_gives(tmp_path: Path, tiny_clip: str):
    rows = rows_of(score_good_pairs(tmp_path, tiny_clip, 9, batch_size=4))
    name = f"local-dir:{tiny_clip}"
    made: Any = open_clip.create_model_from_pretrained(name)
    model, transform = made[0].eval(), made[1]
    tokenize = open_clip.get_tokenizer(name)
    for row in rows:
        image = Image.open(tmp_path / "in/images" / row["image"]["path"])
        with torch.inference_mode():
            x = model.encode_image(transform(image)[None], normalize=True)
            y = model.encode_text(tokenize([row["caption"]]), normalize=True)
        assert abs(float(x @ y.T) - row["score"]) < 1e-6


def test_workers_change_no_bit(tmp_path: Path, tiny_clip: str):
    many = {"shard_rows": 7, "batch_size": 3, "embeddings": True}
    one = score_good_pairs(tmp_path, tiny_clip, 20, **many)
    execution = Execution(engine="local", workers=3)
    three = score_good_pairs(
        tmp_path, tiny_clip, 20, **many, output=tmp_path / "three", execution=execution
    )
    assert_same(one, three)


def test_other_batch_mates_move_a_score_by_rounding_only(tmp_path: Path, tiny_clip: str):
    whole = score_good_pairs(tmp_path, tiny_clip, 20, batch_size=16)
    shards = score_good_pairs(
        tmp_path, tiny_clip, 20, batch_size=16, shard_rows=7, output=tmp_path / "b"
    )
    single = score_good_pairs(tmp_path, tiny_clip, 20, batch_size=1, output=tmp_path / "c")
    reference = np.array([row["score"] for row in rows_of(whole)])
    for other in (shards, single):
        np.testing.assert_allclose([r["score"] for r in rows_of(other)], reference, atol=1e-6)


def test_embeddings_are_unit_vectors_whose_product_is_the_score(tmp_path: Path, tiny_clip: str):
    dataset = score_good_pairs(tmp_path, tiny_clip, 5, embeddings=True)
    for name in ("image_embedding", "text_embedding"):
        assert dataset.schema.field(name).type == pa.list_(pa.float16(), 32)
    for row in rows_of(dataset):
        x, y = (np.array(row[f"{side}_embedding"], dtype=np.float64) for side in ("image", "text"))
        assert abs(np.linalg.norm(x) - 1) < 1e-2
        assert abs(x @ y - row["score"]) < 2e-3


def test_each_distinct_picture_and_caption_is_embedded_once(
    tmp_path: Path, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
):
    columns = {
        "id": list("abcdef"),
        "image": [photo(0), photo(0), photo(1), photo(0), photo(1), photo(2)],
        "caption": ["cat", "dog", "cat", "cat", "dog", "cat"],
    }
    path = write_parquet(tmp_path / "in.parquet", columns)
    sizes: list[int] = []
    for name in ("embed_images", "embed_captions"):
        _count_calls(monkeypatch, name, sizes)
    dataset = score(path, tmp_path / "out", model=tiny_clip, execution=Execution(engine="local"))
    assert sizes[-2:] == [3, 2]
    scores = {row["id"]: row["score"] for row in rows_of(dataset)}
    assert scores["a"] == scores["d"]
    assert len({scores[id_] for id_ in "abcef"}) == 5


def _count_calls(monkeypatch: pytest.MonkeyPatch, name: str, sizes: list[int]) -> None:
    original: Callable[..., Any] = getattr(ClipModel, name)

    def counting(self: ClipModel, values: Any) -> Any:
        sizes.append(len(values))
        return original(self, values)

    monkeypatch.setattr(ClipModel, name, counting)


def test_own_columns_reach_the_dataset(tmp_path: Path, tiny_clip: str):
    columns = {"image": [photo(0), b""], "caption": ["a", "b"], "url": ["u1", "u2"]}
    path = write_parquet(tmp_path / "in.parquet", columns)
    dataset = score(path, tmp_path / "out", model=tiny_clip)
    assert [row["url"] for row in rows_of(dataset)] == ["u1"]


def test_a_scored_dataset_can_be_scored_again(tmp_path: Path, tiny_clip: str):
    first = score_good_pairs(tmp_path, tiny_clip, 6)
    again = score(first.location, tmp_path / "again", model=tiny_clip)
    assert again.manifest.parents[0].sha256 == first.digest
    assert [t.to_pylist() for t in tables_of(again)] == [t.to_pylist() for t in tables_of(first)]


def test_the_demo_runs_with_any_model(workdir: Path, tiny_clip: str):
    assert not (workdir / "data").exists()
    dataset = score("demo", model=tiny_clip, batch_size=256)
    assert dataset.location == str(workdir / "data" / "demo" / "score")
    assert dataset.manifest.rejects == {}
    assert dataset.manifest.rows >= 1000


def test_pictures_of_a_batch_beyond_what_one_arrow_array_holds(
    tmp_path: Path, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("aligncurate.scoring.scorer._CHUNK_BYTES", 4000)
    dataset = score_good_pairs(tmp_path, tiny_clip, 9)
    for i, row in enumerate(rows_of(dataset)):
        assert row["image"]["bytes"] == photo(i)


# Going on


class Stop(Exception):
    """What an interrupted run ends with, here."""


def stopping_after(pairs: int, error: BaseException) -> Any:
    """A `show_progress` that raises `error` when so many pairs are done."""
    total_done = 0

    def on_progress(done: int, rejects: int = 0) -> None:
        nonlocal total_done
        total_done += done
        if total_done >= pairs:
            raise error

    @contextmanager
    def show(_task: str, _total: int, _begun: int) -> Iterator[OnProgress]:
        yield on_progress

    return show


def counting(seen: list[tuple[int, int, int]]) -> Any:
    """A `show_progress` that leaves (total, begun, done) in `seen`."""
    total_done = 0

    def on_progress(done: int, rejects: int = 0) -> None:
        nonlocal total_done
        total_done += done

    @contextmanager
    def show(_task: str, total: int, begun: int) -> Iterator[OnProgress]:
        yield on_progress
        seen.append((total, begun, total_done))

    return show


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt()])
def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, tiny_clip: str, error: BaseException
):
    options: dict[str, Any] = {"shard_rows": 4, "batch_size": 2}
    with pytest.raises(type(error)):
        score_good_pairs(
            tmp_path, tiny_clip, 20, **options, show_progress=stopping_after(11, error)
        )
    out = tmp_path / "out"
    assert not (out / "manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert sorted(kept) == ["shard-00000.parquet", "shard-00001.parquet"]
    assert not list(out.rglob(f"{UNFINISHED}*"))
    seen: list[tuple[int, int, int]] = []
    resumed = score_good_pairs(tmp_path, tiny_clip, 20, **options, show_progress=counting(seen))
    assert seen == [(20, 8, 12)]
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in out.glob("*.parquet")}.items()
    fresh = score_good_pairs(tmp_path, tiny_clip, 20, **options, output=tmp_path / "fresh")
    assert_same(resumed, fresh)


def test_a_shard_that_was_taken_away_is_done_again(tmp_path: Path, tiny_clip: str):
    options: dict[str, Any] = {"shard_rows": 4, "batch_size": 2}
    with pytest.raises(Stop):
        score_good_pairs(
            tmp_path, tiny_clip, 12, **options, show_progress=stopping_after(9, Stop())
        )
    (tmp_path / "out" / "shard-00000.parquet").unlink()
    dataset = score_good_pairs(tmp_path, tiny_clip, 12, **options)
    assert len(rows_of(dataset)) == 12


def test_a_full_disk_ends_the_run_with_a_sentence_and_what_is_finished_is_kept(
    tmp_path: Path, tiny_clip: str
):
    pictures = [photo(0), photo(1, (1200, 900))]
    columns = {"id": ["small", "large"], "image": pictures, "caption": ["a", "b"]}
    path = write_parquet(tmp_path / "in.parquet", columns)
    options: dict[str, Any] = {
        "model": tiny_clip,
        "shard_rows": 1,
        "execution": Execution(engine="local", workers=1),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(pictures[1]) - 100, before[1]))
    try:
        with pytest.raises(
            AlignError, match=r"shard-00001\.parquet cannot be written in"
        ) as caught:
            score(path, tmp_path / "out", **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.exit_code == 1
    assert [p.name for p in (tmp_path / "out").glob("shard*")] == ["shard-00000.parquet"]
    assert ids_of(score(path, tmp_path / "out", **options)) == ["small", "large"]


def test_rejects_are_counted_once_after_going_on(tmp_path: Path, tiny_clip: str):
    records = [record(f"p{i}", "p.jpg" if i % 3 else "gone.jpg") for i in range(12)]
    path = write_llava(tmp_path / "in", records, {"p.jpg": photo(0)})
    options: dict[str, Any] = {
        "image_root": str(tmp_path / "in" / "images"),
        "model": tiny_clip,
        "shard_rows": 4,
        "execution": Execution(engine="local", workers=1),
    }
    with pytest.raises(Stop):
        score(path, tmp_path / "out", **options, show_progress=stopping_after(8, Stop()))
    dataset = score(path, tmp_path / "out", **options)
    assert (dataset.manifest.rows, dataset.manifest.rejects) == (8, {"missing_file": 4})
    assert [row["id"] for row in reject_rows(dataset)] == ["p0", "p3", "p6", "p9"]


def test_a_finished_output_is_left_as_it_is(
    tmp_path: Path, tiny_clip: str, caplog: pytest.LogCaptureFixture
):
    first = score_good_pairs(tmp_path, tiny_clip, 3)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with caplog.at_level(logging.INFO, "aligncurate"):
        again = score_good_pairs(tmp_path, tiny_clip, 3)
    assert again.digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    assert "finished already" in caplog.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 2}, "batch_size is 64 there and 2 here"),
        ({"precision": "bf16"}, "precision is 'fp32' there and 'bf16' here"),
        ({"embeddings": True}, "embeddings is False there and True here"),
        ({"shard_rows": 2}, "shard_rows is None there and 2 here"),
        ({"image_root": "."}, "input.image_root is"),
    ],
)
def test_another_configurations_output_is_refused_until_overwritten(
    tmp_path: Path, tiny_clip: str, change: dict[str, Any], says: str
):
    first = score_good_pairs(tmp_path, tiny_clip, 3)
    with pytest.raises(InputError, match=says):
        score_good_pairs(tmp_path, tiny_clip, 3, **change)
    assert Dataset(first.location).digest == first.digest
    if "image_root" not in change:
        again = score_good_pairs(tmp_path, tiny_clip, 3, **change, overwrite=True)
        assert again.manifest.rows == 3


def test_changed_input_is_another_configuration(tmp_path: Path, tiny_clip: str):
    score_good_pairs(tmp_path, tiny_clip, 3)
    with pytest.raises(InputError, match=r"input\.digest is"):
        score_good_pairs(tmp_path, tiny_clip, 4)


def test_a_model_that_does_not_load_does_not_hold_the_output(tmp_path: Path, tiny_clip: str):
    from tests.curation.clips import write_tiny_clip

    broken = write_tiny_clip(tmp_path / "broken")
    config = json.loads((broken / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 3
    (broken / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not fit the architecture"):
        score_good_pairs(tmp_path, str(broken), 3)
    assert score_good_pairs(tmp_path, tiny_clip, 3).manifest.rows == 3


def test_one_thread_that_feeds_a_device_gives_the_same_pairs(tmp_path: Path, tiny_clip: str):
    # `cpu:0` is a device other than `cpu` to us and the same one to torch: the way of a GPU.
    source = open_source(str(good_pairs(tmp_path / "in", 20)), str(tmp_path / "in" / "images"))
    storage = Storage(tmp_path / "device")
    spec = ScoringSpec(source, resolve_clip(tiny_clip), "fp32", "cpu:0", 3, False, storage.location)
    units = source.plan(Storage(tmp_path / "work"), 7)
    execution = Execution("local", workers=2)
    records = list(score_locally(spec, units, execution, silent))
    dataset = score_good_pairs(tmp_path, tiny_clip, 20, batch_size=3, shard_rows=7)
    assert [getattr(record, "shard", record) for record in records] == dataset.manifest.shards
