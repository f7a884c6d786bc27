"""Talking with a trained model about pictures, answers coming as they are written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig, StoppingCriteriaList, TextIteratorStreamer

from alignshared import InputError
from alignshared.pictures import to_rgb
from aligntrain.inference.generate import (
    captions_only,
    capture_gate,
    check_questions,
    generation_settings,
    model_inputs,
)
from aligntrain.inference.load import load_for_inference
from aligntrain.model.processing import read_image
from aligntrain.prompts.placeholders import IMAGE_MARK


class Chat:
    """A conversation with `model`, one turn after the other; `reset` begins a new one.

    After an answer, `gate_weights` holds the N - 1 weights of the local levels that the gate gave
    it; None where no gate spoke: without a picture, with a forced level, with a mixing without a
    gate.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model.eval()
        self.processor = processor
        self.gate_weights: list[float] | None = None
        self._messages: list[dict[str, Any]] = []

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> "Chat":
        """A conversation with the model in `folder`: a run's, or one that `save_pretrained` wrote.

        It goes on a GPU where there is one, as it is saved; on a CPU it computes in float32.

        Raises:
            InputError: there is no such model.
        """
        return cls(*load_for_inference(folder, device=device))

    @property
    def history(self) -> list[tuple[str, str]]:
        """Who said what so far: (`user` or `assistant`, text)."""
        return [(turn["role"], turn["content"][-1]["text"]) for turn in self._messages]

    def reset(self) -> None:
        """Forget all that was said."""
        self._messages.clear()
        self.gate_weights = None

    def answer(
        self,
        prompt: str,
        image: str | Path | Image.Image | None = None,
        *,
        level: int | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
    ) -> Iterator[str]:
        """The answer to `prompt`, about `image` or what was said before, piece by piece.

        `level` takes that level's vector in the place of the mix; with `temperature` 0 each token
        is the likeliest. When an answer is not read to its end, writing stops there, and what was
        read is what was said.

        Raises:
            InputError: the picture cannot be read, the level does not exist or nothing is there to
                put it before, the numbers cannot be, or the conversation has become too long.
        """
        # Not itself a generator: what is wrong shows at the call.
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if IMAGE_MARK in prompt:
            raise InputError(
                f"the prompt holds the mark {IMAGE_MARK}, which stands for a picture by itself; "
                "leave it out and give the picture as image."
            )
        if image is not None:
            picture = to_rgb(image) if isinstance(image, Image.Image) else read_image(image)
            content.insert(0, {"type": "image", "image": picture})
        turn = {"role": "user", "content": content}
        settings = generation_settings(self.model, self.processor, max_new_tokens, temperature)
        before = [] if captions_only(self.processor) else self._messages
        inputs = model_inputs(self.model, self.processor, [[*before, turn]])
        check_questions(self.model, self.processor, inputs, [level], max_new_tokens)
        if level is not None:
            inputs["levels"] = torch.tensor([level], device=self.model.device)
        return self._written(turn, inputs, settings)

    def _written(
        self, turn: dict[str, Any], inputs: dict[str, Any], settings: GenerationConfig
    ) -> Iterator[str]:
        self.gate_weights = None
        streamer: Any = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        enough = Event()

        def generate() -> None:
            try:
                self.model.generate(
                    **inputs,
                    generation_config=settings,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([_Stop(enough)]),
                )
            finally:  # or the reader waits for ever
                streamer.end()

        read: list[str] = []
        with ThreadPoolExecutor(max_workers=1) as pool, capture_gate(self.model, self._hear):
            written = pool.submit(generate)
            try:
                for piece in streamer:
                    if piece:
                        read.append(piece)
                        yield piece
            except GeneratorExit:  # the reader has enough
                self._remember(turn, read)
                raise
            finally:
                enough.set()
            written.result()
        self._remember(turn, read)

    def _remember(self, turn: dict[str, Any], read: list[str]) -> None:
        text = "".join(read).strip()
        self._messages += [turn, {"role": "assistant", "content": [{"type": "text", "text": text}]}]

    def _hear(self, weights: torch.Tensor) -> None:
        if self.gate_weights is None:
            self.gate_weights = weights[0].tolist()


class _Stop:
    """Stops `generate` once `enough` is set."""

    def __init__(self, enough: Event) -> None:
        self._enough = enough

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._enough.is_set(), device=input_ids.device)
