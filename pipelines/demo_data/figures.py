"""What is measured of the demo's models at the end of the quickstart: one JSON file.

`measure.py` writes it, `show.py` draws it; `Figures` is its shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from alignshared import InputError, atomic
from aligntrain.evaluate.intervals import Interval, share_interval
from aligntrain.gate.matrix import OwnLevel

FILE = "figures.json"
SHOWN = 12
"""Test images that the fine-tuned model is asked about for the page: the first of the shuffle."""
RIGHT, GROUP, ANOTHER, TAG, OTHER = "right name", "group", "another name", "tag", "other"
KINDS = (RIGHT, GROUP, ANOTHER, TAG, OTHER)
"""Kinds of caption by what they say: the name of what the image shows, the name of a group, that of
another concept, a tag, anything else.
"""

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class HeldOutLosses:
    """Losses of the pairs that pre-training held back, in nats a caption.

    `matrix` has a row for each own level. Of the full captions, `gained` is how much less they cost
    with the top level forced than with no level forced, and `lost` how much more with level 1.
    """

    matrix: list[OwnLevel]
    gained: Interval
    lost: Interval


@dataclass(frozen=True, config=_STRICT)
class Asked:
    """Accuracy on the questions of one kind, with Wilson's interval over the questions.

    `constant` is the share that the best constant answer gets right, `untrained` that of the model
    before any training, None if it was not asked.
    """

    accuracy: Interval
    constant: float
    untrained: float | None = None


@dataclass(frozen=True, config=_STRICT)
class Answer:
    """What the fine-tuned model `said`, its gate's weights [N-1] of the levels from 1, if it has a
    gate, and whether that is the `expected` answer.
    """

    question: str
    expected: str
    said: str
    right: bool
    weights: list[float] | None


@dataclass(frozen=True, config=_STRICT)
class TestImage:
    """A test image and its greedy captions by the pre-trained model with level 1, 2, ... forced.

    `kinds` are those of the captions; `answers` are given about the first SHOWN images.
    """

    id: str
    name: str
    group: str
    captions: list[str]
    kinds: list[str]
    answers: list[Answer]


@dataclass(frozen=True, config=_STRICT)
class Plain:
    """The same pre-training without levels, plain LLaVA, in the folder `run`.

    `captions` and their `kinds` are of the test images in their order. `gained` is how much less
    the full captions that were held back cost the model with levels, its top level forced, in nats
    a caption.
    """

    run: str
    captions: list[str]
    kinds: list[str]
    gained: Interval

    def share(self, kind: str) -> Interval:
        """Return the share of `kind` among its captions, with Wilson's interval."""
        return share_interval(self.kinds.count(kind), len(self.kinds))


@dataclass(frozen=True, config=_STRICT)
class Curve:
    """Losses of a phase, in nats a token, as (step, loss); a step is of `samples` samples."""

    samples: int
    training: list[tuple[int, float]]
    held_out: list[tuple[int, float]]


@dataclass(frozen=True, config=_STRICT)
class Figures:
    """Everything that is measured.

    `images` are those of known concepts, whose drawings by other vendors were trained on, shuffled.
    `retrieval` is the share of them whose nearest caption, among the full captions of all, is the
    right one by the demo CLIP. `questions` are by kind, `curves` by phase. `plain` is None without
    such a run.
    """

    pretrained: str
    finetuned: str
    levels: int
    losses: HeldOutLosses
    images: list[TestImage]
    retrieval: Interval
    questions: dict[str, Asked]
    curves: dict[str, Curve]
    created: str
    plain: Plain | None = None

    @property
    def shown_levels(self) -> tuple[int, int, int]:
        """The lowest, the middle and the top level."""
        return 1, max(1, self.levels // 2), self.levels

    def share(self, level: int, kind: str) -> Interval:
        """Return the share of `kind` among the captions at `level`, with Wilson's interval."""
        found = [image.kinds[level - 1] == kind for image in self.images]
        return share_interval(sum(found), len(found))


_FIGURES = TypeAdapter(Figures)


def write_figures(figures: Figures, path: Path) -> None:
    """Write `figures` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, _FIGURES.dump_json(figures, indent=1).decode() + "\n")


def read_figures(path: Path) -> Figures:
    """Return the figures in the file `path`.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    how = "measure again with pipelines/demo_data/measure.py"
    try:
        figures = _FIGURES.validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {how}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path} holds other figures ({place}: {first['msg']}); {how}.") from error
    by_level = (row.losses for row in figures.losses.matrix)
    plain = figures.plain
    captioned = ((*image.captions, *image.kinds) for image in figures.images)
    if (
        not figures.images
        or any(len(losses) != figures.levels for losses in by_level)
        or any(len(texts) != 2 * figures.levels for texts in captioned)
        or (plain is not None and {len(plain.captions), len(plain.kinds)} != {len(figures.images)})
    ):
        raise InputError(f"{path} lacks images, or numbers of some of its levels; {how}.")
    return figures


def lines(figures: Figures) -> Iterator[str]:
    """Yield the figures as lines for the terminal."""
    levels, losses = range(1, figures.levels + 1), figures.losses
    count = sum(row.count for row in losses.matrix)
    yield f"Loss of {count} held-back captions, nats each: own level by forced level"
    yield "  own \\ forced" + "".join(f"{level:7}" for level in levels) + "   none"
    for row in reversed(losses.matrix):
        least = min(row.losses)
        cells = "".join(f"{loss:6.2f}{'*' if loss == least else ' '}" for loss in row.losses)
        yield f"  {row.level:12}{cells} {row.mix:6.2f}"
    yield "  * least of its row"
    yield (
        f"  of the {losses.gained.count} full ones, against no level forced: level "
        f"{figures.levels} gains {nats(losses.gained)}, level 1 loses {nats(losses.lost)}"
    )
    yield ""
    yield f"Captions of {len(figures.images)} test images at each level: what they say, in percent"
    yield "  level" + "".join(f"{kind:>14}" for kind in KINDS)
    for level in reversed(levels):
        shares = (100 * figures.share(level, kind).mean for kind in KINDS)
        yield f"  {level:5}" + "".join(f"{share:14.0f}" for share in shares)
    if figures.plain is not None:
        shares = (100 * figures.plain.share(kind).mean for kind in KINDS)
        yield "   none" + "".join(f"{share:14.0f}" for share in shares)
        yield (
            "  none: the same pre-training without levels; a full caption costs it "
            f"{nats(figures.plain.gained)} nats more than level {figures.levels}"
        )
    yield (
        f"  the demo CLIP finds the right name among all {len(figures.images)} in "
        f"{percent(figures.retrieval)}; a guess would in {100 / len(figures.images):.1f} %"
    )
    yield ""
    yield "Right answers of the fine-tuned model"
    for kind, asked in figures.questions.items():
        before = "" if asked.untrained is None else f"; untrained {100 * asked.untrained:.1f} %"
        yield (
            f"  {kind:8} {percent(asked.accuracy):>26} of {asked.accuracy.count}; "
            f"best constant answer {100 * asked.constant:.1f} %{before}"
        )


def nats(value: Interval) -> str:
    """Return a mean loss with its interval."""
    return f"{value.mean:.2f}{_in_brackets(ends(value, 1, 2))}"


def percent(value: Interval) -> str:
    """Return a share in percent with its interval."""
    return f"{100 * value.mean:.1f} %{_in_brackets(ends(value, 100, 1))}"


def ends(value: Interval, scale: float, digits: int) -> str:
    """Return the ends of an interval, times `scale`; nothing if it has none."""
    if value.low is None or value.high is None:
        return ""
    return f"{scale * value.low:.{digits}f} to {scale * value.high:.{digits}f}"


def _in_brackets(text: str) -> str:
    return text and f" ({text})"
