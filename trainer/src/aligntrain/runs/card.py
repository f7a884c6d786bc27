"""Model cards: `README.md` beside a model, in the Hub's form, with its data and recipe."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from alignshared import AlignError, Dataset, atomic
from aligntrain.recipes.load import read_yaml, write_yaml
from aligntrain.runs.folder import (
    RunSpec,
    Start,
    is_run,
    read_metrics,
    read_run,
    required_levels,
    result_of,
    versions_of,
)

CARD = "README.md"

TASK = "image-text-to-text"

LICENCES = {"demo": "apache-2.0"}
"""Licences of base models without a card: SmolLM2-135M-Instruct and the demo CLIP."""

_MAX_ANCESTORS = 8
"""Maximum datasets of a lineage named in a card."""

Facts = Sequence[tuple[str, str]]


def write_card(
    folder: Path, run: Path | None, *, kind: str, use: str, notes: str = "", task: str = TASK
) -> None:
    """Write the card of the model in `folder`, trained in the run folder `run` (None: unknown).

    `kind` describes the files in a sentence, `use` is Python that loads them, `notes` are further
    remarks, and `task` is the Hub's name of the model's task.
    """
    spec = read_run(run) if run is not None and is_run(run) else None
    text = _front_matter(spec, task) + _body(spec, folder, kind, use, notes)
    atomic.write(folder / CARD, text)


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
        named = [base for base in bases if _is_hub_name(base)]
        if named:
            matter["base_model"] = named
        licences = {licence_of(base) for base in bases}
        licence = licences.pop() if len(licences) == 1 else None
        if licence is not None:
            matter["license"] = licence
    return f"---\n{write_yaml(matter)}---\n\n"


def _is_hub_name(base: str) -> bool:
    parts = base.split("/")
    return len(parts) == 2 and all(parts) and not Path(base).exists() and not base.startswith(".")


def _body(spec: RunSpec | None, folder: Path, kind: str, use: str, notes: str) -> str:
    name = spec.folder.absolute().name if spec is not None else folder.name
    parts = [f"# {_text(name)}", kind, f"```python\n{use}\n```"]
    if notes:
        parts.append(notes)
    if spec is None:
        parts.append("Of what run it came is not recorded here.")
    else:
        parts += _sections(spec)
    parts.append(f"Written by aligntrain {version('aligntrain')}.")
    return "\n\n".join(parts) + "\n"


def _sections(spec: RunSpec) -> list[str]:
    recipe, model = spec.recipe, spec.recipe.model
    levels = "no levels" if model.mixing == "none" else f"{model.levels} levels"
    bases = [
        (what, f"{_code(base)}, licence {licence_of(base) or 'not known here: see its own card'}")
        for what, base in (("LLM", model.llm), ("vision tower", model.vision_tower))
    ]
    made: list[tuple[str, str]] = [
        ("phase", recipe.phase),
        ("mixing", f"{model.mixing}, {levels}"),
        ("recipe", _code(recipe.name)),
    ]
    sections = [
        "## Base models\n\n" + _list(bases),
        "## Training\n\n" + _list(made + _ending(spec)),
    ]
    sections.append(f"## Data of {recipe.phase}\n\n" + _list(_lineage(spec)))
    sections += _before(spec)
    matter = write_yaml(recipe.settings)
    sections.append(f"## Recipe\n\n{_fenced(matter, 'yaml')}")
    return sections


def _before(spec: RunSpec) -> list[str]:
    """Describe the data of the run that `spec` started from, if available and unchanged."""
    start = None if spec.start is None else run_of(Path(spec.start.adapter).parent)
    if spec.start is None or start is None or start.absolute() == spec.folder.absolute():
        return []
    before = read_run(start)
    heading = f"## Data of {before.recipe.phase}\n\n"
    adapter = Path(spec.start.adapter)
    if not adapter.is_file() or Start.of(adapter).sha256 != spec.start.sha256:
        run = f"{_code(os.fspath(start))}, adapter `{spec.start.sha256}`, changed since"
        return [heading + _list([("run", run)])]
    return [heading + _list(_lineage(before))]


def _ending(spec: RunSpec) -> list[tuple[str, str]]:
    ending = result_of(spec.folder) or _last_metrics(spec.folder)
    facts = [("steps", "steps", "{:,}"), ("loss", "loss", "{:.4f}")]
    facts += [("validation_loss", "held-out loss", "{:.4f}"), ("seconds", "seconds", "{:,.0f}")]
    lines = [(name, form.format(ending[key])) for key, name, form in facts if ending.get(key)]
    versions = versions_of(spec.folder)
    if versions:
        lines.append(("versions", ", ".join(f"{_text(k)} {_text(v)}" for k, v in versions.items())))
    return lines


def _last_metrics(run: Path) -> dict[str, Any]:
    """Return the newest numbers of an unfinished run, such as one that is exporting."""
    newest: dict[str, Any] = {}
    for line in read_metrics(run):
        newest |= {key: line[key] for key in ("loss", "validation_loss") if key in line}
        newest["steps"] = line["step"]
    return newest


def _lineage(spec: RunSpec) -> list[tuple[str, str]]:
    """Describe the dataset of `spec` and its ancestors, as far as available."""
    facts: list[tuple[str, str]] = []
    anew = spec.recipe.data.levels if required_levels(spec.recipe) is not None else None
    if anew is not None:
        facts.append(("levels", f"made anew for this run: {anew}"))
    location, digest = spec.data, spec.data_sha256
    for _ in range(_MAX_ANCESTORS):
        line = f"{_code(location)}, manifest `{digest}`"
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
            facts.append(("edges", f"{manifest.scheme}: {edges}"))
        if manifest.model is not None and manifest.stage == "score":
            scorer = manifest.model
            facts.append(("scores", f"{_code(scorer.name)}, weights {_code(scorer.weights)}"))
        parent = next((p for p in manifest.parents if p.sha256 is not None), None)
        if parent is None:
            sources = [p.location for p in manifest.parents]
            facts += [("source", _code(source)) for source in sources]
            break
        location, digest = parent.location, str(parent.sha256)
    return facts


def _list(facts: Facts | Mapping[str, str]) -> str:
    pairs = facts.items() if isinstance(facts, Mapping) else facts
    return "\n".join(f"- {name}: {value}" for name, value in pairs)


def _text(text: str) -> str:
    """Return `text` on one line, with Markdown and HTML escaped."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in "\\`*_[]|#~!" else c for c in escape(clean, quote=False))


def _code(text: str) -> str:
    """Return `text` on one line as inline code, with any backticks."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    longest, run = 0, 0
    for c in clean:
        run = run + 1 if c == "`" else 0
        longest = max(longest, run)
    fence = "`" * (longest + 1)
    space = " " if clean.startswith("`") or clean.endswith("`") else ""
    return f"{fence}{space}{clean}{space}{fence}"


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}{fence}"
