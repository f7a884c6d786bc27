"""What the engine is given to do, and what it tells of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: with `temperature` 0 the likeliest, else of the likeliest that make up
    `top_p` of the probability. The same `seed` draws the same from the same logits.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Sampler:
    """Draws the tokens of one row; who its neighbours are changes nothing."""

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
        """A token, of `logits` [V].

        Raises:
            ArithmeticError: they are no numbers.
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
    """What the model reads: `input_ids`, and `pixel_values` [I, 3, H, W] float32 of its pictures;
    `level` takes that level's vector in the place of the mix.
    """

    input_ids: list[int]
    pixel_values: torch.Tensor | None = None
    level: int | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """The prompt has been read. `gate_weights` are the N - 1 weights of the local levels, None
    where no gate spoke.
    """

    gate_weights: list[float] | None


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is whole. `reason` is OpenAI's: `stop`, by itself or by a stop text, or `length`;
    `tokens` counts what was written, a token that ends it included.
    """

    reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no answer, or no more of it; `final` is that of a prompt which would always
    fail.
    """

    sentence: str
    final: bool = False


Event = Begun | Piece | Ended | Failed


@dataclass(slots=True, eq=False)
class Job:
    """A prompt to be answered. `tell` is called from the engine's thread, with `Begun`, any number
    of `Piece`, and `Ended`; or at any place `Failed`, after which nothing comes.

    Whoever sets `cancelled` is told no more, and the row makes room for another.
    """

    prompt: Prompt
    tell: Callable[[Event], None]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    cancelled: bool = False
