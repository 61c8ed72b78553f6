from __future__ import annotations

import msgspec
import pytest

from channels.units import Msat
from sidechain import fees, light, merkle
from sidechain.light import EntryProof, LightClient, ProvenView, Unproven
from sidechain.params import REGTEST
from sidechain.primitives import Header, Producer
from sidechain.protocol import Proofs, decode
from sidechain.reasons import Rejection
from sidechain.state import TIP_KEY, expiry_key, model_key, payee_key, root_key
from tests.sidechain.world import ALICE, BOB, CAROL, MINER, QUICK, World, h, register, solved


def a_world() -> tuple[World, bytes]:
    world = World()
    world.mine(register(QUICK, BOB))
    model = world.model()
    world.wait(QUICK.tenure)
    world.update(model, BOB, "better", 9_000)
    world.wait(3)
    return world, model


def headers_of(world: World) -> list[Header]:
    return [record.header for record in world.chain.tip.chain()][-2::-1]


def served(world: World, client: LightClient, key: bytes) -> EntryProof:
    """What an honest full node answers about the pinned block."""
    record = client.pinned()
    depth = world.height - record.height
    block = world.chain.block(record.hash)
    assert block is not None
    return light.Prover(block, world.chain.state_at(depth)).prove(key)


def test_one_honest_peer_is_enough() -> None:
    """Three liars and one honest peer: the client knows trainer, producers and their nodes."""
    world, model = a_world()
    client = LightClient(QUICK)
    # Liar 1 sends a shorter chain of its own, liar 2 headers without work, liar 3 false proofs.
    liar = World()
    liar.wait(3)
    client.accept(headers_of(liar), world.now)
    with pytest.raises(Rejection):
        client.accept([Header(1, bytes(32), bytes(32), 0, 0x207FFFFF, 0)] * 5, world.now)
    client.accept(headers_of(world), world.now)
    assert client.headers.best.hash == world.chain.tip.hash

    view = client.view()
    keys = (*light.shares_keys(model, h("better")), *light.payee_keys([BOB.key, CAROL.key]))
    for key in keys:
        honest = served(world, client, key)
        for false in lies(honest):
            with pytest.raises(Rejection):
                view.learn(key, false)
        view.learn(key, honest)
    full = world.chain.state_at(QUICK.fee_depth)
    owed = fees.beneficiaries(view, model, h("better"))
    assert owed == fees.beneficiaries(full, model, h("better"))
    assert owed.trainer == BOB.key and owed.last_producer == MINER.key
    assert fees.split(Msat(1000), owed, fees.Terms.default(QUICK)).trainer == 50
    payee = view.payee(BOB.key)
    assert payee is not None and payee.node_id == BOB.node_id
    assert view.payee(CAROL.key) is None  # proven to be absent


def lies(honest: EntryProof) -> list[EntryProof]:
    def change(**changes: object) -> EntryProof:
        return msgspec.structs.replace(honest, **changes)

    producer = Producer(QUICK.network_id, 0, 1, ALICE.key, h("state"), b"")
    found = [
        change(block=h("other")),
        change(producer=producer.encode()),
        change(producer=register(QUICK, ALICE).encode()),
        change(producer=b"x"),
        change(transactions=honest.transactions + 1),
        change(branch=(*honest.branch, h("x"))),
        change(path=honest.path[1:]),
        change(key=honest.key + b"x"),
        change(value_hash=h("x")),
    ]
    if honest.value:
        found.append(change(value=honest.value + b"x"))
    return found


def test_an_entry_can_not_be_hidden_behind_another() -> None:
    """A proof about one key says nothing about the key that was asked for."""
    world, model = a_world()
    client = LightClient(QUICK)
    client.accept(headers_of(world), world.now)
    view = client.view()
    other = served(world, client, payee_key(BOB.key))
    with pytest.raises(Rejection):
        view.learn(model_key(model), other)
    with pytest.raises(Unproven) as caught:
        view.model(model)
    assert caught.value.key == model_key(model)


def test_proofs_travel() -> None:
    world, model = a_world()
    client = LightClient(QUICK)
    client.accept(headers_of(world), world.now)
    proofs = Proofs(tuple(served(world, client, key) for key in light.shares_keys(model, h("x"))))
    assert decode(proofs.encode()) == proofs


def test_only_what_clients_need_is_proven() -> None:
    world, model = a_world()
    block = world.chain.block(world.chain.tip.hash)
    assert block is not None
    for key in (TIP_KEY, payee_key(BOB.key), model_key(model), root_key(h("first")), b"D" + model):
        light.Prover(block, world.state).prove(key)
    with pytest.raises(Rejection, match="no such kind"):
        light.Prover(block, world.state).prove(expiry_key(50))


def test_the_position_of_the_producer_is_proven() -> None:
    """Another transaction of the block, shown as if it were the first, is refused."""
    world = World()
    block = world.mine(register(QUICK, ALICE))
    view = ProvenView(world.chain.tip)
    honest = light.Prover(block, world.state).prove(TIP_KEY)
    second = merkle.prove(block.txids(), 1)
    with pytest.raises(Rejection):
        view.learn(
            TIP_KEY,
            msgspec.structs.replace(
                honest, producer=block.transactions[1].encode(), branch=second.path
            ),
        )


def test_which_tip_is_recent_enough() -> None:
    world = World()
    world.wait(6)
    client = LightClient(QUICK)
    client.accept(headers_of(world), world.now)
    assert client.pinned().height == 6 - QUICK.fee_depth

    def recent(height: int) -> bool:
        record = world.chain.active(height)
        return client.is_recent(height, record.hash if record else h("none"))

    assert [recent(height) for height in range(8)] == [False] * 3 + [True] * 4 + [False]
    assert not client.is_recent(5, h("a fork"))


def test_a_new_client_pins_genesis() -> None:
    assert LightClient(REGTEST).pinned().height == 0


def test_more_work_wins_whoever_says_it() -> None:
    world, other = World(), World()
    world.wait(5)
    other.mine(extra=b"fork")
    other.wait(5)
    client = LightClient(QUICK)
    client.accept(headers_of(world), world.now)
    client.accept(headers_of(other), other.now)
    assert client.headers.best.hash == other.chain.tip.hash
    tip = other.chain.tip
    header = solved(Header(1, tip.hash, bytes(32), tip.header.time + 1, QUICK.pow_limit_bits, 0))
    assert client.accept([header], other.now).hash == header.hash
