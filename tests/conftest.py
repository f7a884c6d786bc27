"""What all tests share: no network beyond this machine, and a folder to work in."""

import ipaddress
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Tests run side by side, and threads waiting for one another where there are more of them than
# cores make small models many times slower. Programs that tests start take it over.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray's processes would give way to everything else, and their tests wait for other tests to end.
os.environ.setdefault("RAY_worker_niceness", "0")

# Images of containers often forbid bytecode files: every process that a test starts would then
# compile torch and transformers again, 10 s each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# On a busy machine the first example of a property may take seconds.
settings.register_profile("busy", deadline=None, database=None)
settings.load_profile("busy")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

DEAD_PROXY = "http://127.0.0.1:9"
"""Nothing listens there: a process that a test starts meets this in place of the network."""


def _is_this_machine(host: str) -> bool:
    """Whether the name or address `host` is this machine's: a socket binds to no other."""
    if host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _guarded(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        # Connecting a datagram socket sends nothing; Ray finds this machine's address that way.
        over_ip = self.family in (socket.AF_INET, socket.AF_INET6)
        if over_ip and self.type == socket.SOCK_STREAM and not _is_this_machine(address[0]):
            raise ConnectionRefusedError(f"a test reached for {address[0]}; mark it `network`.")
        return connect(self, address)

    return guarded


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", metavar="K/N", help="of the nightly tests, run every N-th from the K-th on"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep the tests of a file on one worker, so that what they share is made once."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the nightly tests of this run.

    Without `--nightly`, a nightly test runs only where it is named or `-m` asks for nightly ones.
    """
    part: str | None = config.option.nightly
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if part is not None:
        first, step = map(int, part.split("/"))
        chosen = set(sorted(item.nodeid for item in nightly)[first % step :: step])
    elif "nightly" in config.option.markexpr or any("::" in name for name in config.args):
        chosen = {item.nodeid for item in nightly}
    else:
        chosen = set[str]()
    left_out = [item for item in nightly if item.nodeid not in chosen]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@contextmanager
def _no_network() -> Iterator[None]:
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host or ""
        is_address = name[:1].isdigit() or ":" in name
        if not is_address and not _is_this_machine(name):
            raise socket.gaierror(socket.EAI_AGAIN, f"a test looked up {name}; mark it `network`.")
        return resolve(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", _guarded(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.setenv(name, DEAD_PROXY)
            patch.setenv(name.upper(), DEAD_PROXY)
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, f"localhost,127.0.0.1,::1,{socket.gethostname()}")
        yield


@pytest.fixture(scope="session", autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing beyond this machine answers, as if there were no network; `-m network` lifts it."""
    wanted = request.config.option.markexpr.replace("not network", "")
    if "network" in wanted:
        yield
    else:
        with _no_network():
            yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[1]


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one, so that `data/` under it is this test's alone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A real browser without a window."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on PATH; install Debian's chromium")
    with sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield one
        one.close()
