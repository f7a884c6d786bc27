"""A generation request, and the events that the engine reports for it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from aligntrain.serve.grammar import Grammar


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters: greedy at `temperature` 0.

    Otherwise tokens are drawn from the `top_k` likeliest (0: all), of these from the likeliest that
    have together a probability of `top_p`, and of these from those at least `min_p` times as
    probable as the likeliest. The penalties, -2 to 2, lower the logits of tokens that the answer
    already has: `presence_penalty` once, `frequency_penalty` as often as they came. The same `seed`
    draws the same tokens from the same logits.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def likeliest(self) -> bool:
        """Whether every token is the argmax of the model's logits."""
        return self.temperature == 0 and not self.presence_penalty and not self.frequency_penalty

    def of_choice(self, place: int) -> "Sampling":
        """The parameters of the choice at `place`, whose seed is its own."""
        return self if self.seed is None else replace(self, seed=self.seed + place)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The model's input: `input_ids`, and `pixel_values` [I, 3, H, W] float32 of I images.

    `level` replaces the gate's mix by that level's vector. `guidance` other than 1 exaggerates what
    level or mix do (see `guided`).
    """

    input_ids: list[int]
    pixel_values: "torch.Tensor | None" = None
    level: int | None = None
    guidance: float = 1.0

    @property
    def branches(self) -> int:
        """Rows of the batch: with guidance a second one, without an alignment vector."""
        return 1 if self.guidance == 1 else 2


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """The prompt is read; `gate_weights` [N-1] of the local levels are None without the gate."""

    gate_weights: list[float] | None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text and log-probability, and those of the `likeliest` tokens in its place."""

    text: str
    logprob: float
    likeliest: "tuple[TokenLogprob, ...]" = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer; `logprobs` are those of its tokens, if the request asks for them."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete.

    `reason` is OpenAI's finish reason: `stop` (an end token or a stop text) or `length`. `tokens`
    counts the generated tokens, the end token included.
    """

    reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The request failed. `final` marks a request that would fail again."""

    sentence: str
    final: bool = False


Event = PrefillDone | TextDelta | Finished | Failed


@dataclass(slots=True, eq=False)
class Request:
    """A prompt to answer.

    With `logprobs` the log-probabilities of tokens come with their text, and those of so many of
    the likeliest: of the logits with guidance, before penalties and temperature. `grammar` says
    what the answer may be.

    The engine's thread calls `emit` with `PrefillDone`, any number of `TextDelta` and `Finished`;
    `Failed` may replace any of them and is the last event.
    """

    prompt: Prompt
    emit: Callable[[Event], None]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    grammar: "Grammar | None" = None
    cancelled: bool = False

    def report(self, event: Event) -> None:
        """Emit `event` unless the request is cancelled."""
        if not self.cancelled:
            self.emit(event)

    def cancel(self) -> None:
        """Stop the events and free the row."""
        self.cancelled = True
