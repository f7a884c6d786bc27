"""The guard of conftest.py: a test that passes here passes on a machine without network."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest


def test_connections_beyond_this_machine_are_refused() -> None:
    with socket.socket() as outside, pytest.raises(OSError, match=r"192\.0\.2\.1"):
        outside.connect(("192.0.2.1", 80))


def test_names_beyond_this_machine_are_not_found() -> None:
    with pytest.raises(OSError, match=r"example\.org"):
        socket.create_connection(("example.org", 80))


def test_this_machine_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()):
            pass
        with socket.create_connection(("localhost", server.getsockname()[1])):
            pass


def test_started_processes_find_no_network_either() -> None:
    fetch = "import urllib.request; urllib.request.urlopen('https://example.org', timeout=20)"
    run = subprocess.run([sys.executable, "-c", fetch], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "Connection refused" in run.stderr


def test_workdir_is_current_and_empty(workdir: Path) -> None:
    assert Path.cwd() == workdir
    assert not list(workdir.iterdir())
