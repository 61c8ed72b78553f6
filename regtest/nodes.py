"""Embedded Lightning nodes as background programs, one directory each."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from channels.errors import UserError
from regtest.daemon import Daemon

NODE: Final = (sys.executable, "-m", "channels.node")
PATIENCE: Final = 60
MAX_SOCKET_PATH: Final = 103
"""What every system allows (macOS: 104 bytes with the final zero)."""


@dataclass(frozen=True)
class RegtestNode:
    """One node, running or not. `port` is where its peers reach it."""

    name: str
    directory: Path
    port: int
    command: Sequence[str] = NODE

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", self.name):
            raise UserError(
                "bad-name",
                f"{self.name!r} can't name a node: use up to 32 of a-z, 0-9, - and _.",
            )
        if len(str(self.rpc_file).encode()) > MAX_SOCKET_PATH:
            raise UserError(
                "path-too-long",
                f"{self.rpc_file} is too long for a socket; choose a shorter --data directory.",
            )

    @property
    def rpc_file(self) -> Path:
        return self.directory / "lightning-rpc"

    @property
    def daemon(self) -> Daemon:
        return Daemon(f"node {self.name}", self.directory)

    def start(self, bitcoind_url: str, bitcoind_cookie: Path) -> None:
        """Start it; `wait` says when it can be used. Raises UserError `already-running`."""
        self.daemon.start(
            [
                *self.command,
                f"--directory={self.directory}",
                "--network=regtest",
                f"--bitcoind-url={bitcoind_url}",
                f"--bitcoind-cookie={bitcoind_cookie}",
                f"--listen=127.0.0.1:{self.port}",
                f"--alias={self.name}",
            ]
        )

    def wait(self) -> None:
        """Return when its socket answers. Raises UserError `did-not-start`."""
        self.daemon.wait(self._answers, PATIENCE)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.rpc_file)) == 0
