"""The next token of a row, from its logits."""

from dataclasses import dataclass

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
