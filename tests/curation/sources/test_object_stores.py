"""Everything works in an object store as it does on disk, and no secret stays anywhere."""

import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aligncurate import Execution, bucket, report, score, validate
from aligncurate.cli import app
from alignshared import AlignError, Dataset, InputError, Storage
from alignshared.atomic import UNFINISHED
from alignshared.stores.options import (
    StorageOptions,
    current_storage_options,
    parse_storage_options,
    use_storage_options,
)
from tests.curation.datasets import files_in
from tests.curation.inputs import (
    good_pairs,
    ids_of,
    rejects_of,
    rows_of,
    score_good_pairs,
    write_parquet,
)
from tests.curation.pictures import photo
from tests.curation.stores import SECRET_KEY, Store

LOCAL = Execution(engine="local", workers=1)


@pytest.fixture(autouse=True)
def no_options_of_other_tests() -> Any:
    yield
    use_storage_options(StorageOptions())


def test_score_bucket_report_validate_wholly_in_an_object_store(
    s3: Store, tmp_path: Path, tiny_clip: str
) -> None:
    pairs = good_pairs(tmp_path / "in", 6)
    s3.put("in/pairs.json", pairs.read_bytes())
    s3.put_folder(tmp_path / "in" / "images", "in/images")
    on_disk = bucket(score_good_pairs(tmp_path / "disk", tiny_clip, 6).location, levels=2)

    scored = score(
        s3.uri("in/pairs.json"),
        s3.uri("out/score"),
        image_root=s3.uri("in/images"),
        model=tiny_clip,
        execution=LOCAL,
    )
    levelled = bucket(scored.location, levels=2)

    assert levelled.location == s3.uri("out/bucket")
    assert rows_of(levelled) == rows_of(on_disk)
    assert levelled.manifest.shards == on_disk.manifest.shards
    files = report(levelled.location)
    assert files.page == s3.uri("out/report/report.html")
    assert validate(levelled.location).ok
    assert not [name for name in s3.files() if ".run" in name or UNFINISHED in name]
    again = score(
        s3.uri("in/pairs.json"),
        s3.uri("out/score"),
        image_root=s3.uri("in/images"),
        model=tiny_clip,
        execution=LOCAL,
    )
    assert again.digest == scored.digest  # it was finished, and is left alone


@pytest.mark.slow
def test_commands_reach_a_store_by_their_options_and_keep_no_secret(
    object_store: Store, tmp_path: Path, tiny_clip: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = object_store.with_bucket(tmp_path.name)
    use_storage_options(StorageOptions())
    pairs = good_pairs(tmp_path / "in", 3)
    runs = [
        ["score", "--input", str(pairs), "--image-root", str(tmp_path / "in" / "images"),
         "--output", store.uri("score"), "--model", tiny_clip, "--engine", "local"],
        ["bucket", "--input", store.uri("score"), "--levels", "2"],
        ["report", "--input", store.uri("bucket"), "--output", str(tmp_path / "report")],
        ["inspect", "--input", store.uri("bucket")],
        ["validate", "--input", store.uri("bucket")],
    ]  # fmt: skip
    said = ""
    with caplog.at_level(logging.DEBUG):
        for run in runs:
            answer = CliRunner().invoke(app, ["--debug", *run, *store.arguments])
            assert answer.exit_code == 0, answer.output
            said += answer.output
    written = b"".join([*store.files().values(), *files_in(tmp_path / "report").values()])
    assert len(written) > 10_000
    assert SECRET_KEY.encode() not in written
    assert SECRET_KEY not in said + caplog.text + repr(current_storage_options())


def test_a_run_in_an_object_store_goes_on_where_it_stopped(
    s3: Store, tmp_path: Path, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"shard_rows": 2, "output": s3.uri("out")}
    with monkeypatch.context() as patch:
        patch.setattr("aligncurate.units.run.finish", _stop)
        with pytest.raises(KeyboardInterrupt):
            score_good_pairs(tmp_path, tiny_clip, 6, **options)
    begun = s3.files("out")
    assert "shard-00002.parquet" in begun
    assert "manifest.json" not in begun
    dataset = score_good_pairs(tmp_path, tiny_clip, 6, **options)
    whole = s3.files("out")
    assert {name: whole[name] for name in whole if name.startswith("shard")} == {
        name: begun[name] for name in begun if name.startswith("shard")
    }
    assert dataset.manifest.rows == 6


def _stop(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_an_object_appears_when_it_is_whole_and_the_old_one_stays_when_it_fails(s3: Store) -> None:
    storage = Storage(s3.uri("folder"))
    content = bytes(range(256)) * 60_000  # more than one part of an upload
    with storage.writing("deep/new.bin") as sink:
        sink.write(content)
        assert s3.files() == {}
    assert s3.files() == {"folder/deep/new.bin": content}
    for failure in (ValueError, KeyboardInterrupt):
        with pytest.raises(failure), storage.writing("deep/new.bin") as sink:
            sink.write(b"half")
            raise failure
    storage.write_bytes("empty", b"")
    assert s3.files() == {"folder/deep/new.bin": content, "folder/empty": b""}
    storage.delete("deep")
    assert storage.names() == ["empty"]


def test_a_store_that_cannot_be_used_is_one_sentence(s3: Store) -> None:
    with pytest.raises(InputError, match=r"nowhere.* cannot be written to: .*NO_SUCH_BUCKET"):
        _claim("s3://nowhere-at-all/out")
    with pytest.raises(InputError, match="is not a dataset: there is no such folder"):
        Dataset(s3.uri("nothing"))
    use_storage_options(
        parse_storage_options(
            ["endpoint_override=http://127.0.0.1:9", "access_key=a", "secret_key=b", "retries=1"]
        )
    )
    with pytest.raises(InputError, match=r"s3://b/x cannot be reached: .*NETWORK_CONNECTION") as no:
        Dataset("s3://b/x")
    assert "\n" not in str(no.value)


def _claim(location: str) -> None:
    from aligncurate.output.folder import open_output

    open_output(Storage(location), {}, overwrite=False)


@pytest.mark.slow
def test_a_whole_bucket_has_nothing_beside_it(s3: Store, tmp_path: Path, tiny_clip: str) -> None:
    dataset = score_good_pairs(tmp_path, tiny_clip, 3, output=f"s3://{s3.bucket}/")
    assert dataset.location == f"s3://{s3.bucket}"
    with pytest.raises(InputError, match="whole bucket, so nothing can lie beside it"):
        bucket(dataset.location, levels=2)
    with pytest.raises(InputError, match="is the input or holds it"):
        bucket(s3.uri(""), s3.uri("").rstrip("/"), levels=2)
    assert bucket(dataset.location, s3.uri("levels"), levels=2).manifest.rows == 3


def test_pictures_by_path_and_url_stay_under_their_root(
    s3: Store, tmp_path: Path, tiny_clip: str
) -> None:
    for name in ("pictures/a.jpg", "pictures/deep/b c%20d.jpg", "secret.jpg"):
        s3.put(name, photo(1))
    paths = {
        "relative": "a.jpg",
        "odd": "deep/b c%20d.jpg",
        "whole": s3.uri("pictures/a.jpg"),
        "outside": s3.uri("secret.jpg"),
        "up": "../secret.jpg",
        "absolute": "/secret.jpg",
        "web": "https://example.org/a.jpg",
        "gone": "gone.jpg",
        "folder": "deep",
        "empty part": "deep//a.jpg",
    }
    columns = {"id": list(paths), "path": list(paths.values()), "caption": ["c"] * len(paths)}
    pairs = write_parquet(tmp_path / "pairs.parquet", columns).read_bytes()
    dataset = score(
        s3.put("in/pairs.parquet", pairs),
        tmp_path / "out",
        image_root=s3.uri("pictures"),
        model=tiny_clip,
        execution=LOCAL,
    )
    outside = dict.fromkeys(["outside", "up", "absolute", "web"], "path_outside_root")
    missing = dict.fromkeys(["gone", "folder", "empty part"], "missing_file")
    assert set(ids_of(dataset)) == {"relative", "odd", "whole"}
    assert rejects_of(dataset) == outside | missing


def test_urls_of_local_files_are_paths(tmp_path: Path, tiny_clip: str) -> None:
    (tmp_path / "my pictures").mkdir()
    (tmp_path / "my pictures" / "a.jpg").write_bytes(photo(1))
    (tmp_path / "outside.jpg").write_bytes(photo(1))
    folder = f"file://{tmp_path}/my%20pictures".replace(" ", "%20")
    urls = {
        "inside": f"{folder}/a.jpg",
        "outside": f"file://{tmp_path}/outside.jpg",
        "up": f"{folder}/../outside.jpg",
        "encoded": f"{folder}/%2e%2e/outside.jpg",
        "elsewhere": "file://elsewhere/a.jpg",
        "web": "http://127.0.0.1:9/a.jpg",
    }
    columns = {"id": list(urls), "path": list(urls.values()), "caption": ["c"] * len(urls)}
    path = write_parquet(tmp_path / "in" / "pairs.parquet", columns)
    dataset = score(
        f"file://{path}", tmp_path / "out", image_root=folder, model=tiny_clip, execution=LOCAL
    )
    assert ids_of(dataset) == ["inside"]
    assert set(rejects_of(dataset).values()) == {"path_outside_root"}


def test_a_store_that_goes_away_stops_the_run_and_rejects_nothing(
    s3: Store, tmp_path: Path
) -> None:
    from aligncurate.sources.files import read_image
    from aligncurate.sources.tar_index import index_tar

    s3.put("a.jpg", photo(1))
    assert read_image(f"s3://{s3.bucket}", "a.jpg") == photo(1)
    options = ["endpoint_override=http://127.0.0.1:9", "retries=1"]
    use_storage_options(parse_storage_options([*options, "access_key=a", "secret_key=b"]))
    with pytest.raises(AlignError, match=r"a\.jpg cannot be read: .*; run the same command"):
        read_image(f"s3://{s3.bucket}", "a.jpg")
    with pytest.raises(AlignError, match=r"x\.tar.* cannot be .*NETWORK_CONNECTION"):
        index_tar(f"s3://{s3.bucket}/x.tar", "x")


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_ray_workers_reach_the_store_too(s3: Store, tmp_path: Path, tiny_clip: str) -> None:
    pairs = good_pairs(tmp_path / "in", 6)
    images = s3.put_folder(tmp_path / "in" / "images", "images")
    dataset = score(
        s3.put("pairs.json", pairs.read_bytes()),
        s3.uri("out"),
        image_root=images,
        model=tiny_clip,
        shard_rows=3,
        execution=Execution(engine="ray", workers=1),
    )
    assert dataset.manifest.rows == 6
