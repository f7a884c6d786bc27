"""Models with levels as transformers' own LLaVA, a vector fixed: what they read and say is ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionModel, LlavaImageProcessorPil, LlavaProcessor
from transformers import LlavaForConditionalGeneration as Llava
from typer.testing import CliRunner

from alignshared import InputError
from alignshared.stores.filesystems import public_name
from aligntrain.cli import app
from aligntrain.export.model import export_model
from aligntrain.model import build_model, build_processor
from tests.trainer import runs, tiny
from tests.trainer.families import FAMILIES

LEVELS = 4
MORE_THAN_A_MATRIX = ("gemma2", "phi2")
"""Families whose head transformers' LLaVA has no place for."""


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vision tower and the LLM of each family."""
    place = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    CLIPVisionModel(tiny.vision_config()).save_pretrained(place / "tower")
    tiny.image_processor().save_pretrained(place / "tower")
    for name, family in FAMILIES.items():
        family.save(place / name)
    return place


def saved(folder: Path, towers: Path, family: str, mixing: Any = "adaptive") -> tuple[Any, Any]:
    """A model with level vectors of some size, and its processor, in `folder`."""
    template: Any = "vicuna_v1" if FAMILIES[family].template is None else "chat"
    names = str(towers / "tower"), str(towers / family)
    torch.manual_seed(1)
    model = build_model(*names, levels=LEVELS, mixing=mixing)
    processor = build_processor(*names, model.config, template=template)
    assert model.model.alignment is not None
    with torch.no_grad():
        model.model.alignment.table.normal_(generator=torch.Generator().manual_seed(2))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def talk(image: Any) -> list[dict[str, Any]]:
    """A conversation of two questions, the first about `image`, if any."""
    parts: list[Any] = [] if image is None else [{"type": "image", "image": image}]
    return [
        {"role": "user", "content": [*parts, {"type": "text", "text": "what is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a kite"}]},
        {"role": "user", "content": [{"type": "text", "text": "why?"}]},
    ]


def exported(folder: Path) -> tuple[Any, Any]:
    llava: Any = Llava.from_pretrained(folder, dtype=torch.float32)
    processor = LlavaProcessor.from_pretrained(folder)
    processor.image_processor = LlavaImageProcessorPil.from_pretrained(folder)
    return llava.eval(), processor


def assert_same(ours: tuple[Any, Any], theirs: tuple[Any, Any], vector: str, **chosen: Any) -> None:
    """Both give the same ids but for the vector's, and the same logits with `vector`."""
    (model, processor), (llava, with_it) = ours, theirs
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    batch = processor.apply_chat_template(talk(tiny.picture(1)), **options)
    inputs = with_it.apply_chat_template(
        talk(tiny.picture(1)), return_tensors="pt", **options, **chosen
    )
    mark = with_it.tokenizer.convert_tokens_to_ids(f"<level_{vector}>")
    align = torch.tensor(model.config.align_token_id)
    ids = inputs["input_ids"].where(inputs["input_ids"] != mark, align)
    assert ids.tolist() == batch["input_ids"].tolist()
    local = LEVELS - 1
    if vector == "mean":
        fixed = {"gate_weights": torch.full((1, local), 1 / local)}
    else:
        fixed = {"levels": torch.tensor([int(vector)])}
        written = processor.apply_chat_template(talk(tiny.picture(1)), **options, level=int(vector))
        assert written["input_ids"].tolist() == inputs["input_ids"].tolist()
    with torch.no_grad():
        expected = model(**batch, **fixed).logits
        logits = llava(**inputs).logits
    own = model.config.llm_vocab_size
    torch.testing.assert_close(logits[..., :own], expected[..., :own], rtol=1e-4, atol=1e-4)
    assert not logits[..., own:].any()  # reading a vector gives it no say


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in MORE_THAN_A_MATRIX])
def test_each_vector_gives_the_logits_of_its_level(
    family: str, towers: Path, tmp_path: Path
) -> None:
    ours = saved(tmp_path / "model", towers, family)
    done = export_model(tmp_path / "model", tmp_path / "llava", "llava", level="2")
    assert done.vector == "2"
    theirs = exported(done.output)
    assert_same(ours, theirs, "2")
    for name in ("1", "4", "mean"):
        assert_same(ours, theirs, name, level=name)


def test_a_level_may_stand_in_a_prompt_that_no_template_made(towers: Path, tmp_path: Path) -> None:
    model, processor = saved(tmp_path / "model", towers, "vicuna")
    done = export_model(tmp_path / "model", tmp_path / "llava", "llava", level="mean")
    llava, with_it = exported(done.output)
    batch = processor(images=tiny.picture(3), text="USER: <image>\nwhat?")
    inputs = with_it(
        images=tiny.picture(3), text="<level_3>USER: <image>\nwhat?", return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**batch, levels=torch.tensor([3])).logits
        logits = llava(**inputs).logits
    own = model.config.llm_vocab_size
    torch.testing.assert_close(logits[..., :own], expected[..., :own], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mixing", "level", "vector"),
    [
        ("global", None, "4"), ("mean", None, "mean"), ("mean", "global", "4"),
        ("local", "mean", "mean"), ("adaptive", "global", "4"),
    ],
)  # fmt: skip
def test_the_vector_is_what_the_mixing_gives_or_what_is_asked_for(
    mixing: Any, level: str | None, vector: str, towers: Path, tmp_path: Path
) -> None:
    ours = saved(tmp_path / "model", towers, "qwen2.5", mixing)
    done = export_model(tmp_path / "model", tmp_path / "llava", "llava", level=level)
    assert done.vector == vector
    model, processor = ours
    if level is None:  # its own vector, so nothing is lost
        llava, with_it = exported(done.output)
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        batch = processor.apply_chat_template(talk(tiny.picture(1)), **options)
        inputs = with_it.apply_chat_template(talk(tiny.picture(1)), return_tensors="pt", **options)
        with torch.no_grad():
            expected = model(**batch).logits
            logits = llava(**inputs).logits
        own = model.config.llm_vocab_size
        torch.testing.assert_close(logits[..., :own], expected[..., :own], rtol=1e-4, atol=1e-4)
    elif mixing != "local" and vector != "mean":
        assert_same(ours, exported(done.output), vector)


def test_a_text_without_an_image_has_no_level_and_a_wrong_level_is_refused(
    towers: Path, tmp_path: Path
) -> None:
    _, processor = saved(tmp_path / "model", towers, "llama3")
    done = export_model(tmp_path / "model", tmp_path / "llava", "llava", level="4")
    with_it = LlavaProcessor.from_pretrained(done.output)
    text = with_it.apply_chat_template(talk(None), add_generation_prompt=True)
    assert text == processor.apply_chat_template(talk(None), add_generation_prompt=True)
    with pytest.raises(Exception, match="level is one of 1, 2, 3, 4, mean"):
        with_it.apply_chat_template(talk(tiny.picture(1)), level=5)


def test_no_level_is_ever_written(towers: Path, tmp_path: Path) -> None:
    model, _ = saved(tmp_path / "model", towers, "qwen2.5")  # tied: a row is read and written
    done = export_model(tmp_path / "model", tmp_path / "llava", "llava", level="1")
    llava, with_it = exported(done.output)
    assert not llava.config.tie_word_embeddings
    inputs = with_it.apply_chat_template(
        talk(tiny.picture(1)), add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    ids = llava.generate(**inputs, max_new_tokens=24, do_sample=True, temperature=50.0)
    assert int(ids[0, inputs["input_ids"].shape[1] :].max()) < model.config.llm_vocab_size


@pytest.mark.parametrize(
    ("mixing", "level", "format", "said"),
    [
        ("adaptive", "5", "llava", "--level 5 does not exist in .*; give 1, 2, 3, 4, mean"),
        ("adaptive", "best", "llava", "--level best does not exist"),
        ("global", "mean", "llava", "give 1, 2, 3, 4."),
        ("none", "1", "llava", "has mixing none and no levels; leave --level out"),
        ("adaptive", "1", "llm", "the LLM alone reads no images"),
    ],
)
def test_what_does_not_exist_is_refused(
    mixing: Any, level: str, format: str, said: str, towers: Path, tmp_path: Path
) -> None:
    model = tiny.model(mixing=mixing)
    model.save_pretrained(tmp_path / "model")
    tiny.processor(model.config).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=said):
        export_model(tmp_path / "model", tmp_path / "out", format, level=level)
    assert not (tmp_path / "out").exists()


def test_it_says_what_fixing_the_vector_costs(towers: Path, tmp_path: Path) -> None:
    model, folder = str(tmp_path / "model"), tmp_path / "exports"
    saved(tmp_path / "model", towers, "vicuna")
    held_out = runs.talks(tmp_path / "held-out", 12).location

    def export(level: str) -> str:
        words = ["export", model, str(folder / str(len(list(folder.glob("*"))))), "--level", level]
        return " ".join(CliRunner().invoke(app, words, catch_exceptions=False).output.split())

    assert "cost of the fixed vector: not measured; aligntrain gate" in export("2")
    asked = ["gate", model, "--data", held_out]
    assert CliRunner().invoke(app, asked, catch_exceptions=False).exit_code == 0
    assert "has no sweep with it" in export("2")
    assert CliRunner().invoke(app, [*asked, "--sweep"], catch_exceptions=False).exit_code == 0
    report = json.loads((tmp_path / "model/gate/gate.json").read_bytes())
    of_all = {one["level"]: one for one in next(iter(report["sweep"]["types"].values()))}
    for level in (2, "mean"):
        loss = of_all[level]["difference"]
        said = f"questions of {public_name(held_out)}: {loss['mean']:+.4f} ({loss['low']:+.4f} to"
        assert f"on {of_all[level]['count']} {said}" in export(str(level))
    cards = [card.read_text(encoding="utf-8") for card in folder.glob("*/README.md")]
    assert sum(said in " ".join(card.split()) for card in cards) == 1
