"""Measure the demo CLIP on drawings it has not seen, and on the shipped pairs.

uv run python pipelines/demo_data/evaluate_clip.py
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from captions import caption_of
from concepts import Concept, load_concepts
from demo_model import encode_text, load, on_white
from npm_packages import DEFAULT_CACHE
from PIL import Image
from split import TEST_STYLE
from torch import nn

logger = logging.getLogger("evaluate_clip")

DEMO = Path(__file__).parents[2] / "shared/src/alignshared/demo"
CAPTION_SEED = 7
BATCH = 256


def auc(matched: np.ndarray, mismatched: np.ndarray) -> float:
    """Probability that a matched score exceeds a mismatched one (Mann-Whitney U), ties half."""
    ranked = np.sort(mismatched)
    below = np.searchsorted(ranked, matched, side="left")
    at_most = np.searchsorted(ranked, matched, side="right")
    return float((below + at_most).mean() / 2 / len(mismatched))


def retrieval(images: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
    """Image-to-text figures of N pairs given as unit vectors [N, D]: R@1, R@5, AUC.

    AUC takes the N matched scores against all N (N - 1) mismatched ones.
    """
    scores = (images @ texts.T).numpy()
    own = scores.diagonal()
    rank = (scores > own[:, None]).sum(axis=1)
    others = scores[~np.eye(len(scores), dtype=bool)]
    return {
        "pairs": len(own),
        "r1": float((rank < 1).mean()),
        "r5": float((rank < 5).mean()),
        "auc": auc(own, others),
        "matched_mean": float(own.mean()),
        "mismatched_mean": float(others.mean()),
    }


@torch.inference_mode()
def embed_images(
    model: Any, preprocess: Callable[[Image.Image], Any], images: list[Image.Image]
) -> torch.Tensor:
    """Unit vectors of RGB images, float32 [N, D]."""
    parts = []
    for start in range(0, len(images), BATCH):
        pixels = torch.stack([preprocess(image) for image in images[start : start + BATCH]])
        parts.append(model.encode_image(pixels, normalize=True))
    return torch.cat(parts)


@torch.inference_mode()
def embed_texts(
    model: nn.Module, tokenizer: Callable[[list[str]], torch.Tensor], captions: list[str]
) -> torch.Tensor:
    """Unit vectors of captions, float32 [N, D]."""
    starts = range(0, len(captions), BATCH)
    return torch.cat([encode_text(model, tokenizer(captions[s : s + BATCH])) for s in starts])


def held_out_sets(
    records: list[dict[str, str]], concepts: dict[str, Concept]
) -> dict[str, list[int]]:
    """Rows of the drawings' array by held-out set: Noto known, Noto unseen, other vendors
    unseen.
    """
    sets: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        unseen = concepts[record["key"]].unseen
        if record["style"] == TEST_STYLE:
            sets.setdefault("noto unseen" if unseen else "noto known", []).append(row)
        elif unseen:
            sets.setdefault(f"{record['style']} unseen", []).append(row)
    return sets


def evaluate_drawings(
    model: nn.Module, preprocess: Any, tokenizer: Any, cache: Path
) -> dict[str, Any]:
    """Figures of every held-out set, with one full caption a drawing (fixed seed)."""
    drawings = np.load(cache / "drawings.npy", mmap_mode="r")
    records = json.loads((cache / "drawings.json").read_text())
    concepts = {concept.key: concept for concept in load_concepts(cache)}
    figures = {}
    for name, rows in held_out_sets(records, concepts).items():
        rng = random.Random(CAPTION_SEED)
        captions = [caption_of(concepts[records[row]["key"]], "full", rng)[0] for row in rows]
        images = embed_images(model, preprocess, on_white(drawings[rows]))
        figures[name] = retrieval(images, embed_texts(model, tokenizer, captions))
    return figures


def evaluate_pairs(
    model: nn.Module, preprocess: Any, tokenizer: Any, pairs: Path
) -> dict[str, Any]:
    """Scores of the shipped pairs by kind of caption, and AUC of matched against mismatched."""
    rows = pq.read_table(pairs).to_pylist()
    images = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    texts = embed_texts(model, tokenizer, [row["caption"] for row in rows])
    scores = (embed_images(model, preprocess, images) * texts).sum(dim=1).numpy()
    wrong = np.array([row["mismatched"] for row in rows])
    kinds = np.array([row["caption_kind"] for row in rows])
    means = {kind: float(scores[kinds == kind].mean()) for kind in sorted(set(kinds))}
    levels = np.quantile(scores, (0.01, 0.125, 0.25, 0.5, 0.75, 0.875, 0.99))
    return {
        "mean_score": means,
        "auc_matched": auc(scores[~wrong], scores[wrong]),
        "auc_full": auc(scores[kinds == "full"], scores[wrong]),
        "quantiles_1_12.5_25_50_75_87.5_99": [round(float(level), 4) for level in levels],
        "standard_deviation": float(scores.std()),
    }


def main() -> None:
    """Parse the arguments, evaluate the shipped model and log one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO / "clip")
    parser.add_argument("--pairs", type=Path, default=DEMO / "pairs.parquet")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    model, preprocess, tokenizer = load(args.model)
    figures = evaluate_drawings(model, preprocess, tokenizer, args.cache)
    figures["shipped pairs"] = evaluate_pairs(model, preprocess, tokenizer, args.pairs)
    logger.info("%s", json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
