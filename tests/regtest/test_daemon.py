"""Background programs: found again, ended whole, never confused with somebody else's."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from channels.errors import UserError
from regtest.daemon import Daemon, free_port, port_is_free

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-c",
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "os.fork(); print('deaf', flush=True); time.sleep(600)",
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon("sleeper", tmp_path / "sleeper")
    yield daemon
    daemon.stop(patience=1)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_start_and_stop(daemon: Daemon) -> None:
    assert daemon.pid() is None
    assert daemon.stop() is False
    pid = daemon.start(SLEEP)
    assert daemon.pid() == pid
    assert os.getsid(pid) == pid, "Ctrl-C on our terminal would reach it"
    assert daemon.stop() is True
    assert daemon.pid() is None
    assert not exists(pid)


def test_only_one_per_directory(daemon: Daemon) -> None:
    pid = daemon.start(SLEEP)
    with pytest.raises(UserError) as caught:
        Daemon("another", daemon.directory).start(SLEEP)
    assert caught.value.reason == "already-running"
    assert daemon.pid() == pid


def test_killed_and_started_again(daemon: Daemon) -> None:
    pid = daemon.start(SLEEP)
    assert daemon.pid() == pid
    os.kill(pid, signal.SIGKILL)
    daemon_ended(daemon)
    assert daemon.start(SLEEP) != pid


def test_a_process_number_of_the_past_is_nobody(daemon: Daemon) -> None:
    daemon.directory.mkdir()
    (daemon.directory / "pid").write_text(f"{os.getpid()}\n")
    assert daemon.pid() is None
    assert daemon.stop() is False


def test_what_does_not_listen_is_killed_with_its_children(daemon: Daemon) -> None:
    daemon.start(STUBBORN)
    daemon.wait(lambda: daemon.log.read_text().count("deaf") == 2, patience=20)
    assert daemon.stop(patience=0.1) is True
    # The lock is free: neither the program nor its child is left.
    assert daemon.pid() is None


def test_a_program_that_ends_at_once_is_quoted(daemon: Daemon) -> None:
    daemon.start((sys.executable, "-c", "raise SystemExit('the reason')"))
    with pytest.raises(UserError, match="the reason") as caught:
        daemon.wait(lambda: False, patience=20)
    assert caught.value.reason == "did-not-start"


def test_a_program_that_never_gets_ready(daemon: Daemon) -> None:
    daemon.start(SLEEP)
    with pytest.raises(UserError, match="not ready") as caught:
        daemon.wait(lambda: False, patience=0)
    assert caught.value.reason == "did-not-start"


def test_free_ports() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert not port_is_free(server.getsockname()[1])


def daemon_ended(daemon: Daemon) -> None:
    """A killed process needs a moment to let its lock go."""
    with pytest.raises(UserError, match="ended at once"):
        daemon.wait(lambda: False, patience=20)
