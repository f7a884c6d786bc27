"""Models and datasets on the Hugging Face Hub: what is checked before an upload, and both ways.

Nothing is uploaded or downloaded unless a command was given the name of a repository.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignshared.errors import AlignError, InputError, one_line
from alignshared.stores.filesystems import hub_errors_as_os_errors, require_hub

Kind = Literal["model", "dataset"]

_KINDS = ("model", "dataset", "space")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[\w./-]+", re.ASCII)

_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md")
"""What a model in transformers' form consists of: no pickles, no code."""

_VOCABULARIES = ("tokenizer.json", "vocab.json")
"""Files in which a folder's name may be a token."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Repository `owner/name` of the Hub for an upload; if new, it is made, `private` if so.

    Raises:
        InputError: the Hub has no such names.
    """

    repo: str
    kind: Kind
    private: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.repo) or ".." in self.repo or "--" in self.repo:
            raise InputError(
                f"{self.repo} is no name of a repository on the Hugging Face Hub; give owner/name, "
                "of letters, digits, -, _ and single dots."
            )

    @property
    def url(self) -> str:
        """Address of its page."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"

    def check(self) -> bool:
        """Return whether the repository exists; to be called before anything heavy begins.

        Raises:
            InputError: the Hub does not answer, there is no token that may write, or the name is
                that of another kind of repository, or of a public one where a private one is asked
                for.
        """
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import RepositoryNotFoundError

        if get_token() is None:
            raise InputError(
                f"nothing can be uploaded to {self.repo} without a token of the Hugging Face Hub; "
                "run `hf auth login`, or set HF_TOKEN to one that may write."
            )
        api = HfApi()
        with _as_input_error(f"{self.repo} cannot be uploaded to"):
            require_hub()
            _check_token(api.whoami(), self.repo)
            for kind in _KINDS:
                if kind != self.kind and api.repo_exists(self.repo, repo_type=kind):
                    raise InputError(
                        f"{self.repo} is a {kind} on the Hub already, and this is a {self.kind}; "
                        "give another name."
                    )
            try:
                found = api.repo_info(self.repo, repo_type=self.kind)
            except RepositoryNotFoundError:
                return False
        if self.private and not found.private:
            raise InputError(
                f"{self.repo} exists and is public; make it private in its settings on the Hub, "
                "give another name, or leave --private out."
            )
        return True


@dataclass(frozen=True, slots=True)
class Pushed:
    """Files, each with its bytes, that went to `destination`, or would have after a `dry_run`.

    `new` if the repository did not exist before.
    """

    destination: Destination
    files: tuple[tuple[str, int], ...]
    new: bool
    dry_run: bool = False

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(size for _, size in self.files)


def upload(
    folder: Path,
    files: Sequence[str],
    destination: Destination,
    *,
    replaces: Sequence[str] = (),
    dry_run: bool = False,
) -> Pushed:
    """Upload `files` of `folder` to `destination`, or with `dry_run` check that this can be done.

    Files of the repository that match the patterns `replaces` are those of an earlier upload: where
    they are not in `files`, its newest version is without them.

    Raises:
        InputError: the destination cannot be used, or a file names a folder of this machine.
        AlignError: the upload failed.
    """
    from huggingface_hub import HfApi

    _refuse_own_places(folder, files)
    exists = destination.check()
    sizes = tuple((file, (folder / file).stat().st_size) for file in files)
    pushed = Pushed(destination, sizes, new=not exists, dry_run=dry_run)
    if dry_run:
        return pushed
    api, kind = HfApi(), destination.kind
    try:
        with hub_errors_as_os_errors():
            if not exists:
                api.create_repo(
                    destination.repo, repo_type=kind, private=destination.private or None
                )
            api.upload_folder(
                repo_id=destination.repo,
                repo_type=kind,
                folder_path=folder,
                allow_patterns=list(files),
                delete_patterns=list(replaces) or None,
                commit_message=f"Upload {kind}",
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = one_line(error.__cause__ or error, 300)
        raise AlignError(
            f"{folder} is complete but its upload to {destination.url} failed: {reason}; `push` "
            "tries again."
        ) from error
    return pushed


def is_hub_name(name: str) -> bool:
    """Return whether `name` may be a repository, `owner/name` or `owner/name@revision`.

    A path is none: that of something here, or in a folder that is here.
    """
    repo, at, revision = name.partition("@")
    if not _NAME.fullmatch(repo) or (at and not _REVISION.fullmatch(revision)):
        return False
    return not Path(name).exists() and not Path(repo.partition("/")[0]).is_dir()


def download_model(name: str) -> Path:
    """Return the folder of the model `name` (see `is_hub_name`), downloaded or in the Hub's cache.

    Without the Hub it is the version in the cache. Pickles and code are never downloaded.

    Raises:
        InputError: the Hub has no such model, or there is neither Hub nor cached model.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        require_hub()
        missing = ""
    except OSError as error:
        missing = f"{one_line(error)}, and it is not in the Hub's cache"
    try:
        with hub_errors_as_os_errors():
            return Path(
                snapshot_download(
                    repo,
                    revision=revision or None,
                    allow_patterns=list(_MODEL_FILES),
                    local_files_only=bool(missing),
                )
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name} is neither a folder here nor a model that the Hugging Face Hub gives: "
            f"{missing or one_line(error, 200)}; give another name, or log in with `hf auth login` "
            "if it is private."
        ) from error


def model_files(folder: Path) -> list[str]:
    """Return the files of the model in `folder`, and of the LoRA in its folder `lora`, sorted."""
    found = {
        path.relative_to(folder).as_posix()
        for place in (folder, folder / "lora")
        for pattern in _MODEL_FILES
        for path in place.glob(pattern)
        if path.is_file()
    }
    return sorted(found)


def _check_token(owner: dict[str, Any], repo: str) -> None:
    """Raise InputError if the token, of which the Hub says `owner`, cannot write to `repo`.

    What a fine-grained token may do is only known when it does it.
    """
    role = owner.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise InputError(
            f"the token of the Hugging Face Hub may only read, so {repo} cannot be uploaded to; "
            "make one that may write, and run `hf auth login` or set HF_TOKEN."
        )
    spaces = [owner["name"], *(each["name"] for each in owner.get("orgs", []))]
    if role == "write" and repo.partition("/")[0] not in spaces:
        raise InputError(
            f"the token of the Hugging Face Hub is of {owner['name']}, who cannot upload to "
            f"{repo}; give a name that begins with {' or '.join(f'{space}/' for space in spaces)}."
        )


def _refuse_own_places(folder: Path, files: Sequence[str]) -> None:
    """Raise InputError if a card or configuration in `files` names a folder of this machine."""
    own = {Path.home(), Path.cwd(), folder.absolute()}
    places = [f"{place}{os.sep}".encode() for place in own if len(place.parts) > 1]
    for file in files:
        if not file.endswith((".json", ".md")) or file in _VOCABULARIES:
            continue
        content = (folder / file).read_bytes()
        for place in places:
            if place in content:
                raise InputError(
                    f"{folder / file} names {place.decode()}, a folder of this machine; export "
                    "again, or take it out, before others read it."
                )


@contextmanager
def _as_input_error(what: str) -> Iterator[None]:
    try:
        with hub_errors_as_os_errors():
            yield
    except OSError as error:
        raise InputError(f"{what}: {one_line(error, 300)}.") from error
