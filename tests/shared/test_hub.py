"""What goes to the Hub comes back from it, and what must not go is refused before it does."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignshared import AlignError, InputError
from alignshared.hub import (
    Destination,
    download_model,
    is_hub_name,
    model_files,
    upload,
)
from alignshared.stores.filesystems import public_name
from tests.hub import LARGE, TOKEN, Hub, Repository, answering

# The client gives large files to its HTTP library in a form that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

MODEL = Destination("owner/model", "model")


@pytest.fixture
def hub(tmp_path: Path, workdir: Path) -> Iterator[Hub]:
    with answering(tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What looks like a model, with files that are not its own."""
    place = tmp_path / "model"
    for name, content in {
        "README.md": b"---\nlibrary_name: transformers\n---\n\n# a model\n",
        "config.json": b'{"model_type": "aligngpt"}',
        "model.safetensors": os.urandom(3 * LARGE),
        "lora/adapter_config.json": b"{}",
        "gate/gate.json": b"{}",
        "eval/pope/result.json": b"{}",
        "weights.bin": b"a pickle",
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


FILES = ["README.md", "config.json", "lora/adapter_config.json", "model.safetensors"]


def test_a_model_is_uploaded_and_comes_back(hub: Hub, folder: Path) -> None:
    assert model_files(folder) == FILES
    pushed = upload(folder, FILES, Destination("owner/model", "model", private=True))
    assert pushed.new
    assert pushed.bytes == sum((folder / file).stat().st_size for file in FILES)
    repository = hub.repositories["models", "owner/model"]
    assert repository.private
    assert repository.files == {file: (folder / file).read_bytes() for file in FILES}
    assert [*hub.large.values()] == [(folder / "model.safetensors").read_bytes()]
    back = download_model("owner/model")
    assert {file: (back / file).read_bytes() for file in FILES} == repository.files
    assert download_model(f"owner/model@{repository.sha}") == back


def test_a_second_upload_replaces_the_first(hub: Hub, folder: Path) -> None:
    upload(folder, FILES, MODEL)
    repository = hub.repositories["models", "owner/model"]
    repository.files["sample.png"] = b"put there on the Hub"
    (folder / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
    files = [file for file in FILES if not file.startswith("lora")]
    assert not upload(folder, files, MODEL, replaces=["*.safetensors", "lora/*"]).new
    assert repository.files.keys() == {*files, "sample.png"}
    assert b"llava" in repository.files["config.json"]
    assert repository.commits == 2


def test_a_dry_run_checks_and_writes_nothing(hub: Hub, folder: Path) -> None:
    pushed = upload(folder, FILES, MODEL, dry_run=True)
    assert [name for name, _ in pushed.files] == FILES
    assert (pushed.new, pushed.dry_run) == (True, True)
    assert not hub.repositories
    assert all(asked.startswith(("GET ", "HEAD ")) for asked in hub.asked)
    hub.repositories["datasets", "owner/model"] = Repository()
    with pytest.raises(InputError, match="owner/model is a dataset on the Hub already"):
        upload(folder, FILES, MODEL, dry_run=True)


@pytest.mark.parametrize("name", ["model", "a/b/c", "owner/", "/abs", "a--b/c", "o/n..m", "o/n m"])
def test_a_name_that_the_hub_does_not_have(name: str) -> None:
    with pytest.raises(InputError, match="is no name of a repository on the Hugging Face Hub"):
        Destination(name, "model")


def test_no_token(tmp_path: Path, folder: Path) -> None:
    with (
        answering(tmp_path / "cache", token=None) as hub,
        pytest.raises(InputError, match=r"without a token .* run `hf auth login`, or set HF_TOKEN"),
    ):
        upload(folder, FILES, MODEL)
    assert not hub.asked


def test_a_token_that_cannot_write(tmp_path: Path, hub: Hub) -> None:
    hub.role = "read"
    with pytest.raises(InputError, match="may only read, so owner/model cannot be uploaded to"):
        MODEL.check()
    hub.role = "write"
    with pytest.raises(InputError, match="begins with owner/ or group/"):
        Destination("stranger/model", "model").check()
    hub.role = "fineGrained"  # of which the Hub does not say where it may write
    assert not Destination("stranger/model", "model").check()
    with (
        answering(tmp_path / "cache", token="hf_wrong"),
        pytest.raises(InputError, match="owner/model cannot be uploaded to: Invalid user token"),
    ):
        MODEL.check()


@pytest.mark.parametrize(("kind", "other"), [("model", "datasets"), ("dataset", "spaces")])
def test_a_name_of_another_kind(hub: Hub, kind: str, other: str) -> None:
    hub.repositories[other, "owner/x"] = Repository()
    with pytest.raises(InputError, match=f"owner/x is a {other[:-1]} on the Hub already"):
        Destination("owner/x", "model" if kind == "model" else "dataset").check()


def test_private_never_means_public(hub: Hub) -> None:
    hub.repositories["models", "owner/model"] = Repository()
    assert MODEL.check()
    with pytest.raises(InputError, match="owner/model exists and is public"):
        Destination("owner/model", "model", private=True).check()


def test_without_the_hub(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, workdir: Path
) -> None:
    from huggingface_hub import constants

    with answering(tmp_path / "cache"):
        upload(folder, FILES, MODEL)
        back = download_model("owner/model")
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(
            InputError, match=r"owner/model cannot be uploaded to: .*does not answer"
        ):
            MODEL.check()
        assert download_model("owner/model") == back  # from the cache
        with pytest.raises(InputError, match=r"owner/other is neither .* not in the Hub's cache"):
            download_model("owner/other")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
            MODEL.check()


def test_a_failed_upload_says_so_in_a_sentence(hub: Hub, folder: Path) -> None:
    hub.refuses = "/api/models/owner/model/commit"
    with pytest.raises(AlignError, match=r"is complete but its upload to .* failed: ") as failed:
        upload(folder, FILES, MODEL)
    assert not isinstance(failed.value, InputError)
    assert "you may not write here" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert TOKEN not in str(failed.value)


def test_a_folder_of_this_machine_is_not_published(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text(f"data: `{Path.home()}/pairs`", encoding="utf-8")
    with pytest.raises(InputError, match=r"README\.md names .*, a folder of this machine"):
        upload(folder, FILES, MODEL)
    assert not hub.asked


def test_a_model_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(InputError, match="owner/other is neither a folder here nor a model"):
        download_model("owner/other")


def test_paths_are_no_names_of_the_hub(workdir: Path) -> None:
    assert is_hub_name("owner/name")
    assert is_hub_name("owner/name@v1.0")
    assert not any(map(is_hub_name, ("demo", "./owner/name", "a/b/c", "/a/b", "../b", "o/n@a b")))
    (workdir / "runs").mkdir()
    assert not is_hub_name("runs/not-there")  # a misspelt path


def test_public_names(workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workdir / "data").mkdir()
    assert public_name(workdir / "data/demo/bucket") == "data/demo/bucket"
    assert public_name("data") == "data"
    assert public_name("../elsewhere/pairs/score") == "pairs/score"
    assert public_name("/mnt/secret/llm") == "secret/llm"
    assert public_name("/llm") == "llm"
    for name in ("demo", "meta-llama/Llama-3", "s3://bucket/pairs", ""):
        assert public_name(name) == name
    monkeypatch.chdir("/")
    assert public_name(Path.home() / "a/pairs/score") == "pairs/score"
