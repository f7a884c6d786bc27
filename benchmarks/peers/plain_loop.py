"""What one writes with open_clip in ten minutes: one process, one picture after another through
open_clip's transform, captions padded to the full context, a forward pass per batch.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image


def main() -> None:
    """Score the pairs of a LLaVA JSON and write `scores.json`, score by id."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--input", "--image-root", "--output", "--model", "--weights"):
        parser.add_argument(name, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    # open_clip types a factory's results as all that any of its models may return.
    made: Any = open_clip.create_model_and_transforms(given.model, pretrained=given.weights)
    model, _, preprocess = made
    model.eval()
    tokenizer = open_clip.get_tokenizer(given.model)
    root, scores = Path(given.image_root), dict[str, float]()
    records = json.loads(Path(given.input).read_text(encoding="utf-8"))
    with torch.inference_mode():
        for first in range(0, len(records), given.batch_size):
            batch = records[first : first + given.batch_size]
            pixels = torch.stack([preprocess(Image.open(root / r["image"])) for r in batch])
            images = model.encode_image(pixels, normalize=True)
            texts = model.encode_text(tokenizer([r["caption"] for r in batch]), normalize=True)
            cosines = (images * texts).sum(-1).numpy().astype(np.float64)
            scores |= dict(zip((r["id"] for r in batch), cosines.tolist(), strict=True))
    output = Path(given.output)
    output.mkdir(parents=True)
    (output / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


if __name__ == "__main__":
    main()
