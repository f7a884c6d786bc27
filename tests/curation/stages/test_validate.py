"""A dataset that keeps the contract passes; each broken promise is a sentence, all are told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aligncurate.checks import rows as rows_module
from aligncurate.checks.problems import LISTED_PER_KIND
from aligncurate.stages.validate import Validation, validate
from alignshared import AlignError, ContractError, InputError, Parent, Reason, Reject, Storage
from alignshared.rejects import REJECT_SCHEMA
from tests.curation.datasets import write_levelled_dataset, write_scored_dataset

SCORES = np.random.default_rng(3).permutation(np.linspace(0.1, 0.4, 40)).astype(np.float32).tolist()
REJECTS = [Reject(f"bad-{i}", f"{i}.png", Reason.MISSING_FILE, "gone") for i in range(3)]

Edit = Callable[[pa.Table], pa.Table]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A levelled dataset of 40 pairs in 3 shards, with 3 rejects."""
    write_levelled_dataset(tmp_path / "bucket", SCORES, rejects=REJECTS)
    return tmp_path / "bucket"


def texts(found: Validation) -> list[str]:
    return [problem.text for problem in found.problems]


def only_problem(folder: Path) -> str:
    found = validate(folder)
    assert not found.ok
    assert found.problem_count == 1, texts(found)
    (text,) = texts(found)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def edit_manifest(folder: Path, **fields: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def listed(folder: Path, kind: str = "shards") -> list[dict[str, Any]]:
    return json.loads((folder / "manifest.json").read_text())[kind]


def rewrite(folder: Path, edit: Edit, *, index: int = 0, kind: str = "shards") -> None:
    """Replace a shard by an edited one that the manifest lists rightly: only its rows are wrong."""
    infos = listed(folder, kind)
    path = folder / infos[index]["file"]
    table = edit(pq.read_table(path))
    pq.write_table(table, path)
    digest = Storage(folder).write_bytes(infos[index]["file"], path.read_bytes())
    infos[index] |= {"rows": table.num_rows, "bytes": path.stat().st_size, "sha256": digest}
    fields: dict[str, Any] = {kind: infos}
    if kind == "shards":
        fields["rows"] = sum(info["rows"] for info in infos)
    edit_manifest(folder, **fields)


def with_values(name: str, values: dict[int, Any]) -> Edit:
    """Put `values` into the rows of column `name`."""

    def edit(table: pa.Table) -> pa.Table:
        column = table[name].to_pylist()
        for row, value in values.items():
            column[row] = value
        field = table.schema.field(name)
        at = table.schema.get_field_index(name)
        return table.set_column(at, field, pa.array(column, field.type))

    return edit


def test_a_whole_dataset_passes(folder: Path) -> None:
    progress: list[int] = []
    found = validate(folder, on_progress=lambda done, rejects=0: progress.append(done))
    assert found.ok, texts(found)
    assert (found.location, found.stage) == (str(folder), "bucket")
    assert (found.rows, found.rows_listed, found.rejects, found.shards) == (40, 40, 3, 3)
    assert sum(progress) == 40


def test_scored_and_empty_datasets_pass(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path / "scored", SCORES, rejects=REJECTS)
    write_scored_dataset(tmp_path / "empty", [], shards=1)
    for name in ("scored", "empty"):
        assert validate(tmp_path / name).problems == []
    edit_manifest(tmp_path / "empty", shards=[])
    (tmp_path / "empty" / "shard-00000.parquet").unlink()
    assert validate(tmp_path / "empty").problems == []


def test_without_input_the_newest_dataset_is_meant(workdir: Path) -> None:
    write_scored_dataset(workdir / "data" / "demo" / "score", SCORES)
    assert validate().location == str(workdir / "data" / "demo" / "score")


def test_validation_leaves_the_dataset_as_it_was(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    validate(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# What is no dataset at all


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no .*nowhere"):
        validate(tmp_path / "nowhere")


def test_an_unfinished_run_is_called_one(tmp_path: Path) -> None:
    (tmp_path / ".run").mkdir()
    with pytest.raises(ContractError, match=r"unfinished run.*once more"):
        validate(tmp_path)


def test_another_folder_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ContractError, match=r"not a dataset.*manifest\.json"):
        validate(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"{}", b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "bytes", "text", "no fields", "deep"],
)
def test_a_manifest_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ContractError, match=r"manifest\.json in .* is not a manifest"):
        validate(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", "1"),
        ("stage", None),
        ("rows", "40"),
        ("rows", -1),
        ("rejects", {"missing_file": "3"}),
        ("shards", [{"file": 5, "rows": 1, "bytes": 1, "sha256": ""}]),
        ("shards", "shard-00000.parquet"),
        ("reject_shards", None),
        ("config", []),
        ("parents", [{"location": None, "sha256": None}]),
        ("edges", ["0.1"]),
        ("level_statistics", [{"level": "1"}]),
        ("model", "ViT-L-14"),
    ],
)
def test_a_manifest_with_a_field_of_another_type_names_it(
    folder: Path, field: str, value: Any
) -> None:
    edit_manifest(folder, **{field: value})
    with pytest.raises(ContractError, match=field):
        validate(folder)


def test_another_schema_version_says_what_to_do(folder: Path) -> None:
    edit_manifest(folder, schema_version=99)
    with pytest.raises(ContractError, match=r"schema version 99.*upgrade"):
        validate(folder)


# Files


def test_a_missing_shard(folder: Path) -> None:
    (folder / "shard-00001.parquet").unlink()
    assert "shard-00001.parquet is missing" in only_problem(folder)


def test_a_cut_shard_is_one_problem(folder: Path) -> None:
    path = folder / "shard-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    assert "shard-00001.parquet has" in only_problem(folder)
    assert validate(folder).rows == 40 - listed(folder)[1]["rows"]


def test_a_changed_byte_is_found_by_the_checksum(folder: Path) -> None:
    path = folder / "shard-00000.parquet"
    content = bytearray(path.read_bytes())
    content[content.index(b"IHDR") + 30] ^= 1  # inside a picture
    path.write_bytes(content)
    assert "SHA-256" in only_problem(folder)


def test_a_shard_that_is_not_parquet_though_listed_so(folder: Path) -> None:
    infos = listed(folder)
    digest = Storage(folder).write_bytes(infos[2]["file"], b"no Parquet at all")
    infos[2] |= {"bytes": 17, "sha256": digest}
    edit_manifest(folder, shards=infos)
    assert "shard-00002.parquet cannot be read" in only_problem(folder)


def test_a_shard_outside_the_folder_is_not_read(folder: Path) -> None:
    infos = listed(folder)
    infos[0]["file"] = "../elsewhere.parquet"
    shutil.move(folder / "shard-00000.parquet", folder.parent / "elsewhere.parquet")
    edit_manifest(folder, shards=infos)
    assert "leaves the folder" in only_problem(folder)


def test_a_shard_that_is_listed_twice_is_read_once(folder: Path) -> None:
    infos = listed(folder)
    edit_manifest(folder, shards=[*infos, infos[0]], rows=40 + infos[0]["rows"])
    assert "lists shard-00000.parquet twice" in only_problem(folder)


@pytest.mark.parametrize("name", ["shard-00003.parquet", "notes.txt", "rejects/more.parquet"])
def test_a_file_that_the_manifest_does_not_list(folder: Path, name: str) -> None:
    shutil.copy(folder / "shard-00000.parquet", folder / name)
    assert only_problem(folder).startswith(f"{name} lies in the folder")


def test_what_a_run_left_is_told_apart(folder: Path) -> None:
    (folder / ".run").mkdir()
    (folder / ".run" / "config.json").write_text("{}")
    assert only_problem(folder) == (
        ".run/config.json was left by the run that wrote the dataset; delete it."
    )


def test_a_shard_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(storage: Storage, name: str) -> Any:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(Storage, "open", refuse)
    monkeypatch.setattr(
        Storage, "read_bytes", lambda storage, name: Path(storage.path(name)).read_bytes()
    )
    told = texts(validate(folder))
    assert len(told) == 4
    assert all("cannot be read" in text for text in told)


# Columns and rows


def test_a_column_too_few_in_one_shard(folder: Path) -> None:
    rewrite(folder, lambda table: table.drop_columns(["caption"]), index=1)
    assert "shard-00001.parquet" in (text := only_problem(folder))
    assert "lacks caption" in text


def test_a_column_too_few_in_every_shard(folder: Path) -> None:
    for index in range(3):
        rewrite(folder, lambda table: table.drop_columns(["level"]), index=index)
    assert "no column level" in texts(validate(folder))[0]


def test_a_column_of_another_type(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path, SCORES, shards=1)

    def as_double(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index("score")
        return table.set_column(at, "score", table["score"].cast(pa.float64()))

    rewrite(tmp_path, as_double)
    assert only_problem(tmp_path).startswith("column score has type double")


def test_columns_of_the_source_are_welcome(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path, SCORES, shards=1)
    rewrite(tmp_path, lambda t: t.append_column("url", pa.array(["u"] * t.num_rows)))
    assert validate(tmp_path).ok


def test_a_shard_with_more_rows_than_listed(folder: Path) -> None:
    infos = listed(folder)
    infos[1]["rows"] -= 1
    edit_manifest(folder, shards=infos, rows=39)
    assert "shard-00001.parquet has" in (text := only_problem(folder))
    assert f"{infos[1]['rows']} " not in text.split("and")[0]


def test_shards_that_do_not_add_up(folder: Path) -> None:
    edit_manifest(folder, rows=41)
    assert "41 rows" in only_problem(folder)


def test_rows_and_rejects_are_as_many_as_came_in(tmp_path: Path) -> None:
    parent = write_scored_dataset(tmp_path / "score", [*SCORES, 0.5], shards=2)
    write_levelled_dataset(tmp_path / "bucket", SCORES, parent=parent)
    assert "41 rows came in" in only_problem(tmp_path / "bucket")
    shutil.rmtree(tmp_path / "bucket")
    lost = [Reject("x", None, Reason.NON_FINITE_SCORE, "the score is NaN")]
    write_levelled_dataset(tmp_path / "bucket", SCORES, parent=parent, rejects=lost)
    assert validate(tmp_path / "bucket").ok


def test_a_parent_that_is_gone_or_changed_tells_nothing(tmp_path: Path) -> None:
    parents = [Parent(str(tmp_path / "gone"), "ab" * 32)]
    write_scored_dataset(tmp_path / "score", SCORES, parents=parents)
    assert validate(tmp_path / "score").ok


# Ids


def test_an_id_that_occurs_in_two_shards(tmp_path: Path) -> None:
    names = [f"pair-{i}" for i in range(40)]
    names[35] = "pair-2"
    write_scored_dataset(tmp_path, SCORES, ids=names, shards=4)
    assert only_problem(tmp_path) == (
        "id 'pair-2' occurs twice, in row 2 of shard-00000.parquet and row 5 of "
        "shard-00003.parquet; ids must be unique."
    )


def test_many_repeated_ids_are_counted(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path, SCORES, ids=[f"pair-{i % 10}" for i in range(40)])
    told = texts(validate(tmp_path))
    assert "id 'pair-0' occurs 4 times, first in row 0" in told[0]
    assert told[-1].startswith("10 ids in all occur more than once")
    assert len(told) == LISTED_PER_KIND


def test_more_repeats_than_can_be_confirmed_are_at_least_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_MOST_CONFIRMED", 8)
    write_scored_dataset(tmp_path, SCORES, ids=[f"pair-{i % 10}" for i in range(40)])
    assert texts(validate(tmp_path))[-1].startswith("at least 8 ids")


def test_ids_with_the_same_hash_are_not_the_same_id(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_hash(ids: pa.Array) -> np.ndarray:
        return np.full(len(ids), 7, dtype=np.uint64)

    monkeypatch.setattr(rows_module, "hash_ids", one_hash)
    assert validate(folder).ok
    rewrite(folder, with_values("id", {0: "pair-0030"}))
    assert "'pair-0030' occurs twice" in only_problem(folder)


def test_ids_are_compared_beyond_what_fits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligncurate.core.idhash._IN_MEMORY", 4)
    monkeypatch.setattr(rows_module, "_BATCH_ROWS", 3)
    write_scored_dataset(tmp_path, SCORES, ids=["same", *map(str, range(38)), "same"])
    assert "'same' occurs twice" in only_problem(tmp_path)


def test_a_pair_without_an_id(folder: Path) -> None:
    rewrite(folder, with_values("id", {4: None}))
    assert only_problem(folder) == (
        "shard-00000.parquet has 1 row with no id: row 4 (its id is null)."
    )


def test_an_id_that_is_not_utf8(folder: Path) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        raw = table["id"].cast(pa.binary()).to_pylist()
        raw[1] = b"pair-\xff"
        spoiled = pa.array(raw, pa.binary()).view(pa.string())
        return table.set_column(0, table.schema.field("id"), spoiled)

    rewrite(folder, spoil)
    assert "1 row with an id that is not UTF-8: row 1" in only_problem(folder)


# Scores and levels


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_none(tmp_path: Path, bad: float | None) -> None:
    write_scored_dataset(tmp_path, [*SCORES, bad, bad])
    text = only_problem(tmp_path)
    assert "2 rows with a score that is null, NaN or infinite" in text
    assert "(id 'pair-0040') is the first" in text


def test_a_score_beyond_one(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path, [*SCORES, 1.00001, -1.00001], shards=1)
    assert validate(tmp_path).ok
    rewrite(tmp_path, with_values("score", {3: 1.2}))
    assert "a score outside -1 to 1: row 3" in only_problem(tmp_path)


def test_a_level_that_the_edges_do_not_give(folder: Path) -> None:
    level = pq.read_table(folder / "shard-00000.parquet")["level"][5].as_py()
    rewrite(folder, with_values("level", {5: level % 4 + 1}))
    told = texts(validate(folder))
    assert "another level than the edges give the score: row 5 (id 'pair-0005')" in told[0]
    assert any("the count of level" in text for text in told[1:])


@pytest.mark.parametrize("bad", [0, 5, -1, None])
def test_a_level_that_there_is_none(folder: Path, bad: int | None) -> None:
    rewrite(folder, with_values("level", {0: bad}))
    assert "a level that is not one of 1 to 4: row 0" in texts(validate(folder))[0]


@pytest.mark.parametrize(("name", "value"), [("count", 9), ("mean", 0.2), ("max", 0.9)])
def test_statistics_that_the_rows_do_not_have(folder: Path, name: str, value: float) -> None:
    path = folder / "levels.json"
    data = json.loads(path.read_text())
    data["statistics"][1][name] = value
    path.write_text(json.dumps(data))
    edit_manifest(folder, level_statistics=data["statistics"])
    assert f"the {name} of level 2 is {value}" in only_problem(folder)


def test_a_levels_file_that_says_something_else(folder: Path) -> None:
    path = folder / "levels.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"edges": [0.1, 0.2, 0.3]}))
    assert "levels.json and the manifest differ in edges" in only_problem(folder)
    path.write_text("{")
    assert "levels.json cannot be read" in only_problem(folder)
    path.unlink()
    assert "levels.json is missing" in only_problem(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"edges": [0.3, 0.2, 0.1]}, "cannot be"),
        ({"edges": [float("nan"), 0.2, 0.3]}, "cannot be"),
        ({"edges": [10**400, 0.2, 0.3]}, "cannot be"),
        ({"edges": None}, "has not all of edges"),
        ({"scheme": "guess"}, "unknown scheme"),
        ({"level_statistics": []}, "other levels than the 4"),
    ],
)
def test_edges_that_cannot_be(folder: Path, fields: dict[str, Any], said: str) -> None:
    edit_manifest(folder, **fields)
    assert any(said in text for text in texts(validate(folder)))


# Rejects


def test_rejects_are_counted_by_reason(folder: Path) -> None:
    edit_manifest(folder, rejects={"missing_file": 2, "no_caption": 1})
    assert texts(validate(folder)) == [
        "the manifest says 2 rejects for missing_file, but rejects/ holds 3; write the dataset "
        "again.",
        "the manifest says 1 rejects for no_caption, but rejects/ holds 0; write the dataset "
        "again.",
    ]


def test_a_reject_file_that_is_damaged_or_gone(folder: Path) -> None:
    path = folder / "rejects" / "shard-00000.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert "rejects/shard-00000.parquet has" in only_problem(folder)
    path.unlink()
    assert "rejects/shard-00000.parquet is missing" in only_problem(folder)


def test_a_reason_that_is_none(folder: Path) -> None:
    edit_manifest(folder, rejects={"missing_file": 2, "ugly": 1})
    rewrite(folder, with_values("reason", {0: "ugly"}), kind="reject_shards")
    assert "'ugly' is no reason" in only_problem(folder)


def test_reject_files_have_the_columns_of_rejects(folder: Path) -> None:
    rewrite(folder, lambda table: table.drop_columns(["detail"]), kind="reject_shards")
    assert ", ".join(REJECT_SCHEMA.names[:1]) in only_problem(folder)


# All of them


def test_it_goes_on_after_a_problem_and_tells_them_all(folder: Path) -> None:
    (folder / "shard-00000.parquet").unlink()
    (folder / "shard-00002.parquet").write_bytes(b"")
    (folder / "stray").write_text("x")
    rewrite(folder, with_values("score", {0: float("nan"), 1: 7.0}), index=1)
    (folder / "levels.json").unlink()
    edit_manifest(folder, rejects={"missing_file": 4})
    kinds = [problem.kind for problem in validate(folder).problems]
    assert kinds == ["files"] * 3 + ["scores"] * 2 + ["levels"] * 2 + ["rejects"]


def test_repeated_problems_are_cut_short_with_a_count(tmp_path: Path) -> None:
    write_scored_dataset(tmp_path, SCORES, shards=20)
    for path in tmp_path.glob("shard-*.parquet"):
        path.unlink()
    found = validate(tmp_path)
    assert found.problem_count == 20
    assert len(found.problems) == LISTED_PER_KIND + 1
    assert texts(found)[-1] == "and 15 more such problems with files."


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_makes_it_stumble(folder: Path, tmp_path: Path, seed: int) -> None:
    """Any file, cut or with bytes changed, is told as a problem or as one sentence."""
    random = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        whole = path.read_bytes()
        damaged = bytearray(whole)
        tail = max(0, len(whole) - 2_500)  # where Parquet keeps its footer
        for at in random.integers(tail, len(whole), 3):
            damaged[at] ^= int(random.integers(1, 256))
        cut = whole[: int(random.integers(len(whole)))]
        path.write_bytes(damaged if random.random() < 0.8 else cut)
        try:
            told = validate(folder)
        except AlignError as error:
            assert path.name == "manifest.json", error
        else:
            assert not told.ok or path.name.endswith(".json")
        path.write_bytes(whole)
    assert validate(folder).ok
