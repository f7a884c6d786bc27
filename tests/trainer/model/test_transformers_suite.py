"""transformers' own common tests of models, on ours; they are fetched and not kept here."""

import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import transformers

CACHE = Path("~/.cache/alignstack/transformers-tests").expanduser() / transformers.__version__
SUITE = Path(__file__).with_name("transformers_suite.py")

EXCEPTIONS = {
    "test_eager_matches_sdpa_inference": "it gives images' placeholders without images, which the "
    "model refuses",
    "test_generation_tester_mixin_inheritance": "the release has no generation tests; those of "
    "`test_generation` are ours",
    "test_get_image_features_hidden_states": "all hidden states of the tower are returned, those "
    "that nothing reads too",
    "test_inputs_embeds": "it gives images beside embeddings, in which no place is marked",
    "test_multimodal_outputs_are_returned": "an output has no image features",
}
"""Tests that our model does not pass, with the reason."""


def fetch(folder: Path) -> None:
    """Fetch the tests of the installed transformers, and what they import, into `folder`."""
    name = f"transformers-{transformers.__version__}"
    source = ["pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    wanted = name.replace("-", "==")
    subprocess.run(["uv", "tool", "run", *source, wanted, "-d", str(folder)], check=True)
    library = ["--target", str(folder / "lib"), "parameterized==0.9.0"]
    subprocess.run(["uv", "pip", "install", "--quiet", *library], check=True)
    with tarfile.open(folder / f"{name}.tar.gz") as archive:
        tests = [one for one in archive.getmembers() if one.name.startswith(f"{name}/tests/")]
        archive.extractall(folder, tests, filter="data")
    (folder / name / "tests").rename(folder / "tests")


@pytest.mark.slow
@pytest.mark.network
def test_the_common_tests_of_models_pass(tmp_path: Path) -> None:
    if not (CACHE / "tests").is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        fetch(CACHE)
    report = tmp_path / "report.xml"
    # Not our configuration: the tests have marks of their own.
    options = ["-c", os.devnull, "--noconftest", "-p", "no:cacheprovider", f"--junitxml={report}"]
    repository = SUITE.parents[3]
    places = {"TRANSFORMERS_SUITE": str(CACHE), "PYTHONPATH": str(repository)}
    subprocess.run(
        [sys.executable, "-m", "pytest", str(SUITE), *options],
        cwd=tmp_path,
        env={**os.environ, **places},
        capture_output=True,
        check=False,
    )
    cases = ElementTree.parse(report).getroot().iter("testcase")
    states = {case.attrib["name"]: {child.tag for child in case} for case in cases}
    passed = [name for name, tags in states.items() if not tags & {"failure", "error", "skipped"}]
    failing = [name for name, tags in states.items() if tags & {"failure", "error"}]
    failed = {re.sub(r"_\d\d_.*", "", name) for name in failing}
    assert failed == EXCEPTIONS.keys()
    assert len(passed) >= 75
