"""The ceiling: nothing but forward passes, over tensors that lie in memory.

Two ways to use the cores take turns, a few batches each, so that a busy minute weighs on both:
single-threaded workers side by side, as aligncurate works, and one batch after another with every
operation spread over all cores.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image

CORES = len(os.sched_getaffinity(0))
_ROUND = 4  # batches per worker before the other way has its turn

Batch = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    """Write `scores.json`, score by id, and `rates.json`, pairs per second of each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--input", "--image-root", "--output", "--model", "--weights"):
        parser.add_argument(name, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    # open_clip types a factory's results as all that any of its models may return.
    made: Any = open_clip.create_model_and_transforms(given.model, pretrained=given.weights)
    model, _, preprocess = made
    model.eval()
    records = json.loads(Path(given.input).read_text(encoding="utf-8"))
    batches = prepared(records, given, preprocess)
    rates, cosines = timed(model, batches)
    scores = dict(zip((r["id"] for r in records), torch.cat(cosines).tolist(), strict=True))
    output = Path(given.output)
    output.mkdir(parents=True)
    (output / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    (output / "rates.json").write_text(json.dumps(rates), encoding="utf-8")


def prepared(records: list[dict[str, str]], given: Any, preprocess: Any) -> list[Batch]:
    """Batches of pixels [N, 3, H, W] float32 and tokens [N, L], L the batch's longest caption."""
    tokenizer = open_clip.get_tokenizer(given.model)
    root = Path(given.image_root)
    batches: list[Batch] = []
    for first in range(0, len(records), given.batch_size):
        batch = records[first : first + given.batch_size]
        pixels = torch.stack([preprocess(Image.open(root / r["image"])) for r in batch])
        tokens = tokenizer([r["caption"] for r in batch])
        batches.append((pixels, tokens[:, : int(tokens.argmax(-1).max()) + 1]))
    return batches


def timed(model: Any, batches: list[Batch]) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Pairs per second of both ways over all `batches`, and the cosines [N] of each batch."""
    ways = {f"{CORES} workers of one thread": _side_by_side, f"{CORES} threads": _one_by_one}
    seconds = dict.fromkeys(ways, 0.0)
    cosines: list[torch.Tensor] = []
    for way in ways.values():
        way(model, batches[:CORES])  # what torch sets up at its first calls is not counted
    step = CORES * _ROUND
    for number, first in enumerate(range(0, len(batches), step)):
        turn = batches[first : first + step]
        results: dict[str, list[torch.Tensor]] = {}
        for name in list(ways)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            results[name] = ways[name](model, turn)
            seconds[name] += time.perf_counter() - began
        cosines += results[next(iter(ways))]
    pairs = sum(len(tokens) for _, tokens in batches)
    return {name: pairs / spent for name, spent in seconds.items()}, cosines


def _side_by_side(model: Any, batches: list[Batch]) -> list[torch.Tensor]:
    torch.set_num_threads(1)
    with ThreadPoolExecutor(CORES) as pool:
        return list(pool.map(_forward(model), batches))


def _one_by_one(model: Any, batches: list[Batch]) -> list[torch.Tensor]:
    torch.set_num_threads(CORES)
    return list(map(_forward(model), batches))


def _forward(model: Any) -> Callable[[Batch], torch.Tensor]:
    @torch.inference_mode()
    def cosines(batch: Batch) -> torch.Tensor:
        pixels, tokens_NL = batch
        length = tokens_NL.shape[1]
        x_NLC = model.token_embedding(tokens_NL) + model.positional_embedding[:length]
        x_NLC = model.transformer(x_NLC, attn_mask=model.attn_mask[:length, :length])
        last = torch.arange(len(tokens_NL)), tokens_NL.argmax(-1)
        texts = model.ln_final(x_NLC)[last] @ model.text_projection
        return torch.cosine_similarity(model.encode_image(pixels), texts)

    return cosines


if __name__ == "__main__":
    main()
