"""Models whose placeholders were no tokens: refused where they are used, and converted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from alignshared import InputError
from aligntrain import load_model
from aligntrain.cli import app
from aligntrain.export.convert import convert
from aligntrain.model import AlignGPTProcessor
from aligntrain.prompts.placeholders import without_marks
from aligntrain.train.run import prepare
from tests.trainer import runs, tiny


def make_earlier(folder: Path) -> None:
    """Rewrite the model in `folder` as an earlier version wrote it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    without_marks(tokenizer).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_bytes())
    rows = config.pop("llm_vocab_size")
    del config["token_count"]
    config["text_config"]["vocab_size"] = rows
    config |= {"image_token_id": rows, "align_token_id": rows + 1}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    processor = json.loads((folder / "processor_config.json").read_bytes())
    for name in ("llm_vocab_size", "levels"):
        del processor[name]
    processor |= {"image_token_id": rows, "align_token_id": rows + 1}
    (folder / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    weights = folder / "model.safetensors"
    if weights.is_file():
        names = ("embed_tokens.weight", "lm_head.weight")
        cut = {
            name: value[:rows].clone() if name.endswith(names) else value
            for name, value in load_file(weights).items()
        }
        save_file(cut, weights, metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mixing", ["adaptive", "none"])
def test_a_whole_model_says_the_same(tmp_path: Path, mixing: str, tied: bool) -> None:
    text = tiny.text_config(tie_word_embeddings=tied)
    tiny.model(mixing=mixing, text_config=text, dtype="float32").save_pretrained(tmp_path / "model")
    model, processor = load_with(tmp_path / "model", tiny.processor(tiny.config(mixing=mixing)))
    given = processor(text="<image>\nwhat?", images=tiny.picture(1))
    with torch.no_grad():
        expected = model(**given).logits
    (tmp_path / "model/README.md").write_text("a card", encoding="utf-8")
    make_earlier(tmp_path / "model")
    for use in (load_model, AlignGPTProcessor.from_pretrained):
        with pytest.raises(InputError, match="aligntrain convert MODEL OUTPUT"):
            use(tmp_path / "model")
    done = convert(tmp_path / "model", tmp_path / "out")
    assert (done.mixing, done.levels, done.new) == (mixing, 4, ())
    assert (tmp_path / "out/README.md").read_text(encoding="utf-8") == "a card"
    loaded, with_it = load_model(tmp_path / "out")
    again = with_it(text="<image>\nwhat?", images=tiny.picture(1))
    assert again["input_ids"].tolist() == given["input_ids"].tolist()
    with torch.no_grad():
        assert torch.equal(loaded(**again).logits, expected)
    if mixing == "adaptive":
        assert with_it(text="<level_2><image>", images=tiny.picture(1))["input_ids"][0, 1] == 263


def load_with(folder: Path, processor: Any) -> Any:
    processor.save_pretrained(folder)
    return load_model(folder)


def test_a_run_with_lora_says_the_same(tmp_path: Path) -> None:
    data = runs.talks(tmp_path / "talks")
    overrides = ["lora.rank=2", "max_steps=1"]
    prepare("finetune", data.location, recipe=runs.recipe_file(tmp_path), overrides=overrides,
            output=tmp_path / "run", start="none")  # fmt: skip
    runs.train(tmp_path / "run")
    model, processor = load_model(tmp_path / "run", dtype=torch.float32)
    given = processor(text="<image>\nwhat?", images=tiny.picture(1))
    with torch.no_grad():
        expected = model(**given).logits
    make_earlier(tmp_path / "run/export")
    words = ["convert", str(tmp_path / "run"), str(tmp_path / "out")]
    answer = CliRunner().invoke(app, words, catch_exceptions=False)
    assert answer.exit_code == 0
    assert "of an earlier version, 4 levels, mixing adaptive" in answer.output
    loaded, with_it = load_model(tmp_path / "out", dtype=torch.float32)
    again = with_it(text="<image>\nwhat?", images=tiny.picture(1))
    with torch.no_grad():
        assert torch.equal(loaded(**again).logits, expected)


def test_a_damaged_one_is_one_sentence(tmp_path: Path) -> None:
    tiny.saved(tmp_path / "model")
    make_earlier(tmp_path / "model")
    (tmp_path / "model/processor_config.json").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        convert(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
