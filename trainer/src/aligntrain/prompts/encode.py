"""Encode a row as ids and labels, with placeholders, within the length limit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from alignshared import InputError
from aligntrain.prompts.conversation import InvalidSample, Reason, Turn, read_conversation
from aligntrain.prompts.placeholders import (
    IGNORE_INDEX,
    IMAGE_MARK,
    Layout,
    encode_text,
    is_foreign,
    join,
    own_bos,
)
from aligntrain.prompts.templates import ChatTemplate, Script, TemplateName, plain, vicuna_v1

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tokens:
    """`input_ids` of a row and labels of equal length, with `images` images, cut if `truncated`."""

    ids: list[int]
    labels: list[int]
    images: int
    truncated: bool


class Encoder:
    """Encoder of rows in `template` with `tokenizer`, in at most `max_length` tokens.

    Raises:
        InputError: the template is unknown or this tokenizer has none, the tokenizer gives no
            character offsets, or an image alone is longer than `max_length`.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", layout: Layout, template: str, max_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._template = template
        self._max_length = max_length
        self._bos = own_bos(tokenizer)
        if template not in (known := get_args(TemplateName)):
            raise InputError(f"data.template {template} is unknown; give {', '.join(known)}.")
        if not tokenizer.is_fast:
            raise InputError(
                f"the tokenizer {tokenizer.name_or_path} cannot tell where in a text its tokens "
                "lie; use one with a tokenizer.json."
            )
        if max_length < layout.image_tokens + 3:
            raise InputError(
                f"data.max_length {max_length} has no room for text beside the "
                f"{layout.image_tokens} tokens of an image; raise it."
            )
        self._chat = ChatTemplate(tokenizer) if self._template == "chat" else None

    def without_align(self) -> "Encoder":
        """Return this encoder without alignment placeholders, as for a model of mixing `none`."""
        layout = replace(self._layout, align=False)
        return Encoder(self._tokenizer, layout, self._template, self._max_length)

    def __call__(self, caption: str | None, turns: Sequence[Turn], images: int) -> Tokens:
        """Return ids and labels of a row with `images` images.

        Raises:
            InvalidSample: the row lacks what the template needs, or is too long even when cut.
        """
        script = self._script(caption, turns, images)
        ids, labels, ends = self._tokenize(script, images)
        if any(is_foreign(piece, self._layout) for piece in ids):
            raise InvalidSample(
                Reason.FOREIGN_TOKEN, "the LLM has no embedding for a token in its text"
            )
        return self._limited(join(ids, self._layout), labels, ends)

    def _script(self, caption: str | None, turns: Sequence[Turn], images: int) -> Script:
        if self._template == "plain":
            if caption is None or not caption.strip():
                raise InvalidSample(Reason.NO_CAPTION, "there is no caption")
            if images == 0:
                raise InvalidSample(
                    Reason.NO_IMAGE, "the template plain is for pairs with an image"
                )
            return plain(caption, images)
        if not turns:
            raise InvalidSample(Reason.NO_CONVERSATION, "there is no conversation")
        conversation = read_conversation(turns, images)
        if self._chat is not None:
            return self._chat(conversation)
        return vicuna_v1(conversation, str(self._tokenizer.eos_token or ""))

    def _tokenize(
        self, script: Script, images: int
    ) -> tuple[list[list[int]], list[int], list[int]]:
        """Tokenize the pieces of text between images, without placeholders.

        Returns:
            The ids of each piece, the labels of all text tokens, and for each end of an exchange
            the number of text tokens up to it.
        """
        # Marks beyond the number of images are text.
        pieces = script.text.split(IMAGE_MARK, images)
        all_ids: list[list[int]] = []
        labels: list[int] = []
        starts: list[int] = []
        begin = 0
        for piece in pieces:
            ids, offsets = self._encode(piece)
            if begin == 0 and self._bos is not None and ids[:1] != [self._bos]:
                ids, offsets = [self._bos, *ids], [(0, 0), *offsets]
            # Offsets count from the piece, spans from the whole text.
            spans = [(first + begin, last + begin) for first, last in offsets]
            labels += _labels(ids, spans, script.learned)
            starts += [first for first, _ in spans]
            all_ids.append(ids)
            begin += len(piece) + len(IMAGE_MARK)
        ends = [sum(start < end for start in starts) for end in script.ends]
        return all_ids, labels, ends

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        if not text:
            return [], []
        coded = encode_text(self._tokenizer, text, return_offsets_mapping=True)
        return list(coded["input_ids"]), list(coded["offset_mapping"])

    def _limited(self, ids: list[int], text_labels: list[int], ends: list[int]) -> Tokens:
        """Spread `text_labels` over `ids`, which have placeholders, and cut both to the limit."""
        layout, limit = self._layout, self._max_length
        placeholders = (layout.image_token_id, layout.align_token_id)
        text_positions = [i for i, id_ in enumerate(ids) if id_ not in placeholders]
        labels = [IGNORE_INDEX] * len(ids)
        for position, label in zip(text_positions, text_labels, strict=True):
            labels[position] = label
        truncated = len(ids) > limit
        if truncated:
            # Cut after the last exchange that fits. If the first alone is too long, cut its answer.
            stops = [text_positions[end - 1] + 1 for end in ends if text_positions[end - 1] < limit]
            length = stops[-1] if stops else limit
            ids, labels = ids[:length], labels[:length]
        images, rest = divmod(ids.count(layout.image_token_id), layout.image_tokens)
        if rest or all(label == IGNORE_INDEX for label in labels):
            raise InvalidSample(
                Reason.TOO_LONG, f"the first {limit} tokens, data.max_length, hold nothing to learn"
            )
        return Tokens(ids, labels, images, truncated)


def _labels(
    ids: list[int], spans: list[tuple[int, int]], learned: Sequence[tuple[int, int]]
) -> list[int]:
    """Return the id of each token with a character in a span of `learned`, else IGNORE_INDEX.

    A token without characters (a space that the tokenizer adds) belongs to its position.
    """
    labels: list[int] = []
    span = 0  # both lists are in order: one pass
    for id_, (first, last) in zip(ids, spans, strict=True):
        while span < len(learned) and learned[span][1] <= first:
            span += 1
        is_learned = span < len(learned) and max(last, first + 1) > learned[span][0]
        labels.append(id_ if is_learned else IGNORE_INDEX)
    return labels
