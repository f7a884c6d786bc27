"""The lines of a run reach its file and its trackers, once and under the same run."""

import json
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alignshared import InputError
from aligntrain.recipes import load_recipe
from aligntrain.runs.folder import RunSpec, read_metrics, read_run
from aligntrain.train import loggers as trackers
from aligntrain.train.loggers import Recorder, open_loggers
from aligntrain.train.run import prepare
from tests.trainer import runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    runs.recipe_file(place)
    runs.pairs(place / "pairs")
    return place


def spec(place: Path, folder: Path, track: str = "[tensorboard]") -> RunSpec:
    folder.mkdir(exist_ok=True)
    recipe = load_recipe(place / "tiny.yaml", "pretrain", [f"log.track={track}"])
    return RunSpec(folder, recipe, "data", "0" * 64)


def record(given: RunSpec, step: int, *lines: dict[str, Any]) -> None:
    recorder = Recorder(given.folder, step, open_loggers(given, step))
    for line in lines:
        recorder.write(line)
    recorder.close()


def test_lines_are_in_the_file_and_on_the_board(place: Path, tmp_path: Path) -> None:
    line = {"step": 1, "loss": 2.5, "loss_by_level": {"3": 1.5}, "gate_weights": [0.25]}
    record(spec(place, tmp_path), 0, line)
    assert read_metrics(tmp_path)[0]["loss"] == 2.5
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    names: Any = board.Tags()["scalars"]
    assert set(names) == {"loss", "loss_by_level/3", "gate_weights/1"}
    assert board.Scalars("loss")[0].value == 2.5


def test_steps_that_come_again_are_recorded_once(place: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    # The process was killed while it wrote the fourth.
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "lo')
    record(spec(place, tmp_path), 2, {"step": 3, "loss": 7.0})
    found = [(line["step"], line["loss"]) for line in read_metrics(tmp_path)]
    assert found == [(1, 1.0), (2, 1.0), (3, 7.0)]


def test_what_is_no_number_is_left_out_of_the_board(place: Path, tmp_path: Path) -> None:
    line = {"step": 1, "gradient_norm": None, "validation_loss": None}
    record(spec(place, tmp_path), 0, line)
    assert read_metrics(tmp_path) == [line]


def test_no_tracker_is_the_file_alone(place: Path, tmp_path: Path) -> None:
    record(spec(place, tmp_path, "[]"), 0, {"step": 1, "loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_what_is_not_installed_is_told_before_anything_starts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=f"log.track has {name}, .* run `pip install {name}`"):
        prepare(
            "pretrain", place / "pairs", recipe=place / "tiny.yaml", output=tmp_path / "run",
            overrides=[f"log.track=[{name}]"],
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(place: Path) -> None:
    with pytest.raises(InputError, match=r"log.track.0 .* 'tensorboard', 'wandb' or 'trackio'"):
        load_recipe(place / "tiny.yaml", "pretrain", ["log.track=[mlflow]"])


def tracked(place: Path, folder: Path, name: str) -> list[dict[str, Any]]:
    """The metrics of a run of four steps that was killed before its first checkpoint."""
    options = [f"log.track=[{name}]", "max_steps=4", "log.validate_every=9", "checkpoint.every=2"]
    prepare(
        "pretrain", place / "pairs", recipe=place / "tiny.yaml", output=folder, overrides=options
    )
    given = read_run(folder)
    # As the process that was killed wrote it; these steps come again.
    record(given, 0, *({"step": step, "loss": 9.0 + step} for step in (1, 2)))
    runs.train(folder, resume=True)
    return read_metrics(folder)


def wandb_records(file: Path) -> Iterator[Any]:
    """The records in a file of Weights & Biases: LevelDB's log format behind 7 bytes."""
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield messages.Record.FromString(whole)
            whole = b""


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb, an extra")
def test_weights_and_biases_has_one_run_offline(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lines = tracked(place, folder, "wandb")
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    name = json.loads((folder / "tracking.json").read_text())["id"]
    history: dict[int, dict[str, float]] = {}
    for record in (record for file in files for record in wandb_records(file)):
        if record.HasField("run"):
            assert (record.run.run_id, record.run.project) == (name, "aligntrain")
            assert record.run.display_name == "run"
            config = {one.key: json.loads(one.value_json) for one in record.run.config.update}
            assert config["batch"]["global_size"] == 8
        if record.HasField("history"):
            values = {
                "/".join(one.nested_key) or one.key: json.loads(one.value_json)
                for one in record.history.item
            }
            history.setdefault(record.history.step.num, {}).update(values)
    assert {step: values["loss"] for step, values in history.items()} == runs.losses(lines)
    rates = next(line["learning_rate"] for line in lines if line["step"] == 4)
    assert history[4]["learning_rate/projector"] == rates["projector"]


@pytest.mark.skipif(find_spec("trackio") is None, reason="needs trackio, an extra")
def test_trackio_has_one_run_in_the_run_folder(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))
    lines = tracked(place, folder, "trackio")
    (file,) = (folder / "trackio").glob("*.db")
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute(
            "select run_name, step, metrics from metrics order by id"
        ).fetchall()
        configs = database.execute("select config from configs").fetchall()
    name = json.loads((folder / "tracking.json").read_text())["id"]
    assert {row[0] for row in rows} == {f"run-{name}"}
    found: dict[int, dict[str, float]] = {}
    for _, step, values in rows:
        found.setdefault(step, {}).update(json.loads(values))
    assert {step: values["loss"] for step, values in found.items()} == runs.losses(lines)
    assert [json.loads(row[0])["batch"]["global_size"] for row in configs] == [8]
