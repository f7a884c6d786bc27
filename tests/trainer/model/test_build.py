"""Models built from towers that lie in folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    LlamaForCausalLM,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipModel,
)

from alignshared import InputError
from aligntrain.model import build_model, build_processor
from aligntrain.model.build import build_config, next_token_id
from tests.trainer import tiny
from tests.trainer.model.test_open_clip_tower import write


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    LlamaForCausalLM(tiny.text_config()).save_pretrained(tmp_path / "llm")
    tiny.tokenizer().save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def clip(folder: Path) -> Any:
    """Both towers of a CLIP in one folder, as on the hub."""
    text: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                            "num_attention_heads": 2, "vocab_size": 64}  # fmt: skip
    vision = tiny.vision_config().to_dict()
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    tiny.image_processor().save_pretrained(folder)
    return model.vision_model


def siglip(folder: Path) -> Any:
    text: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                            "num_attention_heads": 2, "vocab_size": 64}  # fmt: skip
    vision = tiny.siglip_config().to_dict()
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    model.save_pretrained(folder)
    tiny.image_processor().save_pretrained(folder)
    return model.vision_model


def vision_alone(folder: Path) -> Any:
    model = CLIPVisionModel(tiny.vision_config())
    model.save_pretrained(folder)
    tiny.image_processor().save_pretrained(folder)
    return model


def of_open_clip(folder: Path) -> None:
    write(folder)


@pytest.mark.parametrize("tower", [clip, siglip, vision_alone, of_open_clip])
def test_a_model_of_two_towers(tmp_path: Path, llm: Path, tower: Any) -> None:
    vision = tower(tmp_path / "vision")
    names = (str(tmp_path / "vision"), str(llm))
    model = build_model(*names, levels=4, mixing="adaptive", gate_text="prompt")
    kept = LlamaForCausalLM.from_pretrained(llm).state_dict()
    for name, value in model.model.language_model.state_dict().items():
        rows = len(kept[name])
        assert torch.equal(value[:rows], kept[name]), name
        assert not value[rows:].any(), name  # of the placeholders
    if vision is not None:
        for name, value in model.model.vision_tower.state_dict().items():
            assert torch.equal(value, vision.state_dict()[name]), name
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.config.text_config is model.model.language_model.config

    processor = build_processor(*names, model.config, aspect="crop")
    given = processor(text="<image>what?", images=tiny.picture(1))
    logits = model(**given).logits
    assert torch.isfinite(logits).all()
    model.save_pretrained(tmp_path / "whole")
    assert torch.equal(type(model).from_pretrained(tmp_path / "whole")(**given).logits, logits)


def test_weights_and_kernels_as_asked(tmp_path: Path, llm: Path) -> None:
    vision_alone(tmp_path / "vision")
    model = build_model(
        str(tmp_path / "vision"), str(llm), levels=4, dtype="bf16", attn_implementation="eager"
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for part in (model.model.vision_tower, model.model.language_model):
        assert part.config._attn_implementation == "eager"


def test_a_seed_gives_the_same_new_parts(tmp_path: Path, llm: Path) -> None:
    vision_alone(tmp_path / "vision")
    tables: list[torch.Tensor] = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = build_model(str(tmp_path / "vision"), str(llm))
        tables.append(model.state_dict()["model.alignment.table"])
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_a_tokenizer_that_is_one_file_of_sentencepiece(tmp_path: Path, llm: Path) -> None:
    """As Vicuna's: `tokenizer.model`, and no `tokenizer.json`."""
    (llm / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "unk_token": "<unk>"}
    (llm / "tokenizer_config.json").write_text(json.dumps(settings))
    sentences = ["the cat sat on the mat", "a frog is green", "hello world of tokens"] * 20
    with (llm / "tokenizer.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=file, model_type="bpe", vocab_size=60
        )
    vision_alone(tmp_path / "tower")
    ids = {"image_token_id": next_token_id(str(llm))}
    config = build_config(str(tmp_path / "tower"), str(llm), levels=4, **ids)
    processor = build_processor(str(tmp_path / "tower"), str(llm), config)
    pieces = SentencePieceProcessor(model_file=str(llm / "tokenizer.model"))
    said = "the frog sat on the cat"
    assert processor.tokenizer(said, add_special_tokens=False).input_ids == pieces.encode(said)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path, llm: Path) -> None:
    vision_alone(tmp_path / "vision")
    file = llm / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights, model\.layers\.0\.mlp\.up_proj"):
        build_model(str(tmp_path / "vision"), str(llm))


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        build_model(str(tmp_path), str(tmp_path))


def test_a_naflex_tower_is_refused_by_its_name() -> None:
    with pytest.raises(InputError, match="the NaFlex kind of SigLIP 2"):
        tiny.config(vision_config=Siglip2VisionConfig())
