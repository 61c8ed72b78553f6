"""A real bitcoind of our own: started, killed, started again."""

from __future__ import annotations

import asyncio
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from channels.errors import UserError
from channels.units import Sat
from regtest.bitcoind import MATURE, Miner, RegtestBitcoind
from regtest.daemon import free_port
from tests.conftest import Chain


async def test_it_is_private_and_stops_cleanly(
    bitcoind_program: Sequence[str], tmp_path: Path
) -> None:
    process = RegtestBitcoind(tmp_path / "bitcoind")
    port = await process.start(bitcoind_program)
    async with process.rpc(port) as rpc:
        assert (await rpc.call("getblockchaininfo"))["chain"] == "regtest"
        assert (await rpc.call("getnetworkinfo"))["localaddresses"] == []
    assert stat.S_IMODE(process.directory.stat().st_mode) == 0o700
    assert await process.stop() is True
    assert await process.stop() is False
    assert not process.cookie.exists(), "it was killed"


async def test_blocks_and_coins_survive_a_kill(own_bitcoind: Chain) -> None:
    process, port = own_bitcoind.process, own_bitcoind.port
    async with process.rpc(port) as rpc, process.rpc(port, wallet=True) as wallet:
        mined = await own_bitcoind.mine(2)
        before = await rpc.call("getblockcount")
        await asyncio.to_thread(process.daemon.kill)
        assert await process.start(own_bitcoind.program, port) == port
        miner = Miner(rpc, wallet)
        await miner.prepare()
        assert await rpc.call("getbestblockhash") == mined[-1]
        assert await rpc.call("getblockcount") == before
        address = await wallet.call("getnewaddress")
        txid = await miner.send(address, Sat(123_456_789))
        await miner.mine(1)
        received = await wallet.call("gettransaction", txid)
        assert {str(part["amount"]) for part in received["details"]} == {
            "1.23456789",
            "-1.23456789",
        }


async def test_a_port_that_somebody_else_has(
    bitcoind_program: Sequence[str], tmp_path: Path
) -> None:
    process = RegtestBitcoind(tmp_path / "bitcoind")
    with socket.create_server(("127.0.0.1", free_port())) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=str(port)) as caught:
            await process.start(bitcoind_program, port)
    assert caught.value.reason == "port-in-use"
    assert process.daemon.pid() is None


async def test_only_one_per_directory(bitcoind: Chain) -> None:
    pid = bitcoind.process.daemon.pid()
    with pytest.raises(UserError) as caught:
        await bitcoind.process.start(bitcoind.program)
    assert caught.value.reason == "already-running"
    assert bitcoind.process.daemon.pid() == pid
    async with bitcoind.rpc() as rpc:
        assert await rpc.call("getblockcount") >= MATURE


async def test_more_coins_than_there_are(bitcoind: Chain) -> None:
    async with bitcoind.rpc() as rpc, bitcoind.process.rpc(bitcoind.port, wallet=True) as wallet:
        with pytest.raises(UserError) as caught:
            await Miner(rpc, wallet).send(await wallet.call("getnewaddress"), Sat(10**15))
    assert caught.value.reason == "not-enough-funds"


async def test_a_program_that_is_no_bitcoind(tmp_path: Path) -> None:
    process = RegtestBitcoind(tmp_path / "bitcoind")
    with pytest.raises(UserError) as caught:
        await process.start([sys.executable])
    assert caught.value.reason in ("did-not-start", "not-found")
    assert process.daemon.pid() is None
