"""Programs that run in the background, and that nobody loses.

A daemon inherits an exclusive lock on a file in its directory, so the lock is held exactly as long
as it lives, however it ends; the file names its process. Whoever finds the lock free knows that
nothing runs, and a process number that was given to another program is never signalled.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from channels.errors import OdaError, UserError

POLL: Final = 0.02
PORTS: Final = range(20000, 32000)
"""Below the ports that systems give to outgoing connections, so that they stay free for us."""

_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Daemon:
    """The program of one directory. `name` is what sentences call it."""

    name: str
    directory: Path

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self, command: Sequence[str]) -> int:
        """Start it in a session of its own; it survives us, and Ctrl-C. Gives its process id.

        Raises UserError `already-running`.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _lock(lock, fcntl.LOCK_EX):
                raise UserError(
                    "already-running",
                    f"{self.name} is already running in {self.directory}; stop it first.",
                )
            os.ftruncate(lock, 0)
            # The shell writes its process id, which exec keeps, before anything can go wrong.
            shell = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._lock), *command]
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    shell,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock],
                )
        finally:
            os.close(lock)
        _children[process.pid] = process
        return process.pid

    def pid(self) -> int | None:
        """Its process id, or None when it does not run."""
        try:
            lock = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                free = _lock(lock, fcntl.LOCK_SH)
                text = os.pread(lock, 32, 0).strip()
                if free:
                    _reap(int(text or 0))
                    return None
                if text:
                    return int(text)
                time.sleep(POLL)
        finally:
            os.close(lock)
        raise OdaError("bad-lock", f"{self._lock} is locked, but names no process; remove it.")

    def stop(self, patience: float = 30) -> bool:
        """End it, kindly at first. False: it did not run."""
        stopped = False
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 10)):
            pid = self.pid()
            if pid is None:
                return stopped
            stopped = True
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                continue  # it has just ended by itself
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and self.pid() is not None:
                time.sleep(POLL)
        if self.pid() is not None:
            raise OdaError("unstoppable", f"{self.name} (process {self.pid()}) can't be stopped.")
        return stopped

    def kill(self) -> None:
        """End it as `kill -9` does, without a chance to tidy up; returns when it is gone."""
        while (pid := self.pid()) is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal.SIGKILL)
            time.sleep(POLL)

    def wait(self, ready: Callable[[], bool], patience: float) -> None:
        """Wait until it is ready. Raises UserError `did-not-start` with the end of its log."""
        deadline = time.monotonic() + patience
        while not ready():
            if self.pid() is None:
                raise self.failure("ended at once")
            if time.monotonic() > deadline:
                raise self.failure(f"is not ready after {patience:.0f} s")
            time.sleep(POLL)

    def failure(self, what: str) -> UserError:
        lines = self.log.read_bytes()[-4000:].decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it says nothing")
        return UserError("did-not-start", f"{self.name} {what}: {last} (all of it: {self.log})")

    @property
    def _lock(self) -> Path:
        return self.directory / "pid"


def free_port(taken: Container[int] = ()) -> int:
    """A port of the loopback interface that nobody listens on just now, and not in `taken`."""
    for _ in range(100):
        port = secrets.choice(PORTS)
        if port not in taken and port_is_free(port):
            return port
    raise UserError("port-in-use", f"No free port from {PORTS.start} to {PORTS.stop} was found.")


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do it: connections of the past that the system still remembers don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _reap(pid: int) -> None:
    """Where it was our own child, let the system forget it: its lock was free, it has ended."""
    if child := _children.pop(pid, None):
        child.wait()
