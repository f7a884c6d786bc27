"""What bf16 weights and our image transform do to scores and levels on CPU, on the demo pairs.

The levels of a bf16 run are taken twice: from the edges of the fp32 run, as when new data meet old
edges, and from the edges of its own scores, as when a dataset is scored and bucketed anew.
"""

import argparse
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pyarrow.parquet as pq
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from peers.corpus import make_corpus
from PIL import Image
from recording import record, table

from aligncurate.core.clip import ClipModel, pixel_view, resolve_clip, score_pairs
from aligncurate.core.clip.resolve import ResolvedClip
from aligncurate.settings import Precision
from alignshared import LevelEdges, demo
from alignshared.images import decode_image
from alignshared.levels import edge_ranks

PACKAGES = ["aligncurate", "open_clip_torch", "torch", "pillow"]
LEVELS = 8
BATCH = 64
WEB_PICTURES = 256
MOST_DIFFERENCE, MOST_MOVED = 0.005, 0.02

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Change:
    """bf16 against fp32: score differences, and shares of pairs in another level."""

    largest_difference: float
    mean_difference: float
    moved_on_fp32_edges: float
    moved_on_own_edges: float


def embed(
    clip: ResolvedClip, precision: Precision, pictures: list[bytes], captions: list[str]
) -> tuple[Floats, Floats]:
    """Unit embeddings [N, d] float32 of `pictures` and of `captions`, batch by batch."""
    model, view = ClipModel(clip, precision), pixel_view(clip.preprocess)
    images: list[Floats] = []
    texts: list[Floats] = []
    for first in range(0, len(pictures), BATCH):
        batch = slice(first, first + BATCH)
        images.append(
            model.embed_images(np.stack([view(decode_image(p)) for p in pictures[batch]]))
        )
        texts.append(model.embed_captions(captions[batch])[0])
    return np.concatenate(images), np.concatenate(texts)


def edges_of(scores: Floats) -> LevelEdges:
    """The quantile edges of LEVELS levels."""
    edges = np.sort(scores)[edge_ranks(LEVELS, len(scores))]
    return LevelEdges(tuple(edges.tolist()), "quantile")


def change(fp32: Floats, bf16: Floats) -> Change:
    """What became of `fp32` scores [N] in `bf16` [N]."""
    difference = np.abs(bf16 - fp32)
    levels = edges_of(fp32).assign(fp32)
    return Change(
        largest_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        moved_on_fp32_edges=float((edges_of(fp32).assign(bf16) != levels).mean()),
        moved_on_own_edges=float((edges_of(bf16).assign(bf16) != levels).mean()),
    )


@contextmanager
def convolution_inputs() -> Iterator[list[torch.Tensor]]:
    """What convolutions are given within the context: the pixels that the vision tower sees."""
    seen: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, torch.nn.Conv2d):
            seen.append(inputs[0].clone())

    handle = torch.nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def transform_difference(clip: ResolvedClip, pictures: list[bytes]) -> float:
    """Largest difference between what our vision tower sees of RGB `pictures` and open_clip's own
    transform of them.
    """
    model, view = ClipModel(clip, "fp32"), pixel_view(clip.preprocess)
    transform: Any = image_transform_v2(PreprocessCfg(**clip.preprocess), is_train=False)
    largest = 0.0
    for first in range(0, len(pictures), BATCH):
        batch = pictures[first : first + BATCH]
        with convolution_inputs() as seen:
            model.embed_images(np.stack([view(decode_image(data)) for data in batch]))
        theirs = torch.stack([transform(Image.open(io.BytesIO(data))) for data in batch])
        largest = max(largest, float((seen[0] - theirs).abs().max()))
    return largest


def open_clip_scores(clip: ResolvedClip, pictures: list[bytes], captions: list[str]) -> Floats:
    """Scores [N] by open_clip's own functions alone, captions padded to the full context."""
    brings_weights = clip.open_clip_name.startswith(("local-dir:", "hf-hub:"))
    model: Any = open_clip.create_model(
        clip.open_clip_name,
        pretrained=None if brings_weights else clip.weights_path,
        force_quick_gelu=clip.quick_gelu,
    ).eval()
    tokenizer = open_clip.get_tokenizer(clip.open_clip_name)
    transform: Any = image_transform_v2(PreprocessCfg(**clip.preprocess), is_train=False)
    scores: list[torch.Tensor] = []
    for first in range(0, len(pictures), BATCH):
        batch = slice(first, first + BATCH)
        opened = [Image.open(io.BytesIO(data)) for data in pictures[batch]]
        pixels = torch.stack([transform(image) for image in opened])
        with torch.inference_mode():
            images = model.encode_image(pixels, normalize=True)
            texts = model.encode_text(tokenizer(captions[batch]), normalize=True)
        scores.append((images * texts).sum(-1))
    return torch.cat(scores).numpy()


def measure(model: str, weights: str | None, limit: int | None) -> dict[str, Any]:
    """All figures for `model` on the first `limit` demo pairs."""
    clip = resolve_clip(model, weights)
    rows = pq.read_table(demo.pairs_path(), columns=["image", "caption"]).slice(0, limit)
    captions: list[str] = rows["caption"].to_pylist()
    pictures: list[bytes] = [image["bytes"] for image in rows["image"].to_pylist()]
    corpus = make_corpus(WEB_PICTURES)
    web = [(corpus.images / f"{id_}.jpg").read_bytes() for id_ in corpus.captions()]
    images, texts = embed(clip, "fp32", pictures, captions)
    images_bf16, texts_bf16 = embed(clip, "bf16", pictures, captions)
    fp32 = score_pairs(images, texts)
    theirs = open_clip_scores(clip, pictures, captions)
    return {
        "model": model,
        "pairs": len(captions),
        "standard_deviation": float(fp32.std()),
        "bf16": asdict(change(fp32, score_pairs(images_bf16, texts_bf16))),
        "bf16 vision tower alone": asdict(change(fp32, score_pairs(images_bf16, texts))),
        "bf16 text tower alone": asdict(change(fp32, score_pairs(images, texts_bf16))),
        "open_clip": asdict(change(fp32, theirs)),
        "largest_pixel_difference": transform_difference(clip, [*dict.fromkeys(pictures), *web]),
    }


def report(results: dict[str, Any]) -> str:
    """The page."""
    rows = [
        [
            label,
            f"{of['largest_difference']:.1e}",
            f"{of['mean_difference']:.1e}",
            f"{of['moved_on_fp32_edges']:.2%}",
            f"{of['moved_on_own_edges']:.2%}",
        ]
        for label, of in results.items()
        if isinstance(of, dict)
    ]
    header = [
        "against aligncurate in fp32", "largest score difference", "mean",
        f"pairs in another of {LEVELS} levels, fp32 edges", "the same, own edges",
    ]  # fmt: skip
    bf16 = results["bf16"]
    difference = bf16["largest_difference"]
    moved = max(bf16["moved_on_fp32_edges"], bf16["moved_on_own_edges"])
    demands = [
        f"- Largest score difference of bf16: {difference:.4f}, demanded less than "
        f"{MOST_DIFFERENCE}: {'met' if difference < MOST_DIFFERENCE else 'not met'}.",
        f"- Pairs whose level changes: {moved:.2%}, demanded less than {MOST_MOVED:.0%}: "
        f"{'met' if moved < MOST_MOVED else 'not met'}.",
        "- Largest difference of a pixel, as the vision tower sees it, from open_clip's own "
        f"transform: {results['largest_pixel_difference']:g} (the demo's pictures and "
        f"{WEB_PICTURES} JPEG files of 224 to 500 pixels a side, all RGB).",
    ]
    setting = (
        f"{results['pairs']:,} demo pairs, model {results['model']}; the standard deviation of "
        f"the scores is {results['standard_deviation']:.3f}. The line of open_clip is its own "
        "transform, padding to the full context, and forward pass, in fp32."
    )
    return "\n\n".join([table(header, rows), "\n".join(demands), setting])


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="as `aligncurate score` takes it")
    parser.add_argument("--weights", help="pretrained tag or weights file of an architecture")
    parser.add_argument("--pairs", type=int, help="first demo pairs (default: all)")
    given = parser.parse_args()
    results = measure(given.model, given.weights, given.pairs)
    page = report(results)
    record("score_precision", "Precision of scores", PACKAGES, results, page)
    sys.stdout.write(page + "\n")


if __name__ == "__main__":
    main()
