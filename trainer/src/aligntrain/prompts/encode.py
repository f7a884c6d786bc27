"""A script as ids and labels, placeholders set and length kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignshared import InputError
from aligntrain.prompts.conversation import InvalidSample, Reason, Turn, read_conversation
from aligntrain.prompts.placeholders import (
    IGNORE_INDEX,
    IMAGE_MARK,
    Layout,
    is_foreign,
    join,
    own_bos,
)
from aligntrain.prompts.templates import ChatTemplate, Script, check_template, plain, vicuna_v1


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row of `input_ids` and its labels, of equal length; `images` is how many have a place.

    `truncated` says that it was longer than the limit.
    """

    ids: list[int]
    labels: list[int]
    images: int
    truncated: bool


class Encoder:
    """Writes rows in the template `template` with `tokenizer`, in at most `max_length` places.

    Raises:
        InputError: the template is unknown or not to be had from this tokenizer, the tokenizer
            cannot say where its tokens lie, or an image alone is longer than `max_length`.
    """

    def __init__(self, tokenizer: Any, layout: Layout, template: str, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        self._template = check_template(template)
        self._max_length = max_length
        self._bos = own_bos(tokenizer)
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

    @property
    def needs_conversations(self) -> bool:
        """Whether rows need `conversations`; the template `plain` needs a caption."""
        return self._template != "plain"

    def __call__(self, caption: str | None, turns: Sequence[Turn], images: int) -> Tokens:
        """Ids and labels of a row with `images` images.

        Raises:
            InvalidSample: the row lacks what the template needs, or is too long even when it is cut.
        """
        script = self._script(caption, turns, images)
        ids, labels, ends = self._tokenize(script, images)
        if any(is_foreign(piece, self._layout) for piece in ids):
            raise InvalidSample(
                Reason.FOREIGN_TOKEN, "the LLM has no embedding for a token in its text"
            )
        return self._limited(join(ids, self._layout), labels, ends)

    def _script(self, caption: str | None, turns: Sequence[Turn], images: int) -> Script:
        if not self.needs_conversations:
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
        return vicuna_v1(conversation, self._tokenizer.eos_token)

    def _tokenize(
        self, script: Script, images: int
    ) -> tuple[list[list[int]], list[int], list[int]]:
        """Ids of the pieces between images; labels of all text tokens; and for each end of an
        exchange the number of text tokens up to it.
        """
        # Only as many marks as there are images are marks: any more are text.
        pieces = script.text.split(IMAGE_MARK, images)
        all_ids: list[list[int]] = []
        labels: list[int] = []
        starts: list[int] = []
        begin = 0
        for piece in pieces:
            ids, offsets = self._encode(piece)
            if begin == 0 and self._bos is not None and ids[:1] != [self._bos]:
                ids, offsets = [self._bos, *ids], [(0, 0), *offsets]
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
        coded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(coded["input_ids"]), list(coded["offset_mapping"])

    def _limited(self, ids: list[int], text_labels: list[int], ends: list[int]) -> Tokens:
        layout, limit = self._layout, self._max_length
        places = (layout.image_token_id, layout.align_token_id)
        at_text = [at for at, id_ in enumerate(ids) if id_ not in places]
        labels = [IGNORE_INDEX] * len(ids)
        for at, label in zip(at_text, text_labels, strict=True):
            labels[at] = label
        truncated = len(ids) > limit
        if truncated:
            # Where the first exchange alone is too long, its answer is cut.
            fitting = [at_text[end - 1] + 1 for end in ends if at_text[end - 1] < limit]
            keep = fitting[-1] if fitting else limit
            ids, labels = ids[:keep], labels[:keep]
        images, rest = divmod(ids.count(layout.image_token_id), layout.image_tokens)
        if rest or all(label == IGNORE_INDEX for label in labels):
            raise InvalidSample(
                Reason.TOO_LONG, f"the first {limit} tokens, data.max_length, hold nothing to learn"
            )
        return Tokens(ids, labels, images, truncated)


def _labels(
    ids: list[int], spans: list[tuple[int, int]], learned: Sequence[tuple[int, int]]
) -> list[int]:
    """Ids where a token has a character in a span of `learned`, IGNORE_INDEX elsewhere.

    A token without characters of its own (a space that the tokenizer adds) belongs to where it
    stands.
    """
    labels: list[int] = []
    at = 0
    for id_, (first, last) in zip(ids, spans, strict=True):
        while at < len(learned) and learned[at][1] <= first:
            at += 1
        inside = at < len(learned) and max(last, first + 1) > learned[at][0]
        labels.append(id_ if inside else IGNORE_INDEX)
    return labels
