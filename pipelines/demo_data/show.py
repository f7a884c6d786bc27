"""Show what the demo's models have learned: a page that opens offline.

uv run python pipelines/demo_data/show.py runs/demo --open

Draws what `measure.py` has written, and measures nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
from build_instructions import read_drawings
from captions import TEMPLATE
from figures import (
    ANOTHER,
    FILE,
    GROUP,
    OTHER,
    RIGHT,
    SHOWN,
    TAG,
    Figures,
    TestImage,
    read_figures,
)
from markupsafe import Markup

from aligncurate.reporting.template import image_card, render
from alignshared import InputError, atomic
from alignshared.demo import held_out_path
from alignshared.images import decode_image
from alignshared.palette import INK, MUTED, PAPER, level_colours
from aligntrain.charts import TEAL, draw_matrix, new_figure, plain_axes, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("show")

PAGE = "show.html"
PREFIX = TEMPLATE.format("")
WIDE, NARROW = (9, 3), (3.7, 5)
"""Sizes of the curves in inches: for desktops; for phones."""
LONGEST = 26
"""Maximum characters of a caption in the picture."""
KINDS = {
    RIGHT: ("#2f7f86", "#ffffff"),
    TAG: ("#7fb09a", "#1f1e1b"),
    GROUP: ("#d6c48a", "#1f1e1b"),
    ANOTHER: ("#b5523b", "#ffffff"),
    OTHER: ("#8b877d", "#ffffff"),
}
"""Kinds of caption from best to worst, with their colours and those of text on them."""
QUESTIONS = {
    "name": "“What is this?”, drawings by another vendor",
    "group": "“Which group is this in?”, unseen concepts",
    "is_this": "“Is this …?”, unseen concepts",
}


def encoded_images(images: Sequence[TestImage]) -> list[bytes]:
    """Return the PNG of each of `images`; InputError if the demo has another set of images."""
    found = {drawing.id: drawing.png for drawing in read_drawings(held_out_path())}
    if missing := [image.id for image in images if image.id not in found]:
        raise InputError(
            f"{held_out_path()} has no image {missing[0]}, so the figures are those of another "
            "demo; measure again with pipelines/demo_data/measure.py."
        )
    return [found[image.id] for image in images]


def render_page(figures: Figures) -> str:
    """Return the page of `figures` as HTML, without scripts or external resources."""
    asked = [image for image in figures.images if image.answers] or figures.images[:SHOWN]
    cards = [
        (image, {"id": image.name, **image_card(encoded)}, captions)
        for image, encoded, captions in zip(
            asked, encoded_images(asked), _shown_captions(figures, asked), strict=True
        )
    ]
    matrix = figures.losses.matrix
    context = {
        "figures": figures,
        "colours": level_colours(figures.levels),
        "cards": cards,
        "weighted": any(answer.weights for image in asked for answer in image.answers),
        "kinds": KINDS,
        "bars": _kinds_by_level(figures),
        "names": QUESTIONS,
        "matrix": [(row, _shades(row.losses)) for row in reversed(matrix)],
        "pairs": sum(row.count for row in matrix),
        "prefix": PREFIX.strip(),
        "plots": [Markup(svg(draw_curves(figures, size), inline=True)) for size in (WIDE, NARROW)],
    }
    return render("show.html.j2", context, Path(__file__).parent)


def _kinds_by_level(figures: Figures) -> list[tuple[str, dict[str, float]]]:
    """Return what captions say at each level, the top one first, and without levels: shares."""
    shares = [
        (f"level {level}", {kind: figures.share(level, kind).mean for kind in KINDS})
        for level in range(figures.levels, 0, -1)
    ]
    if (plain := figures.plain) is not None:
        shares.append(("no levels", {kind: plain.share(kind).mean for kind in KINDS}))
    return shares


def _shown_captions(
    figures: Figures, images: Sequence[TestImage]
) -> list[list[tuple[int | None, str, bool]]]:
    """Return (level, caption, whether it is the right name) of the first `images`; level None is
    the model without levels.
    """
    shown: list[list[tuple[int | None, str, bool]]] = [
        [
            (level, _bare(image.captions[level - 1]), image.kinds[level - 1] == RIGHT)
            for level in figures.shown_levels
        ]
        for image in images
    ]
    if (plain := figures.plain) is not None:
        said = zip(shown, plain.captions, plain.kinds, strict=False)
        for captions, caption, kind in said:
            captions.append((None, _bare(caption), kind == RIGHT))
    return shown


def _bare(caption: str) -> str:
    """Return `caption` without the words that all captions begin with."""
    return caption.removeprefix(PREFIX)


def _shades(losses: Sequence[float]) -> list[float]:
    """Return 1 for the least of `losses`, 0 for the greatest, and between in proportion."""
    low, high = min(losses), max(losses)
    return [(high - loss) / max(high - low, 1e-12) for loss in losses]


def draw_curves(figures: Figures, size: tuple[float, float]) -> Figure:
    """A panel for each phase, beside or below each other, with its losses by step."""
    figure = new_figure(*size)
    across = (1, len(figures.curves)) if size[0] > size[1] else (len(figures.curves), 1)
    panels = np.ravel(figure.subplots(*across, squeeze=False))
    for panel, (phase, curve) in zip(panels, figures.curves.items(), strict=True):
        axes = plain_axes(panel)
        axes.plot(*np.reshape(curve.training, (-1, 2)).T, color=TEAL, linewidth=1.4)
        axes.plot(
            *np.reshape(curve.held_out, (-1, 2)).T, "o", color=INK, markersize=5,
            markeredgecolor=PAPER,
        )  # fmt: skip
        axes.set_title(
            f"{phase}, steps of {curve.samples} samples", fontsize=9, loc="left", color=INK
        )
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    return figure


def draw_overview(figures: Figures) -> Figure:
    """Six test images with their captions, beside the matrix of losses; for the README."""
    images = figures.images[:6]
    figure = new_figure(11.5, 5)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.22, 1), wspace=0.03)[0]
    first, middle, top = figures.shown_levels
    beside = ", and without levels (–)" if figures.plain else ""
    left.suptitle(
        f"Unseen drawings at level {first}, {middle}, {top}{beside}: “{PREFIX}…”",
        fontsize=10, color=INK, x=0.01, ha="left",
    )  # fmt: skip
    colours = level_colours(figures.levels)
    panels = np.ravel(left.subplots(2, 3))
    shown = zip(panels, encoded_images(images), _shown_captions(figures, images), strict=False)
    for axes, encoded, captions in shown:
        axes.imshow(decode_image(encoded), interpolation="bicubic")
        for line, (level, caption, is_right) in enumerate(captions):
            colour = MUTED if level is None else colours[level - 1]
            axes.annotate(
                str(level or "–"), (0, 0), (0, -10 - 14 * line), xycoords="axes fraction",
                textcoords="offset points", fontsize=8, color="white", ha="center", va="center",
                bbox={"boxstyle": "round,pad=0.25", "color": colour},
            )  # fmt: skip
            axes.annotate(
                shorten(caption, LONGEST, placeholder="…"), (0, 0), (9, -10 - 14 * line),
                xycoords="axes fraction", textcoords="offset points", fontsize=9, color=INK,
                ha="left", va="center", fontweight="bold" if is_right else "normal",
                parse_math=False,
            )  # fmt: skip
    for axes in panels:
        axes.set_axis_off()
    right.suptitle(
        "Loss of held-back captions: own level by forced level", fontsize=10, color=INK, x=0.04,
        ha="left",
    )  # fmt: skip
    axes = right.subplots()
    matrix = figures.losses.matrix
    draw_matrix(axes, np.array([row.losses for row in matrix]), [str(row.level) for row in matrix])
    axes.set_xlabel("level forced", fontsize=9, color=MUTED)
    axes.set_ylabel("own level of the caption", fontsize=9, color=MUTED)
    return figure


def open_page(page: Path) -> bool:
    """Open `page` in a browser with windows, if there is one and a screen."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform != "darwin" and not any(os.environ.get(name) for name in screens):
        return False
    try:
        browser = webbrowser.get()
        # One for the terminal would take it over.
        in_terminal = type(browser) is webbrowser.GenericBrowser
        return not in_terminal and browser.open(page.absolute().as_uri())
    except (webbrowser.Error, OSError):
        return False


def main() -> None:
    """Parse the arguments, write the page or draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help=f"folder with {FILE}, where the page is written")
    parser.add_argument("--open", action="store_true", help="open the page, if there is a screen")
    parser.add_argument(
        "--picture", type=Path, metavar="PNG", help="also draw six images beside the matrix"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    page = args.folder / PAGE
    try:
        figures = read_figures(args.folder / FILE)
        atomic.write(page, render_page(figures))
        if args.picture:
            draw_overview(figures).savefig(args.picture, dpi=160)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    opened = args.open and open_page(page)
    logger.info("%s%s", page, " is open in the browser" if opened else ": open it in a browser")


if __name__ == "__main__":
    main()
