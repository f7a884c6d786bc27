"""A generation request, and the events that the engine reports for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters: greedy at `temperature` 0, otherwise nucleus sampling with `top_p`.

    The same `seed` draws the same tokens from the same logits.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


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
    `Failed` may replace any of them and is the last event.
    """

    prompt: Prompt
    emit: Callable[[Event], None]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    cancelled: bool = False

    def report(self, event: Event) -> None:
        """Emit `event` unless the request is cancelled."""
        if not self.cancelled:
            self.emit(event)

    def cancel(self) -> None:
        """Stop the events and free the row."""
        self.cancelled = True
