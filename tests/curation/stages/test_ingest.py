"""Instruction data into shards: what is kept, what is rejected, what trains on it."""

import json
from pathlib import Path
from typing import Any

import pytest

from aligncurate.stages.ingest import ingest
from aligncurate.units.records import write_unit
from alignshared import Dataset, InputError, Storage
from alignshared.schema import ingested_schema
from tests.curation.datasets import picture


def talk(image: str | None = None, answer: Any = "Red.", **fields: Any) -> dict[str, Any]:
    ask = "What colour?" if image is None else "<image>\nWhat colour?"
    record: dict[str, Any] = {
        "conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]
    }
    return record | ({} if image is None else {"image": image}) | fields


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "coco").mkdir()
    for seed in range(3):
        (tmp_path / f"coco/{seed}.png").write_bytes(picture(seed))
    (tmp_path / "coco/broken.png").write_bytes(picture(0)[:60])
    return tmp_path


def write(folder: Path, records: list[Any], name: str = "mix.json") -> Path:
    file = folder / name
    if name.endswith("l"):
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        file.write_text(json.dumps(records))
    return file


def rows_of(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for batch in dataset.batches() for row in batch.to_pylist()]


def rejects_of(dataset: Dataset) -> list[tuple[str, str]]:
    from aligncurate.output.folder import read_rejects

    return [(reject["id"], reject["reason"]) for reject in read_rejects(dataset, 100)]


@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl"])
def test_conversations_come_with_their_pictures(folder: Path, name: str) -> None:
    records = [talk("coco/0.png", id="a"), talk(id="b", model="sharegpt"), talk("coco/2.png")]
    dataset = ingest(write(folder, records, name), folder / "out")
    assert dataset.schema.equals(ingested_schema())
    first, second, third = rows_of(dataset)
    assert first == {
        "id": "a",
        "image": {"bytes": picture(0), "path": "coco/0.png"},
        "caption": "Red.",
        "conversations": records[0]["conversations"],
        "width": 48,
        "height": 32,
    }
    assert (second["id"], second["image"], second["width"]) == ("b", None, None)
    assert second["conversations"] == records[1]["conversations"]
    assert third["id"] == "mix-000000002"
    manifest = dataset.manifest
    assert (manifest.stage, manifest.rows, manifest.reject_count) == ("ingest", 3, 0)
    assert manifest.model is None
    assert manifest.parents[0].location == str(folder / name)


def test_records_that_cannot_be_used_are_kept_as_rejects(folder: Path) -> None:
    records = [
        talk("coco/0.png", id="good"),
        talk("coco/9.png", id="gone"),
        talk("coco/broken.png", id="broken"),
        talk("../secret.png", id="outside"),
        talk(["a.png", "b.png"], id="two"),  # type: ignore[arg-type]
        talk(id="silent", answer="  "),
        talk(id="number", answer=3),
        {"id": "plain", "image": "coco/1.png", "caption": "no talk"},
        "not a record",
        talk(id="bytes", answer="\ud800"),
    ]
    dataset = ingest(write(folder, records, "mix.jsonl"), folder / "out")
    assert [row["id"] for row in rows_of(dataset)] == ["good"]
    assert sorted(rejects_of(dataset)) == [
        ("broken", "corrupt_image"),
        ("bytes", "invalid_utf8"),
        ("gone", "missing_file"),
        ("mix-000000008", "malformed_record"),
        ("number", "malformed_record"),
        ("outside", "path_outside_root"),
        ("plain", "malformed_record"),
        ("silent", "malformed_record"),
        ("two", "malformed_record"),
    ]
    assert dataset.manifest.rows + dataset.manifest.reject_count == len(records)


def test_records_on_one_picture_share_its_id_with_a_number(folder: Path) -> None:
    records = [
        talk("coco/0.png", id="0"),
        talk("coco/0.png", id="0", answer="Blue."),
        talk("coco/0.png", id="0"),  # says nothing new
        talk("coco/1.png", id="0#2"),
        talk("coco/0.png", id="0", answer="Green."),
    ]
    dataset = ingest(write(folder, records), folder / "out")
    assert [row["id"] for row in rows_of(dataset)] == ["0", "0#2", "0#2#2", "0#3"]
    assert rejects_of(dataset) == [("0", "duplicate_id")]


def test_a_run_that_was_cut_short_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(folder, [talk(f"coco/{n % 3}.png", id=str(n)) for n in range(12)])
    whole = ingest(source, folder / "whole", shard_rows=3)
    wrote: list[int] = []

    def dies(storage: Storage, index: int, *rest: Any, **named: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        wrote.append(index)
        return write_unit(storage, index, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr("aligncurate.units.local.write_unit", dies)
        with pytest.raises(KeyboardInterrupt):
            ingest(source, folder / "out", shard_rows=3)
    assert not (folder / "out/manifest.json").exists()
    reported: list[int] = []

    def report(done: int, rejects: int = 0) -> None:
        reported.append(done)
        assert not rejects

    dataset = ingest(source, folder / "out", shard_rows=3, on_progress=report)
    assert dataset.manifest.shards == whole.manifest.shards
    assert sum(reported) == 12
    before = dataset.digest
    assert ingest(source, folder / "out", shard_rows=3).digest == before  # nothing was done
    with pytest.raises(InputError, match="shard_rows is 3 there and 4 here"):
        ingest(source, folder / "out", shard_rows=4)
    assert len(ingest(source, folder / "out", shard_rows=4, overwrite=True).manifest.shards) == 3


def test_default_output_and_image_root(workdir: Path, folder: Path) -> None:
    source = write(folder, [talk("0.png", id="a")])
    dataset = ingest(source, image_root=str(folder / "coco"))
    assert dataset.location == str(workdir / "data/mix/ingest")
    assert dataset.manifest.rows == 1


def test_what_cannot_be_ingested_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"--input demo is not known; give a LLaVA \.json"):
        ingest("demo", folder / "out")
    with pytest.raises(InputError, match=r"--shard-rows must be at least 1 \(got 0\)"):
        ingest("x.json", folder / "out", shard_rows=0)
    with pytest.raises(InputError, match="there are no records in"):
        ingest(write(folder, []), folder / "out")


def test_rejects_name_the_picture(folder: Path) -> None:
    from aligncurate.output.folder import read_rejects

    dataset = ingest(write(folder, [talk("coco/9.png", id="gone"), talk()]), folder / "out")
    (reject,) = read_rejects(dataset, 10)
    assert reject["path"] == "coco/9.png"
