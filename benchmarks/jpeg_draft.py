"""What decoding JPEGs at reduced scale (`--decode fast`) changes in scores, and what it saves.

The drawings of the demo, enlarged to the size of photographs, are scored from all their pixels and
from those that the JPEG decoder gives at reduced scale, for several margins: how many times the
model's input the shorter side keeps at least. Photographs that other packages ship are scored
against every caption. Beside it stands what bf16 does to the same scores.
"""

import argparse
import io
import statistics
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from open_clip.transform import PreprocessCfg
from peers.corpus import demo_drawings
from PIL import Image
from recording import record, table

from aligncurate.core.clip import ClipModel, one_torch_thread, pixel_view, resolve_clip
from aligncurate.core.clip.resolve import ResolvedClip
from aligncurate.scoring.spec import REDUCED_MARGIN
from alignshared.images import decode_sized

PACKAGES = ["aligncurate", "open_clip_torch", "torch", "pillow"]
MARGINS = (1, 2, 4, 8)
BATCH = 64
QUALITY = 90
SPEED_SIZES = ((1024, 768), (2048, 1536), (4032, 3024))
SPEED_INPUTS = (64, 224, 336)

PHOTOGRAPHS = {
    "matplotlib": ["mpl-data/sample_data/grace_hopper.jpg"],  # public domain, US Navy
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],  # CC BY 2.0
    "skimage": ["data/astronaut.png", "data/coffee.png", "data/chelsea.png"],  # public domain, CC0
}
"""Photographs in the wheels of other packages; read where a package is installed."""

Floats = npt.NDArray[np.float32]


def jpeg(image: Image.Image) -> bytes:
    """`image` as a JPEG of QUALITY."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def photographs() -> dict[str, bytes]:
    """The photographs of installed packages as JPEG, by file name."""
    found: dict[str, bytes] = {}
    for package, files in PHOTOGRAPHS.items():
        spec = find_spec(package)
        for file in files if spec and spec.origin else []:
            path = Path(str(spec and spec.origin)).parent / file
            if path.is_file():
                data = path.read_bytes()
                found[path.name] = data if path.suffix == ".jpg" else jpeg(Image.open(path))
    return found


def embed_images(
    model: ClipModel, clip: ResolvedClip, pictures: list[bytes], margin: int | None
) -> Floats:
    """Unit embeddings [N, d] of JPEGs, decoded in full (None) or to `margin` times the input."""
    view = pixel_view(clip.preprocess)
    shorter = None if margin is None else margin * clip.image_size
    parts = [
        model.embed_images(
            np.stack([view(decode_sized(p, shorter)[0]) for p in pictures[i : i + BATCH]])
        )
        for i in range(0, len(pictures), BATCH)
    ]
    return np.concatenate(parts)


def embed_captions(model: ClipModel, captions: list[str]) -> Floats:
    """Unit embeddings [N, d]."""
    batches = range(0, len(captions), BATCH)
    return np.concatenate([model.embed_captions(captions[i : i + BATCH])[0] for i in batches])


def reduced(pictures: list[bytes], shorter: int) -> int:
    """How many of the JPEGs are decoded at less than their full scale."""
    decoded = (decode_sized(data, shorter) for data in pictures)
    return sum(max(image.size) < max(size) for image, size in decoded)


def difference(exact: npt.NDArray[Any], other: npt.NDArray[Any]) -> dict[str, float]:
    """Largest and mean absolute difference."""
    apart = np.abs(other - exact)
    return {"largest": float(apart.max()), "mean": float(apart.mean())}


def score_differences(pairs: int, side: int) -> dict[str, Any]:
    """Of `pairs` of the demo's drawings enlarged to `side` pixels, and of the photographs."""
    clip = resolve_clip("demo")
    fp32, bf16 = ClipModel(clip, "fp32"), ClipModel(clip, "bf16")
    rows = demo_drawings()
    chosen = rows[:: max(len(rows) // pairs, 1)][:pairs]
    captions = [row["caption"] for row in chosen]
    drawings = [
        jpeg(
            Image.open(io.BytesIO(row["image"]["bytes"]))
            .convert("RGB")
            .resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        )
        for row in chosen
    ]
    photos = photographs()
    texts, texts_bf16 = embed_captions(fp32, captions), embed_captions(bf16, captions)
    found: dict[str, Any] = {
        "model": clip.name,
        "input": clip.image_size,
        "drawings": len(drawings),
        "side": side,
        "photographs": sorted(photos),
        "captions": len(captions),
    }
    exact = embed_images(fp32, clip, drawings, None)
    scores = (exact * texts).sum(-1)
    found["standard_deviation"] = float(scores.std())
    half = embed_images(bf16, clip, drawings, None)
    found["bf16"] = {"drawings": difference(scores, (half * texts_bf16).sum(-1))}
    for margin in MARGINS:
        fast = embed_images(fp32, clip, drawings, margin)
        found[f"margin {margin}"] = {"drawings": difference(scores, (fast * texts).sum(-1))}
    if photos:
        files = list(photos.values())
        of_photos = embed_images(fp32, clip, files, None) @ texts.T
        half = embed_images(bf16, clip, files, None)
        found["bf16"]["photographs"] = difference(of_photos, half @ texts_bf16.T)
        for margin in MARGINS:
            fast = embed_images(fp32, clip, files, margin) @ texts.T
            found[f"margin {margin}"]["photographs"] = difference(of_photos, fast)
            found[f"margin {margin}"]["photographs reduced"] = reduced(
                files, margin * clip.image_size
            )
    return found


def speeds(repeats: int) -> list[dict[str, Any]]:
    """Seconds to decode and frame one JPEG, in full and at reduced scale, turn by turn."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    found: list[dict[str, Any]] = []
    for size in SPEED_SIZES:
        data = jpeg(coarse.resize(size, Image.Resampling.BICUBIC))
        for pixels in SPEED_INPUTS:
            view = pixel_view(asdict(PreprocessCfg(size=pixels)))
            times: dict[int | None, list[float]] = {None: [], REDUCED_MARGIN * pixels: []}
            for _ in range(repeats):
                for shorter, measured in times.items():
                    began = time.process_time()
                    image, _ = decode_sized(data, shorter)
                    view(image)
                    measured.append(time.process_time() - began)
            full, fast = (statistics.median(measured) for measured in times.values())
            found.append({
                "picture": list(size), "bytes": len(data), "input": pixels,
                "full_s": full, "fast_s": fast,
            })  # fmt: skip
    return found


def report(results: dict[str, Any]) -> str:
    """The page."""
    scores = results["scores"]
    kinds = ["drawings", *(["photographs"] if scores["photographs"] else [])]
    rows = [
        [
            label,
            *(f"{scores[key][kind][what]:.1e}" for kind in kinds for what in ("largest", "mean")),
            *([scores[key].get("photographs reduced", "")] if scores["photographs"] else []),
        ]
        for key, label in (
            ("bf16", "bf16 instead of fp32"),
            *((f"margin {m}", f"reduced scale, margin {m}") for m in MARGINS),
        )
    ]
    header = ["score difference", *(f"{kind}, {w}" for kind in kinds for w in ("largest", "mean"))]
    if scores["photographs"]:
        header.append("photographs large enough to be reduced")
    speed = [
        [
            f"{row['picture'][0]} × {row['picture'][1]}, {row['bytes'] / 1e6:.1f} MB",
            row["input"],
            f"{1000 * row['full_s']:.1f}",
            f"{1000 * row['fast_s']:.1f}",
            f"{row['full_s'] / row['fast_s']:.1f}",
        ]
        for row in results["speed"]
    ]
    setting = (
        f"{scores['drawings']} pictures of the demo, which are drawings, enlarged to "
        f"{scores['side']} × {scores['side'] * 3 // 4} pixels and written as JPEG of quality "
        f"{QUALITY}, each with its caption; the photographs "
        f"({', '.join(scores['photographs']) or 'none was installed'}) with each of the "
        f"{scores['captions']} captions (grace_hopper.jpg and astronaut.png are in the public "
        "domain, coffee.png and chelsea.png CC0, china.jpg and flower.jpg CC BY 2.0; they come "
        "with matplotlib, scikit-image and scikit-learn, the latter two by `uv run --with "
        f"scikit-image --with scikit-learn`). Model {scores['model']}, input {scores['input']} "
        "pixels; "
        f"the standard deviation of the drawings' scores is "
        f"{scores['standard_deviation']:.3f}. `--decode fast` keeps a margin of "
        f"{REDUCED_MARGIN}. Weights of larger CLIPs were not at hand, so what it does to their "
        "scores is not measured."
    )
    speed_header = ["JPEG", "input", "ms in full", "ms at reduced scale", "ratio"]
    return "\n\n".join([table(header, rows), setting, table(speed_header, speed), (
        "CPU milliseconds to decode and frame one picture on one core, median; the pictures are "
        "smooth noise."
    )])  # fmt: skip


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--side", type=int, default=1280, help="width of the enlarged drawings")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with one_torch_thread():
        results = {
            "scores": score_differences(given.pairs, given.side),
            "speed": speeds(given.repeats),
        }
    page = report(results)
    record("jpeg_draft", "JPEG decoding at reduced scale", PACKAGES, results, page)
    sys.stdout.write(page + "\n")


if __name__ == "__main__":
    main()
