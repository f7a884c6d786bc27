"""`hf://` datasets are read as files anywhere else are; without the Hub, one sentence says so."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignshared import InputError, Storage
from tests.curation.hub import running_hub
from tests.curation.inputs import write_parquet
from tests.curation.pictures import photo
from tests.curation.tars import good_tar

READ = """
import json, sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from aligncurate.sources import open_source
from alignshared import AlignError, Storage
for number, location in enumerate(sys.argv[2:]):
    try:
        source = open_source(location)
        units = source.plan(Storage(Path(sys.argv[1]) / f"work{number}"), None)
        rows = [r for u in units for b in source.read(u, 64) for r in b.table.to_pylist()]
        print(json.dumps([[r["id"], r["caption"], len(r["image"]["bytes"])] for r in rows]))
    except AlignError as error:
        print(json.dumps(str(error)))
"""


def read_in_own_process(
    endpoint: str, folder: Path, *locations: str, **environment: str
) -> list[Any]:
    """What a process whose environment tells it of the Hub's `endpoint` finds at `locations`: rows,
    or the error.
    """
    told = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home"), **environment}
    answer = subprocess.run(
        [sys.executable, "-c", READ, str(folder), *locations],
        env=os.environ | told,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_parquet_and_tars_are_read_from_the_hub(tmp_path: Path) -> None:
    columns = {"image": [photo(1), photo(2)], "caption": ["one", "two"]}
    parquet = write_parquet(tmp_path / "x.parquet", columns).read_bytes()
    tar = good_tar(tmp_path / "x.tar", 2).read_bytes()
    files = {"data/train-0.parquet": parquet, "tars/00000.tar": tar, "README.md": b"# pairs"}
    with running_hub("owner/pairs", files) as endpoint:
        folder, tars, nothing = read_in_own_process(
            endpoint,
            tmp_path,
            "hf://datasets/owner/pairs/data",
            "hf://datasets/owner/pairs@v1/tars/{00000..00000}.tar",
            "hf://datasets/owner/nothing",
        )
    assert folder == [
        ["train-0-000000000", "one", len(photo(1))],
        ["train-0-000000001", "two", len(photo(2))],
    ]
    assert [row[0] for row in tars] == ["00000/000000000", "00000/000000001"]
    assert "hf://datasets/owner/nothing" in nothing


@pytest.mark.parametrize("offline", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no network", "offline"])
def test_without_the_hub_one_sentence_says_so(tmp_path: Path, offline: dict[str, str]) -> None:
    (said,) = read_in_own_process(
        "http://127.0.0.1:9", tmp_path, "hf://datasets/owner/pairs", **offline
    )
    assert said.startswith("hf://datasets/owner/pairs cannot be opened: ")
    assert ("HF_HUB_OFFLINE is set" if offline else "does not answer") in said
    assert "\n" not in said


def test_the_hub_is_not_written_to() -> None:
    with (
        pytest.raises(InputError, match="can only be read"),
        Storage("hf://datasets/owner/pairs").writing("shard"),
    ):
        pass
