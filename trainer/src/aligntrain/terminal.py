"""Output of the commands: results on stdout; the log, progress and errors on stderr."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.text import Text

from alignshared.console import near, notes, progress_bars, results, section, table
from alignshared.errors import printable

if TYPE_CHECKING:
    from aligntrain.ablation.report import Outcome
    from aligntrain.ablation.runs import Ablation
    from aligntrain.captioning.caption import Captions
    from aligntrain.evaluate import Comparison, Evaluation
    from aligntrain.evaluate.intervals import Interval
    from aligntrain.evaluate.uncertainty import Difference
    from aligntrain.gate.summary import GateReport
    from aligntrain.plan.estimate import Plan
    from aligntrain.train.run import RunResult


def hide_loading() -> None:
    """Disable transformers' progress bar for loading weights."""
    from transformers.utils import logging as theirs

    theirs.disable_progress_bar()


def show_run(result: "RunResult") -> None:
    """Print the run's folder and results."""
    from aligntrain.runs.folder import EXPORT

    ending = result.ending
    facts = [f"{ending['steps']:,} steps", f"loss {ending['loss']:.4f}"]
    if ending.get("validation_loss") is not None:
        facts.append(f"validation loss {ending['validation_loss']:.4f}")
    facts.append(_duration(ending["seconds"]))
    rejected = sum(ending["rejected"].values())
    counts = (("rejected", rejected), ("truncated", ending["truncated"]))
    facts += [f"{count:,} samples {what}" for what, count in counts if count]
    if result.before:
        notes.print(f"{near(result.folder)} is finished already; nothing was done.")
    results.print(f"{near(result.folder / EXPORT)}: {', '.join(facts)}")


def show_plan(plan: "Plan") -> None:
    """Print parameters by part, memory of one GPU by zero stage, steps and tokens."""
    recipe = plan.recipe
    gpus = f"{plan.gpus} GPU" + ("s" if plan.gpus > 1 else "")
    results.print(f"{recipe.name}, {recipe.phase}, on {gpus}")
    parts = table("part", "parameters", "trains")
    for part in plan.parts:
        parts.add_row(part.part, f"{part.parameters:,}", "yes" if part.trains else "no")
    parts.add_row("all", f"{plan.parameters:,}", f"{plan.trainable:,}")
    section("parameters", parts)
    memory = table("zero_stage", "weights", "gradients", "optimizer", "peak", "")
    for stage, states in plan.states.items():
        cells = (states.weights, states.gradients, states.optimizer, plan.memory(stage))
        chosen = "the recipe's" if stage == recipe.zero_stage else ""
        memory.add_row(str(stage), *(_gigabytes(size) for size in cells), chosen)
    section("memory of one GPU", memory)
    kept = recipe.gradient_checkpointing
    here, other = plan.working[kept], plan.working[not kept]
    results.print(
        f"at its peak with {_gigabytes(here.kept)} of activations "
        f"({_gigabytes(other.kept)} {'without' if kept else 'with'} gradient checkpointing) and "
        f"{_gigabytes(here.logits)} of logits, of {recipe.batch.micro_size} samples of "
        f"{recipe.data.max_length:,} tokens"
    )
    if plan.tiles_per_image > 1:
        results.print(
            f"the vision tower reads {plan.tiles_per_image} tiles an image, "
            f"{_gigabytes(here.tower)} while it does and "
            f"{plan.flops_per_image / 1e9:,.1f} GFLOP"
        )
    if plan.host_memory:
        results.print(f"and {_gigabytes(plan.host_memory)} on the host, for all GPUs together")
    if plan.steps is not None and plan.tokens is not None:
        results.print()
        results.print(
            f"{plan.steps:,} steps of {recipe.batch.global_size} samples "
            f"({recipe.batch.micro_size} at a time on each GPU, {plan.accumulation} times), "
            f"{plan.image_tokens} tokens an image, about {plan.tokens:,} tokens in all: "
            f"{plan.tokens * plan.flops_per_token / 1e15:,.3g} PFLOP of the LLM"
        )


def show_evaluation(done: "Evaluation") -> None:
    """Print scores beside the published values, and the folder of the answers."""
    from aligntrain.evaluate.run import HEADINGS

    rows = [HEADINGS, *(outcome.cells for outcome in done.outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for place, row in enumerate(rows):
        # A rich table would truncate results to the terminal's width.
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        results.print(Text("  ".join(cells).rstrip(), style="" if place else "bold"))
    for outcome in done.outcomes:
        for note in outcome.result["notes"]:
            results.print(f"{outcome.benchmark.title}: {note}.")
    notes.print(f"answers, one by one, and this table lie in {near(done.output)}")


def show_comparisons(comparisons: "Sequence[Comparison]") -> None:
    """Print the differences of two models on the same questions."""
    rows = table("benchmark", "score", "against", "difference", "detectable", "images")
    for one in comparisons:
        values = ("–" if value is None else f"{value:.1f}" for value in (one.score, one.against))
        found = one.difference
        if found is None:
            rows.add_row(one.benchmark.title, *values, "–", "–", "–")
        else:
            rows.add_row(
                one.benchmark.title, *values, _difference(found, digits=1),
                f"{found.detectable:.1f}", f"{found.images:,}",
            )  # fmt: skip
    section("paired by question, with 95 % intervals", rows)


def show_captions(captions: "Captions") -> None:
    """Print the location and counts of the new captions."""
    dataset, manifest = captions.dataset, captions.dataset.manifest
    where, rejects = near(dataset.location), manifest.reject_count
    if captions.before:
        notes.print(f"{where} is finished already; nothing was done.")
    results.print(
        f"{where}: {manifest.rows + rejects:,} pairs in = {manifest.rows:,} captioned + "
        f"{rejects:,} rejects"
    )
    for reason, count in manifest.rejects.items():
        results.print(f"  {count:,} {reason}")
    results.print(f"{captions.images:,} images captioned at level {captions.level}")
    if captions.cut_off:
        results.print(f"{captions.cut_off:,} of the captions were cut off by --max-new-tokens")


def show_gate(weights: list[float] | None) -> None:
    """Print the gate's weight of each local level as bars."""
    if weights is None:
        notes.print(
            "no gate weights: there is no image, the level is forced, or the model has no gate."
        )
        return
    for level, weight in enumerate(weights, start=1):
        notes.print(f"  level {level}  {weight:.3f}  {'█' * round(40 * weight)}")


@contextmanager
def counting() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Yield a function from a task and its total to the callback of its bar, for a terminal."""
    with progress_bars(notes) as bars:

        def begin(what: str, count: int) -> Callable[[int], None]:
            task = bars.add_task(what, total=count, state="")
            return lambda done: bars.advance(task, done)

        yield begin


def show_gate_report(report: "GateReport") -> None:
    """Print mean weights by type, the effect of forcing a level, and the path of the report."""
    if report.without is not None:
        notes.print(f"{report.without}.")
    if report.kinds:
        levels = [str(level) for level in range(1, len(report.kinds[0].weights) + 1)]
        by_type = table("type", "n", *levels, "mean", "entropy")
        for kind in report.kinds:
            cells = [f"{weight:.3f}" for weight in kind.weights]
            means = (f"{kind.mean_level.mean:.2f}", f"{kind.entropy:.2f}")
            by_type.add_row(Text(_one_line(kind.kind, 30)), f"{kind.count:,}", *cells, *means)
        section("mean weight of each local level, their mean level, and entropy", by_type)
    if report.overall:
        by_level = table("vector", "loss", "less that of the own mix", "right")
        for setting in report.overall:
            right = setting.accuracy
            by_level.add_row(
                _vector(setting.level),
                f"{setting.loss:.4f}",
                _difference(setting.difference),
                "" if right is None else f"{100 * right.mean:.1f} % of {right.count:,}",
            )
        section("every level forced", by_level)
    if report.matrix:
        forced = [f"as {level}" for level in range(1, len(report.matrix[0].losses) + 1)]
        by_own = table("own level", "n", *forced)
        for row in report.matrix:
            losses = [f"{loss:.2f}" for loss in row.losses]
            by_own.add_row(f"level {row.level}", f"{row.count:,}", *losses)
        section("loss by own and forced level, nats per caption", by_own)
    results.print()
    results.print(f"{near(report.output / 'report.html')}: {len(report.questions):,} questions")


def show_planned(ablation: "Ablation") -> None:
    """Print every run with its state, and how long the rest should take."""
    states = table("run", "state", "continues from")
    for run in ablation.runs:
        took = "" if run.seconds is None else f"finished in {_duration(run.seconds)}"
        state = took or ("begun" if run.begun else "to do")
        states.add_row(run.name, state, "" if run.start is None else f"pretrain/{run.start.name}")
    results.print(states)
    count, left, seconds = len(ablation.runs), len(ablation.left), ablation.seconds_left
    time = "how long they take is known when one of each phase is finished"
    if seconds is not None:
        time = f"about {_duration(seconds)} by those that are finished"
    results.print()
    results.print(f"{left} of {count} runs are left" + (f"; {time}." if left else "."))


def show_outcome(outcome: "Outcome") -> None:
    """Print a table for each metric, and the path of the report.

    Raises:
        AlignError: some of the runs failed.
    """
    from alignshared import AlignError
    from aligntrain.ablation.report import cells_of, heading, kinds_of

    kinds = kinds_of(outcome)
    for comparison in outcome.comparisons:
        lines = table("variant", "seeds", "mean", "difference", "")
        for cells in cells_of(comparison):
            lines.add_row(*cells)
        section(_one_line(heading(comparison, kinds), 120), lines)
    results.print()
    results.print(near(outcome.ablation.output / "ablation.md"))
    if outcome.unasked:
        notes.print(f"not asked, as their models were not kept: {', '.join(outcome.unasked)}")
    if outcome.failed:
        names = ", ".join(outcome.failed)
        raise AlignError(
            f"{len(outcome.failed)} of {len(outcome.ablation.runs)} runs failed ({names}); "
            "ablation.md says why, and the same command continues with them."
        )


def _vector(level: int | str | None) -> str:
    if level is None:
        return "own mix"
    return "equal weights" if level == "mean" else f"level {level}"


def _difference(value: "Interval | Difference | None", digits: int = 4) -> str:
    if value is None:
        return ""
    ends = [f"{end:+.{digits}f}" for end in (value.low, value.high) if end is not None]
    return f"{value.mean:+.{digits}f}" + (f" ({' to '.join(ends)})" if ends else "")


def _one_line(text: str, limit: int) -> str:
    clean = printable(text)
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes}:{rest:02} min"
