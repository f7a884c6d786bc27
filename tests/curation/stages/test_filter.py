"""`filter` keeps what fulfils all conditions, counts what each drops, and loses nothing else."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from aligncurate import Conditions, bucket, filter, inspect, report, validate
from aligncurate.cli import app
from aligncurate.reporting.inspection import facts, lineage_rows
from aligncurate.stages.filter import condition_counts, count_filter
from alignshared import ContractError, Dataset, InputError
from tests.curation.datasets import (
    cosines,
    files_in,
    replace_rows,
    write_levelled_dataset,
    write_scored_dataset,
)
from tests.curation.inputs import ids_of, rows_of

ROWS = 60
LANGUAGES = ["en", "de", "fr", None]


def mixed(folder: Path) -> Dataset:
    """Scored pairs that differ in all that can be asked for; some values are null."""
    dataset = write_scored_dataset(folder, cosines(ROWS), images=False)
    rows = rows_of(dataset)
    rng = np.random.default_rng(7)
    for i, row in enumerate(rows):
        row["caption"] = "ä" * int(rng.integers(0, 30))
        row["width"], row["height"] = (int(side) for side in rng.integers(10, 400, 2))
        row["language"] = LANGUAGES[i % 4]
        row["tags"] = [None, [], ["a"], ["a", "b"]][i % 4]
        row["origin"] = {"site": f"site-{i % 3}", "rank": i} if i % 5 else None
        row["when"] = None if i % 7 == 0 else i
        row["image_embedding"] = [i / 10, 1.0]
    rows[3]["score"], rows[4]["score"], rows[5]["width"] = None, float("nan"), None
    rows[6]["caption"] = None
    schema = pa.schema(
        [
            *dataset.schema,
            ("language", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("origin", pa.struct([("site", pa.string()), ("rank", pa.int64())])),
            ("when", pa.int64()),
            ("image_embedding", pa.list_(pa.float16(), 2)),
        ]
    )
    # Half-precision is built through float32, which Python's floats become without NumPy.
    table = pa.Table.from_pylist(
        rows, schema.set(len(schema) - 1, pa.field("image_embedding", pa.list_(pa.float32(), 2)))
    ).cast(schema)
    return replace_rows(dataset, table)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return mixed(tmp_path_factory.mktemp("mixed") / "score")


def plain(folder: Path, count: int = 40, **options: Any) -> Dataset:
    """Scores 0/100, 1/100, ... in a mixed order, without pictures."""
    scores = np.random.default_rng(3).permutation(np.arange(count) / 100).astype(np.float32)
    return write_scored_dataset(folder, scores.tolist(), images=False, **options)


def kept_ids(dataset: Dataset, test: Any) -> list[str]:
    return [row["id"] for row in rows_of(dataset) if test(row)]


def shorter(row: dict[str, Any]) -> int:
    return min(row["width"] or 0, row["height"])


# Each condition keeps what Python keeps

CONDITIONS: list[tuple[dict[str, Any], Any]] = [
    ({"min_score": 0.25}, lambda r: r["score"] is not None and r["score"] >= 0.25),
    ({"max_score": 0.25}, lambda r: r["score"] is not None and r["score"] <= 0.25),
    ({"min_size": 100}, lambda r: shorter(r) >= 100),
    (
        {"max_aspect": 1.5},
        lambda r: r["width"] and max(r["width"], r["height"]) / shorter(r) <= 1.5,
    ),
    ({"min_caption": 12}, lambda r: r["caption"] is not None and len(r["caption"]) >= 12),
    ({"max_caption": 12}, lambda r: r["caption"] is not None and len(r["caption"]) <= 12),
    ({"language": "language=en, de"}, lambda r: r["language"] in ("en", "de")),
    ({"where": "score < 0.2 OR language = 'fr'"}, lambda r: below(r, 0.2) or is_french(r)),
    ({"where": "list_contains(tags, 'b')"}, lambda r: "b" in (r["tags"] or [])),
    ({"where": "tags.len() = 1"}, lambda r: len(r["tags"] or []) == 1),
    ({"where": "origin.rank > 30"}, lambda r: (r["origin"] or {"rank": 0})["rank"] > 30),
    ({"where": "origin['site'] = 'site-1'"}, lambda r: (r["origin"] or {}).get("site") == "site-1"),
    (
        {"where": "EXISTS (SELECT 1 FROM unnest(tags) t(tag) WHERE tag = 'a')"},
        lambda r: "a" in (r["tags"] or []),
    ),
    ({"where": '"when" > 20 -- a comment'}, lambda r: (r["when"] or 0) > 20),
    ({"where": '"when" IS NULL'}, lambda r: r["when"] is None),
    ({"where": 'NOT ("when" > 20)'}, lambda r: r["when"] is not None and r["when"] <= 20),
    ({"where": "image_embedding[1] > 2"}, lambda r: r["image_embedding"][0] > 2),
    ({"where": "image.path LIKE '%3.png'"}, lambda r: r["image"]["path"].endswith("3.png")),
    ({"where": "image.bytes IS NULL AND caption <> 'image'"}, lambda r: r["caption"] is not None),
    ({"where": "1 = 1"}, lambda _: True),
]


def below(row: dict[str, Any], score: float) -> bool:
    return row["score"] is not None and row["score"] < score


def is_french(row: dict[str, Any]) -> bool:
    return row["language"] == "fr"


@pytest.mark.parametrize(("given", "test"), CONDITIONS, ids=[str(given) for given, _ in CONDITIONS])
def test_a_condition_keeps_what_fulfils_it(
    tmp_path: Path, source: Dataset, given: dict[str, Any], test: Any
) -> None:
    dataset = filter(Conditions(**given), source.location, tmp_path / "out")
    expected = kept_ids(source, test)
    assert expected
    assert ids_of(dataset) == expected
    (count,) = condition_counts(dataset)
    assert (count.fail, count.fail_only_this) == (ROWS - len(expected), ROWS - len(expected))


def test_conditions_are_anded_and_counted_one_by_one(tmp_path: Path, source: Dataset) -> None:
    tests = [
        lambda row: row["score"] is not None and row["score"] >= 0.22,
        lambda row: shorter(row) >= 60,
        lambda row: row["language"] == "en",
    ]
    wanted = Conditions(min_score=0.22, min_size=60, language="language=en")
    dataset = filter(wanted, source.location, tmp_path / "out")
    fails = [[not test(row) for test in tests] for row in rows_of(source)]
    assert ids_of(dataset) == kept_ids(source, lambda row: all(test(row) for test in tests))
    counts = condition_counts(dataset)
    assert [c.condition for c in counts] == [
        "score >= 0.22", "shorter side >= 60 px", "language in en",
    ]  # fmt: skip
    assert [c.fail for c in counts] == [sum(row[i] for row in fails) for i in range(3)]
    assert [c.fail_only_this for c in counts] == [
        sum(row[i] and sum(row) == 1 for row in fails) for i in range(3)
    ]
    manifest = dataset.manifest
    assert manifest.rows + manifest.left_out + manifest.reject_count == ROWS
    assert manifest.left_out == sum(any(row) for row in fails)


def test_bounds_are_inclusive_and_taken_as_float32(tmp_path: Path) -> None:
    dataset = write_scored_dataset(tmp_path / "score", [0.1, 0.2, 0.3], images=False)
    wanted = Conditions(min_score=0.2, max_score=0.2)
    assert ids_of(filter(wanted, dataset.location)) == ["pair-0001"]


def test_an_aspect_ratio_of_exactly_the_limit_is_kept(tmp_path: Path) -> None:
    dataset = write_scored_dataset(tmp_path / "score", [0.1, 0.2, 0.3], images=False)
    rows = rows_of(dataset)
    for row, sides in zip(rows, [(110, 100), (100, 110), (111, 100)], strict=True):
        row["width"], row["height"] = sides
    replace_rows(dataset, pa.Table.from_pylist(rows, dataset.schema))
    assert ids_of(filter(Conditions(max_aspect=1.1), dataset.location)) == [
        "pair-0000", "pair-0001",
    ]  # fmt: skip


def test_score_bounds_compare_as_float32_scores_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    values = rng.uniform(-1, 1, 60).astype(np.float32)
    near = np.nextafter(values[:20], np.float32(2))
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45], np.float32)
    scores = np.concatenate([values, near, special])
    source = write_scored_dataset(tmp_path / "score", [*scores.tolist(), None], images=False)
    texts = [repr(float(v)) for v in values[:5]] + ["0.2", "0", "-0.0", "1e-45"]
    texts += [str(v) for v in values[5:8]] + ["0.1000000014901161193847656249"]
    for text in texts:
        bound = np.float32(float(text))
        for name, passes in (("min_score", scores >= bound), ("max_score", scores <= bound)):
            expected = [f"pair-{i:04d}" for i in np.flatnonzero(passes)]
            if expected:
                out = tmp_path / f"{name}{text}"
                bound_option: dict[str, Any] = {name: float(text)}
                dataset = filter(Conditions(**bound_option), source.location, out)
                assert ids_of(dataset) == expected, (name, text)


def test_a_language_column_may_have_any_name_and_any_values(tmp_path: Path) -> None:
    dataset = write_scored_dataset(tmp_path / "score", [0.1, 0.2, 0.3, 0.4], images=False)
    table = pa.Table.from_pylist(rows_of(dataset), dataset.schema)
    values = pa.array(["it's", 'a"b', None, "en"])
    for name, column in (('my "tongue"', values), ("select", values.dictionary_encode())):
        table = table.append_column(name, column)
    source = replace_rows(dataset, table)
    for name in ('my "tongue"', "select"):
        given = Conditions(language=f"{name}=it's,a\"b,unknown")
        kept = filter(given, source.location, tmp_path / name[:2])
        assert ids_of(kept) == ["pair-0000", "pair-0001"]


# A dry run


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    source = levelled(tmp_path / "bucket", images=False)
    conditions = Conditions(min_score=0.25, min_caption=17)
    counts = count_filter(conditions, source.location)
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]
    dataset = filter(conditions, source.location)
    assert (counts.rows, counts.kept) == (48, dataset.manifest.rows)
    assert counts.conditions == condition_counts(dataset)
    kept = [row["level"] for row in rows_of(dataset)]
    pairs = [row["level"] for row in rows_of(source)]
    assert counts.levels == [(k, pairs.count(k), kept.count(k)) for k in (4, 3, 2, 1)]


def test_a_dry_run_may_keep_nothing(tmp_path: Path) -> None:
    source = write_scored_dataset(tmp_path / "score", [0.5, None, float("nan"), float("-inf")])
    counts = count_filter(Conditions(min_score=-5), source.location)
    assert (counts.kept, counts.levels) == (1, [])
    assert count_filter(Conditions(min_score=2), source.location).kept == 0


def test_the_command_says_what_a_dry_run_found(tmp_path: Path) -> None:
    source = levelled(tmp_path / "bucket", 40, images=False)
    half = sorted(row["score"] for row in rows_of(source))[20]
    arguments = ["--input", source.location, "--min-score", repr(half), "--dry-run"]
    done = CliRunner().invoke(app, ["filter", *arguments])
    assert done.exit_code == 0, done.output
    assert "dry run: 40 pairs in = 20 kept (50.0\u202f%) + 20 filtered out" in done.stdout
    assert "that fail it alone" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert rows == [["4", "10", "10"], ["3", "10", "10"], ["2", "0", "10"], ["1", "0", "10"]]
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]


# The top share


@pytest.mark.parametrize(("share", "wanted"), [(0.1, 4), (0.11, 5), (1, 40), (0.001, 1)])
def test_the_top_share_is_exact(tmp_path: Path, share: float, wanted: int) -> None:
    dataset = filter(Conditions(top=share), plain(tmp_path / "score").location)
    scores = sorted(row["score"] for row in rows_of(dataset))
    assert scores == (np.arange(40 - wanted, 40) / 100).astype(np.float32).tolist()


def test_equal_scores_stay_together_at_the_cut(tmp_path: Path) -> None:
    scores = [0.1] * 10 + [0.2] * 6 + [0.3] * 4
    source = write_scored_dataset(tmp_path / "score", scores, images=False)
    dataset = filter(Conditions(top=0.25), source.location)
    assert [row["score"] for row in rows_of(dataset)] == np.array(
        [0.2] * 6 + [0.3] * 4, np.float32
    ).tolist()
    assert condition_counts(dataset)[0].condition == (
        "top 0.25: score >= 0.2 (5 wanted, 10 with equal scores)"
    )


def test_the_top_eighth_is_the_eighth_level(tmp_path: Path) -> None:
    levelled = bucket(plain(tmp_path / "score", 333).location, levels=8)
    top = filter(Conditions(top=0.125), levelled.location, tmp_path / "top")
    level = filter(Conditions(levels="8"), levelled.location, tmp_path / "level")
    assert ids_of(top) == ids_of(level)


def test_the_top_is_that_of_all_pairs(tmp_path: Path) -> None:
    wanted = Conditions(top=0.5, max_score=0.3)
    dataset = filter(wanted, plain(tmp_path / "score").location)
    assert (
        sorted(row["score"] for row in rows_of(dataset))
        == np.float32(np.arange(20, 31) / 100).tolist()
    )


# A levelled dataset stays levelled


def levelled(folder: Path, count: int = 48, **options: Any) -> Dataset:
    return write_levelled_dataset(folder, cosines(count), 4, **options)


@pytest.mark.parametrize(
    ("text", "levels"), [("3-4", {3, 4}), ("1,3-4", {1, 3, 4}), (" 2 ", {2}), ("1-4", {1, 2, 3, 4})]
)
def test_levels_are_chosen_by_list_and_range(tmp_path: Path, text: str, levels: set[int]) -> None:
    source = levelled(tmp_path / "bucket", images=False)
    dataset = filter(Conditions(levels=text), source.location)
    assert {row["level"] for row in rows_of(dataset)} == levels
    assert ids_of(dataset) == kept_ids(source, lambda row: row["level"] in levels)


def test_levels_keep_their_edges_and_tell_what_is_left(tmp_path: Path) -> None:
    source = levelled(tmp_path / "bucket")
    dataset = filter(Conditions(levels="2-4", min_caption=17), source.location)
    manifest = dataset.manifest
    assert manifest.stage == "filter"
    assert (manifest.edges, manifest.scheme) == (source.manifest.edges, source.manifest.scheme)
    assert manifest.model == source.manifest.model
    levels = [row["level"] for row in rows_of(dataset)]
    assert manifest.level_statistics is not None
    assert [s.count for s in manifest.level_statistics] == [levels.count(k) for k in range(1, 5)]
    assert sum(s.share for s in manifest.level_statistics) == pytest.approx(1)
    told = json.loads((tmp_path / "filter" / "levels.json").read_text())
    assert told["edges"] == manifest.edges
    assert (
        told["statistics"]
        == json.loads((tmp_path / "filter" / "manifest.json").read_text())["level_statistics"]
    )


def test_it_can_be_validated_inspected_and_reported_on(tmp_path: Path) -> None:
    scored = write_scored_dataset(tmp_path / "score", cosines(16), images=False)
    source = levelled(tmp_path / "bucket", 16, parent=scored, images=False)
    dataset = filter(Conditions(levels="3-4"), source.location)
    assert validate(dataset.location).problems == []
    found = inspect(dataset.location)
    assert ("left out", f"{16 - dataset.manifest.rows:,}") in facts(found)
    assert [location.strip() for location, _ in lineage_rows(found)] == [
        source.location, scored.location,
    ]  # fmt: skip
    assert all(text.endswith("unchanged") for _, text in lineage_rows(found))
    page = Path(report(dataset.location, examples=1).page).read_text()
    assert "filter" in page
    assert source.location in page


def test_validate_sees_rows_that_vanished(tmp_path: Path) -> None:
    dataset = filter(Conditions(min_score=0.2), plain(tmp_path / "score").location)
    path = Path(dataset.location) / "manifest.json"
    path.write_text(path.read_text().replace('"left_out": 20', '"left_out": 19'))
    problems = [str(problem) for problem in validate(dataset.location).problems]
    assert len(problems) == 1
    assert "40 rows came in" in problems[0]
    assert "19 were left out" in problems[0]


def test_new_levels_for_what_is_left(tmp_path: Path) -> None:
    kept = filter(Conditions(min_score=0.2), plain(tmp_path / "score").location)
    dataset = bucket(kept.location, tmp_path / "new", levels=4)
    assert [s.count for s in dataset.manifest.level_statistics or []] == [5, 5, 5, 5]
    assert validate(dataset.location).problems == []


# What is written


def test_columns_and_pictures_pass_through_unchanged(tmp_path: Path) -> None:
    source = write_scored_dataset(tmp_path / "score", cosines(30))
    dataset = filter(Conditions(min_score=0.25), source.location)
    assert dataset.schema.equals(source.schema)
    expected = [row for row in rows_of(source) if row["score"] >= np.float32(0.25)]
    assert rows_of(dataset) == expected


def test_what_little_is_left_of_shards_is_joined(tmp_path: Path) -> None:
    source = plain(tmp_path / "score", 400, shards=40)
    dataset = filter(Conditions(top=0.05), source.location)
    assert dataset.manifest.rows == 20
    shards = dataset.manifest.shards
    assert len(shards) <= 4
    assert max(shard.rows for shard in shards) <= 10
    assert [shard.file for shard in shards] == [
        f"shard-{i:05d}.parquet" for i in range(len(shards))
    ]
    wanted = set(ids_of(dataset))
    assert ids_of(dataset) == kept_ids(source, lambda row: row["id"] in wanted)


def test_row_groups_without_a_row_to_keep_are_passed_over(tmp_path: Path) -> None:
    # Three row groups of pictures; what is kept lies at the ends of the first and the last.
    scores = [0.9, *[0.1] * 598, 0.8]
    source = write_scored_dataset(tmp_path / "score", scores, shards=1)
    shard = source.manifest.shards[0]
    with source.open_shard(shard) as parquet:
        assert parquet.num_row_groups == 3
        damage = parquet.metadata.row_group(1).column(1)
        assert damage.path_in_schema == "image.bytes"
    path = Path(source.location) / shard.file
    content = bytearray(path.read_bytes())
    begin = damage.data_page_offset
    content[begin : begin + 200] = bytes(200)
    path.write_bytes(content)
    dataset = filter(Conditions(min_score=0.5), source.location)
    assert ids_of(dataset) == ["pair-0000", "pair-0599"]
    with pytest.raises(ContractError, match="shard-00000"):
        filter(Conditions(min_score=0.05), source.location, tmp_path / "all")


@pytest.mark.parametrize("wanted", [{"top": 0.3}, {"where": "score > 0.24 AND caption <> 'x'"}])
def test_workers_change_no_byte(tmp_path: Path, wanted: dict[str, Any]) -> None:
    source = levelled(tmp_path / "bucket", 300, shards=7, images=False)
    written: list[dict[str, bytes]] = []
    for workers in (1, 4):
        out = tmp_path / f"filter-{workers}"
        filter(Conditions(**wanted), source.location, out, workers=workers)
        written.append(files_in(out))
    one, four = (json.loads(run.pop("manifest.json")) for run in written)
    assert written[0] == written[1]
    for manifest in (one, four):
        del manifest["created"], manifest["config"]["execution"]["workers"]
    assert one == four


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    source = levelled(tmp_path / "bucket", 300, shards=10, images=False)
    wanted = Conditions(min_score=0.2)
    quiet = filter(wanted, source.location, tmp_path / "quiet", workers=1)
    seen = 0

    def stop_in_the_copy(done: int, rejects: int = 0) -> None:
        nonlocal seen
        seen += done
        if seen > 450:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        filter(wanted, source.location, out, workers=1, on_progress=stop_in_the_copy)
    first = out / "shard-00000.parquet"
    before = first.stat().st_mtime_ns
    assert not (out / "manifest.json").exists()
    with pytest.raises(InputError, match="holds an unfinished run with another configuration"):
        filter(Conditions(min_score=0.3), source.location, out)
    dataset = filter(wanted, source.location, out, workers=1)
    assert first.stat().st_mtime_ns == before
    assert dataset.manifest.shards == quiet.manifest.shards
    assert dataset.manifest.level_statistics == quiet.manifest.level_statistics
    assert validate(out).problems == []


def test_a_finished_run_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = plain(tmp_path / "score")
    first = filter(Conditions(min_score=0.2), source.location)
    with caplog.at_level(logging.INFO, "aligncurate"):
        again = filter(Conditions(min_score=0.2), source.location, workers=3)
    assert "finished already" in caplog.text
    assert again.digest == first.digest
    with pytest.raises(InputError, match=r"min_score is 0\.2 there and 0\.3 here"):
        filter(Conditions(min_score=0.3), source.location)
    other = filter(Conditions(min_score=0.3), source.location, overwrite=True)
    assert other.manifest.rows == 10


# What cannot be


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no condition was given; give at least one of --min-score"),
        ({"min_score": float("nan")}, r"--min-score must be a finite number \(got nan\)"),
        ({"min_score": 0.3, "max_score": 0.2}, "--min-score 0.3 is above --max-score 0.2"),
        ({"min_caption": 5, "max_caption": 4}, "--min-caption 5 is above --max-caption 4"),
        ({"top": 0.0}, r"--top must be above 0 and at most 1 \(got 0\.0\)"),
        ({"top": 1.5}, r"--top must be above 0 and at most 1 \(got 1\.5\)"),
        ({"max_aspect": 0.5}, r"--max-aspect must be at least 1 \(got 0\.5\)"),
        ({"min_size": -1}, r"--min-size must be at least 0 \(got -1\)"),
    ],
)
def test_conditions_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Conditions(**given)


@pytest.mark.parametrize("text", ["0", "5", "3-2", "a", "1,,2", "", "-3", "2-9", "1-2-3", "٣"])
def test_levels_that_are_not_there(tmp_path: Path, text: str) -> None:
    source = levelled(tmp_path / "bucket", images=False)
    with pytest.raises(InputError, match="is no level or range of levels of 1 to 4"):
        filter(Conditions(levels=text), source.location)
    assert not (tmp_path / "filter").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"levels": "1-3"}, "has none; run aligncurate bucket on it first"),
        ({"language": "lang=en"}, "has no column lang"),
        ({"language": "en,de"}, "write COLUMN=en,de"),
        ({"language": "language="}, "write COLUMN=en,de"),
        ({"language": "width=3"}, "is int32, not text; write --where"),
        ({"min_score": 2}, "no pair of .* fulfils score >= 2; nothing was written"),
    ],
)
def test_conditions_that_this_dataset_cannot_fulfil(
    tmp_path: Path, source: Dataset, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        filter(Conditions(**given), source.location, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("scor > 0.2", 'Referenced column "scor" not found .* "score"'),
        ("score >", "syntax error"),
        ("", "--where is empty"),
        ("avg(score) > 0.2", "cannot contain aggregates"),
        ("row_number() OVER () < 9", "cannot contain window functions"),
        ("true; DROP TABLE pairs", "Parser Error"),
        ("true) UNION SELECT (1", "syntax error"),
        ("true ORDER BY score LIMIT 3", "Parser Error"),
        ("score > (SELECT avg(score) FROM pairs)", "Table with name pairs does not exist"),
        ("score > (SELECT count(*) FROM source)", "Table with name source does not exist"),
        ("caption::INT > 3", "Could not convert string"),
        ("random() < 0.5", "uses random, which answers differently each time"),
        ("uuid()::VARCHAR > '8'", "uses uuid"),
        ('"when" < epoch(now())', "uses now"),
        ("current_date > DATE '2020-01-01'", "uses current_date"),
        ("id IN (SELECT content FROM read_text('{file}'))", "Cannot access file"),
        ("(SELECT count(*) FROM '{file}') > 0", "Cannot access file"),
        ("(SELECT count(*) FROM read_csv('{file}')) > 0", "Cannot access file"),
        ("(SELECT count(*) FROM glob('{folder}/*')) > 0", "Cannot access file"),
        ("(COPY (SELECT 1) TO '{folder}/written') IS NULL", "syntax error"),
        ("(ATTACH '{folder}/written') IS NULL", "Error"),
        ("(INSTALL httpfs) IS NULL", "syntax error"),
        ("(SET enable_external_access = true) IS NULL", "syntax error"),
    ],
)
def test_predicates_that_are_refused(
    tmp_path: Path, source: Dataset, sql: str, message: str
) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("id\npair-0001\n")
    given = sql.replace("{file}", str(file)).replace("{folder}", str(tmp_path))
    with pytest.raises(InputError, match=message) as refused:
        filter(Conditions(where=given), source.location, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert "LINE 1" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_the_input_is_not_written_over(tmp_path: Path) -> None:
    source = plain(tmp_path / "score")
    for out in (tmp_path / "score", tmp_path):
        with pytest.raises(InputError, match="is the input or holds it"):
            filter(Conditions(min_score=0.1), source.location, out, overwrite=True)
    assert validate(source.location).problems == []


def test_a_failed_filter_replaces_nothing(tmp_path: Path) -> None:
    source = plain(tmp_path / "score")
    first = filter(Conditions(min_score=0.2), source.location)
    with pytest.raises(InputError, match="no pair"):
        filter(Conditions(min_score=2), source.location, overwrite=True)
    assert Dataset(tmp_path / "filter").digest == first.digest


# On the command line


def test_the_command_prints_the_share_and_what_each_condition_drops(workdir: Path) -> None:
    write_scored_dataset(workdir / "data" / "mine" / "score", [0.1, 0.20315, 0.2032, 0.3])
    told = CliRunner().invoke(app, ["filter", "--min-score", "0.20315", "--max-score", "0.29"])
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    share = "50.0\N{NARROW NO-BREAK SPACE}%"
    assert lines[0] == (
        f"data/mine/filter: 4 pairs in = 2 kept ({share}) + 2 filtered out + 0 rejects"
    )
    assert [line.split() for line in lines[2:]] == [
        ["score", ">=", "0.20315", "1", "1"],
        ["score", "<=", "0.29", "1", "1"],
    ]
    shown = CliRunner().invoke(app, ["validate"])  # the newest dataset is the filtered one
    assert "data/mine/filter keeps the contract: 2 pairs" in shown.stdout
    again = CliRunner().invoke(app, ["filter", "--min-score", "0.20315", "--max-score", "0.29"])
    assert again.stdout == told.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["--where", "nonsense("], ["--levels", "3"], ["--workers", "0", "--top", "1"]]
)
def test_wrong_arguments_are_one_sentence(workdir: Path, arguments: list[str]) -> None:
    write_scored_dataset(workdir / "data" / "mine" / "score", [0.1, 0.2], images=False)
    told = CliRunner().invoke(app, ["filter", *arguments])
    assert told.exit_code == 2
    assert told.stderr.count("error: ") == 1
    assert not (workdir / "data" / "mine" / "filter").exists()
