"""Options that say how object stores are reached: what they take, and that they tell nobody."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignshared import InputError, Storage, StorageOptions, use_storage_options
from alignshared.stores.filesystems import lies_within, normal_location
from alignshared.stores.options import (
    carrying_storage_options,
    current_storage_options,
    parse_storage_options,
)

SECRET = "wJalrXUtnFEMI"


@pytest.fixture(autouse=True)
def no_options_afterwards() -> Iterator[None]:
    yield
    use_storage_options(StorageOptions())


def endpoint_of(storage: Storage) -> tuple[str, str]:
    """Endpoint and scheme that the file system of `storage` was made with."""
    _, (options,) = storage.filesystem.__reduce__()
    return options["endpoint_override"], options["scheme"]


def test_pairs_become_options() -> None:
    options = parse_storage_options(
        ["endpoint_override=http://127.0.0.1:9000", "access_key=a=b", f"secret_key={SECRET}",
         "anonymous=false", "retries=7", "connect_timeout=2.5", "scheme=http", "region="]
    )  # fmt: skip
    assert options == StorageOptions(
        endpoint_override="http://127.0.0.1:9000",
        scheme="http",
        access_key="a=b",
        secret_key=SECRET,
        retries=7,
        connect_timeout=2.5,
    )
    assert SECRET not in f"{options!r} {options}"


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("endpoint=x", "does not know 'endpoint'; give KEY=VALUE of endpoint_override, scheme"),
        (SECRET, "does not know what has no KEY="),
        (f"retries={SECRET}", "retries cannot be that; give 1 or more"),
        ("retries=0", "retries cannot be that"),
        ("request_timeout=nan", "request_timeout cannot be that"),
        ("anonymous=perhaps", "anonymous cannot be that; give true or false"),
        ("scheme=ftp", "scheme cannot be that; give http or https"),
        (f"secret_key={SECRET}", "access_key and secret_key go together; give both"),
    ],
)
def test_what_cannot_be_is_said_without_repeating_it(pair: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse_storage_options([pair])
    assert SECRET not in str(caught.value)


def test_options_travel_with_a_storage_and_with_work() -> None:
    options = StorageOptions(endpoint_override="127.0.0.1:1", access_key="a", secret_key=SECRET)
    use_storage_options(options)
    storage = Storage("s3://bucket/folder")
    work = carrying_storage_options(current_storage_options)
    sent = pickle.dumps([storage, work])
    use_storage_options(StorageOptions())
    storage, work = pickle.loads(sent)
    assert endpoint_of(storage) == ("127.0.0.1:1", "https")
    assert current_storage_options() == StorageOptions()
    assert work() == current_storage_options() == options
    assert SECRET not in f"{storage!r} {storage} {work!r}"


def test_the_environment_is_asked_for_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    storage = Storage("s3://bucket/folder")
    assert endpoint_of(storage) == ("127.0.0.1:2", "http")
    assert storage.filesystem.region == "eu-north-1"
    use_storage_options(parse_storage_options(["endpoint_override=127.0.0.1:3", "region=x"]))
    assert endpoint_of(Storage("s3://bucket/folder")) == ("127.0.0.1:3", "https")


@pytest.mark.parametrize(
    "location",
    [
        f"s3://key:{SECRET}@bucket/folder",
        f"s3://bucket/folder?secret_key={SECRET}",
        f"gs://token@bucket/{SECRET}",
    ],
)
def test_a_location_may_not_carry_a_secret_since_manifests_keep_it(location: str) -> None:
    with pytest.raises(InputError, match=r"may not carry options or credentials") as caught:
        Storage(location)
    assert SECRET not in str(caught.value)


def test_locations_are_written_in_one_way(workdir: Path) -> None:
    assert normal_location("s3://bucket/folder/") == "s3://bucket/folder"
    assert normal_location("s3://bucket/part-?.parquet") == "s3://bucket/part-?.parquet"
    assert normal_location(f"file://{workdir}/my%20data") == f"{workdir}/my data"
    assert normal_location("file://localhost/data/") == "/data"
    assert normal_location("data/../x") == f"{workdir}/x"
    with pytest.raises(InputError, match="names another machine"):
        normal_location("file://elsewhere/data")
    with pytest.raises(InputError, match="names no bucket"):
        normal_location("s3://")


def test_what_lies_in_what(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert lies_within(str(tmp_path / "link" / "x"), str(tmp_path / "real"))
    assert lies_within("s3://bucket/a/b", "s3://bucket/a/")
    assert lies_within("s3://bucket", "s3://bucket")
    assert not lies_within("s3://bucket/ab", "s3://bucket/a")
    assert not lies_within("s3://bucket/a", "/bucket/a")
    assert lies_within(f"file://{tmp_path}/real", str(tmp_path))
