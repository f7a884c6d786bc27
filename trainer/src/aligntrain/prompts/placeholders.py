"""Placeholders: tokens that reserve the positions of image tokens and of the alignment vector.

`input_ids` is as long as the LLM's input sequence. Placeholders are tokens of the tokenizer, one
after the other: `<image>`, `<align>`, and `<level_1>` to `<level_N>`, which stand in the place of
`<align>` for the vector of one level. The model writes its vectors over their embeddings. Text
never becomes a placeholder: a mark in a caption or an answer is read as the characters it has. This
module needs no torch, for the data workers.
"""

import json
import re
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from alignshared import InputError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""Label of a token without loss; the default of torch's cross_entropy."""

IMAGE_MARK = "<image>"
"""Mark of an image in a prompt, and its token."""
ALIGN_MARK = "<align>"
"""Token of the alignment vector that the model mixes."""
LEVEL_MARK = "<level_{}>"
"""Token of a level's vector, and its mark at the beginning of a prompt."""

_MARK = re.compile(r"<image>|<align>|<level_[0-9]+>")
_LEVEL = re.compile(r"<level_([0-9]{1,9})>")


@dataclass(frozen=True, slots=True)
class Layout:
    """Ids and sizes of the model that determine a row of `input_ids`.

    `image_tokens` is the number of tokens per image; `bos_token_id` the BOS added by the tokenizer
    itself (see `own_bos`), or None; `align` is False without an alignment vector (mixing `none`).
    The id of level k of `levels` is `align_token_id` + k. `llm_vocab_size` are the rows of the
    LLM's own table, by default all ids before the placeholders, and `token_count` the tokens.
    """

    image_token_id: int
    align_token_id: int
    image_tokens: int
    bos_token_id: int | None
    align: bool = True
    llm_vocab_size: int | None = None
    levels: int = 0
    token_count: int = 0


def marks_of(levels: int) -> list[str]:
    """Return the placeholders of a model with `levels` levels in the order of their ids."""
    return [IMAGE_MARK, ALIGN_MARK, *(LEVEL_MARK.format(k) for k in range(1, levels + 1))]


def is_mark(text: str) -> bool:
    """Return whether `text` is the mark of a placeholder."""
    return _MARK.fullmatch(text) is not None


def with_marks(tokenizer: "PreTrainedTokenizerBase", levels: int) -> "PreTrainedTokenizerBase":
    """Return `tokenizer` if it has the placeholders of `levels` levels, else a copy that does.

    Raises:
        InputError: it has some of them elsewhere than the others.
    """
    marks = marks_of(levels)
    known = _added(tokenizer)
    if not all(mark in known for mark in marks):
        from transformers import AddedToken

        tokenizer = deepcopy(tokenizer)
        added = [AddedToken(mark, special=True, normalized=False) for mark in marks]
        tokenizer.add_tokens(added, special_tokens=True)
        known = _added(tokenizer)
    ids = [known[mark] for mark in marks]
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise InputError(
            f"the tokenizer {tokenizer.name_or_path} has some of the tokens {', '.join(marks)} "
            "already, and not one after the other; take them out of its tokenizer.json."
        )
    return tokenizer


def _added(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    return {str(token): id_ for id_, token in tokenizer.added_tokens_decoder.items()}


@lru_cache(maxsize=4)
def without_marks(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """Return a copy of `tokenizer` that knows no placeholder, as its language model's own was.

    Raises:
        InputError: it is not one of the library tokenizers.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer {tokenizer.name_or_path} cannot read a mark like {IMAGE_MARK} as text; "
            "use one with a tokenizer.json."
        )
    from tokenizers import Tokenizer

    fast: Any = tokenizer
    state = json.loads(fast.backend_tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not is_mark(t["content"])]
    plain: Any = copy(tokenizer)
    plain._tokenizer = Tokenizer.from_str(json.dumps(state))
    return plain


def own_bos(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the id that `tokenizer` itself adds before every text, or None.

    A tokenizer may name a BOS token without using it: SmolLM2's opens every chat turn.
    """
    ids: list[int] = tokenizer("", add_special_tokens=True).input_ids
    bos = tokenizer.bos_token_id
    return ids[0] if bos is not None and ids[:1] == [bos] else None


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str, **options: Any) -> "BatchEncoding":
    """Encode `text` with nothing around it; marks of placeholders in it are characters."""
    reader = without_marks(tokenizer) if _MARK.search(text) else tokenizer
    return reader(text, add_special_tokens=False, **options)


def tokenize_pieces(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, add_bos: bool = True
) -> list[list[int]]:
    """Return the ids of each piece of `text` between its image marks: n marks, n + 1 pieces.

    Pieces are tokenized one by one, as in LLaVA. The tokenizer's own BOS stands once, before the
    first piece, even if `text` (a rendered chat template) already begins with it. Without `add_bos`
    it stands there only if `text` has it.
    """
    pieces = [
        list(encode_text(tokenizer, piece)["input_ids"]) if piece else []
        for piece in text.split(IMAGE_MARK)
    ]
    bos = own_bos(tokenizer) if add_bos else None
    if bos is not None and pieces[0][:1] != [bos]:
        pieces[0] = [bos, *pieces[0]]
    return pieces


def take_level(text: str, bos: str | None = None) -> tuple[int | None, str]:
    """Return the level that `text` begins with, and the rest: `<level_3>Say.` is 3 and `Say.`.

    It may stand behind the token `bos`. Without one the level is None.
    """
    opening = bos if bos and text.startswith(bos) else ""
    found = _LEVEL.match(text, len(opening))
    return (None, text) if found is None else (int(found[1]), opening + text[found.end() :])


def check_level(level: int, levels: int) -> None:
    """Raise InputError unless `level` is one of a model with `levels` of them, 0 for none."""
    if not levels:
        raise InputError("the model has mixing none and no levels; leave the level out.")
    if not 1 <= level <= levels:
        raise InputError(f"there is no level {level}; give one from 1 to {levels}.")


def join(pieces: Sequence[Sequence[int]], layout: Layout, level: int | None = None) -> list[int]:
    """Join `pieces` with one image's placeholders in each gap, and add the alignment placeholder.

    With `level` it is that level's. A row without a gap has no image and no alignment placeholder.

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
    return place_align(ids, layout, level)


def is_foreign(ids: Sequence[int], layout: Layout) -> bool:
    """Return whether any of `ids` is no text of the LLM: beyond its own vocabulary, a placeholder.

    Gemma 3's tokenizer has a token for images, which its language models of text alone do not know.
    Tokens that were added behind the placeholders are text.
    """
    image = layout.image_token_id
    own = image if layout.llm_vocab_size is None else layout.llm_vocab_size
    first, last = min(own, image), layout.align_token_id + layout.levels
    if max(ids, default=0) < first:
        return False
    end = max(own, layout.token_count)
    return any(first <= id_ <= last or id_ >= end for id_ in ids)


def place_align(ids: Sequence[int], layout: Layout, level: int | None = None) -> list[int]:
    """Return `ids` with the alignment placeholder, or that of `level`, at `align_position`."""
    position = align_position(ids, layout)
    if position is None:
        return list(ids)
    return [*ids[:position], layout.align_token_id + (level or 0), *ids[position:]]


def align_position(ids: Sequence[int], layout: Layout) -> int | None:
    """Return the position of the alignment placeholder: right after BOS, else first.

    None for rows without an image and for models without alignment vectors.
    """
    if not layout.align or layout.image_token_id not in ids:
        return None
    starts_with_bos = layout.bos_token_id is not None and ids[0] == layout.bos_token_id
    return 1 if starts_with_bos else 0
