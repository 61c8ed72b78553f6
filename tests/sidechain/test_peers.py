"""Nodes over real WebSockets on loopback, with strangers among them."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from channels.errors import UserError
from sidechain.bans import BAN_SECONDS
from sidechain.limits import PATIENCE
from sidechain.node import ChainNode
from sidechain.peers import PATH
from sidechain.protocol import (
    MAX_INVENTORY,
    MAX_MESSAGE,
    Addr,
    Address,
    GetAddr,
    GetHeaders,
    Headers,
    Inv,
    Item,
    Ping,
    Pong,
    Reject,
    Verack,
    Version,
)
from tests.sidechain.peering import (
    Caller,
    Clock,
    Running,
    calling,
    running,
    same_tip,
    serving,
    until,
)
from tests.sidechain.wire import LATER, full_node, mine, version
from tests.sidechain.world import ALICE, QUICK, h, register


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[[], ChainNode]]:
    """Makes full nodes."""
    made: list[ChainNode] = []

    def make() -> ChainNode:
        made.append(full_node(tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.store.close()


Make = Callable[[], ChainNode]


@asynccontextmanager
async def network(node: Make, count: int, **options: Any) -> AsyncIterator[list[Running]]:
    """Nodes that dial nobody by themselves."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running(node(), max_outbound=0, **options))
            for _ in range(count)
        ]


# --- one chain -----------------------------------------------------------------------------------


async def test_a_new_node_catches_up(node: Make) -> None:
    async with network(node, 3) as (one, two, three):
        mine(one.chain_node, 250, register(QUICK, ALICE))
        await two.connect(one)
        await three.connect(two)
        await same_tip(one, two, three)
        mine(three.chain_node, 2)
        await same_tip(one, two, three)
        assert one.chain_node.chain.tip.height == 252
        assert one.chain_node.chain.state.payee(ALICE.key) is not None
        tx = register(QUICK, ALICE, seq=2)
        one.chain_node.accept_transaction(tx)
        await until(lambda: tx.txid in three.chain_node.mempool)


async def test_two_partitions_heal(node: Make) -> None:
    async with network(node, 4) as (one, two, three, four):
        await one.connect(two)
        await three.connect(four)
        mine(one.chain_node, 20, register(QUICK, ALICE), extra="left")
        mine(four.chain_node, 23, extra="right")
        await same_tip(one, two)
        await same_tip(three, four)
        await two.connect(three)
        await same_tip(one, two, three, four)
        assert one.chain_node.chain.tip.height == 23
        assert len(one.chain_node.mempool) == 1  # what only the left had mined
        mine(one.chain_node)
        await same_tip(one, two, three, four)
        assert four.chain_node.chain.state.payee(ALICE.key) is not None


async def test_a_private_fork_of_100_blocks(node: Make) -> None:
    async with network(node, 3) as (honest, victim, attacker):
        await victim.connect(honest)
        mine(honest.chain_node, 100)
        await same_tip(honest, victim)
        mine(attacker.chain_node, 101, extra="private")
        await attacker.connect(victim)
        await same_tip(honest, victim, attacker)
        assert honest.chain_node.chain.tip.height == 101
        mine(honest.chain_node)
        await same_tip(honest, victim, attacker)


async def test_a_node_that_was_away_is_found_again(node: Make) -> None:
    clock = Clock()
    away = node()
    async with running(node(), max_outbound=0, clock=clock) as here:
        async with running(away, max_outbound=0) as there:
            port = there.port
            await here.connect(there)
        await until(lambda: not here.peers.infos(), "the connection ended")
        mine(away, 5)
        async with running(away, port=port, max_outbound=0) as there:
            clock.ahead += 60
            here.peers.tick()
            await same_tip(here, there)


async def test_what_peers_say_of_themselves(node: Make) -> None:
    async with network(node, 2, swarm_port=6881) as (one, two):
        mine(two.chain_node, 3)
        await one.connect(two)
        await one.connect(two)  # we are
        await same_tip(one, two)
        (info,) = one.peers.infos()
        assert (info.host, info.port, info.inbound) == (two.host, two.port, False)
        assert (info.height, info.agent, info.score, info.services) == (3, "test", 0, 3)
        assert one.peers.swarm_peers() == [("127.0.0.1", 6881)]
        (info,) = two.peers.infos()
        assert (info.port, info.inbound) == (one.port, True)
        # Small messages don't wait for more to come.
        for side in (one, two):
            (connection,) = side.peers._connections.values()
            wire = connection._socket.get_extra_info("socket")
            assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# --- whom to connect to --------------------------------------------------------------------------


async def test_only_this_machine_on_regtest(node: Make) -> None:
    async with network(node, 1) as (one,):
        with pytest.raises(UserError, match="this machine") as caught:
            await one.peers.connect("10.0.0.1", 80)
        assert caught.value.reason == "peer-not-loopback"


async def test_nobody_there(node: Make) -> None:
    async with network(node, 1) as (one,):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(UserError) as caught:
            await one.peers.connect("127.0.0.1", port)
        assert caught.value.reason == "peer-unreachable"


async def test_a_node_does_not_talk_to_itself(node: Make) -> None:
    async with network(node, 1) as (one,):
        with pytest.raises(UserError, match="self-connect"):
            await one.connect(one)
        await until(lambda: not one.peers._connections)
        assert (one.host, one.port) not in one.peers._book
        assert one.peers.bans() == {}


async def test_nodes_find_each_other_and_keep_one_connection(node: Make) -> None:
    """A second node learns of the first because it was dialled by it, and tells a third. Nobody
    stays connected to the same node twice."""
    async with AsyncExitStack() as stack:
        one, two, three = [await stack.enter_async_context(running(node())) for _ in range(3)]
        await one.connect(two)
        await until(lambda: two.peers._book.sample(Random(1)), "the first was reached")
        await three.connect(two)
        everybody = (one, two, three)

        def meshed() -> bool:
            ports = {each.port: sorted(i.port for i in each.peers.infos()) for each in everybody}
            return all(
                connected == sorted(other.port for other in everybody if other.port != port)
                for port, connected in ports.items()
            )

        await until(meshed, "each is connected to both others, once")


async def test_known_nodes_are_dialled_after_a_restart(node: Make) -> None:
    restarted = node()
    async with running(node(), "127.1.0.1", max_outbound=0) as there:
        async with running(restarted, max_outbound=0) as here:
            await here.connect(there)
        mine(there.chain_node, 3)
        async with running(restarted) as here:
            await same_tip(here, there)


# --- strangers -----------------------------------------------------------------------------------


async def test_forged_headers_end_in_a_ban_that_outlives_a_restart(node: Make) -> None:
    victim, wall = node(), [float(LATER)]
    options: dict[str, Any] = {"max_outbound": 0, "wall": lambda: wall[0]}
    async with running(victim, **options) as here:
        async with calling(here) as attacker, calling(here, "127.0.9.8") as other:
            await attacker.greets()
            await other.greets()
            header = victim.chain.tip.header
            forged = msgspec.structs.replace(header, prev=header.hash, time=header.time + 1, bits=1)
            await attacker.says(Headers((forged.encode(),)))
            assert await attacker.hears(Reject) == Reject("bad-diffbits", bytes(32))
            await attacker.is_left()
            await other.says(Ping(1))
            assert await other.hears(Pong) == Pong(1)
        assert here.peers.bans() == {"127.0.9.9": LATER + BAN_SECONDS}
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await calling(here).__aenter__()
    async with running(victim, **options) as here:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await calling(here).__aenter__()
        wall[0] += BAN_SECONDS + 1
        async with calling(here) as attacker:
            await attacker.greets()
            here.peers.ban("127.0.9.9")
            await attacker.is_left()
        here.peers.unban("127.0.9.9")
        async with calling(here) as attacker:
            await attacker.greets()
        assert here.peers.bans() == {}


async def test_a_banned_node_is_not_dialled(node: Make) -> None:
    async with network(node, 2) as (one, two):
        one.peers.ban("127.0.0.1")
        with pytest.raises(UserError, match="banned"):
            await one.connect(two)


async def test_a_regtest_does_not_ban_its_own_machine(node: Make) -> None:
    async with network(node, 2) as (one, two):
        async with calling(one, "127.0.0.1") as attacker:
            await attacker.greets()
            await attacker.ws.send_bytes(b"garbage")
            await attacker.is_left()
        await two.connect(one)
        assert one.peers.bans() == {}


@pytest.mark.parametrize(
    "frames",
    [
        [bytes(MAX_MESSAGE + 1)],
        [b"\x92\x03" + bytes(5000)],
        [b""],
        [b"\xff" * 100],
        ["text"],
    ],
    ids=["too long for any", "too long for a ping", "empty", "garbage", "text"],
)
async def test_what_is_no_message(node: Make, frames: list[bytes | str]) -> None:
    async with network(node, 1) as (one,):
        async with calling(one) as attacker:
            await attacker.greets()
            for frame in frames:
                if isinstance(frame, str):
                    await attacker.ws.send_str(frame)
                else:
                    await attacker.ws.send_bytes(frame)
            await attacker.is_left()
        await until(lambda: one.peers.bans())
        assert one.peers.infos() == []


async def test_control_frames_are_no_way_to_flood(node: Make) -> None:
    async with network(node, 1) as (one,), calling(one) as attacker:
        await attacker.greets()
        await attacker.ws.ping()
        await attacker.is_left()


async def test_web_pages_are_no_peers(node: Make) -> None:
    async with network(node, 1) as (one,):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await calling(one, Origin="http://evil.example").__aenter__()
        assert caught.value.status == 403


async def test_a_flood_does_not_keep_others_waiting(node: Make) -> None:
    """Offers without end, from several connections: others are served meanwhile, and what is kept
    stays bounded."""
    async with AsyncExitStack() as stack:
        one, two = await stack.enter_async_context(network(node, 2))
        first, second = [
            await stack.enter_async_context(calling(one, f"127.0.9.{i}")) for i in (1, 2)
        ]
        for caller in (first, second):
            await caller.greets()

        async def flood(caller: Caller) -> None:
            number = 0
            while True:
                number += 1
                hashes = tuple(h(f"{number} {i}") for i in range(MAX_INVENTORY))
                await caller.says(Inv(Item.TX, hashes), Ping(number))

        floods = [asyncio.create_task(flood(each)) for each in (first, second)]
        strangers = list(one.peers._connections)
        await until(
            lambda: all(peer.pause(asyncio.get_running_loop().time()) for peer in strangers),
            "both are read slowly",
        )
        mine(one.chain_node, 50)
        await two.connect(one)
        await same_tip(one, two)
        for task in floods:
            task.cancel()
        await asyncio.wait(floods)
        for peer in strangers:
            assert len(peer.known) <= 8192 and peer.points == 0


async def test_slow_peers_are_left(node: Make) -> None:
    """One says nothing, one never finishes a frame, one greets and falls silent, one does not
    read what he asked for."""
    clock = Clock()
    async with running(node(), max_outbound=0, clock=clock) as here:
        mine(here.chain_node, 30)
        async with AsyncExitStack() as stack:
            mute, trickle, silent, deaf = [
                await stack.enter_async_context(calling(here, f"127.0.9.{i}")) for i in range(1, 5)
            ]
            for caller in (trickle, silent, deaf):
                await caller.greets()
                await caller.says(Headers(()))
            wire = trickle.ws.get_extra_info("socket")
            transport = trickle.ws._response.connection.transport  # type: ignore[union-attr] # open
            assert wire is not None
            transport.write(b"\x82\xff" + struct.pack(">Q", 100_000) + bytes(50))  # type: ignore[union-attr] # open
            for number in range(500):
                await deaf.says(GetHeaders((bytes(32),), bytes(32)), Ping(number))
            await until(lambda: len(here.peers._connections) == 4)
            clock.ahead += PATIENCE.handshake
            here.peers.tick()
            await mute.is_left()
            clock.ahead += PATIENCE.ping
            here.peers.tick()
            clock.ahead += PATIENCE.pong
            here.peers.tick()
            await trickle.is_left()
            await silent.is_left()
            await until(lambda: not here.peers._connections, "the deaf one is left too")
        assert here.peers.bans() == {}


async def test_inbound_slots_are_for_those_who_earn_them(node: Make) -> None:
    """A crowd of strangers from one network takes the slots of its own people only."""
    old = [f"127.{i}.0.1" for i in range(1, 6)]
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(running(node(), max_outbound=0, max_inbound=10))
        for host in (*old, *(f"127.99.0.{i}" for i in range(1, 30))):
            caller = await stack.enter_async_context(calling(here, host))
            await caller.greets()
        assert {*old} <= here.hosts
        await until(lambda: len(here.peers.infos()) <= 10)


async def test_an_eclipse_ends_with_one_honest_peer(node: Make, tmp_path: Path) -> None:
    """The book is full of an attacker's nodes, and all inbound slots are his. He keeps the tip
    from the victim; a single address of somebody else is enough."""
    attacker, told = node(), []

    async def hostile(request: web.Request) -> web.WebSocketResponse:
        """Greets, tells of more like itself, and has an old chain."""
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        caller = Caller(ws)
        host, port = request.transport.get_extra_info("sockname")[:2]  # type: ignore[union-attr] # open
        told.append(host)
        try:
            await caller.hears(Version)
            await caller.says(version(hash(host) % 1000 + 1000, port=port), Verack())
            await caller.hears(GetAddr)
            others = [Address(f"127.7.0.{i}", port, LATER) for i in range(1, 200)]
            await caller.says(Addr(tuple(others)), Headers(()))
            await caller.is_left()
        except AssertionError:
            pass  # the victim left
        return ws

    mine(attacker, 2)
    clock = Clock()
    with socket.create_server(("127.7.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    listeners = [socket.create_server((f"127.7.0.{i}", port)) for i in range(1, 20)]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving([web.get(PATH, hostile)], listeners))
        honest = await stack.enter_async_context(running(node(), "127.8.0.1", max_outbound=0))
        victim = await stack.enter_async_context(
            running(node(), max_inbound=4, clock=clock, random=Random(3))
        )
        mine(honest.chain_node, 10)
        for i in range(1, 9):
            caller = await stack.enter_async_context(calling(victim, f"127.7.1.{i}"))
            await caller.greets()
        for i in range(1, 20):
            victim.peers._book.add((f"127.7.0.{i}", port), "127.7.0.1", Random(1))

        def full_of_them() -> bool:
            victim.peers.tick()
            return len(victim.peers._book) >= 60 and len(told) >= 2

        await until(full_of_them, "the book has as much of them as it takes")
        outbound = [info for info in victim.peers.infos() if not info.inbound]
        assert len(outbound) <= 2  # of one network
        assert len(victim.peers._book) <= 64 + len(outbound)
        victim.peers._book.add((honest.host, honest.port), "127.5.0.1", Random(1))
        victim.peers.tick()
        await same_tip(victim, honest)


async def test_the_node_stops_when_it_can_not_keep_what_it_learns(
    node: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with network(node, 2) as (one, two):
        await one.connect(two)
        await until(lambda: two.peers.infos())

        def full() -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(one.node.store, "commit", full)
        mine(two.chain_node)
        with pytest.raises(OSError, match="no space left"):
            async with asyncio.timeout(20):
                await one.peers.wait_failed()
        await until(lambda: not two.peers.infos())
