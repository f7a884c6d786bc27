#!/usr/bin/env bash
# Run the fast tests on the newest version of everything that the bounds allow, in a copy: what would break
# for someone who installs today. Arguments go to pytest; without any, all fast tests run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git ls-files -z | tar --create --null --files-from - | tar --extract --directory "$work"
cd "$work"
uv lock --upgrade
uv sync --locked --quiet
uv run --locked pytest "$@"
