"""Instruction data of the demo: balanced, held apart, the same each time, and ingestible."""

import json
import random
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from aligntrain.data.dataset import ShardedDataset
from aligntrain.data.index import read_index

SHARE = 0.1


@pytest.fixture(scope="module")
def script(repository: Path) -> Any:
    """The script, as Python runs it: what lies beside it can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "pipelines/demo_data"))
        return import_module("build_instructions")


@pytest.fixture(scope="module")
def pictures(script: Any) -> list[Any]:
    return script.demo_pictures(SHARE)


@pytest.fixture(scope="module")
def records(script: Any, pictures: list[Any]) -> list[dict[str, Any]]:
    return script.instructions(pictures, 0)


def exchanges(records: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
    """Place in its conversation, question and answer of every exchange."""
    found: list[tuple[int, str, str]] = []
    for record in records:
        said = [turn["value"] for turn in record["conversations"]]
        for place, (question, answer) in enumerate(zip(said[::2], said[1::2], strict=True)):
            found.append((place, question.removeprefix("<image>\n"), answer))
    return found


def test_the_same_seed_gives_the_same_data(script: Any, pictures: list[Any], records: Any) -> None:
    assert script.instructions(pictures, 0) == records
    assert script.instructions(pictures, 1) != records
    assert script.questions(pictures, 0) == script.questions(pictures, 0)


def test_records_are_llavas(records: list[dict[str, Any]], pictures: list[Any]) -> None:
    assert len(records) == 2 * len(pictures)
    for record in records:
        turns = record["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * 3
        assert [turn["value"].count("<image>") for turn in turns] == [1, 0, 0, 0, 0, 0]
        assert all(turn["value"].strip() for turn in turns)


def test_yes_and_no_are_balanced(script: Any, pictures: list[Any], records: Any) -> None:
    asked = [e for e in exchanges(records) if e[1].startswith("Is this ")]
    answers = Counter(answer for _, _, answer in asked)
    assert answers["Yes"] == answers["No"] == len(pictures)
    # No name gives its answer away.
    by_name = Counter((question, answer) for _, question, answer in asked)
    assert set(by_name.values()) == {1}
    # Nor does what was said before: nothing was.
    assert {place for place, _, _ in asked} == {0}


def test_decoys_are_of_another_group(script: Any, pictures: list[Any]) -> None:
    drawn = script.decoys(pictures, random.Random(0))
    assert sorted(p.id for p in drawn) == sorted(p.id for p in pictures)
    assert all(p.group != d.group for p, d in zip(pictures, drawn, strict=True))
    one_group = [p for p in pictures if p.group == "flags"]
    with pytest.raises(ValueError, match="one group"):
        script.decoys(one_group, random.Random(0))


def test_held_out_names_are_never_in_training(pictures: list[Any], records: Any) -> None:
    held_out = {p.id: p.name for p in pictures if p.held_out}
    assert 0.07 < len(held_out) / len(pictures) < 0.13
    training = [record for record in records if record["id"] not in held_out]
    questions = {question for _, question, _ in exchanges(training)}
    answers = {answer for _, _, answer in exchanges(training)}
    for name in held_out.values():
        assert f"Is this {name}?" not in questions
        assert name not in answers


def test_questions_are_on_concepts_without_relatives_in_training(
    script: Any, pictures: list[Any]
) -> None:
    asked = script.questions(pictures, 0)
    by_id = {p.id: p for p in pictures}
    trained = {p.concept.family for p in pictures if not p.held_out}
    assert all(by_id[q["id"]].held_out for q in asked)
    assert not {by_id[q["id"]].concept.family for q in asked} & trained
    kinds = Counter((q["kind"], q["answer"] in ("Yes", "No")) for q in asked)
    concepts = len({q["id"] for q in asked})
    assert concepts > 100
    assert kinds == {("is_this", True): 2 * concepts, ("group", False): concepts,
                     ("name", False): concepts}  # fmt: skip
    yes = sum(q["answer"] == "Yes" for q in asked)
    assert yes == concepts
    assert len({q["answer"] for q in asked if q["kind"] == "group"}) >= 8


def test_ingest_reads_it_and_the_trainer_holds_the_same_out(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligncurate.stages.ingest import ingest

    few = script.demo_pictures(SHARE)[:300]
    monkeypatch.setattr(script, "demo_pictures", lambda _share: few)
    records, _ = script.build(tmp_path / "made", share=SHARE)
    dataset = ingest(tmp_path / "made/instructions.json", tmp_path / "ingested")
    assert dataset.manifest.rows == records == 600
    assert not any(dataset.manifest.rejects.values())
    index = read_index(ShardedDataset(dataset.location, conversations=True), conversations=True)
    held_out = {picture.id for picture in few if picture.held_out}
    ids = [id_.as_py() for batch in dataset.batches(["id"]) for id_ in batch.column("id")]
    kept = {ids[row].partition("#")[0] for row in index.validation_rows(SHARE)}
    assert kept == held_out
    assert json.loads((tmp_path / "made/questions.json").read_text("utf-8"))
