"""Each family of LLMs: read, answer, train through the engine, save, load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionModel,
    Gemma3Config,
    SiglipVisionModel,
)

from alignshared import InputError
from aligntrain.inference.chat import Chat
from aligntrain.model import build_model, build_processor
from aligntrain.model.build import build_config
from aligntrain.prompts.conversation import InvalidSample, Turn
from aligntrain.prompts.encode import Encoder
from aligntrain.prompts.placeholders import IGNORE_INDEX
from aligntrain.runs.folder import read_metrics, result_of
from aligntrain.train.run import prepare
from tests.trainer import runs, tiny
from tests.trainer.families import FAMILIES, Family
from tests.trainer.rows import layout_of

TOWERS: dict[str, Any] = {
    "clip": lambda: CLIPVisionModel(tiny.vision_config()),
    "siglip": lambda: SiglipVisionModel(tiny.siglip_config()),
}
TALK = (
    Turn("human", "<image>\nWhat is this?"),
    Turn("gpt", "A kite."),
    Turn("human", "Of what colour?"),
    Turn("gpt", "Red"),
)
RECIPE = """
common:
  model: {{vision_tower: {vision}, llm: {llm}, levels: 4}}
  data: {{max_length: 512, validation_share: 0, workers: 0}}
  precision: fp32
  max_steps: 3
  batch: {{global_size: 8, micro_size: 4}}
pretrain: {{data: {{template: plain}}, optimizer: {{lr: 1e-2}}}}
finetune: {{data: {{template: {template}}}, optimizer: {{lr: 1e-2, warmup_ratio: 0}}}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both towers, all LLMs and a dataset."""
    place = tmp_path_factory.mktemp("families")
    torch.set_num_threads(1)
    for name, tower in TOWERS.items():
        torch.manual_seed(0)
        tower().save_pretrained(place / name)
        tiny.image_processor().save_pretrained(place / name)
    for name, family in FAMILIES.items():
        family.save(place / name)
    runs.talks(place / "talks", 24, text_every=3)
    return place


def template_of(family: Family) -> Any:
    return "vicuna_v1" if family.template is None else "chat"


def learned(family: Family, turns: Any, max_length: int = 2048) -> list[str]:
    """What the encoder has the model learn, span by span."""
    tokenizer = family.tokenizer()
    encoder = Encoder(tokenizer, layout_of(tokenizer), template_of(family), max_length)
    tokens = encoder(None, turns, 1)
    spans: list[list[int]] = [[]]
    for label in tokens.labels:
        if label == IGNORE_INDEX:
            spans.append([])
        else:
            spans[-1].append(label)
    return [tokenizer.decode(span) for span in spans if span]


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_and_their_end_are_learned(name: str) -> None:
    family = FAMILIES[name]
    first, second = learned(family, TALK)
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    space = " " if name == "llama2" else ""
    assert first.lstrip() == "A kite." + space + family.answer_end
    assert second.lstrip() == thought + "Red" + space + family.answer_end


@pytest.mark.parametrize("name", ["phi3", "qwen3"])
@pytest.mark.parametrize("answer", ["hi", "k", "end", "</think>", "A. B\nC"])
def test_answers_are_found_whatever_they_say(name: str, answer: str) -> None:
    """In templates that write the last answer otherwise than those before it."""
    family = FAMILIES[name]
    turns = (TALK[0], Turn("gpt", answer), *TALK[2:])
    assert learned(family, turns)[0] == answer + family.answer_end


@pytest.mark.parametrize("name", ["phi3", "qwen3"])
def test_what_is_too_long_is_cut_behind_an_exchange(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    whole = Encoder(tokenizer, layout_of(tokenizer), "chat", 512)(None, TALK, 1)
    # Behind the special token of the last answer stands more: a line feed, and Phi 3's last token.
    limit = len(whole.ids) - 4
    tokens = Encoder(tokenizer, layout_of(tokenizer), "chat", limit)(None, TALK, 1)
    assert tokens.truncated
    assert learned(family, TALK, limit) == learned(family, TALK)[:1]
    assert tokenizer.convert_tokens_to_ids(family.answer_end) in tokens.ids[-2:]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_it_answers_and_comes_back_from_its_files(
    place: Path, tmp_path: Path, name: str, tower: str
) -> None:
    names = (str(place / tower), str(place / name))
    torch.manual_seed(0)
    model = build_model(*names, levels=4)
    template = template_of(FAMILIES[name])
    processor = build_processor(*names, model.config, template=template)
    talk = [{"role": "user", "content": "<image>\nWhat is it?"}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    given = processor(text=[text, f"{text} Say."], images=[tiny.picture(1), tiny.picture(2)],
                      padding_side="left")  # fmt: skip
    logits = model(**given).logits
    assert torch.isfinite(logits).all()
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached = model.generate(**given, **options)
    assert torch.equal(cached, model.generate(**given, use_cache=False, **options))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(loaded(**given).logits, logits)


@pytest.mark.parametrize("number", range(len(FAMILIES)), ids=list(FAMILIES))
def test_it_trains_and_answers_from_its_export(place: Path, tmp_path: Path, number: int) -> None:
    name = list(FAMILIES)[number]
    tower = list(TOWERS)[number % 2]
    recipe = tmp_path / "family.yaml"
    recipe.write_text(
        RECIPE.format(vision=place / tower, llm=place / name, template=template_of(FAMILIES[name]))
    )
    prepare("finetune", place / "talks", recipe=recipe, output=tmp_path / "run", start="none")
    losses = runs.losses(runs.train(tmp_path / "run"))
    assert losses[3] < losses[1]
    assert read_metrics(tmp_path / "run")[0]["padding"] == 0  # packed
    ending = result_of(tmp_path / "run")
    assert ending is not None
    assert ending["rejected"] == {}
    chat = Chat.load(tmp_path / "run")
    answer = "".join(chat.answer("What is it?", tiny.picture(1), max_new_tokens=4))
    assert isinstance(answer, str)
    assert chat.gate_weights is not None


def test_a_token_that_the_llm_has_no_embedding_for(place: Path) -> None:
    """Gemma 3's tokenizer has one, before the placeholders."""
    family = FAMILIES["gemma3"]
    model = build_model(str(place / "clip"), str(place / "gemma3"), levels=4)
    processor = build_processor(str(place / "clip"), str(place / "gemma3"), model.config)
    assert model.config.image_token_id == 263 == len(family.tokenizer())
    assert model.config.llm_vocab_size == 262
    with pytest.raises(InputError, match="no embedding"):
        processor(text="<image>an <image_soft_token>", images=tiny.picture(1))
    encoder = Encoder(processor.tokenizer, processor.layout, "chat", 512)
    with pytest.raises(InvalidSample, match="foreign_token"):
        encoder(None, (TALK[0], Turn("gpt", "an <image_soft_token>")), 1)


def test_an_llm_with_a_tower_of_its_own_is_refused(place: Path, tmp_path: Path) -> None:
    """Gemma 3 from 4B on."""
    text = FAMILIES["gemma3"].llm_config().to_dict()
    vision = tiny.siglip_config().to_dict()
    Gemma3Config(text_config=text, vision_config=vision).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a gemma3, which has a tower of its own"):
        build_config(str(place / "clip"), str(tmp_path))
