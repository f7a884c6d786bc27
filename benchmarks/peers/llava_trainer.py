"""transformers' LLaVA under its own Trainer, with padded batches, as a process of its own.

It trains on the same ids, labels and pictures as aligntrain, without the alignment vector.
"""

import argparse
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from aligntrain.data.dataset import ShardedDataset
from aligntrain.data.loader import Sample, make_sample
from aligntrain.prompts.encode import Encoder
from aligntrain.prompts.placeholders import IGNORE_INDEX, Layout, own_bos

IMAGE_ID = 259
"""The tokenizer's <unk>, which stands in no text of the benchmark."""


def main() -> None:
    """Train, and tell the seconds of each step after the first and the tokens in them."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("vision", "llm", "data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("steps", "batch", "image-tokens", "max-length"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    config = LlavaConfig(
        vision_config=AutoConfig.from_pretrained(given.vision),
        text_config=AutoConfig.from_pretrained(given.llm),
        image_token_index=IMAGE_ID,
        image_seq_length=given.image_tokens,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for parameter in model.model.vision_tower.parameters():
        parameter.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(given.llm)
    layout = Layout(
        image_token_id=IMAGE_ID, align_token_id=IMAGE_ID + 1, image_tokens=given.image_tokens,
        bos_token_id=own_bos(tokenizer), align=False,
    )  # fmt: skip
    encoder = Encoder(tokenizer, layout, "chat", given.max_length)
    clock = Clock()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(given.output), max_steps=given.steps, learning_rate=2e-5,
            per_device_train_batch_size=given.batch, save_strategy="no", report_to="none",
            dataloader_num_workers=1, remove_unused_columns=False, disable_tqdm=True,
            logging_strategy="no", use_cpu=True,
        ),
        train_dataset=Rows(given.data, encoder),
        data_collator=Collator(AutoImageProcessor.from_pretrained(given.vision)),
        callbacks=[clock],
    )  # fmt: skip
    clock.watch(model)
    trainer.train()
    sys.stdout.write(json.dumps(clock.report()) + "\n")


class Rows(torch.utils.data.Dataset[Sample]):
    """The samples of an ingested dataset."""

    def __init__(self, data: Path, encoder: Encoder) -> None:
        self._shards = ShardedDataset(data, conversations=True)
        self._encoder = encoder

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: int) -> Sample:
        return make_sample(self._shards.row(number), self._encoder)


class Collator:
    """Pads samples to the longest of their batch."""

    def __init__(self, image_processor: Any) -> None:
        self._image_processor = image_processor

    def __call__(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        longest = max(sample.length for sample in samples)

        def padded(values: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([v + [fill] * (longest - len(v)) for v in values])

        batch = {
            "input_ids": padded([s.ids for s in samples], 258),
            "attention_mask": padded([[1] * s.length for s in samples], 0),
            "labels": padded([s.labels for s in samples], IGNORE_INDEX),
        }
        pictures = [Image.open(io.BytesIO(b)).convert("RGB") for s in samples for b in s.images]
        if pictures:
            pixels = self._image_processor(pictures, return_tensors="pt")["pixel_values"]
            batch["pixel_values"] = pixels
        return batch


class Clock(TrainerCallback):
    """Counts tokens that are no padding, and the seconds, of all steps after the first."""

    def __init__(self) -> None:
        self._tokens = self._places = self._done = 0
        self._began = self._ended = 0.0

    def watch(self, model: Any) -> None:
        """Count what `model` reads."""
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _model: Any, _args: Any, given: dict[str, Any]) -> None:
        if self._done:
            self._tokens += int(given["attention_mask"].sum())
            self._places += given["attention_mask"].numel()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Start the clock after the first step, and read it after each."""
        self._done += 1
        self._ended = time.perf_counter()
        if self._done == 1:
            self._began = self._ended

    def report(self) -> dict[str, float]:
        """Tokens, seconds and the share of padding."""
        return {
            "tokens": self._tokens,
            "seconds": self._ended - self._began,
            "padding": 1 - self._tokens / self._places,
        }


if __name__ == "__main__":
    main()
