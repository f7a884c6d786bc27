"""Models that go to the Hub and answer from there as they did here; and what is not published."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from alignshared.demo import model_path
from alignshared.hub import model_files
from aligntrain.cli import app
from aligntrain.export.model import export_model
from aligntrain.inference.load import load_model
from aligntrain.recipes import load_recipe
from aligntrain.runs.folder import EXPORT, METRICS, RunSpec, finish, write_run
from tests.hub import Hub, answering, environment, running_hub
from tests.trainer import runs, tiny

# The client gives large files to its HTTP library in a form that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

QUESTION = ["--prompt", "what is it?", "--max-new-tokens", "6"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with answering(tmp_path / "cache") as hub:
        yield hub


def command(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)


def answer(model: object, image: Path) -> str:
    said = command("chat", model, *QUESTION, "--image", image)
    assert said.exit_code == 0, said.output
    return said.stdout


def texts(folder: Path) -> str:
    """All that is written in the text files of `folder`."""
    files = [file for file in folder.rglob("*") if file.suffix in (".json", ".md", ".jinja")]
    assert files
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_run_is_pushed_and_answers_by_its_name_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    data, recipe = runs.talks(tmp_path / "secret" / "talks"), runs.recipe_file(tmp_path)
    tiny.picture(1).save(tmp_path / "image.png")
    words = [
        "run", "finetune", "--data", data.location, "--recipe", recipe, "--from", "none",
        "--set", "max_steps=1", "--output", tmp_path / "run", "--nproc", 1,
        "--push-to-hub", "group/tuned", "--private",
    ]  # fmt: skip
    done = command(*words)
    assert done.exit_code == 0, done.output
    assert f"{hub.url}/group/tuned: " in done.stdout
    assert "uploaded to a new private repository" in done.stdout
    repository = hub.repositories["models", "group/tuned"]
    assert repository.private
    export = tmp_path / "run" / EXPORT
    assert sorted(repository.files) == model_files(export)
    assert {"README.md", "adapter.safetensors", "config.json", "model.safetensors"} <= set(
        repository.files
    )
    assert str(tmp_path) not in texts(export)
    assert "`secret/talks`" in (export / "README.md").read_text(encoding="utf-8")
    assert answer("group/tuned", tmp_path / "image.png") == answer(
        tmp_path / "run", tmp_path / "image.png"
    )
    again = command(*words)  # finished already, so only pushed
    assert again.exit_code == 0, again.output
    assert repository.commits == 1


@pytest.mark.parametrize("format", ["llava", "llm"])
def test_an_export_is_pushed_as_it_is_written(tmp_path: Path, hub: Hub, format: str) -> None:
    tiny.saved(tmp_path / "model", mixing="none")
    words = ["export", tmp_path / "model", tmp_path / "out", "--format", format]
    done = command(*words, "--push-to-hub", "owner/exported")
    assert done.exit_code == 0, done.output
    files = hub.repositories["models", "owner/exported"].files
    assert files == {file: (tmp_path / "out" / file).read_bytes() for file in files}
    assert json.loads(files["config.json"])["model_type"] == format.replace("llm", "llama")
    assert done.stdout.splitlines()[-1].endswith("uploaded to a new repository")


def test_what_lora_learned_on_a_shipped_model_comes_back(tmp_path: Path, hub: Hub) -> None:
    shutil.copytree(model_path(), tmp_path / "lora")
    listed = command("push", tmp_path / "lora", "owner/lora", "--dry-run")
    assert listed.exit_code == 0, listed.output
    assert "lora/adapter_model.safetensors" in listed.stdout
    assert listed.stdout.splitlines()[-1].endswith("would be uploaded to a new repository")
    assert not hub.repositories
    assert command("push", tmp_path / "lora", "owner/lora").exit_code == 0
    tiny.picture(1).save(tmp_path / "image.png")
    image = tmp_path / "image.png"
    assert answer("owner/lora", image) == answer("demo", image)


def test_lora_on_a_base_of_this_machine_alone_is_refused_before_training(
    tmp_path: Path, hub: Hub
) -> None:
    data, recipe = runs.talks(tmp_path / "talks"), runs.recipe_file(tmp_path)
    done = command(
        "run", "finetune", "--data", data.location, "--recipe", recipe, "--from", "none",
        "--set", "lora.rank=4", "--output", tmp_path / "run", "--push-to-hub", "owner/lora",
    )  # fmt: skip
    assert done.exit_code == 2
    assert f"is a LoRA on {tmp_path}/vision, which nobody else has" in done.output
    assert not (tmp_path / "run" / METRICS).exists()
    shutil.copytree(model_path(), tmp_path / "lora")
    base = json.loads((tmp_path / "lora/base.json").read_bytes())
    told = json.dumps({**base, "llm": "/models/vicuna"})
    (tmp_path / "lora/base.json").write_text(told, encoding="utf-8")
    done = command("push", tmp_path / "lora", "owner/lora")
    assert done.exit_code == 2
    assert "is a LoRA on /models/vicuna, which nobody else has" in done.output
    assert not hub.repositories


def test_what_is_not_finished_is_not_pushed(tmp_path: Path, hub: Hub) -> None:
    data = runs.pairs(tmp_path / "pairs")
    recipe = load_recipe(runs.recipe_file(tmp_path), "pretrain")
    spec = RunSpec(tmp_path / "run", recipe, data.location, data.digest)
    write_run(spec)
    tiny.saved(spec.folder / EXPORT)
    for folder in (spec.folder, spec.folder / EXPORT):
        done = command("push", folder, "owner/run")
        assert done.exit_code == 2
        assert "run is not a finished run; finish it with --resume" in done.output
    finish(spec.folder, {"steps": 1})
    assert command("push", spec.folder, "owner/run", "--dry-run").exit_code == 0
    for folder, said in (("nowhere", "is no folder here"), ("pairs", "holds no finished model")):
        done = command("push", tmp_path / folder, "owner/run")
        assert done.exit_code == 2
        assert said in done.output
    done = command("push", spec.folder, "run")
    assert "run is no name of a repository" in done.output
    done = command("export", spec.folder, tmp_path / "out", "--private")
    assert "--private goes with --push-to-hub OWNER/NAME" in done.output
    assert not hub.repositories


def test_a_refused_repository_is_told_before_the_model_is_loaded(tmp_path: Path, hub: Hub) -> None:
    hub.role = "read"
    words = ["export", tmp_path / "no-model", tmp_path / "out", "--push-to-hub", "owner/x"]
    done = command(*words)
    assert done.exit_code == 2
    assert "may only read" in done.output


def test_code_that_a_model_of_the_hub_names_is_not_asked_about(tmp_path: Path, hub: Hub) -> None:
    tiny.saved(tmp_path / "model")
    assert command("push", tmp_path / "model", "owner/x").exit_code == 0
    files = hub.repositories["models", "owner/x"].files
    for file in ("config.json", "processor_config.json"):
        code = {"AutoConfig": "evil/code--x.Config", "AutoProcessor": "evil/code--x.Processor"}
        told = {**json.loads(files[file]), "model_type": "evil", "auto_map": code}
        files[file] = json.dumps({**told, "processor_class": "Evil"}).encode()
    files["x.py"] = b"raise SystemExit"
    done = CliRunner().invoke(app, ["chat", "owner/x", "--prompt", "why?"], input="y\n")
    assert done.exit_code == 2
    assert "cannot be loaded" in done.output
    assert "[y/N]" not in done.output
    assert not any("evil" in asked or asked.endswith(".py") for asked in hub.asked)


def test_results_about_a_model_of_the_hub_need_a_folder(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["eval", "owner/x", "--benchmarks", "pope"], ["gate", "owner/x", "--data", "d"]):
        done = command(*words)
        assert done.exit_code == 2
        assert "owner/x is a model of the Hub, without a folder here" in done.output
    assert not hub.asked
    assert not (tmp_path / "owner").exists()


def test_no_export_names_the_folders_that_its_towers_came_from(tmp_path: Path) -> None:
    from aligntrain import build_model, build_processor
    from aligntrain.train.save import write_model

    vision, llm = map(str, runs.towers(tmp_path))
    model = build_model(vision, llm, levels=4, mixing="none")
    processor = build_processor(vision, llm, model.config)
    write_model(model, processor, tmp_path / "model", model.state_dict())
    for format in ("llava", "llm"):
        export_model(tmp_path / "model", tmp_path / f"as-{format}", format)
    for folder in ("model", "as-llava", "as-llm"):
        assert str(tmp_path) not in texts(tmp_path / folder), folder
    load_model(tmp_path / "model")


@pytest.mark.slow
def test_the_commands_of_the_guide(tmp_path: Path) -> None:
    """As a user runs them: in processes of their own, which are told of the Hub by HF_ENDPOINT."""
    shutil.copytree(model_path(), tmp_path / "lora")
    program = Path(sys.executable).with_name("aligntrain")
    ask = ["chat", "owner/lora", "--prompt", "Is this a frog?", "--max-new-tokens", "4"]
    with running_hub() as hub:
        for words in (["push", "lora", "owner/lora", "--private"], ask):
            done = subprocess.run(
                [program, *words],
                cwd=tmp_path,
                env=environment(hub, tmp_path / "home"),
                capture_output=True,
                text=True,
                check=False,
                timeout=280,
            )
            assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "README.md" in os.listdir(next((tmp_path / "home").glob("hub/*/snapshots/*")))
