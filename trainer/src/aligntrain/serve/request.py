"""A generation request, and the events that the engine reports for it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters: greedy at `temperature` 0, otherwise nucleus sampling with `top_p`.

    The same `seed` draws the same tokens from the same logits.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Sampler:
    """Draws the tokens of one row, independent of the other rows in the batch."""

    def __init__(self, sampling: Sampling) -> None:
        # Of the CPU, so that a seed means the same wherever the model is.
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._warpers = [
            TemperatureLogitsWarper(max(sampling.temperature, 1e-4)),
            TopPLogitsWarper(sampling.top_p),
        ]

    def draw(self, logits: torch.Tensor) -> int:
        """Draw a token from `logits` [V].

        Raises:
            ArithmeticError: the logits are NaN or infinite.
        """
        scores = logits.float().unsqueeze(0)
        for warper in self._warpers:
            scores = warper(None, scores)  # pyright: ignore[reportArgumentType] - reads no ids
        chances = scores.softmax(dim=-1).cpu()
        if not bool(chances.isfinite().all()):
            raise ArithmeticError("the model's logits are no numbers")
        return int(torch.multinomial(chances[0], 1, generator=self._generator))


@dataclass(frozen=True, slots=True)
class Prompt:
    """The model's input: `input_ids`, and `pixel_values` [I, 3, H, W] float32 of I images.

    `level` replaces the gate's mix by that level's vector.
    """

    input_ids: list[int]
    pixel_values: torch.Tensor | None = None
    level: int | None = None


@dataclass(frozen=True, slots=True)
class PrefillDone:
    """The prompt has been processed.

    `gate_weights` are the N - 1 weights of the local levels, or None if the gate was not used.
    """

    gate_weights: list[float] | None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer."""

    text: str


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

    The engine's thread calls `emit` with `PrefillDone`, any number of `TextDelta` and `Finished`;
    `Failed` may replace any of them and is the last event. Setting `cancelled` stops the events and
    frees the row.
    """

    prompt: Prompt
    emit: Callable[[Event], None]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    cancelled: bool = False
