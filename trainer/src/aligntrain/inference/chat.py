"""Chat with a trained model about images, streaming the answers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig, StoppingCriteriaList, TextIteratorStreamer

from alignshared import InputError
from alignshared.images import to_rgb
from aligntrain.inference.generate import (
    captions_only,
    capture_gate,
    check_questions,
    generation_settings,
    model_inputs,
)
from aligntrain.inference.load import load_for_inference
from aligntrain.model import AlignGPTForConditionalGeneration
from aligntrain.model.processing import AlignGPTProcessor, read_image
from aligntrain.prompts.placeholders import IMAGE_MARK, take_level


class Chat:
    """Conversation with `model`; `reset` begins a new one.

    After an answer, `gate_weights` holds its N - 1 weights of the local levels, or None if no
    gate took part: no image, a forced level, or a mixing without a gate.
    """

    def __init__(
        self, model: AlignGPTForConditionalGeneration, processor: AlignGPTProcessor
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.gate_weights: list[float] | None = None
        self._messages: list[dict[str, Any]] = []

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> "Chat":
        """Load the model in `folder` (see `load_for_inference`)."""
        return cls(*load_for_inference(folder, device=device))

    @property
    def history(self) -> list[tuple[str, str]]:
        """All turns so far as (`user` or `assistant`, text)."""
        return [(turn["role"], turn["content"][-1]["text"]) for turn in self._messages]

    def reset(self) -> None:
        """Begin a new conversation."""
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
        guidance: float = 1.0,
    ) -> Iterator[str]:
        """Stream the answer to `prompt`, about `image` or earlier turns.

        `level` forces that level's vector instead of the mix, as does a prompt that begins with
        `<level_3>`; with `temperature` 0 decoding is greedy; for `guidance` see `generate_answers`.
        Generation stops when the iterator is closed; the turn then holds the text read.

        Raises:
            InputError: the image cannot be read, the level does not exist or there is no image for
                it or for guidance, a number is out of range, or the conversation is too long for
                the model.
        """
        # Not a generator itself, so that invalid arguments fail at the call.
        written, prompt = take_level(prompt)
        if written is not None:
            level = written
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if IMAGE_MARK in prompt:
            raise InputError(
                f"the prompt contains the mark {IMAGE_MARK}, which comes with an image; leave it "
                "out and give the image as image."
            )
        if image is not None:
            rgb = to_rgb(image) if isinstance(image, Image.Image) else read_image(image)
            content.insert(0, {"type": "image", "image": rgb})
        turn = {"role": "user", "content": content}
        model, processor = self.model, self.processor
        settings = generation_settings(model, processor, max_new_tokens, temperature, guidance)
        before = [] if captions_only(processor) else self._messages
        inputs = model_inputs(model, processor, [[*before, turn]])
        check_questions(model, processor, inputs, [level], max_new_tokens, guidance)
        if level is not None:
            inputs["levels"] = torch.tensor([level], device=model.device)
        return self._stream(turn, inputs, settings)

    def _stream(
        self, turn: dict[str, Any], inputs: dict[str, Any], settings: GenerationConfig
    ) -> Iterator[str]:
        self.gate_weights = None
        streamer: Any = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        stop = Event()

        def stopped(input_ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
            return torch.full((len(input_ids),), stop.is_set(), device=input_ids.device)

        def receive(weights: torch.Tensor) -> None:
            if self.gate_weights is None:
                self.gate_weights = weights[0].tolist()

        def generate() -> None:
            try:
                self.model.generate(
                    **inputs,
                    generation_config=settings,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([stopped]),
                )
            finally:  # otherwise the reader would wait forever
                streamer.end()

        read: list[str] = []
        with ThreadPoolExecutor(max_workers=1) as pool, capture_gate(self.model, receive):
            generation = pool.submit(generate)
            try:
                for piece in streamer:
                    if piece:
                        read.append(piece)
                        yield piece
            except GeneratorExit:  # closed before the end
                self._remember(turn, read)
                raise
            finally:
                stop.set()
            generation.result()
        self._remember(turn, read)

    def _remember(self, turn: dict[str, Any], read: list[str]) -> None:
        text = "".join(read).strip()
        self._messages += [turn, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
