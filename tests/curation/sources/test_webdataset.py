"""WebDataset tars as a source: img2dataset's own, and others."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligncurate import Execution, score
from aligncurate.sources import open_source
from aligncurate.sources.listing import expand_braces
from alignshared import InputError, Storage
from tests.curation.inputs import ids_of, read, rejects, rows, rows_of, write_parquet
from tests.curation.pictures import encoded, noise, photo
from tests.curation.stores import Store
from tests.curation.tars import good_tar, sample, write_tar

WRITTEN_BY_IMG2DATASET = Path(__file__).parents[1] / "data" / "img2dataset"
LOCAL = Execution(engine="local", workers=1)


def test_what_img2dataset_writes_is_read(tmp_path: Path, tiny_clip: str) -> None:
    dataset = score(WRITTEN_BY_IMG2DATASET, tmp_path / "out", model=tiny_clip, execution=LOCAL)
    table = pq.read_table([f"{dataset.location}/{s.file}" for s in dataset.manifest.shards])
    # Its own list of what it did, which the source does not read.
    parts = [pq.read_table(file) for file in sorted(WRITTEN_BY_IMG2DATASET.glob("*.parquet"))]
    told = {row["key"]: row for row in pa.concat_tables(parts).to_pylist()}
    done = {key for key, row in told.items() if row["status"] == "success"}
    assert (dataset.manifest.rows, dataset.manifest.reject_count, len(done)) == (7, 0, 7)
    for row in table.to_pylist():
        tar, _, key = row["id"].partition("/")
        assert tar == f"{int(key) // 10:05d}"
        assert row["image"]["path"] == f"{key}.jpg"
        for name in ("caption", "url", "similarity", "license", "nsfw", "sha256"):
            assert row[name] == told[key][name], name
        assert row["original_width"] == told[key]["original_width"]
    assert set(table["key"].to_pylist()) == done
    assert table.schema.field("similarity").type == pa.float64()
    assert table.schema.field("nsfw").type == pa.bool_()
    assert table.schema.field("original_width").type == pa.int64()
    assert table.schema.field("error_message").type == pa.string()


def test_pictures_are_read_byte_for_byte_in_any_order_and_format(tmp_path: Path) -> None:
    webp = encoded(noise(3), "WEBP")
    members = [
        ("a/1.txt", b"one"),
        ("a/2.txt", b"two"),
        ("./a/1.PNG", encoded(noise(1))),
        ("a/2.webp", webp),
        ("a/2.cls", b"7"),
        ("a/2.mask.png", photo(9)),
        ("README", b"no part of a sample"),
        ("a/._1.jpg", b"a Macintosh was here"),
    ]
    source = open_source(str(write_tar(tmp_path / "x.tar", members)))
    found = rows(source, tmp_path)
    assert [(r["id"], r["caption"]) for r in found] == [("x/a/1", "one"), ("x/a/2", "two")]
    assert found[0]["image"] == {"bytes": encoded(noise(1)), "path": "a/1.PNG"}
    assert found[1]["image"] == {"bytes": webp, "path": "a/2.webp"}
    assert not rejects(source, tmp_path)


def test_an_id_in_the_metadata_is_the_id_and_only_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*sample("1", 1, id="x"), *sample("2", 2, id="y")])
    write_tar(tmp_path / "b.tar", [*sample("1", 3, id="y"), *sample("2", 4, id=7)])
    source = open_source(str(tmp_path))
    assert [row["id"] for row in rows(source, tmp_path / "work")] == ["x", "y", "b/2"]
    (reject,) = rejects(source, tmp_path / "work")
    assert (reject.id, reject.reason.value) == ("y", "duplicate_id")


def test_a_caption_may_stand_in_the_metadata(tmp_path: Path) -> None:
    members = [("1.jpg", photo(1)), ("1.json", b'{"caption": "from the JSON", "n": 1}')]
    (row,) = rows(open_source(str(write_tar(tmp_path / "x.tar", members))), tmp_path)
    assert (row["caption"], row["n"]) == ("from the JSON", 1)


def test_columns_have_the_type_that_holds_all_values_of_all_tars(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [
        {"n": 1, "x": 1, "mixed": 1, "big": 1, "tags": ["a"], "width": 5, "late": None},
        {"n": None, "x": 0.5, "mixed": "two", "big": 2**70, "tags": [], "id": "mine"},
        {"n": 3, "mixed": [3], "late": True, "x": None},
    ]
    for n, fields in enumerate(values):
        write_tar(tmp_path / "in" / f"{n}.tar", sample("k", n, **fields))
    source = open_source(str(tmp_path / "in"))
    batches = read(source, tmp_path / "work")
    table = pa.concat_tables(batch.table for batch in batches)
    assert source.own_columns() == pa.schema(
        [("n", pa.int64()), ("x", pa.float64()), ("mixed", pa.string()), ("big", pa.string()),
         ("late", pa.bool_())]
    )  # fmt: skip
    assert table["n"].to_pylist() == [1, None, 3]
    assert table["x"].to_pylist() == [1.0, 0.5, None]
    assert table["mixed"].to_pylist() == ["1", "two", "[3]"]
    assert table["big"].to_pylist() == ["1", str(2**70), None]
    assert table["late"].to_pylist() == [None, None, True]


def test_units_cut_inside_a_tar_are_read_alone_and_together_are_the_tars(tmp_path: Path) -> None:
    for name in ("00000", "00001"):
        good_tar(tmp_path / "in" / f"{name}.tar", 5, n=1)
    source = open_source(str(tmp_path / "in"))
    units = source.plan(Storage(tmp_path / "work"), 2)
    assert [unit.rows for unit in units] == [2, 2, 1, 2, 2, 1]
    last = [batch.table["id"].to_pylist() for batch in source.read(units[4], 64)]
    assert last == [["00001/000000002", "00001/000000003"]]
    ids = [id_ for u in units for b in source.read(u, 1) for id_ in b.table["id"].to_pylist()]
    assert ids == [f"{tar}/{n:09d}" for tar in ("00000", "00001") for n in range(5)]


def test_tars_are_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good_tar(tmp_path / "in" / "0.tar", 3, n=1)
    work = Storage(tmp_path / "work")
    first = open_source(str(tmp_path / "in"))
    units = first.plan(work, None)
    monkeypatch.setattr("aligncurate.sources.webdataset.index_tar", None)
    again = open_source(str(tmp_path / "in"))
    assert again.plan(work, None) == units
    assert again.own_columns() == first.own_columns()
    assert again.identity() == first.identity()


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("00000.tar", ["00000"]),
        ("", ["00000", "00001", "00002"]),
        ("*.tar", ["00000", "00001", "00002"]),
        ("0000[12].tar", ["00001", "00002"]),
        ("0000[!12].tar", ["00000"]),
        ("0000?.tar", ["00000", "00001", "00002"]),
        ("{00001..00002}.tar", ["00001", "00002"]),
        ("{00002,00000}.tar", ["00000", "00002"]),
    ],
)
@pytest.mark.parametrize("remote", [False, True], ids=["disk", "store"])
def test_files_folders_globs_and_braces(
    tmp_path: Path, request: pytest.FixtureRequest, remote: bool, where: str, ids: list[str]
) -> None:
    for n in range(3):
        good_tar(tmp_path / "in" / f"{n:05d}.tar", 1)
        write_parquet(tmp_path / "in" / f"{n:05d}.parquet", {"url": ["x"]})
    location = str(tmp_path / "in")
    if remote:
        store: Store = request.getfixturevalue("s3")
        location = store.put_folder(tmp_path / "in", "tars/in")
    source = open_source(f"{location}/{where}" if where else location)
    found = rows(source, tmp_path / "work")
    assert [row["id"] for row in found] == [f"{id_}/000000000" for id_ in ids]


def test_tars_of_one_name_in_two_folders_keep_their_ids_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        good_tar(tmp_path / "in" / folder / "0.tar", 1)
    found = rows(open_source(str(tmp_path / "in" / "*" / "0.tar")), tmp_path / "work")
    assert [row["id"] for row in found] == ["a/0/000000000", "b/0/000000000"]


def test_many_names_in_braces_are_looked_up_in_one_listing(tmp_path: Path, s3: Store) -> None:
    for n in range(20):
        s3.put(f"tars/{n:05d}.tar", good_tar(tmp_path / "x.tar", 1).read_bytes())
    source = open_source(s3.uri("tars/{00000..00019}.tar"))
    assert len(source.plan(Storage(tmp_path / "work"), None)) == 20
    with pytest.raises(InputError, match=r"there is no 00020\.tar in s3://"):
        open_source(s3.uri("tars/{00000..00020}.tar"))


def test_braces_are_expanded_as_shells_do() -> None:
    assert expand_braces("{08..10}/{a,b}.tar") == [
        f"{n}/{x}.tar" for n in ("08", "09", "10") for x in "ab"
    ]
    assert expand_braces("plain{x}.tar") == ["plain{x}.tar"]
    with pytest.raises(InputError, match="names more than 1,000,000 files"):
        expand_braces("{0..9999999}.tar")
    with pytest.raises(InputError, match="names more than 1,000,000 files"):
        expand_braces("{0..9999}{0..9999}.tar")


def test_scoring_tars_in_a_store_gives_what_tars_on_disk_give(
    s3: Store, tmp_path: Path, tiny_clip: str
) -> None:
    good_tar(tmp_path / "in" / "00000.tar", 4, n=1)
    s3.put_folder(tmp_path / "in", "in")
    on_disk = score(tmp_path / "in", tmp_path / "out", model=tiny_clip, execution=LOCAL)
    stored = score(s3.uri("in"), s3.uri("out"), model=tiny_clip, execution=LOCAL)
    assert len(ids_of(stored)) == 4
    assert rows_of(stored) == rows_of(on_disk)
    assert stored.manifest.shards == on_disk.manifest.shards


def test_more_fields_than_a_table_should_have_columns_are_cut_to_the_commonest(
    tmp_path: Path,
) -> None:
    members = [m for n in range(3) for m in sample(str(n), n, common=n, **{f"rare{n}": 1})]
    many = {f"f{n}": n for n in range(300)}
    members += [("z.jpg", photo(1)), ("z.json", json.dumps(many).encode()), ("z.txt", b"z")]
    source = open_source(str(write_tar(tmp_path / "x.tar", members)))
    assert len(rows(source, tmp_path)) == 4
    names = source.own_columns().names
    assert len(names) == 256
    assert {"common", "rare0", "rare2", "f251"} <= set(names)
    assert "f252" not in names


def test_a_tar_that_changes_under_a_run_is_one_sentence(tmp_path: Path) -> None:
    path = good_tar(tmp_path / "x.tar", 4)
    source = open_source(str(path))
    units = source.plan(Storage(tmp_path / "work"), None)
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(InputError, match=r"x\.tar has changed since the run began"):
        list(source.read(units[0], 64))
    path.unlink()
    with pytest.raises(InputError, match=r"no x\.tar in"):
        list(source.read(units[0], 64))
