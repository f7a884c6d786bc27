"""How fast a run is, and where its time goes."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alignshared import InputError
from aligntrain.runs.folder import result_of
from aligntrain.train.metrics import Flops, Speed, Sums, sentence
from aligntrain.train.run import prepare, run
from tests.trainer import runs
from tests.trainer.train.test_metrics import CPU, batch, output

FLOPS = Flops(llm=100, head=0, llm_trains=True, attention=0, vision=0, vision_tokens=0)


def sums() -> Sums:
    """20 tokens in 25 places, 4 rows, a second of waiting."""
    counted = Sums(4, CPU)
    counted.add(batch([1, 1, 2, 2], [5, 5, 5, 5]), output([1.0] * 4, [1] * 4))
    counted["places"] = 25
    counted["wait_s"] = 1.0
    counted["steps"], counted["seconds"] = 4, 8.0
    return counted


def test_rates_are_of_all_ranks() -> None:
    rates = Speed(ranks=2, flops=FLOPS, peak=None).over(sums())
    assert rates == {
        "tokens_per_s": 2.5, "samples_per_s": 0.5, "padding": pytest.approx(0.2),
        "data_wait_s": 0.125, "step_s": 2.0,
    }  # fmt: skip
    known = Speed(ranks=2, flops=FLOPS, peak=1000.0).over(sums())
    assert known["mfu"] == 6 * 100 * 20 / 8 / (1000 * 2)


def test_the_sentence_says_what_was_measured() -> None:
    rates = Speed(ranks=2, flops=FLOPS, peak=1000.0).over(sums())
    assert sentence(rates) == (
        "2 tokens/s, 0.5 samples/s, MFU 75.0%, 20.0% padding, 6.2% of the time waiting for data"
    )
    del rates["mfu"]
    assert "MFU" not in sentence(rates)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, a dataset and a run that nobody profiled."""
    place = tmp_path_factory.mktemp("place")
    recipe = runs.recipe_file(place)
    runs.pairs(place / "pairs")
    prepare("pretrain", place / "pairs", recipe=recipe, output=place / "plain")
    runs.train(place / "plain")
    return place


def prepared(place: Path, output: Path, *overrides: str) -> Path:
    recipe = place / "tiny.yaml"
    return prepare("pretrain", place / "pairs", recipe=recipe, output=output, overrides=overrides)


def test_a_run_ends_with_its_throughput(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ending = result_of(place / "plain")
    assert ending is not None
    rates: dict[str, Any] = ending["throughput"]
    assert rates["tokens_per_s"] > rates["samples_per_s"] > 0
    assert rates.keys() == {"tokens_per_s", "samples_per_s", "padding", "data_wait_s", "step_s"}
    (place / "plain" / "finished.json").unlink()
    runs.train(place / "plain", resume=True)  # it has made all its steps
    again = result_of(place / "plain")
    assert again is not None
    assert again["throughput"] is None


def events(folder: Path) -> list[str]:
    trace = json.loads(gzip.decompress((folder / "profile.json.gz").read_bytes()))
    return [event["name"] for event in trace["traceEvents"]]


def test_a_profile_is_of_so_many_steps_and_changes_nothing(place: Path, tmp_path: Path) -> None:
    folder = prepared(place, tmp_path / "run")
    losses = runs.losses(runs.train(folder, profile=2))
    assert losses == runs.losses(runs.read_metrics(place / "plain"))
    names = events(folder)
    assert names.count("step: data") == names.count("step: optimizer") == 2
    assert names.count("step: forward") == names.count("step: backward") == 4  # micro-batches
    table = (folder / "profile.txt").read_text()
    assert table.startswith("2 steps on rank 0, milliseconds a step")
    for part in ("data", "forward", "backward", "optimizer", "aten::"):
        assert part in table
    assert not list(folder.glob(".unfinished-profile*"))


@pytest.mark.parametrize(("steps", "seen"), [(1, 1), (2, 1), (3, 2)])
def test_a_short_run_is_profiled_as_far_as_it_goes(
    place: Path, tmp_path: Path, steps: int, seen: int
) -> None:
    folder = prepared(place, tmp_path / "run", f"max_steps={steps}")
    runs.train(folder, profile=50)
    assert events(folder).count("step: optimizer") == seen


def test_a_profile_of_nothing_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--profile must be at least 1 \(got 0\)"):
        run(
            "pretrain", place / "pairs", recipe=place / "tiny.yaml", output=tmp_path / "run",
            profile=0,
        )  # fmt: skip
