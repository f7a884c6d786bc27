"""Build the site of the guides in build/site/html.

uv run --group docs python docs/site/build.py

Pages lie in the site as in the repository, so a link holds in both. A linked file that is no
Markdown, such as a recipe's schema, becomes a page that shows it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = REPOSITORY / "build/site/pages"
LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
IMAGES = (".png", ".svg")
SHELL = "%%sh\n"
"""First line of a notebook's cell of shell commands."""
LANGUAGES = {".cff": "yaml", ".py": "python", ".sbatch": "sh", ".sh": "sh", ".yaml": "yaml"}


def first_pages() -> list[Path]:
    """Return the pages that the site begins with; those that they link to follow."""
    results = REPOSITORY / "benchmarks/results"
    return [
        REPOSITORY / "README.md",
        *sorted((REPOSITORY / "docs").rglob("*.md")),
        REPOSITORY / "pipelines/quickstart.ipynb",
        REPOSITORY / "CHANGELOG.md",
        *sorted(results.glob("*.md")),
    ]


def linked_files(document: Path, text: str) -> Iterator[tuple[str, Path]]:
    """Yield the links of `text` to files of the repository, each with the file."""
    for link in LINK.findall(text):
        file = Path(os.path.normpath(document.parent / link))
        if file.is_file() and file.is_relative_to(REPOSITORY):
            yield link, file


def page_text(file: Path) -> str:
    """Return the Markdown of the page that shows `file`; its links are as in `file`."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    if file.suffix == ".ipynb":
        return "\n\n".join(_cell_text(**cell) for cell in json.loads(text)["cells"]) + "\n"
    return f"# {file.name}\n\n" + _fenced(text, LANGUAGES.get(file.suffix, "text"))


def _cell_text(cell_type: str, source: list[str], **_: object) -> str:
    text = "".join(source)
    if cell_type == "markdown":
        return text
    return _fenced(text.removeprefix(SHELL), "sh" if text.startswith(SHELL) else "python")


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"


def page_name(file: Path) -> str:
    """Return the name of the page, or of the image, that the site has for `file`."""
    return file.name if file.suffix in (".md", *IMAGES) else f"{file.name}.md"


def site_links(text: str, links: dict[str, Path]) -> str:
    """Return `text` with its `links` going to the pages of their files."""

    def to_page(found: re.Match[str]) -> str:
        link = found[0]
        return str(Path(link).with_name(page_name(links[link]))) if link in links else link

    return LINK.sub(to_page, text)


def write_pages() -> None:
    """Write every page to PAGES, and every image beside it."""
    shutil.rmtree(PAGES, ignore_errors=True)
    files = first_pages()
    for file in files:  # which grows by what the pages link to
        page = PAGES / file.relative_to(REPOSITORY).with_name(page_name(file))
        page.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in IMAGES:
            shutil.copyfile(file, page)
            continue
        text = page_text(file)
        links = dict(linked_files(file, text)) if file.suffix in (".md", ".ipynb") else {}
        files += [linked for linked in links.values() if linked not in files]
        page.write_text(site_links(text, links), encoding="utf-8")


def main() -> None:
    """Write the pages and have Zensical build the site; a warning fails."""
    write_pages()
    zensical = Path(sys.executable).with_name("zensical")
    build = [zensical, "build", "--strict", "--clean"]
    sys.exit(subprocess.run(build, cwd=REPOSITORY, check=False).returncode)


if __name__ == "__main__":
    main()
