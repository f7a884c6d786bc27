"""Placeholders: the ids that hold the places of image tokens and of the alignment vector.

`input_ids` is as long as the sequence that the language model reads. Placeholder ids lie outside
the LLM's embedding table and are never looked up in it; the model puts its vectors there. Plain
Python, so that data workers need no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignshared import InputError

IGNORE_INDEX = -100
"""Label of a token that carries no loss; the default of torch's cross_entropy."""

IMAGE_MARK = "<image>"
"""Mark of an image in a prompt."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a row of `input_ids` needs to know of the model.

    `image_tokens` is the number of places one image takes; `bos_token_id` is the token that the
    tokenizer itself puts first (see `own_bos`), None if it puts none; `align` is False where no
    alignment vector is used (mixing `none`).
    """

    image_token_id: int
    align_token_id: int
    image_tokens: int
    bos_token_id: int | None
    align: bool = True


def own_bos(tokenizer: Any) -> int | None:
    """The id that `tokenizer` puts before every text of its own accord; None if it puts none.

    That a tokenizer names a BOS token does not mean that it uses it: SmolLM2's is the mark of
    every chat turn.
    """
    ids: list[int] = tokenizer("", add_special_tokens=True).input_ids
    bos = tokenizer.bos_token_id
    return int(bos) if bos is not None and ids[:1] == [bos] else None


def tokenize_pieces(tokenizer: Any, text: str) -> list[list[int]]:
    """The ids of each piece of `text` between its image marks, n marks giving n + 1 pieces.

    Every piece is tokenized for itself, as LLaVA does. The tokenizer's own BOS stands before the
    first piece alone, once, also where `text` (a rendered chat template) already begins with it.
    """
    first, *others = text.split(IMAGE_MARK)
    pieces = [_ids(tokenizer, piece) for piece in (first, *others)]
    bos = own_bos(tokenizer)
    if bos is not None and pieces[0][:1] != [bos]:
        pieces[0] = [bos, *pieces[0]]
    return pieces


def join(pieces: Sequence[Sequence[int]], layout: Layout) -> list[int]:
    """The row that `pieces` give: each gap filled by one image's places, the alignment place set.

    A row without a gap has no image and no alignment place.

    Raises:
        InputError: the text has a token that the model does not know (see `is_foreign`).
    """
    if any(is_foreign(piece, layout) for piece in pieces):
        raise InputError(
            "the text has a special token of the tokenizer that the language model has no "
            "embedding for; take it out."
        )
    image = [layout.image_token_id] * layout.image_tokens
    ids = list(pieces[0])
    for piece in pieces[1:]:
        ids += image
        ids += piece
    return place_align(ids, layout)


def is_foreign(ids: Sequence[int], layout: Layout) -> bool:
    """Whether one of the `ids` of a text lies beyond the LLM's embeddings, among placeholders."""
    return max(ids, default=0) >= min(layout.image_token_id, layout.align_token_id)


def place_align(ids: Sequence[int], layout: Layout) -> list[int]:
    """`ids` with the alignment place at `align_position`; as they are where there is to be none."""
    position = align_position(ids, layout)
    if position is None:
        return list(ids)
    return [*ids[:position], layout.align_token_id, *ids[position:]]


def align_position(ids: Sequence[int], layout: Layout) -> int | None:
    """Where the alignment place belongs in a row that has none yet: right after BOS, else first.

    None for rows without an image and for models without alignment vectors.
    """
    if not layout.align or layout.image_token_id not in ids:
        return None
    starts_with_bos = layout.bos_token_id is not None and ids[0] == layout.bos_token_id
    return 1 if starts_with_bos else 0


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids) if text else []


SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
