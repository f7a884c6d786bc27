"""Inputs that were made to do harm, or look as if they were: each costs itself and no more, nothing
hangs, and nothing is written outside the output folder.
"""

import gzip
import io
import json
import random
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aligncurate import Execution, score
from aligncurate.sources import open_source
from aligncurate.sources.llava import InstructionSource
from alignshared import AlignError, Dataset, InputError, Storage
from tests.curation.datasets import files_in
from tests.curation.inputs import (
    ids_of,
    read,
    record,
    reject_rows,
    rejects,
    rejects_of,
    rows,
    write_llava,
    write_parquet,
)
from tests.curation.pictures import photo
from tests.curation.tars import Member, good_tar, link, sample, write_tar

Score = Callable[[Path], Dataset]


@pytest.fixture
def score_input(tmp_path: Path, tiny_clip: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Score]:
    """Scores an input from a folder of its own; only `out` may have changed afterwards."""
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    before: dict[str, bytes] = {}

    def run(path: Path) -> Dataset:
        before.update(files_in(tmp_path))
        local = Execution(engine="local", workers=1)
        return score(path, tmp_path / "out", model=tiny_clip, execution=local)

    yield run
    after = {name: data for name, data in files_in(tmp_path).items() if not name.startswith("out/")}
    assert after == before


# Tars


def test_members_that_lead_elsewhere_are_rejects(score_input: Score, tmp_path: Path) -> None:
    members: list[Member] = [
        *sample("good", 1),
        *sample("../../up", 2),
        *sample("/tmp/absolute", 3),
        *sample("in/../../out", 4),
        *sample("a\\windows", 5),
        ("linked.jpg", link(tarfile.SYMTYPE)),
        ("linked.txt", b"a symbolic link"),
        ("hard.jpg", link(tarfile.LNKTYPE, "good.jpg")),
        ("hard.txt", b"a hard link"),
        ("device.jpg", link(tarfile.CHRTYPE)),
        ("device.txt", b"a device"),
        ("pipe.txt", link(tarfile.FIFOTYPE)),
        ("pipe.jpg", photo(6)),
        ("folder.jpg", link(tarfile.DIRTYPE)),
        ("folder.txt", b"a folder is no picture"),
        *sample("good too", 7),
    ]
    dataset = score_input(write_tar(tmp_path / "in" / "x.tar", members))
    assert ids_of(dataset) == ["x/good", "x/good too"]
    assert rejects_of(dataset) == {
        "x/../../up": "path_outside_root",
        "x//tmp/absolute": "path_outside_root",
        "x/in/../../out": "path_outside_root",
        "x/a\\windows": "path_outside_root",
        "x/linked": "malformed_record",
        "x/hard": "malformed_record",
        "x/device": "malformed_record",
        "x/pipe": "malformed_record",
        "x/folder": "no_image",
    }


def test_samples_that_lack_a_part_or_come_twice_are_rejects(
    score_input: Score, tmp_path: Path
) -> None:
    members: list[Member] = [
        ("lonely.jpg", photo(1)),
        ("wordless.txt", b"no picture"),
        ("empty.jpg", photo(2)),
        ("empty.txt", b""),
        ("latin.jpg", photo(3)),
        ("latin.txt", b"M\xfcsli"),
        ("broken.jpg", b""),
        ("broken.txt", b"an empty picture"),
        *sample("twice", 4),
        *sample("other", 5),
        *sample("twice", 6),
    ]
    dataset = score_input(write_tar(tmp_path / "in" / "x.tar", members))
    assert ids_of(dataset) == ["x/twice", "x/other"]
    assert sorted((r["id"], r["reason"]) for r in reject_rows(dataset)) == [
        ("x/broken", "empty_file"),
        ("x/empty", "empty_caption"),
        ("x/latin", "invalid_utf8"),
        ("x/lonely", "no_caption"),
        ("x/twice", "duplicate_id"),
        ("x/wordless", "no_image"),
    ]


@pytest.mark.parametrize("cut", ["in a picture", "in a header", "between samples", "in a sample"])
def test_a_tar_cut_in_the_middle_keeps_what_is_before(
    score_input: Score, tmp_path: Path, cut: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = good_tar(tmp_path / "in" / "x.tar", 6, n=1)
    with tarfile.open(path) as archive:
        picture = archive.getmember("000000004.jpg")
        caption = archive.getmember("000000004.txt")
    at = {
        "in a picture": picture.offset_data + picture.size // 2,
        "in a header": picture.offset + 100,
        "between samples": picture.offset,
        "in a sample": caption.offset,
    }[cut]
    path.write_bytes(path.read_bytes()[:at])
    dataset = score_input(path)
    assert ids_of(dataset) == [f"x/{n:09d}" for n in range(4)]
    (lost,) = reject_rows(dataset)
    assert lost["reason"] == "damaged_archive"
    assert f"{path} is damaged" in caplog.text


def test_a_damaged_header_costs_what_lies_behind_it(score_input: Score, tmp_path: Path) -> None:
    path = good_tar(tmp_path / "in" / "a.tar", 6)
    with tarfile.open(path) as archive:
        at = archive.getmember("000000003.jpg").offset
    data = bytearray(path.read_bytes())
    data[at : at + 512] = random.Random(1).randbytes(512)
    path.write_bytes(data)
    good_tar(tmp_path / "in" / "b.tar", 2)
    (tmp_path / "in" / "c.tar").write_bytes(b"<html>404 Not Found</html>" * 100)
    (tmp_path / "in" / "d.tar").write_bytes(b"")
    dataset = score_input(tmp_path / "in")
    counts = Counter(id_.partition("/")[0] for id_ in ids_of(dataset))
    assert counts == {"a": 3, "b": 2}
    assert Counter(r["id"].partition("/")[0] for r in reject_rows(dataset)) == Counter("acd")
    assert set(rejects_of(dataset).values()) == {"damaged_archive"}


def header_with(size: bytes, kind: bytes = tarfile.REGTYPE, name: str = "x.jpg") -> bytes:
    """A tar header whose size field is `size`, with a checksum that fits."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


BOMBS = {
    "a size beyond all files": header_with(b"\x80" + b"\x7f" * 11),
    "a negative size": header_with(struct.pack(">i", -1) * 3),
    "a name of 8 GB": header_with(b"77777777777\0", tarfile.GNUTYPE_LONGNAME),
    "a pax header of 8 GB": header_with(b"77777777777\0", tarfile.XHDTYPE),
    "names of names of names": header_with(b"00000000001\0", tarfile.GNUTYPE_LONGNAME) * 5000,
    "pax nonsense": header_with(b"00000000100\0", tarfile.XHDTYPE) + b"9" * 512,
    "sparse nonsense": header_with(b"00000000100\0", tarfile.GNUTYPE_SPARSE),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.timeout(60)
def test_headers_made_to_harm_cost_the_rest_of_their_tar(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "x.tar"
    good = good_tar(path, 2).read_bytes().rstrip(b"\0")
    good += bytes(-len(good) % 512)
    path.write_bytes(good + BOMBS[bomb] + bytes(4096))
    source = open_source(str(path))
    assert [row["id"] for row in rows(source, tmp_path / "w")] == ["x/000000000", "x/000000001"]
    found = rejects(source, tmp_path / "w")
    assert len(found) <= 1  # a header that says nothing of a picture costs nothing
    assert {reject.reason for reject in found} <= {"damaged_archive", "malformed_record"}


@pytest.mark.timeout(120)
def test_no_damage_of_a_tar_is_worse_than_its_loss(tmp_path: Path) -> None:
    whole = good_tar(tmp_path / "x.tar", 4, n=1, text="x" * 300).read_bytes()
    rng = random.Random(7)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 40)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "x.tar").write_bytes(data[: rng.randrange(len(data))])
        work = tmp_path / f"work{rng.random()}"
        try:
            batches = read(open_source(str(tmp_path / "x.tar")), work)
        except InputError as error:
            assert "\n" not in str(error)
            continue
        assert all(row["caption"] for batch in batches for row in batch.table.to_pylist())


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz"])
def test_a_compressed_tar_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    data = gzip.compress(good_tar(tmp_path / "plain" / "x.tar", 1).read_bytes())
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=r"x\.t.* is compressed.*; unpack it to a plain \.tar\."):
        read(open_source(str(tmp_path / name)), tmp_path / "work")


@pytest.mark.parametrize(
    "metadata",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"n": ' + b"9" * 100_000 + b"}",
        b'{"s": "' + b"s" * 2_000_000 + b'"}',
        b"[1, 2]",
        b"\xff\xfe",
        b"",
    ],
    ids=["lists", "objects", "number", "string", "no object", "no text", "nothing"],
)
def test_metadata_made_to_harm_costs_its_sample(tmp_path: Path, metadata: bytes) -> None:
    members: list[Member] = [
        *sample("good", 1, n=1),
        ("bad.jpg", photo(2)),
        ("bad.json", metadata),
        ("bad.txt", b"a caption"),
        *sample("too", 3, n=2),
    ]
    source = open_source(str(write_tar(tmp_path / "x.tar", members)))
    assert [row["id"] for row in rows(source, tmp_path / "w")] == ["x/good", "x/too"]
    assert [(r.id, r.reason) for r in rejects(source, tmp_path / "w")] == [
        ("x/bad", "malformed_record")
    ]


# JSON


def hostile_records() -> dict[str, bytes]:
    """Records that are JSON and no good, as their text."""

    def with_value(value: str) -> bytes:
        turns = '[{"from": "human", "value": %s}, {"from": "gpt", "value": "a cat"}]'
        shown = '{"id": "bad", "image": "good.jpg", "conversations": ' + turns % value + "}"
        return shown.encode()

    deep = "[" * 20_000 + "]" * 20_000
    return {
        "deep turn": with_value(deep),
        "deep field": b'{"id": "bad", "image": "bad.jpg", "caption": ' + deep.encode() + b"}",
        "deep image": b'{"id": "bad", "caption": "c", "image": ' + deep.encode() + b"}",
        "long number": with_value("9" * 10_000),
        "long caption": json.dumps(record("bad", "good.jpg", "long " * 1_000_000)).encode(),
        "infinite": b'{"id": 1e999999, "image": 1e999999, "caption": -1e999999}',
    }


@pytest.mark.parametrize("kind", ["pairs.jsonl", "pairs.json"])
@pytest.mark.parametrize("bomb", hostile_records())
def test_a_record_made_to_harm_costs_itself(tmp_path: Path, bomb: str, kind: str) -> None:
    records = [json.dumps(record("good")).encode(), hostile_records()[bomb]]
    records.append(json.dumps(record("good too", "good.jpg")).encode())
    path = tmp_path / kind
    path.write_bytes(
        b"\n".join(records) if kind.endswith("l") else b"[" + b",\n".join(records) + b"]"
    )
    for source in (open_source(str(path)), InstructionSource(str(path))):
        work = tmp_path / source.identity()["kind"]
        try:
            found = [row["id"] for row in rows(source, work)]
        except InputError as error:  # a list is one text, which a number without end spoils
            assert kind == "pairs.json"
            assert bomb in ("long number", "infinite")
            assert "pairs.json is damaged JSON" in str(error)
            continue
        assert found == ["good", "good too"]
        assert [r.reason for r in rejects(source, work)] == ["malformed_record"]


def test_a_line_without_end_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aligncurate.sources.json_records._MAX_LINE", 10_000)
    good = json.dumps(record("good"))
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{good}\n{{"id": "{"x" * 35_000}"}}\n{good.replace("good", "too")}\n')
    source = open_source(str(path))
    assert [row["id"] for row in rows(source, tmp_path)] == ["good", "too"]
    assert [(r.reason, r.detail) for r in rejects(source, tmp_path)] == [
        ("malformed_record", "line 2 is longer than 10,000 bytes")
    ]


# Parquet


@pytest.mark.timeout(120)
def test_a_wrong_footer_is_one_sentence(tmp_path: Path) -> None:
    columns = {"image": [photo(i) for i in range(8)], "caption": ["c"] * 8, "n": range(8)}
    path = write_parquet(tmp_path / "in.parquet", columns, row_group_size=4)
    other = write_parquet(tmp_path / "other.parquet", {"image": [b"x"], "caption": ["y"]})
    whole, foreign = path.read_bytes(), other.read_bytes()
    length = struct.unpack("<I", whole[-8:-4])[0]
    body, footer = whole[: -8 - length], whole[-8 - length : -8]
    foreign_tail = foreign[-8 - struct.unpack("<I", foreign[-8:-4])[0] :]
    tails = [
        footer + struct.pack("<I", 2**32 - 1) + b"PAR1",
        footer + struct.pack("<I", 0) + b"PAR1",
        footer + struct.pack("<I", length // 2) + b"PAR1",
        footer[::-1] + struct.pack("<I", length) + b"PAR1",
        footer + struct.pack("<I", length) + b"PARE",
        foreign_tail,
    ]
    rng = random.Random(3)
    for _ in range(60):
        bent = bytearray(footer)
        for _ in range(rng.randrange(1, 4)):
            bent[rng.randrange(len(bent))] = rng.randrange(256)
        tails.append(bytes(bent) + struct.pack("<I", length) + b"PAR1")
    refused = 0
    for number, tail in enumerate(tails):
        path.write_bytes(body + tail)
        try:
            read(open_source(str(path)), tmp_path / f"work{number}")
        except AlignError as error:
            refused += 1
            assert "in.parquet" in str(error)
            assert "\n" not in str(error)
    assert refused >= 6


# Ids


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl", "tar"])
def test_ten_thousand_equal_ids_are_one_pair(tmp_path: Path, kind: str) -> None:
    count = 10_000
    if kind == "parquet":
        columns: dict[str, Any] = {"id": ["same"] * count, "path": ["a.jpg"] * count}
        path = write_parquet(tmp_path / "in.parquet", columns | {"caption": ["c"] * count})
    elif kind == "tar":
        path = write_tar(tmp_path / "in.tar", [("same.jpg", b"picture"), ("same.txt", b"text")])
        path.write_bytes(path.read_bytes()[:2048] * count + bytes(1024))
    else:
        records = [record("same")] * count
        path = write_llava(tmp_path, records, {})
        if kind == "jsonl":
            path = tmp_path / "pairs.jsonl"
            path.write_text("\n".join(map(json.dumps, records)))
    source = open_source(str(path))
    units = source.plan(Storage(tmp_path / "work"), None)
    batches = [batch for unit in units for batch in source.read(unit, 512)]
    assert sum(batch.table.num_rows for batch in batches) == 1
    assert Counter(r.reason for b in batches for r in b.rejects) == {"duplicate_id": count - 1}


def test_a_picture_in_a_tar_that_claims_too_much_is_a_reject(
    score_input: Score, tmp_path: Path
) -> None:
    from tests.curation.pictures import png_that_claims

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as inner:  # a tar in a tar, called a picture
        inner.addfile(tarfile.TarInfo("phantom.jpg"))
    members: list[Member] = [
        ("bomb.png", png_that_claims(30_000, 30_000)),
        ("bomb.txt", b"a bomb"),
        ("nested.jpg", buffer.getvalue()),
        ("nested.txt", b"a tar"),
        *sample("good", 1),
    ]
    dataset = score_input(write_tar(tmp_path / "in" / "x.tar", members))
    assert ids_of(dataset) == ["x/good"]
    assert rejects_of(dataset) == {"x/bomb": "too_many_pixels", "x/nested": "not_an_image"}
