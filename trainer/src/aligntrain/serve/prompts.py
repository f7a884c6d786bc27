"""From a request and its pictures to what the model reads."""

from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from alignshared import InputError
from aligntrain.inference.generate import captions_only, check_questions
from aligntrain.prompts.placeholders import IMAGE_MARK, join, tokenize_pieces
from aligntrain.serve.protocol import ChatRequest, Message
from aligntrain.serve.refusals import Refusal
from aligntrain.serve.request import Prompt
from aligntrain.serve.settings import Limits


class Prompter:
    """Makes prompts for one model, in any thread."""

    def __init__(self, model: Any, processor: Any, limits: Limits) -> None:
        self._model = model
        self._processor = processor
        self._limits = limits
        self._captions_only = captions_only(processor)
        context = getattr(model.config.text_config, "max_position_embeddings", None)
        self._context: int | None = context
        self._longest_token = max(map(len, processor.tokenizer.get_vocab()))

    @property
    def most_prompt_tokens(self) -> int | None:
        """How many tokens a prompt may have, pictures included; None if nothing limits it."""
        limits = (self._limits.prompt_tokens, self._context)
        return min((limit for limit in limits if limit is not None), default=None)

    def prompt(self, request: ChatRequest, pictures: Iterable[Image.Image]) -> tuple[Prompt, int]:
        """What the model is to read, and how many tokens it may write.

        `pictures` are those of the request, in reading order; none is asked for before the rest is
        known to be right, and one is let go before the next.

        Raises:
            Refusal: it is too long, or not what this model can be asked.
        """
        import torch

        self._check_texts(request.messages)
        messages = request.messages[-1:] if self._captions_only else request.messages
        try:
            inputs = self._row(messages)
            length = inputs["input_ids"].shape[1]
            new_tokens = self._new_tokens(request, length)
            check_questions(self._model, self._processor, inputs, [request.level], new_tokens)
        except InputError as error:
            raise Refusal(400, str(error), code="invalid_value") from error
        except TemplateError as error:
            raise Refusal(
                400, f"the model's chat template refuses these messages: {error}.", param="messages"
            ) from error
        pixels = [*map(self._pixels, pictures)]
        # A model that only captions reads the last message alone.
        seen = pixels[len(pixels) - sum(len(one.image_urls) for one in messages) :]
        ids: list[int] = inputs["input_ids"][0].tolist()
        return Prompt(ids, torch.cat(seen) if seen else None, request.level), new_tokens

    def _row(self, messages: Sequence[Message]) -> dict[str, Any]:
        """`input_ids` and `attention_mask` [1, T] int64 of `messages`."""
        import torch

        processor = self._processor
        text = processor.apply_chat_template(
            [_turn(one) for one in messages], add_generation_prompt=True
        )
        ids = join(tokenize_pieces(processor.tokenizer, text), processor.layout)
        return {name: torch.tensor(rows) for name, rows in processor.pad_rows([ids]).items()}

    def _pixels(self, picture: Image.Image) -> Any:
        return self._processor.pixel_values([picture])

    def _check_texts(self, messages: Sequence[Message]) -> None:
        for place, message in enumerate(messages):
            where = f"messages[{place}]"
            if IMAGE_MARK in message.text:
                raise Refusal(
                    400,
                    f"{where} holds the mark {IMAGE_MARK}, which stands for a picture by itself; "
                    "leave it out and give the picture as a part of type image_url.",
                    param=where,
                )
            if message.role != "user" and message.image_urls:
                raise Refusal(
                    400, f"{where} is the {message.role}'s and has a picture; only the user's may.",
                    param=where,
                )  # fmt: skip
        if messages[-1].role != "user":
            raise Refusal(400, "the last message is not the user's; end with one.",
                          param="messages")  # fmt: skip
        most = self.most_prompt_tokens
        if most is None:
            return
        # Before any of it is tokenized: no token is longer than the longest one.
        least = sum(len(m.text) for m in messages) / self._longest_token
        if max(least, len(messages)) > most:
            raise _too_long(f"more than {most}", most)

    def _new_tokens(self, request: ChatRequest, length: int) -> int:
        """How many tokens an answer may have to a prompt of `length` tokens."""
        limits, most = self._limits, self.most_prompt_tokens
        if most is not None and length > most:
            raise _too_long(str(length), most)
        room = limits.new_tokens
        if self._context is not None:
            room = min(room, self._context - length)
        asked = request.most_tokens
        if asked is not None and asked > limits.new_tokens:
            raise Refusal(
                400,
                f"{asked} new tokens are asked for, and the server writes at most "
                f"{limits.new_tokens}; ask for fewer.",
                code="invalid_value",
                param="max_completion_tokens" if request.max_completion_tokens else "max_tokens",
            )
        if (asked or 1) > room:
            raise _too_long(f"{length} and {asked or 1} new", self._context or most or 0)
        return asked or room


def _turn(message: Message) -> dict[str, Any]:
    """`message` as the processor takes it."""
    role = "system" if message.role == "developer" else message.role
    marks = [{"type": "image"} for _ in message.image_urls]
    return {"role": role, "content": [*marks, {"type": "text", "text": message.text}]}


def _too_long(length: str, most: int) -> Refusal:
    return Refusal(
        400,
        f"the conversation has {length} tokens, and the limit is {most}; begin a new one, or ask "
        "for fewer.",
        code="context_length_exceeded",
        param="messages",
    )
