"""An object store for tests: moto, which speaks S3 over HTTP, on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pyarrow import fs

ACCESS_KEY, SECRET_KEY = "AKIATESTTESTTEST", "geheim-geheim-geheim"


@dataclass(frozen=True)
class Store:
    """A running server, and a bucket in it."""

    endpoint: str
    bucket: str = ""

    @property
    def options(self) -> list[str]:
        """What `--storage-options` needs to be told, one KEY=VALUE each."""
        keys = [f"access_key={ACCESS_KEY}", f"secret_key={SECRET_KEY}"]
        return [f"endpoint_override={self.endpoint}", *keys, "retries=2"]

    @property
    def arguments(self) -> list[str]:
        """The same as arguments of a command."""
        return [word for option in self.options for word in ("--storage-options", option)]

    @property
    def filesystem(self) -> fs.S3FileSystem:
        """A file system that knows nothing of the code under test."""
        return fs.S3FileSystem(
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            endpoint_override=self.endpoint,
            region="us-east-1",
            allow_bucket_creation=True,
        )

    def with_bucket(self, name: str) -> "Store":
        """The same server with a new bucket."""
        bucket = name.strip("_").replace("_", "-").lower()[:40].strip("-")
        self.filesystem.create_dir(bucket)
        return replace(self, bucket=bucket)

    def uri(self, name: str) -> str:
        """`s3://` location of `name` in the bucket."""
        return f"s3://{self.bucket}/{name}"

    def put(self, name: str, data: bytes) -> str:
        """Store `data` as `name`; its location."""
        with self.filesystem.open_output_stream(f"{self.bucket}/{name}") as stream:
            stream.write(data)
        return self.uri(name)

    def put_folder(self, folder: Path, name: str) -> str:
        """Store all files of `folder` under `name`; its location."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(f"{name}/{file.relative_to(folder)}", file.read_bytes())
        return self.uri(name)

    def files(self, name: str = "") -> dict[str, bytes]:
        """Content of every object under `name`, by its name there."""
        root = f"{self.bucket}/{name}".rstrip("/")
        infos = self.filesystem.get_file_info(fs.FileSelector(root, recursive=True))
        return {
            info.path.removeprefix(f"{root}/"): self.filesystem.open_input_file(info.path).read()
            for info in sorted(infos, key=lambda info: info.path)
            if info.type == fs.FileType.File
        }


@contextmanager
def running_store() -> Iterator[Store]:
    """Start the server; it ends with the block."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Store(f"http://{host}:{port}")
    finally:
        server.stop()
