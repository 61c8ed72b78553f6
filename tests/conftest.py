"""Fixtures that many tests share: a real bitcoind, found or provisioned as `oda regtest` does."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from channels.node.chain import Bitcoind
from channels.settings import load_settings
from regtest.bitcoind import Miner, RegtestBitcoind, find_bitcoind
from sidechain.model import PATIENT

# Tests are repeatable, and say nothing about speed: the same examples in every run, however slow
# the machine is. `--hypothesis-profile=explore` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")

# Before a test file imports torch by itself.
assert PATIENT in os.environ

# A shell that starts the tests in the background has SIGINT ignored, and every program that they
# start would inherit that: then nobody could be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Chain:
    """A bitcoind that runs, with a wallet that has coins."""

    process: RegtestBitcoind
    program: Sequence[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cookie(self) -> Path:
        return self.process.cookie

    def rpc(self) -> Bitcoind:
        """The caller closes it."""
        return self.process.rpc(self.port)

    async def mine(self, blocks: int) -> list[str]:
        async with self.rpc() as rpc, self.process.rpc(self.port, wallet=True) as wallet:
            return await Miner(rpc, wallet).mine(blocks)


@pytest.fixture(scope="session")
def bitcoind_program() -> Sequence[str]:
    settings = load_settings()
    return find_bitcoind(settings.bitcoind, settings.cache)


@pytest.fixture(scope="session")
def bitcoind(
    bitcoind_program: Sequence[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chain]:
    """One for all tests that only add to the chain: heights are what they find."""
    yield from _run(bitcoind_program, tmp_path_factory.mktemp("bitcoind"))


@pytest.fixture
def own_bitcoind(bitcoind_program: Sequence[str], tmp_path: Path) -> Iterator[Chain]:
    """One that the test may reorganize, kill and start again."""
    yield from _run(bitcoind_program, tmp_path / "bitcoind")


def _run(program: Sequence[str], directory: Path) -> Iterator[Chain]:
    process = RegtestBitcoind(directory)

    async def start() -> Chain:
        chain = Chain(process, program, await process.start(program))
        async with chain.rpc() as rpc, process.rpc(chain.port, wallet=True) as wallet:
            await Miner(rpc, wallet).prepare()
        return chain

    try:
        yield asyncio.run(start())
    finally:
        process.daemon.stop()
