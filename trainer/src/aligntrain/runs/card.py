"""Model cards: `README.md` beside a model, in the Hub's form, with its data and recipe."""

import re
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from alignshared import AlignError, Dataset, atomic
from alignshared.errors import printable
from alignshared.stores.filesystems import is_place, public_name
from aligntrain.recipes import Recipe
from aligntrain.recipes.load import read_yaml, write_yaml
from aligntrain.recipes.schema import COLUMN_PREFIX
from aligntrain.runs.folder import (
    PLAIN_LOSS,
    RunSpec,
    Start,
    is_run,
    newest_metrics,
    read_run,
    required_levels,
    result_of,
    versions_of,
)

CARD = "README.md"

TASK = "image-text-to-text"

LICENCES = {"demo": "apache-2.0", "smollm2": "apache-2.0"}
"""Licences of base models without a card: the demo's and SmolLM2-135M-Instruct."""

_UNKNOWN_LICENCE = "not known here: see its own card"

_HUB_NAME = re.compile("[^./][^/]*/[^/]+")

_MAX_ANCESTORS = 8
"""Maximum datasets of a lineage named in a card."""


def write_card(
    folder: Path, run: Path | None, *, kind: str, use: str, notes: str = "", task: str = TASK
) -> None:
    """Write the card of the model in `folder`, trained in the run folder `run` (None: unknown).

    `kind` describes the files in a sentence, `use` is Python that loads them, `notes` are further
    remarks, and `task` is the Hub's name of the model's task.
    """
    spec = read_run(run) if run is not None and is_run(run) else None
    name = spec.folder.absolute().name if spec is not None else folder.name
    parts = [f"# {_text(name)}", kind, f"```python\n{use}\n```"]
    if notes:
        parts.append(notes)
    if spec is None:
        parts.append("Of what run it came is not recorded here.")
    else:
        parts += _sections(spec)
    parts.append(f"Written by aligntrain {version('aligntrain')}.")
    atomic.write(folder / CARD, _front_matter(spec, task) + "\n\n".join(parts) + "\n")


def run_of(model: str | Path) -> Path | None:
    """Return the run folder for `model`, a run folder or its export, or None."""
    for folder in (Path(model), Path(model).absolute().parent):
        if is_run(folder):
            return folder
    return None


def licence_of(base: str) -> str | None:
    """Return the licence on the card of the base model `base`, a folder or name, or None.

    Nothing is fetched.
    """
    if base in LICENCES:
        return LICENCES[base]
    card = Path(base) / CARD
    if not card.is_file():
        return None
    _, mark, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    if not mark:
        return None
    try:
        matter = read_yaml(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return None
    licence = matter.get("license") if isinstance(matter, dict) else None
    return licence if isinstance(licence, str) else None


def _front_matter(spec: RunSpec | None, task: str) -> str:
    matter: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["aligntrain"],
    }
    if spec is not None:
        recipe = spec.recipe
        matter["tags"] = ["aligntrain", "llava" if recipe.model.mixing == "none" else "aligngpt"]
        bases = (recipe.model.llm, recipe.model.vision_tower)
        # The Hub resolves names, not folders of this machine.
        named = [base for base in bases if _HUB_NAME.fullmatch(base) and not is_place(base)]
        if named:
            matter["base_model"] = named
        licence, *others = {licence_of(base) for base in bases}
        if licence is not None and not others:
            matter["license"] = licence
    return f"---\n{write_yaml(matter)}---\n\n"


def _sections(spec: RunSpec) -> list[str]:
    recipe, model = spec.recipe, spec.recipe.model
    levels = "no levels" if model.mixing == "none" else f"{model.levels} levels"
    bases = [
        (what, f"{_code(public_name(base))}, licence {licence_of(base) or _UNKNOWN_LICENCE}")
        for what, base in (("LLM", model.llm), ("vision tower", model.vision_tower))
    ]
    made = [
        ("phase", recipe.phase),
        ("mixing", f"{model.mixing}, {levels}"),
        ("recipe", _code(recipe.name)),
        *_ending(spec),
    ]
    settings = write_yaml(_public_settings(recipe))
    fence = "`" * max(3, 1 + _longest_fence(settings))
    return [
        "## Base models\n\n" + _list(bases),
        "## Training\n\n" + _list(made),
        f"## Data of {recipe.phase}\n\n" + _list(_lineage(spec)),
        *_before(spec),
        f"## Recipe\n\n{fence}yaml\n{settings}{fence}",
    ]


def _public_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of `recipe` with names in place of folders of this machine."""
    settings = recipe.settings
    for part in ("vision_tower", "llm"):
        settings["model"][part] = public_name(settings["model"][part])
    return settings


def _before(spec: RunSpec) -> list[str]:
    """Describe the data of the run that `spec` started from, if available and unchanged."""
    start = None if spec.start is None else run_of(Path(spec.start.adapter).parent)
    if spec.start is None or start is None or start.absolute() == spec.folder.absolute():
        return []
    before = read_run(start)
    heading = f"## Data of {before.recipe.phase}\n\n"
    adapter = Path(spec.start.adapter)
    if not adapter.is_file() or Start.of(adapter).sha256 != spec.start.sha256:
        run = f"{_code(public_name(start))}, adapter `{spec.start.sha256}`, changed since"
        return [heading + _list([("run", run)])]
    return [heading + _list(_lineage(before))]


def _ending(spec: RunSpec) -> list[tuple[str, str]]:
    ending = result_of(spec.folder) or newest_metrics(spec.folder)
    facts = [("steps", "steps", "{:,}"), ("loss", "loss", "{:.4f}")]
    facts += [("validation_loss", "held-out loss", "{:.4f}")]
    facts += [(PLAIN_LOSS, "held-out loss without alignment vectors", "{:.4f}")]
    facts += [("seconds", "seconds", "{:,.0f}")]
    lines = [(name, form.format(ending[key])) for key, name, form in facts if ending.get(key)]
    versions = versions_of(spec.folder)
    if versions:
        lines.append(("versions", ", ".join(f"{_text(k)} {_text(v)}" for k, v in versions.items())))
    return lines


def _lineage(spec: RunSpec) -> list[tuple[str, str]]:
    """Describe the dataset of `spec` and its ancestors, as far as available."""
    facts: list[tuple[str, str]] = []
    anew = spec.recipe.data.levels if required_levels(spec.recipe) is not None else None
    if anew is not None:
        column = anew.removeprefix(COLUMN_PREFIX)
        made = (
            f"made anew for this run: {anew}" if column == anew else f"the column {_code(column)}"
        )
        facts.append(("levels", made))
    location, digest = spec.data, spec.data_sha256
    for _ in range(_MAX_ANCESTORS):
        line = f"{_code(public_name(location))}, manifest `{digest}`"
        try:
            dataset = Dataset(location)
        except (AlignError, OSError):
            facts.append(("dataset", line + ", not at hand"))
            break
        if dataset.digest != digest:
            facts.append(("dataset", line + ", changed since"))
            break
        manifest = dataset.manifest
        facts.append((manifest.stage, f"{line}, {manifest.rows:,} rows"))
        if anew is None and manifest.level_edges is not None and manifest.edges is not None:
            edges = ", ".join(f"{edge:.6g}" for edge in manifest.edges)
            of = f" of {_code(manifest.by)}" if manifest.by else ""
            facts.append(("edges", f"{manifest.scheme}{of}: {edges}"))
        if manifest.model is not None and manifest.stage == "score":
            scorer = manifest.model.named()
            facts.append(("scores", f"{_code(scorer.name)}, weights {_code(scorer.weights)}"))
        parent = next((p for p in manifest.parents if p.sha256 is not None), None)
        if parent is None:
            sources = [p.location for p in manifest.parents]
            facts += [("source", _code(public_name(source))) for source in sources]
            break
        location, digest = parent.location, str(parent.sha256)
    return facts


def _list(facts: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts)


def _text(text: str) -> str:
    """Return `text` on one line, with Markdown and HTML escaped."""
    clean = escape(printable(text), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|#~!" else c for c in clean)


def _code(text: str) -> str:
    """Return `text` on one line as inline code, with any backticks."""
    clean = printable(text)
    fence = "`" * (1 + _longest_fence(clean))
    space = " " if clean.startswith("`") or clean.endswith("`") else ""
    return f"{fence}{space}{clean}{space}{fence}"


def _longest_fence(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
