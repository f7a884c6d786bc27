"""Text that comes in pieces is what the tokenizer makes of all tokens at once."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligntrain.serve.decoding import Detokenizer
from tests.trainer import rows, tiny

TOKENIZERS = {
    "bytes": tiny.tokenizer(),
    "llama": rows.llama_tokenizer(),
    "chat": rows.chat_tokenizer(),
}


def written(tokenizer: Any, ids: list[int], *stops: str) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(tokenizer, stops)
    pieces: list[str] = []
    for token in ids:
        pieces.append(detokenizer.add(token))
        if detokenizer.stopped:
            return pieces, detokenizer
    return [*pieces, detokenizer.end()], detokenizer


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_pieces_are_the_whole(name: str, data: Any) -> None:
    tokenizer = TOKENIZERS[name]
    # Of Llama's tokens for single bytes, one that fits nowhere spoils those before it too.
    first = 259 if name == "llama" else 0
    ids = data.draw(st.lists(st.integers(first, len(tokenizer) - 1), max_size=30))
    pieces, _ = written(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(max_size=40))
def test_words_of_any_script_come_whole(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces, _ = written(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_comes_at_once() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer("a€b", add_special_tokens=False).input_ids
    assert written(tokenizer, ids)[0] == ["a", "", "", "€", "b", ""]


@given(
    text=st.text(alphabet="ab.", max_size=30),
    stops=st.lists(st.text(alphabet="ab.", min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_nothing_of_a_stop_comes_out(text: str, stops: list[str]) -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces, detokenizer = written(tokenizer, ids, *stops)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert not detokenizer.stopped
        assert "".join(pieces) == text
        return
    # The stop that is complete first ends it, as one reads.
    read = text[: min(ends)]
    assert detokenizer.stopped
    assert "".join(pieces) == read[: min(read.find(s) for s in stops if s in read)]


def test_text_is_held_back_no_longer_than_need_be() -> None:
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer("ab a.b", add_special_tokens=False).input_ids
    assert written(tokenizer, ids, "a.c")[0] == ["", "ab", " ", "", "", "a.b", ""]
