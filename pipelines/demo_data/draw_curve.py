"""Draw the demo CLIP's held-out figures over the course of its training.

uv run python pipelines/demo_data/draw_curve.py
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
LOG = ROOT / "benchmarks/results/demo_clip_curve.jsonl"
OUTPUT = ROOT / "docs/images/demo-clip-curve.png"
SETS = {"noto known": "known concepts", "noto unseen": "unseen concepts"}
FIGURES = {"auc": "AUC, matched against mismatched", "r1": "R@1", "r5": "R@5"}
COLOURS = {"noto known": "#1b6e8c", "noto unseen": "#c1602c"}


def draw(records: list[dict[str, Any]]) -> Figure:
    """One panel a figure, both held-out sets of the vendor never trained on."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    seen = [record["samples"] / 1000 for record in records]
    for axes, (key, title) in zip(figure.subplots(1, len(FIGURES)), FIGURES.items(), strict=True):
        for name, label in SETS.items():
            values = [record["figures"][name][key] for record in records]
            axes.plot(seen, values, "o-", markersize=3, color=COLOURS[name], label=label)
            axes.annotate(
                f"{values[-1]:.3f}", (seen[-1], values[-1]), (-2, -18),
                textcoords="offset points", ha="right", fontsize=8, color=COLOURS[name],
            )  # fmt: skip
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("samples seen, thousands", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4)
    figure.axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def main() -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=LOG)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    records = [json.loads(line) for line in args.log.read_text().splitlines()]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(records).savefig(args.output, dpi=160)


if __name__ == "__main__":
    main()
