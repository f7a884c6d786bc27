"""Where placeholders stand in a row of ids."""

import subprocess
import sys

import pytest

from aligntrain.prompts.placeholders import (
    Layout,
    align_position,
    join,
    own_bos,
    place_align,
    tokenize_pieces,
)
from tests.trainer import tiny

BOS = 256
LAYOUT = Layout(image_token_id=260, align_token_id=261, image_tokens=3, bos_token_id=BOS)


def test_an_image_takes_its_places_and_alignment_follows_bos() -> None:
    assert join([[BOS, 1], [2, 3]], LAYOUT) == [BOS, 261, 1, 260, 260, 260, 2, 3]


def test_alignment_stands_first_where_the_tokenizer_puts_no_bos() -> None:
    layout = Layout(260, 261, 2, bos_token_id=None)
    assert join([[], [5]], layout) == [261, 260, 260, 5]
    assert join([[BOS], [5]], layout) == [261, BOS, 260, 260, 5]


def test_rows_of_text_and_models_without_alignment_have_no_place() -> None:
    assert join([[BOS, 1, 2]], LAYOUT) == [BOS, 1, 2]
    without = Layout(260, 261, 1, BOS, align=False)
    assert join([[BOS], [2]], without) == [BOS, 260, 2]
    assert align_position([BOS, 1], LAYOUT) is None


def test_several_images_have_one_alignment_place() -> None:
    ids = join([[BOS], [7], []], LAYOUT)
    assert ids == [BOS, 261, 260, 260, 260, 7, 260, 260, 260]
    assert place_align([260], LAYOUT) == [261, 260]


def test_pieces_are_tokenized_apart_and_bos_stands_once() -> None:
    tokenizer = tiny.tokenizer()
    pieces = tokenize_pieces(tokenizer, "ab<image>cd<image>")
    assert [len(piece) for piece in pieces] == [3, 2, 0]
    assert pieces[0][0] == BOS
    assert tokenizer.decode(pieces[1]) == "cd"


@pytest.mark.parametrize("text", ["<image>x", "<s><image>x", "<s>a<image>x"])
def test_bos_in_the_text_is_not_doubled(text: str) -> None:
    pieces = tokenize_pieces(tiny.tokenizer(), text)
    assert pieces[0].count(BOS) == 1
    assert pieces[0][0] == BOS


def test_a_bos_that_the_tokenizer_does_not_use_is_not_its_own() -> None:
    assert own_bos(tiny.tokenizer()) == BOS
    silent = tiny.tokenizer(adds_bos=False)
    assert own_bos(silent) is None
    assert tokenize_pieces(silent, "<image>a")[0] == []


def test_placeholders_need_no_torch() -> None:
    code = (
        "import sys, aligntrain.prompts.placeholders; print(*{'torch', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
