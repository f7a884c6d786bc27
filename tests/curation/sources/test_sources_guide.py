"""The guide's example of a source is a source."""

import re
from pathlib import Path
from typing import Any

import pytest

import aligncurate.stages.score
from aligncurate import Execution, score
from aligncurate.sources import Source
from tests.curation.inputs import ids_of, rejects_of
from tests.curation.pictures import photo


@pytest.fixture(scope="module")
def example(repository: Path) -> str:
    text = (repository / "docs" / "sources.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return block


def test_a_source_takes_thirty_lines(example: str) -> None:
    body = example[example.index("class TsvSource") :].splitlines()
    assert len([line for line in body if line.strip()]) <= 30


def test_the_example_is_scored_like_any_source(
    example: str, tmp_path: Path, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {}
    exec(example, names)
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number))
    lines = [f"picture {n}\t{n}.jpg" for n in range(5)] + [" \t0.jpg", "gone\tgone.jpg"]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n")

    def open_tsv(location: str, image_root: str | None = None) -> Source:
        return names["TsvSource"](location, image_root)

    monkeypatch.setattr(aligncurate.stages.score, "open_source", open_tsv)
    dataset = score(
        tmp_path / "pairs.tsv",
        tmp_path / "out",
        model=tiny_clip,
        shard_rows=4,
        execution=Execution(engine="local", workers=1),
    )
    assert ids_of(dataset) == [f"{n:09d}" for n in range(5)]
    assert rejects_of(dataset) == {"000000005": "empty_caption", "000000006": "missing_file"}
    assert [shard.rows for shard in dataset.manifest.shards] == [4, 1]
