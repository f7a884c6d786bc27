"""The demo's pairs, test images and conversations: what they say, and what nothing has seen."""

import io
import json
import random
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aligncurate.stages.ingest import ingest
from alignshared.demo import further_path, held_out_path, pairs_path
from aligntrain.data.dataset import ShardedDataset
from aligntrain.data.index import read_index

Row = dict[str, Any]
MOST_BYTES = 8_000_000


@pytest.fixture(scope="module")
def scripts(repository: Path) -> dict[str, ModuleType]:
    """The scripts by name, as Python runs them: what lies beside them can be imported."""
    names = ("build_instructions", "build_pairs", "captions", "concepts", "conversations", "split")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "pipelines/demo_data"))
        return {name: import_module(name) for name in names}


@pytest.fixture(scope="module")
def script(scripts: dict[str, ModuleType]) -> Any:
    return scripts["build_instructions"]


@pytest.fixture(scope="module")
def pairs() -> list[Row]:
    return pq.read_table(pairs_path()).to_pylist()


@pytest.fixture(scope="module")
def held_out() -> list[Row]:
    return pq.read_table(held_out_path()).to_pylist()


@pytest.fixture(scope="module")
def drawings(script: Any) -> list[Any]:
    return script.read_drawings(pairs_path())


@pytest.fixture(scope="module")
def further(script: Any) -> list[Any]:
    return script.read_drawings(further_path())


@pytest.fixture(scope="module")
def known(script: Any, held_out: list[Row]) -> list[Any]:
    return _test_drawings(script, held_out, unseen=False)


@pytest.fixture(scope="module")
def unseen(script: Any, held_out: list[Row]) -> list[Any]:
    return _test_drawings(script, held_out, unseen=True)


@pytest.fixture(scope="module")
def records(script: Any, drawings: list[Any], further: list[Any]) -> list[Row]:
    return script.instructions(drawings, further, 0)


def _test_drawings(script: Any, held_out: list[Row], *, unseen: bool) -> list[Any]:
    wanted = {row["id"] for row in held_out if row["unseen"] == unseen}
    return [drawing for drawing in script.read_drawings(held_out_path()) if drawing.id in wanted]


def exchanges(records: list[Row]) -> list[tuple[int, str, str]]:
    """Place in its conversation, question and answer of every exchange."""
    found: list[tuple[int, str, str]] = []
    for record in records:
        said = [turn["value"] for turn in record["conversations"]]
        for place, (question, answer) in enumerate(zip(said[::2], said[1::2], strict=True)):
            found.append((place, question.removeprefix("<image>\n"), answer))
    return found


# The pairs


def test_kinds_of_caption_have_their_shares(scripts: dict[str, Any], pairs: list[Row]) -> None:
    counts = Counter(row["caption_kind"] for row in pairs)
    shares = scripts["build_pairs"].SHARES
    assert sum(shares.values()) == pytest.approx(1)
    assert {kind: count / len(pairs) for kind, count in counts.items()} == {
        kind: pytest.approx(share, abs=0.02) for kind, share in shares.items()
    }
    assert all(row["mismatched"] == (row["caption_kind"] == "mismatch") for row in pairs)


def test_every_drawing_has_its_captions_side_by_side(
    scripts: dict[str, Any], pairs: list[Row]
) -> None:
    vendors = scripts["split"].TRAIN_STYLES
    captions = scripts["build_pairs"].CAPTIONS
    drawn = {(row["vendor"], row["concept"]) for row in pairs}
    concepts = {row["concept"] for row in pairs}
    assert drawn == {(vendor, concept) for vendor in vendors for concept in concepts}
    assert len(pairs) == captions * len(drawn)
    assert len({row["id"] for row in pairs}) == len(pairs)
    of_one = [pairs[first : first + captions] for first in range(0, len(pairs), captions)]
    assert all(len({(row["vendor"], row["concept"]) for row in rows}) == 1 for rows in of_one)
    assert all(len({row["image"]["bytes"] for row in rows}) == 1 for rows in of_one)
    # Drawn independently: many a drawing has several kinds.
    kinds = Counter(len({row["caption_kind"] for row in rows}) for rows in of_one)
    assert kinds[3] + kinds[4] > len(of_one) / 2


def test_only_content_tells_the_kinds_apart(scripts: dict[str, Any], pairs: list[Row]) -> None:
    template = scripts["build_pairs"].TEMPLATE
    by_name = {_name(scripts, row): row for row in pairs}
    for row in pairs:
        said = row["caption"].removeprefix(template.format(""))
        assert row["caption"] == template.format(said)
        match row["caption_kind"]:
            case "full":
                assert said == _name(scripts, row)
            case "tag":
                assert said in row["tags"]
                assert said != row["concept"]
            case "group":
                assert said == row["group"].replace("&", "and")
            case _:
                other = by_name[said]
                assert other["group"] != row["group"]
                assert not _words(other) & _words(row)


def _name(scripts: dict[str, Any], row: Row) -> str:
    return scripts["captions"].bare_label(row["concept"])


def _words(row: Row) -> set[str]:
    """Words of three letters and more of all that is known about a row's concept."""
    text = " ".join((row["concept"], row["group"], row["subgroup"], *row["tags"])).lower()
    letters = "".join(char if char.isascii() and char.isalnum() else " " for char in text)
    return {word for word in letters.split() if len(word) > 2}


def test_the_files_are_what_the_script_makes(
    scripts: dict[str, Any], drawings: list[Any], further: list[Any], known: list[Any],
    unseen: list[Any], pairs: list[Row], held_out: list[Row], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    build = scripts["build_pairs"]
    drawn = {
        (drawing.concept.key, drawing.id.removesuffix(f"-{drawing.concept.key}")): drawing.png
        for drawing in (*drawings, *further, *known, *unseen)
    }
    others = {drawing.concept.key: drawing.concept for drawing in further}
    split = scripts["split"].Split(
        [drawing.concept for drawing in known], list(others.values()),
        [drawing.concept for drawing in unseen], drawn,
    )  # fmt: skip
    # Compressing all PNGs anew takes half a minute: that is tested on its own, below.
    monkeypatch.setattr(build, "png_on_white", bytes)
    assert build.training_rows(split) == pairs
    assert build.held_out_rows(split) == held_out
    # Only those that were drawn by lot ship, so their order is lost.
    shipped = pq.read_table(further_path()).to_pylist()
    assert {row["id"]: row for row in build.further_rows(split)} == {
        row["id"]: row for row in shipped
    }


def test_further_concepts_are_drawn_by_several_and_are_no_relatives(
    scripts: dict[str, Any], further: list[Any], known: list[Any], unseen: list[Any]
) -> None:
    split = scripts["split"]
    vendors = {vendor: set[str]() for vendor in split.TRAIN_STYLES}
    for drawing in further:
        vendors[drawing.id.removesuffix(f"-{drawing.concept.key}")].add(drawing.concept.key)
    times = Counter(key for keys in vendors.values() for key in keys)
    assert set(times.values()) == {split.FURTHER_DRAWINGS}
    families = {drawing.concept.family for drawing in further}
    assert len(families) == len(times) == split.FURTHER
    assert not families & {drawing.concept.family for drawing in (*known, *unseen)}
    assert not any(drawing.concept.unseen for drawing in further)


def test_a_drawing_is_laid_on_white(scripts: dict[str, Any]) -> None:
    drawing = np.zeros((64, 64, 4), np.uint8)
    drawing[16:48, 16:48] = (200, 10, 20, 255)
    image = Image.open(io.BytesIO(scripts["build_pairs"].png_on_white(drawing)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((32, 32)) == (200, 10, 20)


def test_images_are_drawings_of_64_pixels_on_white(pairs: list[Row], held_out: list[Row]) -> None:
    for row in (*pairs[::97], *held_out[::29]):
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))


def test_all_files_are_small() -> None:
    files = (pairs_path(), further_path(), held_out_path())
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES


# What nothing has seen


def test_the_vendor_of_the_test_images_is_not_among_the_pairs(
    scripts: dict[str, Any], pairs: list[Row], held_out: list[Row]
) -> None:
    split = scripts["split"]
    assert {row["vendor"] for row in pairs} == set(split.TRAIN_STYLES)
    assert {row["vendor"] for row in held_out} == {split.TEST_STYLE}
    assert split.TEST_STYLE not in split.TRAIN_STYLES
    trained_on = {row["image"]["bytes"] for row in pairs}
    assert not trained_on & {row["image"]["bytes"] for row in held_out}


def test_unseen_concepts_are_nowhere_in_the_pairs(
    scripts: dict[str, Any], pairs: list[Row], held_out: list[Row], known: list[Any],
    unseen: list[Any],
) -> None:  # fmt: skip
    assert len(unseen) > 100
    assert all(drawing.concept.unseen for drawing in unseen)
    assert not any(drawing.concept.unseen for drawing in known)
    assert {drawing.concept.label for drawing in known} == {row["concept"] for row in pairs}
    relatives = {drawing.concept.family for drawing in known}
    assert not relatives & {drawing.concept.family for drawing in unseen}
    named = {row["caption"] for row in pairs if row["caption_kind"] in ("full", "mismatch")}
    assert not named & {row["caption"] for row in held_out if row["unseen"]}


def test_of_a_family_one_concept_is_drawn_and_what_fits_no_caption_is_left_out(
    scripts: dict[str, Any], further: list[Any], known: list[Any], unseen: list[Any]
) -> None:
    split = scripts["split"]
    others = {drawing.concept.key: drawing.concept for drawing in further}
    concepts = [drawing.concept for drawing in (*known, *unseen)]
    every = (split.TEST_STYLE, *split.TRAIN_STYLES)
    styles = {c.key: (split.TEST_STYLE,) if c.unseen else every for c in concepts}
    styles |= dict.fromkeys(others, split.TRAIN_STYLES[:2])
    own = next(c for c in concepts if not c.unseen and c.family == c.label and " " not in c.label)
    odd = [
        replace(own, key="relative", label=f"woman {own.label}"),
        replace(own, key="long", label="a very long name"),
        replace(own, key="dull", label="zyx", tags=("zyx", "abc")),
        replace(own, key="flag", label="zyx", group="flags"),
        replace(own, key="bare", label="zyx", tags=()),
        replace(own, key="rare", label="zyx"),
        replace(own, key="once", label="zyx"),
    ]
    styles |= {concept.key: every for concept in odd}
    styles |= {"rare": split.TRAIN_STYLES, "once": split.TRAIN_STYLES[:1]}
    every_concept = [*concepts, *others.values(), *odd]
    for seed in range(4):
        shuffled = random.Random(seed).sample(every_concept, len(every_concept))
        drawn, more, left = split.choose_concepts(shuffled, styles)
        families = {concept.family for concept in drawn}
        assert len(drawn) == len(families) == split.KNOWN
        assert not {c.key for c in drawn} & {"long", "dull", "flag", "bare", "rare", "once"}
        assert len({c.family for c in more} - families) == len(more) == split.FURTHER
        assert not {c.key for c in more} & {"relative", "flag", "bare", "once"}
        assert {c.key for c in left} == {drawing.concept.key for drawing in unseen}


# The conversations


def test_each_drawing_is_read_once(drawings: list[Any], pairs: list[Row]) -> None:
    assert [drawing.id for drawing in drawings] == [
        row["id"].removesuffix("-0") for row in pairs if row["id"].endswith("-0")
    ]
    assert {drawing.png for drawing in drawings} == {row["image"]["bytes"] for row in pairs}


def test_the_same_seed_gives_the_same_data(
    script: Any, drawings: list[Any], further: list[Any], known: list[Any], unseen: list[Any],
    records: list[Row],
) -> None:  # fmt: skip
    assert script.instructions(drawings, further, 0) == records
    assert script.instructions(drawings, further, 1) != records
    assert script.questions(known, unseen, 0) == script.questions(known, unseen, 0)


def test_records_are_llavas(records: list[Row], drawings: list[Any], further: list[Any]) -> None:
    assert Counter(record["id"] for record in records) == {
        drawing.id: 2 for drawing in drawings + further
    }
    # No name is asked of what was drawn twice.
    asked = {drawing.id: 3 for drawing in drawings} | {drawing.id: 2 for drawing in further}
    for record in records:
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * asked[record["id"]]
        assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * (len(turns) - 1)
        assert all(turn["value"].strip() for turn in turns)


def test_single_turn_asks_the_same_each_in_a_record_of_its_own(
    script: Any, drawings: list[Any], further: list[Any], records: list[Row]
) -> None:
    single = script.instructions(drawings, further, 0, single_turn=True)
    assert Counter((question, answer) for _, question, answer in exchanges(single)) == Counter(
        (question, answer) for _, question, answer in exchanges(records)
    )
    for record in single:
        asked, _ = record["conversations"]
        assert asked["value"].startswith("<image>\n")


def test_yes_and_no_are_balanced(
    drawings: list[Any], further: list[Any], records: list[Row]
) -> None:
    asked = [e for e in exchanges(records) if e[1].startswith("Is this ")]
    answers = Counter(answer for _, _, answer in asked)
    assert answers["Yes"] == answers["No"] == len(drawings + further)
    # No name gives its answer away.
    by_name = Counter((question, answer) for _, question, answer in asked)
    assert all(by_name[question, "Yes"] == by_name[question, "No"] for question, _ in by_name)
    # Nor does what was said before: nothing was.
    assert {place for place, _, _ in asked} == {0}


def test_decoys_are_of_another_group(script: Any, drawings: list[Any]) -> None:
    drawn = script.decoys(drawings, random.Random(0))
    assert sorted(d.id for d in drawn) == sorted(d.id for d in drawings)
    pairs = zip(drawings, drawn, strict=True)
    assert all(own.concept.group != decoy.concept.group for own, decoy in pairs)
    group = drawings[0].concept.group
    one_group = [drawing for drawing in drawings if drawing.concept.group == group]
    with pytest.raises(ValueError, match="one group"):
        script.decoys(one_group, random.Random(0))


def test_unseen_concepts_are_neither_asked_about_nor_answered_in_training(
    scripts: dict[str, Any], records: list[Row], unseen: list[Any]
) -> None:
    said = exchanges(records)
    questions, answers = {e[1] for e in said}, {e[2] for e in said}
    # A caption names the thing first and then its tags.
    named = {answer.partition(", ")[0] for answer in answers}
    for drawing in unseen:
        name = scripts["captions"].with_article(drawing.concept.label)
        assert scripts["conversations"].ASKING.format(name) not in questions
        assert name not in named


def test_questions_are_on_the_test_images_alone(
    script: Any, drawings: list[Any], known: list[Any], unseen: list[Any]
) -> None:
    asked = script.questions(known, unseen, 0)
    by_kind: dict[str, list[Row]] = {
        kind: [question for question in asked if question["kind"] == kind]
        for kind in ("name", "group", "is_this")
    }
    assert sum(map(len, by_kind.values())) == len(asked)
    assert [q["id"] for q in by_kind["name"]] == [drawing.id for drawing in known]
    assert [q["id"] for q in by_kind["group"]] == [drawing.id for drawing in unseen]
    assert Counter((q["id"], q["answer"]) for q in by_kind["is_this"]) == {
        (drawing.id, answer): 1 for drawing in unseen for answer in ("Yes", "No")
    }
    assert not {q["id"] for q in asked} & {drawing.id for drawing in drawings}
    assert len({q["answer"] for q in by_kind["group"]}) >= 8
    # The name that is asked for is one that other vendors' drawings were trained on.
    trained = {drawing.concept.label for drawing in drawings}
    assert {drawing.concept.label for drawing in known} == trained


def test_ingest_reads_it_and_the_trainer_holds_whole_drawings_out(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: list[Any]
) -> None:
    whole = script.read_drawings
    few = {drawing.concept.key for drawing in known[:40]}
    monkeypatch.setattr(
        script,
        "read_drawings",
        lambda path: [d for d in whole(path) if d.concept.key in few or d.concept.unseen],
    )
    records, asked = script.build(tmp_path / "made")
    dataset = ingest(tmp_path / "made/instructions.json", tmp_path / "ingested")
    assert dataset.manifest.rows == records == 2 * 5 * len(few)
    assert not any(dataset.manifest.rejects.values())
    index = read_index(ShardedDataset(dataset.location, conversations=True), conversations=True)
    ids = [id_.as_py() for batch in dataset.batches(["id"]) for id_ in batch.column("id")]
    held = {ids[row] for row in index.validation_rows(0.1)}
    drawn = Counter(id_.partition("#")[0] for id_ in held)
    assert set(drawn.values()) == {2}
    assert 0 < len(drawn) < len(few)
    questions = cast("list[Row]", json.loads((tmp_path / "made/questions.json").read_text("utf-8")))
    assert len(questions) == asked
    images = {question["image"] for question in questions}
    assert all((tmp_path / "made" / image).is_file() for image in images)
