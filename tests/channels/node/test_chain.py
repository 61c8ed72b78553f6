"""bitcoind's RPC and the block follower, on a real bitcoind."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from channels.bolt.transactions import Transaction
from channels.errors import OdaError, UserError
from channels.node.chain import (
    Bitcoind,
    BitcoindError,
    BitcoindUnreachable,
    Connected,
    Disconnected,
    parse_block,
)
from channels.units import BlockHeight
from regtest.daemon import free_port
from tests.conftest import Chain

Change = Connected | Disconnected

ANYONE = "raw(51)"
"""Pays to OP_TRUE: within one second, the miner's wallet would mine the same block again."""


async def take(stream: AsyncGenerator[Change, None], count: int) -> list[Change]:
    async with asyncio.timeout(30):
        return [await anext(stream) for _ in range(count)]


async def tip(rpc: Bitcoind) -> tuple[BlockHeight, bytes]:
    height = await rpc.call("getblockcount")
    return BlockHeight(height), await block_hash(rpc, height)


async def block_hash(rpc: Bitcoind, height: int) -> bytes:
    text: str = await rpc.call("getblockhash", height)
    return bytes.fromhex(text)[::-1]


async def test_refusals_carry_the_code_of_bitcoind(bitcoind: Chain) -> None:
    async with bitcoind.rpc() as rpc:
        with pytest.raises(BitcoindError) as caught:
            await rpc.call("getblockhash", 10_000_000)
        assert (caught.value.code, caught.value.reason) == (-8, "bitcoind-error")
        assert await rpc.call("getblockcount") >= 101


async def test_a_wrong_password_is_not_a_refusal_of_the_request(bitcoind: Chain) -> None:
    async with Bitcoind(f"http://somebody:wrong@127.0.0.1:{bitcoind.port}") as rpc:
        with pytest.raises(BitcoindUnreachable) as caught:
            await rpc.call("getblockcount")
    assert caught.value.reason == "bitcoind-login"
    assert "wrong" not in str(caught.value)


async def test_user_and_password_may_stand_in_the_url(bitcoind: Chain) -> None:
    login = bitcoind.cookie.read_text()
    async with Bitcoind(f"http://{login}@127.0.0.1:{bitcoind.port}") as rpc:
        assert await rpc.call("getblockcount") >= 101


async def test_nobody_there(tmp_path: Path) -> None:
    async with Bitcoind(f"http://127.0.0.1:{free_port()}") as rpc:
        with pytest.raises(BitcoindUnreachable) as caught:
            await rpc.call("getblockcount")
    assert caught.value.reason == "bitcoind-unreachable"
    async with Bitcoind("http://127.0.0.1:1", tmp_path / "missing") as rpc:
        with pytest.raises(BitcoindUnreachable) as caught:
            await rpc.call("getblockcount")
    assert caught.value.reason == "bitcoind-login"


@pytest.mark.parametrize(
    "url", ["http://example.com:8332", "https://127.0.0.1:8332", "http://192.0.2.1", "nonsense"]
)
def test_only_this_machine(url: str) -> None:
    with pytest.raises(UserError) as caught:
        Bitcoind(url)
    assert caught.value.reason == "bitcoind-not-local"


async def test_blocks_come_in_order_with_their_transactions(bitcoind: Chain) -> None:
    async with bitcoind.rpc() as rpc, bitcoind.process.rpc(bitcoind.port, wallet=True) as wallet:
        height, start = await tip(rpc)
        async with aclosing(rpc.follow(height, start)) as stream:
            await wallet.call("sendtoaddress", await wallet.call("getnewaddress"), "0.1")
            hashes = await bitcoind.mine(3)
            changes = await take(stream, 3)
        previous = start
        for change, expected in zip(changes, hashes, strict=True):
            assert isinstance(change, Connected)
            block = change.block
            assert (block.hash_hex, block.previous) == (expected, previous)
            shown = await rpc.call("getblock", expected)
            assert block.height == shown["height"]
            txids = [Transaction.parse(raw).txid_hex for raw in block.transactions]
            assert txids == shown["tx"]
            previous = block.hash
        assert isinstance(changes[0], Connected)
        assert len(changes[0].block.transactions) == 2


async def test_a_reorganization_disconnects_from_the_top_down(own_bitcoind: Chain) -> None:
    async with own_bitcoind.rpc() as rpc:
        height, start = await tip(rpc)
        async with aclosing(rpc.follow(height, start)) as stream:
            old = await own_bitcoind.mine(2)
            await take(stream, 2)
            await rpc.call("invalidateblock", old[0])
            new = await rpc.call("generatetodescriptor", 3, ANYONE)
            changes = await take(stream, 5)
    assert [
        change.hash[::-1].hex() for change in changes[:2] if isinstance(change, Disconnected)
    ] == old[::-1]
    assert isinstance(changes[1], Disconnected)
    assert (changes[1].height, changes[1].previous) == (height + 1, start)
    assert [change.block.hash_hex for change in changes[2:] if isinstance(change, Connected)] == new


async def test_starting_from_a_block_that_has_left_the_chain(own_bitcoind: Chain) -> None:
    async with own_bitcoind.rpc() as rpc:
        old = await own_bitcoind.mine(1)
        height, stale = await tip(rpc)
        await rpc.call("invalidateblock", old[0])
        (new,) = await rpc.call("generatetodescriptor", 1, ANYONE)
        async with aclosing(rpc.follow(height, stale)) as stream:
            gone, come = await take(stream, 2)
    assert isinstance(gone, Disconnected)
    assert gone.hash == stale
    assert isinstance(come, Connected)
    assert come.block.hash_hex == new


async def test_following_survives_a_bitcoind_that_dies_and_returns(own_bitcoind: Chain) -> None:
    outages: list[str | None] = []
    noticed = asyncio.Event()

    def on_outage(error: BitcoindUnreachable | None) -> None:
        outages.append(error.reason if error else None)
        noticed.set()

    process = own_bitcoind.process
    async with own_bitcoind.rpc() as rpc:
        height, start = await tip(rpc)
        async with aclosing(rpc.follow(height, start, on_outage)) as stream:
            waiting = asyncio.create_task(take(stream, 1))
            await asyncio.to_thread(process.daemon.kill)  # its port is free only when it is gone
            async with asyncio.timeout(30):
                await noticed.wait()
            await process.start(own_bitcoind.program, own_bitcoind.port)
            async with process.rpc(own_bitcoind.port, wallet=True) as wallet:
                if not await rpc.call("listwallets"):
                    await rpc.call("loadwallet", "miner")
                assert await wallet.call("getwalletinfo")
            mined = await own_bitcoind.mine(1)
            (change,) = await waiting
    assert isinstance(change, Connected)
    assert change.block.hash_hex == mined[0]
    assert outages[0] == "bitcoind-unreachable"
    assert outages[1:] == [None]


async def test_blocks_that_bitcoind_has_forgotten_are_disconnected(own_bitcoind: Chain) -> None:
    process = own_bitcoind.process
    async with own_bitcoind.rpc() as rpc:
        genesis = await block_hash(rpc, 0)
        async with aclosing(rpc.follow(BlockHeight(0), genesis)) as stream:
            await take(stream, 101)
            await process.stop()
            for part in ("blocks", "chainstate", "indexes"):
                shutil.rmtree(process.directory / "regtest" / part)
            await process.start(own_bitcoind.program, own_bitcoind.port)
            changes = await take(stream, 101)
    assert all(isinstance(change, Disconnected) for change in changes)
    assert isinstance(changes[-1], Disconnected)
    assert changes[-1].previous == genesis


async def test_an_unknown_block_is_no_place_to_start(bitcoind: Chain) -> None:
    async with bitcoind.rpc() as rpc:
        for height, start in [(5, bytes(32)), (5, await block_hash(rpc, 6))]:
            async with aclosing(rpc.follow(BlockHeight(height), start)) as stream:
                with pytest.raises(OdaError) as caught:
                    await take(stream, 1)
            assert caught.value.reason == "unknown-block"


async def test_a_block_cut_short_or_too_long(bitcoind: Chain) -> None:
    async with bitcoind.rpc() as rpc:
        raw = bytes.fromhex(await rpc.call("getblock", await rpc.call("getblockhash", 1), 0))
    assert len(parse_block(raw, BlockHeight(1)).transactions) == 1
    for broken in [raw[:cut] for cut in range(len(raw))] + [raw + b"\0"]:
        with pytest.raises(OdaError) as caught:
            parse_block(broken, BlockHeight(1))
        assert caught.value.reason == "bad-block"
