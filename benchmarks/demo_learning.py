"""Whether the demo learns: its losses, and its answers about pictures that training never saw.

Runs both phases of the recipe `demo` for each mixing and seed, on what the quickstart has made, and
asks each model. Beside them stand mixing `none` (plain LLaVA), the model before any training, and
the best constant answer to each kind of question.
"""

import argparse
import json
import logging
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from recording import record, table

from aligntrain.recipes import PHASES
from aligntrain.runs.folder import read_metrics

logger = logging.getLogger("demo_learning")

ROOT = Path(__file__).parents[1]
ASK = ROOT / "pipelines/demo_data/answer_questions.py"
PICTURE = ROOT / "docs/images/demo-learning.png"
KINDS = {"is_this": "is this a …?", "group": "which group?", "name": "what is this?"}
COLOURS = ("#1b6e8c", "#c1602c", "#6fa58b", "#7a5c99")


def train(data: Path, work: Path, mixing: str, seed: int) -> dict[str, Any]:
    """Both phases, in run folders below `work`; the lines of their metrics."""
    given = {"pretrain": data / "bucket", "finetune": data / "ingest"}
    lines: dict[str, Any] = {}
    for phase in PHASES:
        run = work / f"{mixing}-{seed}-{phase}"
        command = [
            "run", phase, "--data", given[phase], "--output", run, "--resume",
            "--set", f"seed={seed}", "--set", f"model.mixing={mixing}",
        ]  # fmt: skip
        if phase == "finetune":
            command += ["--from", work / f"{mixing}-{seed}-pretrain"]
        _call([Path(sys.executable).with_name("aligntrain"), *command])
        lines[phase] = read_metrics(run)
    return lines


def ask(data: Path, run: Path, pictures: int, *, untrained: bool) -> dict[str, Any]:
    """The scores of the model in `run` on held-out pictures, and of the untrained one."""
    answers = run / "answers.json"
    if not answers.is_file():
        questions = data / "instructions/questions.json"
        extra = ["--untrained"] if untrained else []
        _call(
            [
                sys.executable, ASK, run, "--questions", questions, "--output", answers,
                "--pictures", pictures, *extra,
            ]
        )  # fmt: skip
    written = json.loads(answers.read_text(encoding="utf-8"))
    return {who: found["scores"] for who, found in written.items()}


def _call(command: Sequence[Any]) -> None:
    words = [str(word) for word in command]
    logger.info("$ %s", shlex.join(words))
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


def losses(lines: list[dict[str, Any]], name: str = "loss") -> list[float]:
    """All values of `name` in the order of steps."""
    return [line[name] for line in lines if name in line]


def accuracy(score: dict[str, Any]) -> float:
    """The share of right answers, in percent."""
    return 100 * score["right"] / score["asked"]


def draw(results: list[dict[str, Any]]) -> Figure:
    """A panel for each phase: mean over the seeds, and between which losses they all lie."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    mixings = list(dict.fromkeys(result["mixing"] for result in results))
    for axes, phase in zip(figure.subplots(1, 2), PHASES, strict=True):
        for colour, mixing in zip(COLOURS, mixings, strict=False):
            of_seed = [r["loss"][phase] for r in results if r["mixing"] == mixing]
            steps = range(1, len(of_seed[0]) + 1)
            at_step = list(zip(*of_seed, strict=True))
            axes.plot(steps, list(map(statistics.fmean, at_step)), color=colour, label=mixing)
            low, high = list(map(min, at_step)), list(map(max, at_step))
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_title(phase, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylabel("loss a token, nats", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4)
    figure.axes[0].legend(frameon=False, fontsize=8, title="mixing", title_fontsize=8)
    return figure


def report(results: list[dict[str, Any]], untrained: dict[str, Any]) -> str:
    """Tables of accuracy and of losses, mean over seeds with the least and the greatest."""
    constant = [f"{100 * untrained[kind]['constant']:.1f}" for kind in KINDS]
    before = [f"{accuracy(untrained[kind]):.1f}" for kind in KINDS]
    rows = [["best constant answer", *constant], ["before training", *before]]
    lines: list[list[object]] = []
    for mixing in dict.fromkeys(result["mixing"] for result in results):
        own = [result for result in results if result["mixing"] == mixing]
        asked = [_spread([accuracy(r["scores"][kind]) for r in own], 1) for kind in KINDS]
        rows.append([f"mixing `{mixing}`", *asked])
        ends = [_spread([r["validation_loss"][phase][-1] for r in own], 3) for phase in PHASES]
        starts = [_spread([r["loss"][phase][0] for r in own], 3) for phase in PHASES]
        lines.append([f"`{mixing}`", starts[0], ends[0], starts[1], ends[1]])
    count = {kind: untrained[kind]["asked"] for kind in KINDS}
    heading = [f"{name} ({count[kind]})" for kind, name in KINDS.items()]
    seeds = len({result["seed"] for result in results})
    return (
        f"Right answers, percent, about pictures of concepts that no phase saw; mean over {seeds} "
        "seeds, with the least and the greatest.\n\n"
        + table(["model", *heading], rows)
        + "\n\nLoss of the first step, and held-out loss at the end.\n\n"
        + table(["mixing", "pretrain, first", "held out", "finetune, first", "held out"], lines)
        + f"\n\n![Losses](../../{PICTURE.relative_to(ROOT)})"
    )


def _spread(values: Sequence[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.fmean(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def main() -> None:
    """Train, ask, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="of the quickstart")
    parser.add_argument("--work", type=Path, default=Path("runs/demo_learning"))
    parser.add_argument("--pictures", type=int, default=167, help="to ask about (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--mixings", nargs="+", default=["adaptive", "none"])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results: list[dict[str, Any]] = []
    untrained: dict[str, Any] = {}
    for seed in args.seeds:
        for mixing in args.mixings:
            lines = train(args.data, args.work, mixing, seed)
            run = args.work / f"{mixing}-{seed}-finetune"
            found = ask(args.data, run, args.pictures, untrained=not results)
            untrained = untrained or found["untrained"]
            results.append(
                {
                    "mixing": mixing,
                    "seed": seed,
                    "loss": {phase: losses(lines[phase]) for phase in PHASES},
                    "validation_loss": {
                        phase: losses(lines[phase], "validation_loss") for phase in PHASES
                    },
                    "gate_weights": losses(lines["finetune"], "gate_weights")[-1:],
                    "scores": found["trained"],
                }
            )
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(PICTURE, dpi=160)
    record(
        "demo_learning",
        "What the demo learns",
        ["aligntrain", "torch", "transformers", "deepspeed"],
        {"untrained": untrained, "runs": results},
        report(results, untrained),
    )


if __name__ == "__main__":
    main()
