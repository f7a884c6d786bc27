"""Placeholders: ids that reserve the positions of image tokens and of the alignment vector.

`input_ids` is as long as the LLM's input sequence. Placeholder ids lie beyond the LLM's embedding
table and are never looked up; the model writes its vectors there. This module needs no torch, for
the data workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignshared import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""Label of a token without loss; the default of torch's cross_entropy."""

IMAGE_MARK = "<image>"
"""Mark of an image in a prompt."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Ids and sizes of the model that determine a row of `input_ids`.

    `image_tokens` is the number of tokens per image; `bos_token_id` the BOS added by the tokenizer
    itself (see `own_bos`), or None; `align` is False without an alignment vector (mixing `none`).
    """

    image_token_id: int
    align_token_id: int
    image_tokens: int
    bos_token_id: int | None
    align: bool = True


def own_bos(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the id that `tokenizer` itself adds before every text, or None.

    A tokenizer may name a BOS token without using it: SmolLM2's opens every chat turn.
    """
    ids: list[int] = tokenizer("", add_special_tokens=True).input_ids
    bos = tokenizer.bos_token_id
    return ids[0] if bos is not None and ids[:1] == [bos] else None


def tokenize_pieces(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[list[int]]:
    """Return the ids of each piece of `text` between its image marks: n marks, n + 1 pieces.

    Pieces are tokenized one by one, as in LLaVA. The tokenizer's own BOS stands once, before the
    first piece, even if `text` (a rendered chat template) already begins with it.
    """
    pieces = [
        list(tokenizer(piece, add_special_tokens=False).input_ids) if piece else []
        for piece in text.split(IMAGE_MARK)
    ]
    bos = own_bos(tokenizer)
    if bos is not None and pieces[0][:1] != [bos]:
        pieces[0] = [bos, *pieces[0]]
    return pieces


def join(pieces: Sequence[Sequence[int]], layout: Layout) -> list[int]:
    """Join `pieces` with one image's placeholders in each gap, and add the alignment placeholder.

    A row without a gap has no image and no alignment placeholder.

    Raises:
        InputError: the text has a token unknown to the model (see `is_foreign`).
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
    """Return whether any of `ids` lies beyond the LLM's embedding table, among the placeholders."""
    return max(ids, default=0) >= min(layout.image_token_id, layout.align_token_id)


def place_align(ids: Sequence[int], layout: Layout) -> list[int]:
    """Return `ids` with the alignment placeholder at `align_position`, if any."""
    position = align_position(ids, layout)
    if position is None:
        return list(ids)
    return [*ids[:position], layout.align_token_id, *ids[position:]]


def align_position(ids: Sequence[int], layout: Layout) -> int | None:
    """Return the position of the alignment placeholder: right after BOS, else first.

    None for rows without an image and for models without alignment vectors.
    """
    if not layout.align or layout.image_token_id not in ids:
        return None
    starts_with_bos = layout.bos_token_id is not None and ids[0] == layout.bos_token_id
    return 1 if starts_with_bos else 0
