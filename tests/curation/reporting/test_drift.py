"""Differences of one dataset from another: the measures, the section of the report."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from aligncurate import report
from aligncurate.cli import app
from aligncurate.core.histogram import (
    Histogram,
    kolmogorov_smirnov,
    population_stability_index,
)
from aligncurate.reporting.drift import Drift, compare, comparison_rows
from aligncurate.reporting.summary import summary_of
from alignshared import AlignError, Dataset, InputError, Reason, Reject
from alignshared.manifest import write_manifest
from tests.curation.datasets import (
    MODEL,
    replace_rows,
    write_levelled_dataset,
    write_scored_dataset,
)
from tests.curation.stages.test_report import HOSTILE, page_of

RNG = np.random.default_rng(3)
BASE = RNG.normal(0.3, 0.05, 400).astype(np.float32).tolist()
LOWER = RNG.normal(0.22, 0.05, 300).astype(np.float32).tolist()

counts = st.lists(st.integers(0, 1000), min_size=8, max_size=8).filter(any)


def array(values: list[int]) -> Any:
    return np.array(values, dtype=np.int64)


@given(counts, counts)
def test_the_measures_are_distances(p: list[int], q: list[int]) -> None:
    a, b = array(p), array(q)
    for measure in (population_stability_index, kolmogorov_smirnov):
        assert measure(a, a) == 0
        assert measure(a, b) == pytest.approx(measure(b, a))
        assert measure(a, b) >= 0
    assert kolmogorov_smirnov(a, b) <= 1


def test_the_measures_of_known_distributions() -> None:
    a, b = array([50, 50]), array([25, 75])
    psi = -0.25 * np.log(0.25 / 0.5) + 0.25 * np.log(0.75 / 0.5)
    assert population_stability_index(a, b) == pytest.approx(psi)
    assert kolmogorov_smirnov(a, b) == 0.25
    # An empty bin counts as half a pair.
    empty = (0.5 / 10 - 0.5) * np.log(0.5 / 10 / 0.5) + 0.5 * np.log(1 / 0.5)
    assert population_stability_index(array([5, 5]), array([0, 10])) == pytest.approx(empty)
    with pytest.raises(ValueError, match="empty"):
        kolmogorov_smirnov(array([0]), array([1]))


def test_the_distance_of_histograms_is_that_of_the_scores() -> None:
    one, two = Histogram(), Histogram()
    one.add(np.array(BASE, dtype=np.float32))
    two.add(np.array(LOWER, dtype=np.float32))
    every = np.sort([*BASE, *LOWER])
    f = np.searchsorted(np.sort(BASE), every, side="right") / len(BASE)
    g = np.searchsorted(np.sort(LOWER), every, side="right") / len(LOWER)
    exact = np.abs(f - g).max()
    found = kolmogorov_smirnov(one.counts, two.counts)
    assert exact - 0.02 <= found <= exact + 1e-12


def drift_of(base: Dataset, other: Dataset) -> Drift:
    return compare(base, summary_of(base), other, summary_of(other))


def test_shares_are_exact_on_the_bases_edges(tmp_path: Path) -> None:
    base = write_levelled_dataset(tmp_path / "a", BASE, levels=4)
    edges = base.manifest.level_edges
    assert edges
    # Scores on an edge go up; those beside it share its fine bin and go down.
    other = [edges.edges[0], float(np.nextafter(np.float32(edges.edges[0]), np.float32(-1)))] * 20
    drift = drift_of(base, write_scored_dataset(tmp_path / "b", other))
    assert [share.other for share in drift.shares] == [0.5, 0.5, 0, 0]
    assert [share.base for share in drift.shares] == [0.25] * 4
    again = drift_of(base, write_levelled_dataset(tmp_path / "c", BASE, levels=4))
    assert [share.change for share in again.shares] == [0.0] * 4


def test_without_levels_tenths_are_compared(tmp_path: Path) -> None:
    base = write_scored_dataset(tmp_path / "a", BASE)
    drift = drift_of(base, write_scored_dataset(tmp_path / "b", LOWER))
    assert len(drift.shares) == 10
    assert all(share.base == pytest.approx(0.1, abs=0.01) for share in drift.shares)
    assert drift.shares[0].other > 0.4
    assert sum(share.other for share in drift.shares) == pytest.approx(1)
    alike = drift_of(base, write_scored_dataset(tmp_path / "c", [0.3] * 50))
    assert sum(share.other for share in alike.shares) == pytest.approx(1)


def test_scores_of_one_value_can_be_compared(tmp_path: Path) -> None:
    base = write_scored_dataset(tmp_path / "a", [0.25] * 5)
    drift = drift_of(base, write_scored_dataset(tmp_path / "b", [0.5] * 5))
    assert drift.distance == 1
    assert drift_of(base, base).psi == 0
    assert any("0.5000 against 0.2500" in sentence for sentence in drift.sentences)
    assert report(base.location, tmp_path / "r", against=tmp_path / "b").drift


def test_what_moved_is_said(tmp_path: Path) -> None:
    base = write_levelled_dataset(tmp_path / "a", BASE, levels=4)
    rejects = [Reject(f"x{i}", None, Reason.MISSING_FILE, "gone") for i in range(30)]
    captions = ["word " * 30] * len(LOWER)
    other = write_scored_dataset(tmp_path / "b", LOWER, captions=captions, rejects=rejects)
    drift = drift_of(base, other)
    sentences = drift.sentences
    assert "The mean score of b is lower than that of a" in sentences[0]
    assert "Over a’s 4 levels the shift is large (PSI" in sentences[1]
    assert "level 1 changed most, from 25.0" in sentences[1]
    assert drift.incomparable == []
    rows = {title: numbers for title, *numbers in comparison_rows(drift)}
    assert rows["Score, mean"][2] == f"{drift.distance:.3f}"
    before, after, distance = rows["Caption, characters, median"]
    assert int(after) == 144 > int(before)
    assert float(distance) == 1
    assert rows["Rejects"] == ["0.0\u202f%", "9.1\u202f%", ""]


def test_of_alike_datasets_is_said_that_nothing_moved(tmp_path: Path) -> None:
    base = write_levelled_dataset(tmp_path / "a", BASE, levels=4)
    drift = drift_of(base, write_levelled_dataset(tmp_path / "b", BASE))
    assert len(drift.sentences) == 2
    assert "nearly that of a" in drift.sentences[0]
    assert "shift is small (PSI 0.000)" in drift.sentences[1]
    assert set(drift.size_distances.values()) == {0}


def test_pictures_of_another_size_are_told(tmp_path: Path) -> None:
    base = write_scored_dataset(tmp_path / "a", BASE[:50])
    other = write_scored_dataset(tmp_path / "b", BASE[:50])
    table = pq.read_table(tmp_path / "b" / "shard-00000.parquet")
    at = table.schema.get_field_index("width")
    field = table.schema.field(at)
    import pyarrow as pa

    wider = table.set_column(at, field, pa.array([640] * table.num_rows, pa.int32()))
    changed = replace_rows(other, wider)
    rows = {title: numbers for title, *numbers in comparison_rows(drift_of(base, changed))}
    assert rows["Image width, pixels, median"] == ["48", "640", "1.000"]
    assert rows["Image height, pixels, median"] == ["32", "32", "0.000"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights_sha256": "cd" * 32, "name": "demo"}, r"other weights gave them \(ViT-L.*demo"),
        ({"view": "pad"}, r"framed otherwise \(the model's own way and pad\)"),
        ({"long_captions": "mean"}, "long captions were treated otherwise"),
        (None, "it is not recorded which model"),
    ],
)
def test_scores_of_another_kind_are_warned_of(
    tmp_path: Path, change: dict[str, Any] | None, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_levelled_dataset(tmp_path / "a", BASE, levels=4)
    other = write_scored_dataset(tmp_path / "b", BASE[:60])
    model = None if change is None else replace(MODEL, **change)
    write_manifest(other.storage, replace(other.manifest, model=model))
    files = report(tmp_path / "a", tmp_path / "r", against=tmp_path / "b", examples=1)
    assert files.drift
    assert re.search(says, files.drift.sentences[0])
    assert re.search(says, caplog.text)
    assert 'class="told warn"' in (tmp_path / "r" / "report.html").read_text()


def test_a_report_against_another_dataset_has_a_section_more(tmp_path: Path) -> None:
    write_levelled_dataset(tmp_path / "a" / "bucket", BASE, levels=4)
    write_scored_dataset(tmp_path / "b" / "score", LOWER)
    words = ["report", "--input", "a/bucket", "--against", "b/score", "--examples", "1"]
    words = [w if "/" not in w else str(tmp_path / w) for w in words]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "The mean score of b is lower than that of a" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("drift.png")
    folder = tmp_path / "a" / "report"
    page = page_of(folder)
    assert page.all("script") == []
    assert page.open == []
    assert "The mean score of b is lower than that of a" in page.text
    assert f"Compared with {tmp_path / 'b' / 'score'}" in page.text
    with Image.open(folder / "drift.png") as figure:
        figure.load()
        assert figure.width > 800
    # Without --against the next report has no such section; the page of earlier versions goes.
    (folder / "drift.html").write_text("of an earlier version")
    report(tmp_path / "a" / "bucket", examples=1)
    assert "Compared with" not in page_of(folder).text
    assert not (folder / "drift.html").exists()
    assert not (folder / "drift.png").exists()


def test_the_same_comparison_gives_the_same_page(tmp_path: Path) -> None:
    base = write_levelled_dataset(tmp_path / "a", BASE, levels=4)
    write_scored_dataset(tmp_path / "b", LOWER)
    for name in ("one", "two"):  # the second reads what the first left behind
        report(base.location, tmp_path / name, against=tmp_path / "b", examples=1)
    for name in ("drift.png", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_names_of_the_data_stay_texts(tmp_path: Path) -> None:
    evil = HOSTILE[1].replace("/", "-")
    write_levelled_dataset(tmp_path / "a", BASE, levels=4)
    write_scored_dataset(tmp_path / evil, LOWER)
    files = report(tmp_path / "a", tmp_path / "r", against=tmp_path / evil, examples=1)
    assert files.drift
    page = page_of(tmp_path / "r")
    assert all((image["src"] or "").startswith("data:") for image in page.all("img"))
    assert evil in page.text


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    write_levelled_dataset(tmp_path / "a", BASE, levels=4)
    rejects = [Reject("x", None, Reason.NO_IMAGE, "none")]
    write_scored_dataset(tmp_path / "empty", [], shards=1, rejects=rejects)
    write_scored_dataset(tmp_path / "unscored", BASE[:9], shards=1)
    path = tmp_path / "unscored" / "shard-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["score"]), path)
    for other, says in (
        ("empty", "empty has no finite score, so there is nothing to compare"),
        ("unscored", "no column score"),
        ("gone", "there is no .*gone"),
    ):
        with pytest.raises(InputError, match=says):
            report(tmp_path / "a", tmp_path / "r", against=tmp_path / other)
        assert not (tmp_path / "r").exists()
    damaged = write_scored_dataset(tmp_path / "damaged", BASE[:40], shards=1)
    path = tmp_path / "damaged" / "shard-00000.parquet"
    path.write_bytes(path.read_bytes()[:-50] + b"x" * 50)
    with pytest.raises(AlignError, match=re.escape(damaged.location)):
        report(tmp_path / "a", tmp_path / "r", against=tmp_path / "damaged")
