"""Templates: a conversation as one text, and the characters of it that carry loss.

The labelled spans are recorded while composing the text, never recovered by counting tokens, so
there is no "tokenization mismatch".

- `plain` (LLaVA's pre-training): image, caption, line feed. Caption and line feed are labelled; the
  human's text is dropped.
- `vicuna_v1`: Vicuna's system sentence, then `USER:` and `ASSISTANT:` turns. Each answer is
  labelled, with the space before it and the end-of-text token after it. As in LLaVA's code, a
  system message of the row is dropped.
- `chat`: the tokenizer's own template. Its text for an answer is labelled, up to the answer's last
  special token.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jinja2 import TemplateError

from alignshared import InputError
from aligntrain.prompts.conversation import Conversation, InvalidSample, Reason
from aligntrain.prompts.placeholders import IMAGE_MARK, is_mark

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateName = Literal["plain", "vicuna_v1", "chat"]

Message = dict[str, str]

CAPTION_PROMPT = "Give a short caption."
"""Request for a caption to a model that answers questions."""

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_USER, _ASSISTANT, _VICUNA_END = "USER: ", "ASSISTANT:", "</s>"

CHAT_TEMPLATES: dict[str, str] = {
    "plain": (
        "{%- for message in messages -%}"
        "{%- if message.role == 'user' -%}"
        "{{- '" + IMAGE_MARK + "' * message.content.count('" + IMAGE_MARK + "') -}}"
        "{%- elif message.role == 'assistant' -%}"
        "{{- message.content + '\\n' -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
    ),
    "vicuna_v1": (
        "{%- if messages[0].role == 'system' -%}"
        "{{- messages[0].content + ' ' -}}"
        "{%- else -%}"
        "{{- '" + VICUNA_SYSTEM.replace("'", "\\'") + " ' -}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- if message.role == 'user' -%}"
        "{{- '" + _USER + "' + message.content + ' ' -}}"
        "{%- elif message.role == 'assistant' -%}"
        "{{- '" + _ASSISTANT + " ' + message.content + (eos_token or '" + _VICUNA_END + "') -}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '" + _ASSISTANT + "' -}}{%- endif -%}"
    ),
}
"""Jinja of `plain` and `vicuna_v1`, saved with a processor: the text of the functions."""


@dataclass(frozen=True, slots=True)
class Script:
    """Text to be tokenized.

    `learned` are the labelled spans [begin, end) of characters, in order; `ends` are the ends of
    the exchanges, at which a long text may be cut.
    """

    text: str
    learned: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]


def plain(caption: str, images: int) -> Script:
    """Return `<image>` once per image, then the labelled caption and line feed."""
    marks = IMAGE_MARK * images
    text = f"{marks}{caption}\n"
    return Script(text, ((len(marks), len(text)),), (len(text),))


def vicuna_v1(conversation: Conversation, end: str | None) -> Script:
    """Return the conversation as Vicuna v1 and LLaVA-1.5 write it.

    `end` is the tokenizer's end-of-text token. The space before an answer is labelled with it: a
    prompt ends in `ASSISTANT:`, and most tokenizers make one token of a space and the next word.
    """
    text = f"{VICUNA_SYSTEM} "
    learned: list[tuple[int, int]] = []
    for exchange in conversation.exchanges:
        text += f"{_USER}{exchange.question} {_ASSISTANT}"
        begin = len(text)
        text += f" {exchange.answer}{end or _VICUNA_END}"
        learned.append((begin, len(text)))
    return Script(text, tuple(learned), tuple(stop for _, stop in learned))


class ChatTemplate:
    """Chat template of `tokenizer`; answers are located by rendering prefix after prefix.

    Raises:
        InputError: the tokenizer has no chat template, or one that rewrites the beginning of a
            conversation once it continues.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        # Special tokens without a role too: `<|end|>` of Phi-3 is one.
        added = (str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)
        specials = dict.fromkeys((*tokenizer.all_special_tokens, *added))
        # A mark in an answer is its text.
        self._specials = tuple(token for token in specials if not is_mark(token))
        if not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer {tokenizer.name_or_path} has no chat template; set data.template "
                "to vicuna_v1."
            )
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
        try:
            self._script_of(probe)
        except InvalidSample as problem:
            raise InputError(
                f"the answers cannot be found in the chat template of {tokenizer.name_or_path} "
                f"({problem.detail}); set data.template to vicuna_v1."
            ) from problem

    def __call__(self, conversation: Conversation) -> Script:
        """Return the conversation in the tokenizer's own form.

        Raises:
            InvalidSample: the template refuses it, or rewrites its beginning once it continues.
        """
        system = conversation.system
        messages = [] if system is None else [{"role": "system", "content": system}]
        for exchange in conversation.exchanges:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
        return self._script_of(messages)

    def _render(self, messages: list[Message], prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
            return str(text)
        except TemplateError as error:
            raise InvalidSample(
                Reason.CHAT_TEMPLATE, f"the template refuses it: {error}"
            ) from error

    def _script_of(self, messages: list[Message]) -> Script:
        text = self._render(messages, False)
        learned: list[tuple[int, int]] = []
        ends: list[int] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            # Rendering adds the answer after the prompt that `generate` would get.
            prompt = self._render(messages[:number], True)
            answered = self._render(messages[: number + 1], False)
            if not text.startswith(prompt) or not answered.startswith(prompt):
                raise _rewritten()
            if text.startswith(answered):
                end, stop = self._answer_end(answered, len(prompt)), len(answered)
            else:
                answer = message["content"].strip()
                end, stop = self._find_answer(text, answered, len(prompt), answer)
            learned.append((len(prompt), end))
            ends.append(stop)
        return Script(text, tuple(learned), tuple(ends))

    def _answer_end(self, text: str, begin: int) -> int:
        """Return the end of the answer from `begin`, including its special token.

        Text after that token, such as a line feed, is never generated, so it is not labelled.
        """
        core = max(begin, len(self._without_specials(text)))
        token = self._first_special(text[core:])
        return len(text) if token is None else text.index(token, core) + len(token)

    def _find_answer(self, text: str, answered: str, begin: int, answer: str) -> tuple[int, int]:
        """Return the end of `answer`, from `begin` on, in `text`, without and with trailing space.

        Both ends include its special token. `answered` is the conversation rendered up to the
        answer. For templates that write the last answer differently from earlier ones: Phi-3's
        ends the whole text with an extra token, Qwen3's opens the last answer with an empty
        thought.
        """
        core = self._without_specials(answered)
        opening = core[begin : len(core) - len(answer)]
        token = self._first_special(answered[len(core) :])
        for before in (opening, "", " "):
            end = begin + len(before) + len(answer)
            rest = text[end:].lstrip()
            matches = core.endswith(answer) and text.startswith(before + answer, begin)
            if token and matches and rest.startswith(token):
                end = len(text) - len(rest) + len(token)
                return end, len(text) - len(text[end:].lstrip())
        raise _rewritten()

    def _without_specials(self, text: str) -> str:
        """Return `text` without trailing special tokens and space."""
        text = text.rstrip()
        while token := next((token for token in self._specials if text.endswith(token)), None):
            text = text.removesuffix(token).rstrip()
        return text

    def _first_special(self, text: str) -> str | None:
        return next((token for token in self._specials if text.lstrip().startswith(token)), None)


def _rewritten() -> InvalidSample:
    return InvalidSample(
        Reason.CHAT_TEMPLATE,
        "it writes the beginning of a conversation differently once that goes on",
    )
