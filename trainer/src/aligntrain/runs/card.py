"""Model cards: `README.md` beside a model, with what it was made of, in the form of the hub."""

import json
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
    METRICS,
    Job,
    Start,
    ending_of,
    is_job,
    levels_wanted,
    read_job,
    versions_of,
)

CARD = "README.md"

ASKING = "image-text-to-text"

LICENCES = {"demo": "apache-2.0"}
"""Of base models that bring no card of their own: SmolLM2-135M-Instruct and the demo CLIP."""

_HOPS = 8
"""Datasets of a lineage that are named, at most."""

Facts = Sequence[tuple[str, str]]


def write_card(
    folder: Path, run: Path | None, *, kind: str, use: str, notes: str = "", task: str = ASKING
) -> None:
    """Write the card of the model in `folder`, which came out of the run folder `run`, None where
    it is not known.

    `kind` says in a sentence what the files are, `use` is Python that loads them, `notes` what else
    must be known of them, and `task` is the hub's word for what it does.
    """
    job = read_job(run) if run is not None and is_job(run) else None
    text = _front_matter(job, task) + _body(job, folder, kind, use, notes)
    atomic.write(folder / CARD, text)


def run_of(model: str | Path) -> Path | None:
    """The run folder that `model` is, or is the export of; None if it is neither."""
    for folder in (Path(model), Path(model).absolute().parent):
        if is_job(folder):
            return folder
    return None


def licence_of(base: str) -> str | None:
    """The licence of the base model `base`, a folder or name, as its own card says; None where that
    is not known here. Nothing is fetched.
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


def _front_matter(job: Job | None, task: str) -> str:
    matter: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["aligntrain"],
    }
    if job is not None:
        recipe = job.recipe
        matter["tags"] = ["aligntrain", "llava" if recipe.model.mixing == "none" else "aligngpt"]
        bases = (recipe.model.llm, recipe.model.vision_tower)
        # The hub knows names; a folder of this machine means nothing there.
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


def _body(job: Job | None, folder: Path, kind: str, use: str, notes: str) -> str:
    name = job.folder.absolute().name if job is not None else folder.name
    parts = [f"# {_text(name)}", kind, f"```python\n{use}\n```"]
    if notes:
        parts.append(notes)
    if job is None:
        parts.append("Of what run it came is not recorded here.")
    else:
        parts += _sections(job)
    parts.append(f"Written by aligntrain {version('aligntrain')}.")
    return "\n\n".join(parts) + "\n"


def _sections(job: Job) -> list[str]:
    recipe, model = job.recipe, job.recipe.model
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
    sections = ["## Base models\n\n" + _list(bases), "## Training\n\n" + _list(made + _ending(job))]
    sections.append(f"## Data of {recipe.phase}\n\n" + _list(_lineage(job)))
    sections += _before(job)
    matter = write_yaml(recipe.settings)
    sections.append(f"## Recipe\n\n{_fenced(matter, 'yaml')}")
    return sections


def _before(job: Job) -> list[str]:
    """The data of the run that `job` started from, where that is at hand and still the same."""
    start = None if job.start is None else run_of(Path(job.start.adapter).parent)
    if job.start is None or start is None or start.absolute() == job.folder.absolute():
        return []
    before = read_job(start)
    heading = f"## Data of {before.recipe.phase}\n\n"
    adapter = Path(job.start.adapter)
    if not adapter.is_file() or Start.of(adapter).sha256 != job.start.sha256:
        run = f"{_code(os.fspath(start))}, adapter `{job.start.sha256}`, changed since"
        return [heading + _list([("run", run)])]
    return [heading + _list(_lineage(before))]


def _ending(job: Job) -> list[tuple[str, str]]:
    ending = ending_of(job.folder) or _last_metrics(job.folder)
    facts = [("steps", "steps", "{:,}"), ("loss", "loss", "{:.4f}")]
    facts += [("validation_loss", "held-out loss", "{:.4f}"), ("seconds", "seconds", "{:,.0f}")]
    found = [(name, form.format(ending[key])) for key, name, form in facts if ending.get(key)]
    versions = versions_of(job.folder)
    if versions:
        found.append(("versions", ", ".join(f"{_text(k)} {_text(v)}" for k, v in versions.items())))
    return found


def _last_metrics(run: Path) -> dict[str, Any]:
    """Of a run that is not finished yet, as while it exports: its newest numbers."""
    path = run / METRICS
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        values = json.loads(line)
        found |= {key: values[key] for key in ("loss", "validation_loss") if key in values}
        found["steps"] = values["step"]
    return found


def _lineage(job: Job) -> list[tuple[str, str]]:
    """The dataset of `job` and what it was made from, as far as that is at hand."""
    facts: list[tuple[str, str]] = []
    anew = job.recipe.data.levels if levels_wanted(job.recipe) is not None else None
    if anew is not None:
        facts.append(("levels", f"made anew for this run: {anew}"))
    location, digest = job.data, job.data_sha256
    for _ in range(_HOPS):
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
    """`text` on one line, with nothing in it that Markdown or HTML would obey."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in "\\`*_[]|#~!" else c for c in escape(clean, quote=False))


def _code(text: str) -> str:
    """`text` on one line as code, whatever marks it holds."""
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
