"""Talking with a trained model about pictures, answers coming as they are written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig, StoppingCriteriaList, TextIteratorStreamer

from alignshared import InputError
from alignshared.pictures import to_rgb
from aligntrain.load import load_model
from aligntrain.model.processing import read_picture
from aligntrain.placeholders import IMAGE_MARK


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
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if device == "cpu" else "auto"
        return cls(*load_model(folder, dtype=dtype, device=device))

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
            picture = to_rgb(image) if isinstance(image, Image.Image) else read_picture(image)
            content.insert(0, {"type": "image", "image": picture})
        turn = {"role": "user", "content": content}
        before = [] if self._captions_only else self._messages
        inputs = self._inputs([*before, turn])
        self._check(inputs, level, max_new_tokens, temperature)
        if level is not None:
            inputs["levels"] = torch.tensor([level], device=self.model.device)
        settings = self._settings(max_new_tokens, temperature)
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
        with ThreadPoolExecutor(max_workers=1) as pool, self._listening():
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

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Keep what the gate says when the prompt is read."""

        def hear(_module: Any, _arguments: Any, output: Any) -> None:
            if self.gate_weights is None and output.gate_weights is not None:
                self.gate_weights = output.gate_weights[0].float().tolist()

        hook = self.model.register_forward_hook(hear)
        try:
            yield
        finally:
            hook.remove()

    @property
    def _captions_only(self) -> bool:
        """Whether the model is pretrained and no more: it says what a picture shows."""
        return self.processor.template == "plain"

    def _inputs(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return dict(batch.to(self.model.device, dtype=self.model.dtype))

    def _check(
        self, inputs: dict[str, Any], level: int | None, max_new_tokens: int, temperature: float
    ) -> None:
        config = self.model.config
        if max_new_tokens < 1 or temperature < 0:
            raise InputError(
                f"max_new_tokens {max_new_tokens} or temperature {temperature} cannot be: give 1 "
                "or more, and 0 or more."
            )
        if "pixel_values" not in inputs and (level is not None or self._captions_only):
            what = "a level is that of a picture" if level else "this model only captions pictures"
            raise InputError(f"{what}, and there is none; give one as image.")
        if level is not None and not config.has_table:
            raise InputError("the model has mixing none and no levels; leave the level out.")
        if level is not None and not 1 <= level <= config.levels:
            raise InputError(f"there is no level {level}; give one from 1 to {config.levels}.")
        length = inputs["input_ids"].shape[1]
        limit = getattr(config.text_config, "max_position_embeddings", None)
        if limit and length + max_new_tokens > limit:
            raise InputError(
                f"the conversation has {length} tokens, and with {max_new_tokens} new ones it is "
                f"longer than the {limit} that the model reads; begin a new one, or ask for fewer."
            )

    def _settings(self, max_new_tokens: int, temperature: float) -> GenerationConfig:
        tokenizer = self.processor.tokenizer
        ends = self.model.generation_config.eos_token_id
        stops = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}
        if self._captions_only:
            # A caption was learned with the line feed behind it, and nothing more.
            stops.add(tokenizer("a\n", add_special_tokens=False).input_ids[-1])
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
            eos_token_id=sorted(stop for stop in stops if stop is not None),
            pad_token_id=tokenizer.pad_token_id,
        )


class _Stop:
    """Stops `generate` once `enough` is set."""

    def __init__(self, enough: Event) -> None:
        self._enough = enough

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._enough.is_set(), device=input_ids.device)
