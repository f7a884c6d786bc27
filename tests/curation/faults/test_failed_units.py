"""Units that cannot be done: told, left alone, tried again, or left out as rejects."""

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aligncurate import Execution, score
from aligncurate.settings import silent
from aligncurate.sources import RawBatch, Unit
from aligncurate.stages.validate import validate
from aligncurate.units.local import ThreadStep, UnitPipeline, run_in_process
from aligncurate.units.records import FinishedBatch, Timing, UnitFailure
from alignshared import AlignError, Dataset, Storage
from tests.curation.inputs import reject_rows, rows_of, write_parquet
from tests.curation.pictures import photo
from tests.curation.stages.test_score import assert_same

FILES, ROWS = 4, 6


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of four Parquet files with six pairs each."""
    for number in range(FILES):
        columns = {
            "id": [f"{number}-{row}" for row in range(ROWS)],
            "image": [photo(ROWS * number + row) for row in range(ROWS)],
            "caption": [f"picture {row} of part {number}" for row in range(ROWS)],
        }
        write_parquet(tmp_path / "parts" / f"part-{number}.parquet", columns)
    return tmp_path / "parts"


def spoil(file: Path) -> bytes:
    """Overwrite the pages in the middle of `file`, whose footer stays; its former content."""
    whole = file.read_bytes()
    middle = len(whole) // 2
    put(file, whole[: middle - 2000] + bytes(4000) + whole[middle + 2000 :])
    return whole


def put(file: Path, content: bytes) -> None:
    """Write `content` and keep the time: with another one, it would be another input."""
    times = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def run(parts: Path, model: str, name: str = "out", **options: Any) -> Dataset:
    return score(
        parts,
        parts.parent / name,
        model=model,
        shard_rows=ROWS,
        batch_size=4,
        execution=Execution(engine="local", workers=2),
        **options,
    )


def test_one_damaged_file_does_not_stop_the_others(
    parts: Path, tiny_clip: str, caplog: pytest.LogCaptureFixture
):
    quiet = run(parts, tiny_clip, "quiet")
    whole = spoil(parts / "part-2.parquet")
    with (
        caplog.at_level(logging.WARNING, "aligncurate"),
        pytest.raises(AlignError, match=r"1 of 4 units failed .*part-2\.parquet") as caught,
    ):
        run(parts, tiny_clip)
    assert caught.value.exit_code == 1
    assert "--retry-failed" in str(caught.value)
    assert f"--skip-failed to make their {ROWS} rows rejects" in str(caught.value)
    assert "unit 2 (rows 1 to 6 of part-2.parquet) failed" in caplog.text
    out = parts.parent / "out"
    assert not (out / "manifest.json").exists()
    assert len(list(out.glob("shard-*.parquet"))) == 3

    # Mended, but not asked for: the unit is left alone, and nothing else is done again.
    put(parts / "part-2.parquet", whole)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    with pytest.raises(AlignError, match="1 of 4 units failed"):
        run(parts, tiny_clip)
    assert_same(run(parts, tiny_clip, retry_failed=True), quiet)
    assert times.items() <= {p: p.stat().st_mtime_ns for p in out.glob("*.parquet")}.items()


def test_what_still_fails_can_be_left_out_and_is_counted(parts: Path, tiny_clip: str):
    spoil(parts / "part-1.parquet")
    with pytest.raises(AlignError, match="1 of 4 units failed"):
        run(parts, tiny_clip)
    dataset = run(parts, tiny_clip, retry_failed=True, skip_failed=True)
    assert dataset.manifest.rejects == {"unit_failed": ROWS}
    assert len(rows_of(dataset)) + len(reject_rows(dataset)) == FILES * ROWS
    assert [shard.rows for shard in dataset.manifest.shards] == [ROWS, 0, ROWS, ROWS]
    assert len({row["id"] for row in reject_rows(dataset)}) == ROWS
    assert all(row["detail"] for row in reject_rows(dataset))
    assert validate(dataset.location).ok


def test_units_that_never_end_do_not_hold_up_the_others(tmp_path: Path):
    schema = pa.schema([("id", pa.string())])
    never = threading.Event()

    def read(unit: Unit) -> Iterator[RawBatch]:
        yield RawBatch(pa.table({"id": [f"{unit.index}"]}), [])
        if unit.index == 1:
            never.wait()

    def work(batch: RawBatch) -> FinishedBatch:
        if batch.table["id"][0].as_py() == "3":
            never.wait()
        return FinishedBatch(batch.table, [], Timing())

    units = [Unit(index, "file", index, 1) for index in range(6)]
    for steps in ([ThreadStep(work, 2)], [ThreadStep(work, 2), ThreadStep(lambda batch: batch, 1)]):
        output = Storage(tmp_path / f"{len(steps)}")
        watched = UnitPipeline(read, steps, schema, output, timeout_s=0.5)
        outcomes = list(run_in_process(watched, units, silent))
        assert [outcome.index for outcome in outcomes] == list(range(6))
        failed = [outcome for outcome in outcomes if isinstance(outcome, UnitFailure)]
        assert [failure.index for failure in failed] == [1, 3]
        assert "no progress for 0.5 seconds" in failed[0].reason
    never.set()


def test_where_everything_fails_the_run_ends_early(
    parts: Path, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("aligncurate.units.local.RETRY_PAUSE_S", 0)
    for number in range(FILES, 40):
        shutil.copy(parts / "part-0.parquet", parts / f"part-{number:02d}.parquet")
    for file in parts.iterdir():
        spoil(file)
    with pytest.raises(AlignError, match="32 units failed one after another") as caught:
        run(parts, tiny_clip)
    assert "--retry-failed" in str(caught.value)
