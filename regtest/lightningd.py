"""Core Lightning's lightningd in the place of an embedded node, where it is installed."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from channels.errors import UserError
from regtest.nodes import RegtestNode

BITCOIND_POLL: Final = 1
"""Seconds. It asks bitcoind again and again; its own 30 would keep everybody waiting."""


def find_lightningd() -> str:
    """The program on PATH. Raises UserError `not-installed`."""
    program = shutil.which("lightningd")
    if program is None:
        raise UserError(
            "not-installed",
            "There is no lightningd on PATH: install Core Lightning, or leave --lightningd out.",
        )
    return program


def bitcoin_cli(bitcoind: Sequence[str]) -> list[str]:
    """The command that runs the bitcoin-cli beside this bitcoind. Raises UserError `not-found`."""
    *loader, program = bitcoind
    beside = Path(program).with_name("bitcoin-cli")
    if not beside.is_file():
        raise UserError(
            "not-found",
            f"lightningd needs bitcoin-cli, and there is none beside {program}; install it there.",
        )
    return [*loader, str(beside)]


@dataclass(frozen=True)
class LightningdNode(RegtestNode):
    """lightningd is the one on PATH. `bitcoind` gives the program beside which bitcoin-cli is.

    options: more of lightningd's own.
    """

    bitcoind: Callable[[], Sequence[str]] = tuple
    options: Sequence[str] = ()

    def start(self, bitcoind_url: str, bitcoind_cookie: Path) -> None:
        """Start it. Raises UserError: `already-running`, `not-installed`, `not-found`."""
        program, cli = find_lightningd(), bitcoin_cli(self.bitcoind())
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # lightningd takes a program's path, and here running it may take more words than one.
        script = self.directory / "bitcoin-cli"
        script.write_text(f'#!/bin/sh\nexec {shlex.join(cli)} "$@"\n')
        script.chmod(0o700)
        self.daemon.start(
            [
                program,
                "--network=regtest",
                f"--lightning-dir={self.directory}",
                f"--rpc-file={self.rpc_file}",
                f"--alias={self.name}",
                f"--addr=127.0.0.1:{self.port}",
                "--autolisten=false",
                "--disable-dns",
                f"--bitcoin-cli={script}",
                f"--bitcoin-datadir={bitcoind_cookie.parents[1]}",
                f"--bitcoin-rpcport={bitcoind_url.rpartition(':')[2]}",
                "--developer",
                f"--dev-bitcoind-poll={BITCOIND_POLL}",
                "--dev-fast-gossip",
                "--dev-fast-reconnect",
                "--dev-allow-localhost",
                *self.options,
            ]
        )
