"""A conversation as one text, and which of its characters the model is to learn.

What is learned is known from how the text is put together, never from counting tokens afterwards:
there is no "tokenization mismatch".

- `plain`: the image, the caption, a line feed; the caption and the line feed are learned. What a
  human said is left out. (LLaVA's pre-training.)
- `vicuna_v1`: the system sentence of Vicuna v1, `USER:` and `ASSISTANT:`; learned are the answers
  with the space before them and the end-of-text token (Vicuna's `</s>`) behind them. As in LLaVA's
  code, a system message of the row is left out.
- `chat`: the tokenizer's own template; learned is what it writes for an answer, to its last special
  token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jinja2 import TemplateError

from alignshared import InputError
from aligntrain.prompts.conversation import Conversation, InvalidSample, Reason
from aligntrain.prompts.placeholders import IMAGE_MARK, SYSTEM

TemplateName = Literal["plain", "vicuna_v1", "chat"]

_VICUNA_END = "</s>"

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Script:
    """A text to be tokenized. `learned` are its spans [begin, end) of characters with a label, in
    order; `ends` is where each exchange ends, which is where a text that is too long may be cut.
    """

    text: str
    learned: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]


def check_template(name: str) -> TemplateName:
    """`name`, if it is a template's.

    Raises:
        InputError: it is not.
    """
    for known in get_args(TemplateName):
        if name == known:
            return known
    raise InputError(f"data.template {name} is unknown; give {', '.join(get_args(TemplateName))}.")


def plain(caption: str, images: int) -> Script:
    """`<image>` once per image, then the caption and a line feed, which are learned."""
    marks = IMAGE_MARK * images
    text = f"{marks}{caption}\n"
    return Script(text, ((len(marks), len(text)),), (len(text),))


def vicuna_v1(conversation: Conversation, end: str | None) -> Script:
    """The conversation as Vicuna v1 and LLaVA-1.5 write it; `end` is the tokenizer's end of text.

    The space before an answer is learned with it: a prompt ends in `ASSISTANT:`, and most
    tokenizers make one token of a space and the word behind it.
    """
    text = f"{SYSTEM} "
    learned: list[tuple[int, int]] = []
    for exchange in conversation.exchanges:
        text += f"USER: {exchange.question} ASSISTANT:"
        begin = len(text)
        text += f" {exchange.answer}{end or _VICUNA_END}"
        learned.append((begin, len(text)))
    return Script(text, tuple(learned), tuple(stop for _, stop in learned))


class ChatTemplate:
    """The chat template of `tokenizer`, whose answers are found by rendering prefix after prefix.

    Raises:
        InputError: the tokenizer has no chat template, or one that writes a conversation's
            beginning differently once it goes on.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Those that no role names too: `<|end|>` of Phi-3 is one.
        added = (str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)
        self._specials = tuple(dict.fromkeys((*tokenizer.all_special_tokens, *added)))
        if not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer {tokenizer.name_or_path} has no chat template; set data.template "
                "to vicuna_v1."
            )
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
        try:
            _script_of(probe, self._render, self._specials)
        except InvalidSample as problem:
            raise InputError(
                f"the answers cannot be found in the chat template of {tokenizer.name_or_path} "
                f"({problem.detail}); set data.template to vicuna_v1."
            ) from problem

    def __call__(self, conversation: Conversation) -> Script:
        """The conversation in the tokenizer's own form.

        Raises:
            InvalidSample: the template refuses it, or writes its beginning differently once it goes on.
        """
        messages: list[Message] = []
        if conversation.system is not None:
            messages.append({"role": "system", "content": conversation.system})
        for exchange in conversation.exchanges:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
        return _script_of(messages, self._render, self._specials)

    def _render(self, messages: list[Message], prompt: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
        except TemplateError as error:
            raise InvalidSample(
                Reason.CHAT_TEMPLATE, f"the template refuses it: {error}"
            ) from error


def _script_of(
    messages: list[Message],
    render: Callable[[list[Message], bool], str],
    specials: tuple[str, ...],
) -> Script:
    text = render(messages, False)
    learned: list[tuple[int, int]] = []
    ends: list[int] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, answered = render(messages[:number], True), render(messages[: number + 1], False)
        if not text.startswith(prompt) or not answered.startswith(prompt):
            raise _rewritten()
        if text.startswith(answered):
            end, stop = _end_of_answer(answered, len(prompt), specials), len(answered)
        else:
            end, stop = _found(text, answered, len(prompt), message["content"].strip(), specials)
        learned.append((len(prompt), end))
        ends.append(stop)
    return Script(text, tuple(learned), tuple(ends))


def _found(
    text: str, answered: str, begin: int, answer: str, specials: tuple[str, ...]
) -> tuple[int, int]:
    """Where in `text` the `answer` behind `begin` ends, with its special token and with the space
    behind that; `answered` is the conversation up to it, written as if nothing followed.

    Some templates write the last answer otherwise than those before it: Phi-3's ends the whole text
    with a token of its own, Qwen3's opens the last answer with an empty thought.
    """
    core = _without_specials(answered, specials)
    opening = core[begin : len(core) - len(answer)]
    token = _first_special(answered[len(core) :], specials)
    for before in (opening, "", " "):
        end = begin + len(before) + len(answer)
        behind = text[end:].lstrip()
        there = core.endswith(answer) and text.startswith(before + answer, begin)
        if token and there and behind.startswith(token):
            end = len(text) - len(behind) + len(token)
            return end, len(text) - len(text[end:].lstrip())
    raise _rewritten()


def _without_specials(text: str, specials: tuple[str, ...]) -> str:
    """`text` without the special tokens and the space at its end."""
    while True:
        text = text.rstrip()
        token = next((one for one in specials if text.endswith(one)), None)
        if token is None:
            return text
        text = text.removesuffix(token)


def _rewritten() -> InvalidSample:
    return InvalidSample(
        Reason.CHAT_TEMPLATE,
        "it writes the beginning of a conversation differently once that goes on",
    )


def _end_of_answer(text: str, begin: int, specials: tuple[str, ...]) -> int:
    """Where the answer from `begin` to the end of `text` ends: with its special token, if any."""
    # What stands behind that token, a line feed say, is never generated: nobody waits for it.
    core = max(begin, len(_without_specials(text, specials)))
    token = _first_special(text[core:], specials)
    return len(text) if token is None else text.index(token, core) + len(token)


def _first_special(text: str, specials: tuple[str, ...]) -> str | None:
    return next((token for token in specials if text.lstrip().startswith(token)), None)
