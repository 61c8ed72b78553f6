"""A light node among liars: over real WebSockets, with one honest full node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from channels.errors import UserError
from sidechain import fees
from sidechain.light_node import LightNode
from sidechain.limits import Patience
from sidechain.node import ChainNode
from sidechain.protocol import GetProofs, Item, NotFound, Proofs
from sidechain.reasons import Rejection
from sidechain.store import SqliteStore
from tests.sidechain.peering import Clock, Running, running, until
from tests.sidechain.test_announcements import announcement
from tests.sidechain.wire import LATER, full_node, light_node, mine
from tests.sidechain.world import ALICE, BOB, CAROL, MINER, QUICK, World, h, register


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Makes nodes: "full" or "light"."""
    nodes: list[ChainNode | LightNode] = []

    def make(kind: str) -> ChainNode | LightNode:
        nodes.append(full_node(tmp_path) if kind == "full" else light_node(tmp_path))
        return nodes[-1]

    yield make
    for node in nodes:
        node.store.close()


Make = Callable[[str], Any]


def grown(node: ChainNode, blocks: int = 3) -> bytes:
    """A chain on which Bob improved Alice's model; -> the model."""
    world = World()
    world.mine(register(QUICK, BOB))
    model = world.model()
    world.wait(QUICK.tenure)
    world.update(model, BOB, "better", 9_000)
    world.wait(blocks)
    for request, answer in world.truth.public.items():
        node.scored(request, answer)
    for record in [*world.chain.tip.chain()][-2::-1]:
        block = world.chain.block(record.hash)
        assert block is not None
        node.accept_block(block)
    assert node.chain.tip.hash == world.chain.tip.hash
    return model


Lie = Callable[[GetProofs, Proofs | NotFound], Proofs | NotFound]


def lies(peer: Running, lie: Lie) -> None:
    """Let a full node answer GetProofs with something else."""
    serving = peer.peers._exchange._serving
    honest = serving._proofs
    serving._proofs = lambda wanted: lie(wanted, honest(wanted))  # type: ignore[method-assign] # that is the lie


def changed(answer: Proofs | NotFound, **changes: Any) -> Proofs:
    assert isinstance(answer, Proofs)
    return Proofs(tuple(msgspec.structs.replace(each, **changes) for each in answer.proofs))


def another_value(wanted: GetProofs, answer: Proofs | NotFound) -> Proofs:
    return changed(answer, value=b"x")


def another_key(wanted: GetProofs, answer: Proofs | NotFound) -> Proofs:
    """Shows that there is nothing, where there is something."""
    return changed(answer, key=b"Pxxx", value=b"")


def too_few(wanted: GetProofs, answer: Proofs | NotFound) -> Proofs:
    return Proofs(())


def of_another_block(wanted: GetProofs, answer: Proofs | NotFound) -> Proofs:
    return changed(answer, block=h("another"))


def knows_nothing(wanted: GetProofs, answer: Proofs | NotFound) -> NotFound:
    return NotFound(Item.BLOCK, (wanted.block,))


async def agree(light: Running, full: ChainNode) -> None:
    assert isinstance(light.node, LightNode)
    node = light.node
    await until(lambda: node.headers.best.hash == full.chain.tip.hash, "all headers")


async def test_one_honest_peer_among_liars(made: Make) -> None:
    """Whatever the others say, the light node knows the last trainer, the producers, and where
    they are paid; who lied is banned."""
    honest, light = made("full"), made("light")
    model = grown(honest)
    liars: list[Lie] = [another_value, another_key, too_few, of_another_block, knows_nothing]
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(running(light, max_outbound=0))
        for number, lie in enumerate(liars):
            liar = made("full")
            grown(liar)
            peer = await stack.enter_async_context(running(liar, f"127.20.0.{number + 1}"))
            lies(peer, lie)
            await here.connect(peer)
        right = await stack.enter_async_context(running(honest, "127.21.0.1"))
        await here.connect(right)
        await agree(here, honest)
        state = honest.chain.state_at(QUICK.fee_depth)
        owed = await light.beneficiaries(model, h("better"))
        assert owed == fees.beneficiaries(state, model, h("better"))
        assert owed.trainer == BOB.key and owed.last_producer == MINER.key
        assert await light.model(model) == state.model(model)
        assert await light.payee(BOB.key) == state.payee(BOB.key)
        assert await light.payee(CAROL.key) is None
        assert await light.beneficiaries(None, None) == fees.beneficiaries(state, None, None)
        assert await light.beneficiaries(model, h("nobody's"), depth=2) == fees.beneficiaries(
            honest.chain.state_at(2), model, h("nobody's")
        )
        assert {"127.21.0.1", "127.20.0.5"} <= here.hosts
        assert not here.hosts & here.peers.bans().keys()


async def test_every_lie_alone_is_seen(made: Make) -> None:
    full, light = made("full"), made("light")
    model = grown(full)
    for number, lie in enumerate([another_value, another_key, too_few, of_another_block]):
        async with (
            running(full, f"127.20.0.{number + 1}", max_outbound=0) as liar,
            running(light, max_outbound=0) as here,
        ):
            lies(liar, lie)
            await here.connect(liar)
            await agree(here, full)
            asking = asyncio.create_task(light.model(model))
            await until(lambda: liar.host in here.peers.bans(), lie.__name__)
            assert not asking.done()
            asking.cancel()


async def test_work_without_blocks_does_not_blind(made: Make) -> None:
    """A peer shows headers with more work and proves nothing; what an honest one shows is taken."""
    honest, light, liar = made("full"), made("light"), made("full")
    model = grown(honest)
    mine(liar, 40)
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(running(light, max_outbound=0))
        false = await stack.enter_async_context(running(liar, "127.20.0.1"))
        lies(false, knows_nothing)
        right = await stack.enter_async_context(running(honest, "127.21.0.1", max_outbound=0))
        await here.connect(false)
        await agree(here, liar)
        await here.connect(right)
        owed = await light.beneficiaries(model, h("better"))
        assert owed.trainer == BOB.key


async def test_a_peer_that_does_not_answer_is_left(tmp_path: Path) -> None:
    honest, deaf = full_node(tmp_path), full_node(tmp_path)
    patience = Patience(proofs=5.0)
    light = LightNode(
        QUICK, SqliteStore(tmp_path / "light.sqlite"), now=lambda: LATER, peers=patience
    )
    clock = Clock()
    model = grown(honest)
    grown(deaf, 5)
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(running(light, max_outbound=0, clock=clock))
        silent = await stack.enter_async_context(running(deaf, "127.20.0.1", max_outbound=0))
        right = await stack.enter_async_context(running(honest, "127.21.0.1", max_outbound=0))
        asked = asyncio.Event()

        def say_nothing(peer: object, now: float) -> None:
            asked.set()
            raise asyncio.CancelledError

        await here.connect(silent)
        await here.connect(right)
        await agree(here, deaf)
        for connection in silent.peers._connections.values():
            connection._serve = say_nothing
        asking = asyncio.create_task(light.model(model))
        await asked.wait()
        clock.ahead += 6
        here.peers.tick()
        found = await asking
        assert found is not None and found.current.trainer == BOB.key
        assert here.peers.bans() == {}
    for node in (honest, deaf, light):
        node.store.close()


async def test_nobody_proves_anything(tmp_path: Path) -> None:
    light = light_node(tmp_path, patience=0.05)
    async with running(light, max_outbound=0):
        assert await light.payee(ALICE.key) is None  # genesis is known by definition
        full = full_node(tmp_path)
        light.accept_headers([block.header for block in mine(full, 4)])
        with pytest.raises(UserError) as caught:
            await light.payee(ALICE.key)
        assert caught.value.reason == "no-proof"
        full.store.close()
    light.store.close()


async def test_headers_outlive_a_restart(tmp_path: Path) -> None:
    full, path = full_node(tmp_path), tmp_path / "light.sqlite"
    blocks = mine(full, 4)
    light = LightNode(QUICK, SqliteStore(path), now=lambda: LATER)
    heard: list[object] = []
    unlisten = light.listen(heard.append)
    with light.turn():
        light.accept_headers([blocks[0].header])
        light.accept_headers([block.header for block in blocks[:2]])
        assert heard == []
    assert len(heard) == 2
    forged = msgspec.structs.replace(blocks[3].header, bits=1)
    with pytest.raises(Rejection):
        light.accept_headers([blocks[2].header, forged])
    assert len(heard) == 3  # those before it are kept
    unlisten()
    light.accept_announcement(announcement(ALICE, expires=LATER + 1000))
    assert len(heard) == 3 and len(light.announcements) == 1
    light.store.close()
    again = LightNode(QUICK, SqliteStore(path), now=lambda: LATER)
    assert again.headers.best.hash == blocks[2].hash
    assert again.client.pinned().height == 3 - QUICK.fee_depth
    again.store.close()
    full.store.close()


async def test_answers_follow_the_chain(made: Make) -> None:
    full, light = made("full"), made("light")
    async with running(full, max_outbound=0) as peer, running(light, max_outbound=0) as here:
        await here.connect(peer)
        mine(full, 5)
        await agree(here, full)
        assert await light.payee(ALICE.key) is None
        mine(full, 1 + QUICK.fee_depth, register(QUICK, ALICE))
        await agree(here, full)
        found = await light.payee(ALICE.key)
        assert found is not None and found.endpoint == "http://alice.example"
