"""Whether the demo learns its levels: what its captions say at each, over seeds and over samples.

Runs both phases of the recipe `demo` for each seed, and pre-training without levels, on what the
quickstart has made, and measures each model as the quickstart does. The tower's own retrieval, the
best constant answer and the model before any training stand beside it. A curve over lengths of
pre-training shows what more samples would bring.
"""

import argparse
import logging
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from recording import record, table

from aligntrain.evaluate.intervals import mean_interval, share_interval
from aligntrain.inference.load import load_for_inference
from aligntrain.runs.folder import read_run

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "pipelines/demo_data"))

import figures as demo  # noqa: E402
from measure import caption_images, known_images  # noqa: E402

logger = logging.getLogger("demo_learning")

PICTURE = ROOT / "docs/images/demo-learning.png"
STEPS = (150, 300, 600, 1200, 2400)
QUESTIONS = {"name": "what is this?", "group": "which group?", "is_this": "is this a …?"}
CURVES = (
    (demo.RIGHT, 8, "right name at level 8", "#1b6e8c"),
    (demo.GROUP, 4, "a group at level 4", "#c1602c"),
    (demo.GROUP, 8, "a group at level 8", "#7a5c99"),
)


def train(data: Path, run: Path, phase: str, *options: Any) -> Path:
    """Train a phase on what the quickstart made, or go on with it; return its folder."""
    given = {"pretrain": data / "bucket", "finetune": data / "ingest"}
    command = ["run", phase, "--data", given[phase], "--output", run, "--resume", *options]
    _call(Path(sys.executable).with_name("aligntrain"), *command)
    return run


def of_seed(data: Path, work: Path, seed: int) -> demo.Figures:
    """Both phases with `seed`, one without levels, and what the quickstart measures of them."""
    folder = work / f"seed-{seed}"
    found = folder / demo.FILE
    if not found.is_file():
        setting = ("--set", f"seed={seed}")
        pretrained = train(data, folder / "pretrain", "pretrain", *setting)
        finetuned = train(data, folder / "finetune", "finetune", "--from", pretrained, *setting)
        without = ("--set", "model.mixing=none")
        plain = train(data, folder / "plain", "pretrain", *setting, *without)
        _call(
            sys.executable, ROOT / "pipelines/demo_data/measure.py", "--pretrained", pretrained,
            "--finetuned", finetuned, "--plain", plain, "--output", found,
            "--questions", data / "instructions/questions.json",
            *(["--untrained"] if seed == 0 else []),
        )  # fmt: skip
    return demo.read_figures(found)


def _call(*command: Any) -> None:
    words = [str(word) for word in command]
    logger.info("$ %s", shlex.join(words))
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


def of_length(data: Path, work: Path, steps: int) -> dict[str, Any]:
    """Shares of the kinds of caption at each level after `steps` steps of pre-training."""
    run = work / "seed-0" / "pretrain"
    if not run.is_dir() or read_run(run).recipe.max_steps != steps:
        run = train(data, work / f"steps-{steps}", "pretrain", "--set", f"max_steps={steps}")
    batch = read_run(run).recipe.batch.global_size
    drawings, vocabulary = known_images()
    captions = caption_images(load_for_inference(run), drawings)
    kinds = [
        [vocabulary.kind(text, drawing) for text in texts]
        for texts, drawing in zip(captions, drawings, strict=True)
    ]
    shares = [
        {kind: at_level.count(kind) / len(drawings) for kind in demo.KINDS}
        for at_level in zip(*kinds, strict=True)
    ]
    return {"steps": steps, "samples": steps * batch, "levels": shares}


def draw(lengths: Sequence[dict[str, Any]], retrieval: float) -> Figure:
    """Draw what captions say after how many samples."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    samples = [length["samples"] for length in lengths]
    for kind, level, label, colour in CURVES:
        shares = [100 * length["levels"][level - 1][kind] for length in lengths]
        axes.plot(samples, shares, marker="o", markersize=4, color=colour, label=label)
    axes.axhline(100 * retrieval, color="#888888", linestyle="--", linewidth=1)
    axes.text(samples[0], 100 * retrieval + 2, "right name, the tower's retrieval", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(samples, [f"{number:,}" for number in samples])
    axes.set_xlabel("samples of pre-training", fontsize=9)
    axes.set_ylabel("captions of test images, percent", fontsize=9)
    axes.set_ylim(0, 104)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4)
    axes.legend(frameon=False, fontsize=8)
    return figure


def report(found: Sequence[demo.Figures], lengths: Sequence[dict[str, Any]]) -> str:
    """Tables of all that the seeds reached, and of the lengths."""
    first = found[0]
    levels, images = first.levels, len(first.images)
    low, middle, top = first.shown_levels
    rows: list[list[object]] = [
        _row(
            f"captions at level {level}: {kind}", found, images,
            lambda one, level=level, kind=kind: one.share(level, kind).mean,
        )
        for level, kind in (
            (top, demo.RIGHT), (top, demo.GROUP), (middle, demo.GROUP), (low, demo.RIGHT),
        )
    ]  # fmt: skip
    rows += [
        _row(
            f"captions without levels: {kind}", found, images,
            lambda one, kind=kind: _plain(one).share(kind).mean,
        )
        for kind in (demo.RIGHT, demo.GROUP)
    ]  # fmt: skip
    for kind, question in QUESTIONS.items():
        rows.append(
            _row(
                question, found, first.questions[kind].accuracy.count,
                lambda one, kind=kind: one.questions[kind].accuracy.mean,
            )
        )  # fmt: skip
    baselines: list[list[object]] = [
        ["right name, the tower's own retrieval", demo.percent(first.retrieval)],
        ["right name, a guess", f"{100 / images:.1f} %"],
    ]
    for kind, question in QUESTIONS.items():
        asked = first.questions[kind]
        baselines.append([f"{question} best constant answer", f"{100 * asked.constant:.1f} %"])
        if asked.untrained is not None:
            baselines.append([f"{question} before training", f"{100 * asked.untrained:.1f} %"])
    gained, lost = (
        mean_interval([getattr(one.losses, name).mean for one in found])
        for name in ("gained", "lost")
    )
    without = mean_interval([_plain(one).gained.mean for one in found])
    near = [
        abs(row.losses.index(min(row.losses)) + 1 - row.level) <= 1
        for one in found
        for row in one.losses.matrix
    ]
    curve = [
        [f"{length['samples']:,}"]
        + [f"{100 * length['levels'][level - 1][kind]:.1f}" for kind, level, *_ in CURVES]
        for length in lengths
    ]
    return (
        f"{len(found)} seeds, {images} test images of known concepts, by a vendor that no phase "
        "saw. Percent, with Student's interval over the seeds, and Wilson's over the images or "
        "questions for the mean.\n\n"
        + table(["measured", "mean", "over seeds", "over questions"], rows)
        + "\n\n"
        + table(["beside it", "share"], baselines)
        + f"\n\nFull captions held back from pre-training: level {levels} forced gains "
        f"{demo.nats(without)} nats a caption against the model without levels, "
        f"{demo.nats(gained)} against no level forced; level 1 loses {demo.nats(lost)}. Of "
        f"the matrices' rows {sum(near)} of {len(near)} have their least "
        "loss within one level of the diagonal.\n\n"
        "Over the length of pre-training, seed 0, percent of captions:\n\n"
        + table(["samples", *(label for _, _, label, _ in CURVES)], curve)
        + f"\n\n![Over samples](../../{PICTURE.relative_to(ROOT)})"
    )


def _plain(one: demo.Figures) -> demo.Plain:
    assert one.plain is not None  # `of_seed` trains it
    return one.plain


def _row(
    name: str,
    found: Sequence[demo.Figures],
    asked: int,
    value: Callable[[demo.Figures], float],
) -> list[object]:
    over_seeds = mean_interval([value(one) for one in found])
    over_questions = share_interval(round(over_seeds.mean * asked), asked)
    seeds, questions = (demo.ends(one, 100, 1) for one in (over_seeds, over_questions))
    return [name, f"{100 * over_seeds.mean:.1f}", seeds or "–", f"{questions} of {asked}"]


def main() -> None:
    """Train, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="of the quickstart")
    parser.add_argument("--work", type=Path, default=Path("runs/demo_learning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = [of_seed(args.data, args.work, seed) for seed in args.seeds]
    lengths = [of_length(args.data, args.work, steps) for steps in args.steps]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw(lengths, found[0].retrieval.mean).savefig(PICTURE, dpi=160)
    seeds = [
        {"seed": seed, "lines": list(demo.lines(one)), "losses": asdict(one.losses)}
        for seed, one in zip(args.seeds, found, strict=True)
    ]
    record(
        "demo_learning",
        "What the demo learns",
        ["aligntrain", "torch", "transformers", "deepspeed"],
        {"seeds": seeds, "lengths": lengths},
        report(found, lengths),
    )


if __name__ == "__main__":
    main()
