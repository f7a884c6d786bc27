"""Chat: answers piece by piece, levels forced and guided, weights shown, turns remembered."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from alignshared import InputError
from aligntrain.cli import app
from aligntrain.inference.chat import Chat
from aligntrain.runs.folder import EXPORT
from tests.trainer import tiny

ASKED = "what is it?"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    tiny.saved(folder / EXPORT, text_config=tiny.text_config(max_position_embeddings=1024))
    return folder


@pytest.fixture
def chat(run: Path) -> Chat:
    return Chat.load(run, device="cpu")


def greedy(chat: Chat, prompt: str, image: Any, **options: Any) -> str:
    """What transformers' own `generate` answers."""
    content = [{"type": "image", "image": image}] if image is not None else []
    turn = {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
    batch = chat.processor.apply_chat_template(
        [turn], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    ids = chat.model.generate(**batch, do_sample=False, **options)
    text = chat.processor.tokenizer.decode(
        ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return str(text)


def answer(chat: Chat, *arguments: Any, **options: Any) -> str:
    return "".join(chat.answer(*arguments, **{"max_new_tokens": 12, **options}))


def only_line_feeds(chat: Chat) -> None:
    """Have the model write nothing else."""
    llm = chat.model.model.language_model
    line_feed = chat.processor.tokenizer("\n", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        llm.model.norm.weight.zero_()
    llm.lm_head.bias = torch.nn.Parameter(torch.zeros(llm.lm_head.out_features))
    llm.lm_head.bias.data[line_feed] = 1.0


def test_an_answer_comes_in_pieces_and_is_that_of_generate(chat: Chat) -> None:
    picture = tiny.picture(1)
    assert answer(chat, ASKED, picture) == greedy(chat, ASKED, picture, max_new_tokens=12)
    chat.reset()
    only_line_feeds(chat)
    assert list(chat.answer(ASKED, picture, max_new_tokens=5)) == ["\n"] * 5


def test_the_gate_shows_its_weights(chat: Chat) -> None:
    answer(chat, ASKED, tiny.picture(1))
    assert chat.gate_weights is not None
    assert len(chat.gate_weights) == 3
    assert sum(chat.gate_weights) == pytest.approx(1)
    first = chat.gate_weights
    chat.reset()
    assert chat.gate_weights is None
    answer(chat, "another question", tiny.picture(2))
    assert chat.gate_weights != first


def test_a_level_takes_the_place_of_the_gate(chat: Chat) -> None:
    picture = tiny.picture(1)
    said: list[str] = []
    for level in (1, 4):
        chat.reset()
        said.append(answer(chat, ASKED, picture, level=level))
        assert chat.gate_weights is None
        levels = torch.tensor([level])
        assert said[-1] == greedy(chat, ASKED, picture, levels=levels, max_new_tokens=12)
    with torch.no_grad():  # the level is heard
        chat.model.model.alignment.table[3] += 5
    chat.reset()
    assert answer(chat, ASKED, picture, level=4) != said[1]


def test_guidance_exaggerates_the_level(chat: Chat) -> None:
    picture, levels = tiny.picture(1), torch.tensor([4])
    with torch.no_grad():  # the level is heard
        chat.model.model.alignment.table.mul_(20)
    said: dict[float, str] = {}
    for guidance in (1.0, 4.0):
        chat.reset()
        said[guidance] = answer(chat, ASKED, picture, level=4, guidance=guidance)
        options = {"levels": levels, "max_new_tokens": 12, "guidance_scale": guidance}
        assert said[guidance] == greedy(chat, ASKED, picture, **options)
    assert said[1.0] != said[4.0]
    # The next turn is about the same picture, and the gate speaks of it as it does without.
    answer(chat, "and what else?", guidance=4.0)
    assert chat.gate_weights is not None
    only_line_feeds(chat)
    assert list(chat.answer(ASKED, picture, max_new_tokens=5, guidance=2.0)) == ["\n"] * 5


def test_the_command_takes_guidance(run: Path, chat: Chat, tmp_path: Path) -> None:
    tiny.picture(1).save(tmp_path / "kite.png")
    asked = ["chat", str(run), "--prompt", ASKED, "--image", str(tmp_path / "kite.png")]
    asked += ["--level", "4", "--max-new-tokens", "8", "--guidance"]
    said = CliRunner().invoke(app, [*asked, "60"])
    options: dict[str, Any] = {"level": 4, "max_new_tokens": 8}
    guided = answer(chat, ASKED, tiny.picture(1), guidance=60.0, **options)
    assert said.exit_code == 0
    assert said.stdout == f"{guided}\n"
    chat.reset()
    assert answer(chat, ASKED, tiny.picture(1), **options) != guided


@pytest.mark.parametrize("guidance", ["0", "-1", "nan", "inf"])
def test_guidance_is_checked_before_the_model_is_loaded(guidance: str) -> None:
    said = CliRunner().invoke(app, ["chat", "no-model", "--prompt", ASKED, "--guidance", guidance])
    assert said.exit_code == 2
    sentence = f"guidance must be above 0 and at most 1000, where 1 is none (got {guidance})."
    assert sentence in " ".join(said.output.split())


def test_turns_are_remembered(chat: Chat) -> None:
    first = answer(chat, ASKED, tiny.picture(1))
    assert chat.history == [("user", ASKED), ("assistant", first.strip())]
    second = answer(chat, "and what else?")
    assert chat.gate_weights is not None  # the picture of the first turn is still there
    assert len(chat.history) == 4
    chat.reset()
    assert chat.history == []
    assert answer(chat, "and what else?") != second or chat.gate_weights is None


def test_text_alone_is_answered(chat: Chat) -> None:
    assert answer(chat, ASKED) == greedy(chat, ASKED, None, max_new_tokens=12)
    assert chat.gate_weights is None


def test_an_answer_may_be_left_unfinished(chat: Chat) -> None:
    only_line_feeds(chat)
    pieces = chat.answer(ASKED, tiny.picture(1), max_new_tokens=700)
    assert next(pieces) == "\n"
    pieces.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert chat.history == [("user", ASKED), ("assistant", "")]


def test_sampling_follows_the_seed(chat: Chat) -> None:
    said: list[str] = []
    for seed in (1, 1, 2):
        chat.reset()
        torch.manual_seed(seed)
        said.append(answer(chat, ASKED, tiny.picture(1), temperature=2.0, max_new_tokens=24))
    assert said[0] == said[1] != said[2]


def test_a_picture_is_read_from_its_file(chat: Chat, tmp_path: Path) -> None:
    picture = tiny.picture(1)
    picture.save(tmp_path / "kite.png")
    expected = answer(chat, ASKED, picture)
    chat.reset()
    assert answer(chat, ASKED, tmp_path / "kite.png") == expected


def test_a_pretrained_model_captions_until_the_line_ends(tmp_path: Path) -> None:
    model = tiny.model()
    chat = Chat(model, tiny.processor(model.config, template="plain"))
    only_line_feeds(chat)
    assert answer(chat, "never read", tiny.picture(1), max_new_tokens=50) == "\n"
    with pytest.raises(InputError, match="only captions images, and there is none"):
        chat.answer(ASKED)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"level": 5}, "there is no level 5; give one from 1 to 4"),
        ({"level": 0}, "there is no level 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, r"temperature at least 0 \(got -1.0\)"),
        ({"guidance": 0.0}, r"guidance must be above 0.*\(got 0\)"),
        ({"max_new_tokens": 1000}, "longer than the 1024 that the model reads"),
    ],
)
def test_numbers_that_cannot_be(chat: Chat, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        chat.answer(ASKED, tiny.picture(1), **{"max_new_tokens": 8, **options})
    assert chat.history == []


def test_a_level_without_a_picture(chat: Chat) -> None:
    with pytest.raises(InputError, match="a level is that of an image, and there is none"):
        chat.answer(ASKED, level=2)
    with pytest.raises(InputError, match="guidance is by the level of an image, and there is none"):
        chat.answer(ASKED, guidance=2)


def test_a_level_of_a_model_without_levels() -> None:
    model = tiny.model(mixing="none")
    plain = Chat(model, tiny.processor(model.config))
    assert answer(plain, ASKED, tiny.picture(1)) is not None
    with pytest.raises(InputError, match="mixing none and no levels; leave the level out"):
        plain.answer(ASKED, tiny.picture(1), level=2)
    with pytest.raises(InputError, match="mixing none and no levels; leave the guidance out"):
        plain.answer(ASKED, tiny.picture(1), guidance=2)


def test_pictures_that_cannot_be_read(chat: Chat, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png holds no image"):
        chat.answer(ASKED, broken)
    with pytest.raises(InputError, match=r"nothing\.png cannot be read"):
        chat.answer(ASKED, tmp_path / "nothing.png")
    with pytest.raises(InputError, match="the mark <image>"):
        chat.answer("<image> what?", tiny.picture(1))


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished model"):
        Chat.load(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be loaded"):
        Chat.load(tmp_path)


def test_what_fails_while_writing_is_told(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(chat.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        answer(chat, ASKED, tiny.picture(1))
    assert chat.history == []
