"""Train the demo CLIP with open_clip's model and loss on drawings of every vendor but Noto.

uv run pipelines/demo_data/drawings.py
uv run python pipelines/demo_data/train_clip.py --steps 1700
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from augment import augment
from captions import caption_of
from concepts import Concept, load_concepts
from demo_model import MEAN, MODEL_CFG, STD, encode_text, load, new_model, save
from evaluate_clip import DEMO, evaluate_drawings
from npm_packages import DEFAULT_CACHE
from open_clip.loss import ClipLoss
from split import TEST_STYLE
from torch import nn

logger = logging.getLogger("train_clip")

SEED = 20240617
KIND_SHARES = {"full": 0.62, "tags": 0.26, "group": 0.07, "subgroup": 0.05}
STYLE_WEIGHTS = {"fluent-high-contrast": 0.3}
NOISY_TOKENS = 0.06
FLIP_GROUPS = {"smileys & emotion", "animals & nature", "food & drink", "people & body"}
MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class TrainingSet:
    """Drawings by concept: `rows[i]` and `weights[i]` belong to `concepts[i]`."""

    concepts: list[Concept]
    rows: list[list[int]]
    weights: list[list[float]]
    pixels: torch.Tensor  # uint8 [N, 64, 64, 4]


def load_training_set(cache: Path) -> TrainingSet:
    """All drawings but the held-out vendor's and the unseen concepts'."""
    records = json.loads((cache / "drawings.json").read_text())
    by_key: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        if record["style"] != TEST_STYLE:
            by_key.setdefault(record["key"], []).append(row)
    concepts = [c for c in load_concepts(cache) if c.key in by_key and not c.unseen]
    rows = [by_key[concept.key] for concept in concepts]
    weights = [[STYLE_WEIGHTS.get(records[r]["style"], 1.0) for r in group] for group in rows]
    pixels = torch.from_numpy(np.load(cache / "drawings.npy"))
    logger.info("%d concepts, %d drawings", len(concepts), sum(map(len, rows)))
    return TrainingSet(concepts, rows, weights, pixels)


def may_flip(concept: Concept) -> bool:
    """Whether the mirrored drawing still shows the concept."""
    directed = re.search(r"left|right|facing|index|hand|globe", concept.label)
    return concept.group in FLIP_GROUPS and directed is None


def training_caption(concept: Concept, rng: random.Random) -> str:
    """One caption of a random kind; the subgroup's name stands in for poor web captions."""
    (kind,) = rng.choices(list(KIND_SHARES), list(KIND_SHARES.values()))
    if kind == "subgroup":
        return f"{concept.group} {concept.subgroup}".replace("&", "and")
    return caption_of(concept, kind, rng)[0]


def add_token_noise(tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Replace a few words by random ones, so that an unknown word does not decide the vector.

    tokens: int64 [B, L]; start, end and padding stay.
    """
    end = tokens.max()
    inner = (tokens > 0) & (tokens < end - 1)
    noisy = inner & (torch.rand(tokens.shape, generator=generator) < NOISY_TOKENS)
    words = torch.randint(1, int(end) - 1, tokens.shape, generator=generator)
    return torch.where(noisy, words, tokens)


def batches(
    data: TrainingSet, size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (pixel_values float32 [B, 3, S, S], tokens int64 [B, L]); concepts of one differ."""
    rng = random.Random(SEED)
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL_CFG["text_cfg"]["context_length"])
    flips = torch.tensor([may_flip(concept) for concept in data.concepts])
    mean = torch.tensor(MEAN)[:, None, None]
    std = torch.tensor(STD)[:, None, None]
    order: list[int] = []
    while True:
        if len(order) < size:
            order = rng.sample(range(len(data.concepts)), len(data.concepts))
        chosen, order = order[:size], order[size:]
        rows = [rng.choices(data.rows[i], data.weights[i])[0] for i in chosen]
        views = augment(
            data.pixels[rows], flips[chosen], MODEL_CFG["vision_cfg"]["image_size"], generator
        )
        captions = [training_caption(data.concepts[i], rng) for i in chosen]
        yield (views - mean) / std, add_token_noise(tokenizer(captions), generator)


def make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def checkpoint(model: nn.Module, args: argparse.Namespace) -> dict[str, Any]:
    """Write the model, read it back as a user would, and return its held-out figures."""
    save(model, args.output)
    return evaluate_drawings(*load(args.output), args.cache)


def train_step(
    model: open_clip.CLIP, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, ...]
) -> float:
    """One optimizer step on one batch; returns the loss."""
    pixel_values, tokens = batch
    images = model.encode_image(pixel_values, normalize=True)
    loss = ClipLoss()(images, encode_text(model, tokens), model.logit_scale.exp())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    return loss.item()


def train(args: argparse.Namespace) -> None:
    """Train, with held-out figures and a checkpoint every `--every` steps and at the end."""
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    stream = batches(
        load_training_set(args.cache), args.batch_size, torch.Generator().manual_seed(SEED)
    )
    model = new_model(args.patch_dropout).train()
    optimizer = make_optimizer(model, args.weight_decay)
    args.log.unlink(missing_ok=True)
    started, losses = time.monotonic(), []
    for step in range(args.steps):
        if step == round(args.steps * args.unmasked_from):
            model.visual.patch_dropout = nn.Identity()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        losses.append(train_step(model, optimizer, next(stream)))
        done = step + 1
        if done % 20 == 0:
            rate = done * args.batch_size / (time.monotonic() - started)
            logger.info("step %d loss %.3f, %.0f samples/s", done, np.mean(losses[-20:]), rate)
        if done % args.every == 0 or done == args.steps:
            figures = checkpoint(model, args)
            record = {
                "step": done,
                "samples": done * args.batch_size,
                "seconds": round(time.monotonic() - started, 1),
                "loss": float(np.mean(losses[-args.every :])),
                "logit_scale": model.logit_scale.exp().item(),
                "figures": figures,
            }
            with args.log.open("a") as log:
                log.write(json.dumps(record) + "\n")
            known, unseen = (figures[f"noto {name}"] for name in ("known", "unseen"))
            logger.info("AUC known %.4f, unseen %.4f", known["auc"], unseen["auc"])


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=80)
    parser.add_argument("--patch-dropout", type=float, default=0.5)
    parser.add_argument("--unmasked-from", type=float, default=0.85, help="share of the steps")
    parser.add_argument("--every", type=int, default=150, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--output", type=Path, default=DEMO / "clip")
    parser.add_argument("--log", type=Path, default=DEFAULT_CACHE / "curve.jsonl")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logger.setLevel(logging.INFO)
    train(args)


if __name__ == "__main__":
    main()
