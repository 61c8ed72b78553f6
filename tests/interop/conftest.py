"""Electrum beside our node on the chain that tests share, and lines that say who took part."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from channels.errors import UserError
from channels.settings import load_settings
from regtest.daemon import free_port
from regtest.electrum import LIBRARIES, Electrum, ElectrumServer, Programs, find_electrum
from tests.conftest import Chain
from tests.interop.counterparty import Counterparty
from tests.nodes import nodes_on

VERSIONS = pytest.StashKey[set[str]]()


def interoperated(config: pytest.Config, version: str) -> None:
    """The run says in the end with what it has interoperated."""
    config.stash.setdefault(VERSIONS, set()).add(version)


@pytest.fixture(scope="session")
def electrum_programs() -> Programs:
    try:
        return find_electrum(load_settings().cache)
    except UserError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"Electrum can't be run on this machine: {error}")


@pytest.fixture(scope="module")
def electrum(
    electrum_programs: Programs, bitcoind: Chain, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Electrum, ElectrumServer]]:
    """Electrum with a wallet that is still empty, and the server that it follows the chain by."""
    directory = tmp_path_factory.mktemp("electrum")
    server = ElectrumServer(directory / "server", electrum_programs, free_port())
    electrum = Electrum(directory / "electrum", electrum_programs, free_port({server.port}))
    try:
        asyncio.run(server.start(bitcoind.port, bitcoind.cookie))
        asyncio.run(electrum.start(server.port))
        yield electrum, server
    finally:
        electrum.daemon.stop()
        server.daemon.stop()


@pytest.fixture(scope="module")
def counterparty(
    electrum: tuple[Electrum, ElectrumServer],
    bitcoind: Chain,
    request: pytest.FixtureRequest,
) -> Iterator[Counterparty]:
    """Our node and Electrum, both with coins and without channels."""
    program, server = electrum
    with nodes_on(bitcoind) as nodes:
        ours = nodes.make("oda")
        counterparty = Counterparty(nodes, ours, program, server.port)
        version = asyncio.run(counterparty.prepare())
        interoperated(request.config, f"Electrum {version} with {LIBRARIES[0]}")
        yield counterparty


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for version in sorted(config.stash.get(VERSIONS, ())):
        terminalreporter.line(f"Interoperated with {version}.")
