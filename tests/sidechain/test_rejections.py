"""Every reason of the table is reached, and says what it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidechain import light, protocol
from sidechain.announcements import LIFETIME, Announcements
from sidechain.chain import Chain, MemoryStore
from sidechain.conversation import MAX_REQUESTS, Conversation
from sidechain.headers import genesis
from sidechain.mempool import REVEALS_PER_MODEL, Mempool
from sidechain.primitives import (
    AddModel,
    Commit,
    OpenShard,
    stamp_work,
)
from sidechain.reasons import REASONS, VERDICTS, Rejection
from sidechain.scores import Unusable
from sidechain.state import payee_key
from tests.sidechain.refusals import (
    CASES,
    case,
    change,
    in_block,
    plain_world,
    reason_of,
    sealed_world,
)
from tests.sidechain.test_announcements import NOW, announcement
from tests.sidechain.world import (
    ALICE,
    BOB,
    CAROL,
    GOOD,
    QUICK,
    World,
    add_model,
    commit,
    finished,
    h,
    open_shard,
    register,
    reveal,
)


@pytest.mark.parametrize("reason", REASONS)
def test_reached(reason: str) -> None:
    for function in CASES[reason]:
        assert function() == reason


def test_reasons_are_slugs_with_sentences() -> None:
    assert REASONS.keys() >= VERDICTS
    for reason, sentence in REASONS.items():
        assert reason == reason.lower() and " " not in reason
        assert sentence.endswith(".") and len(set(REASONS.values())) == len(REASONS)
    assert str(Rejection("no-gain", "it is 3")).endswith("(it is 3)")


def test_only_verdicts_are_verdicts() -> None:
    with pytest.raises(ValueError, match="no verdict"):
        Unusable("no-gain")


# --- mempool -------------------------------------------------------------------------------------


@case("producer-not-relayed")
def _relayed_producer() -> str:
    block = World().build()
    return reason_of(Mempool(QUICK).add, block.transactions[0], World().state)


@case("txn-already-in-mempool")
def _same_again() -> str:
    pool, tx = Mempool(QUICK), commit(QUICK, h("m"), BOB, "w")
    pool.add(tx, World().state)
    return reason_of(pool.add, tx, World().state)


@case("txn-mempool-conflict")
def _same_seq() -> str:
    pool = Mempool(QUICK)
    pool.add(register(QUICK, ALICE, 3), World().state)
    return reason_of(pool.add, register(QUICK, ALICE, 3, "http://other"), World().state)


@case("mempool-full")
def _full() -> str:
    good = finished(replace(QUICK, stamp=1 << 8), Commit(QUICK.network_id, 0, h("good")))
    pool = Mempool(QUICK, max_bytes=len(good.encode()))
    pool.add(good, World().state)
    tries = (Commit(QUICK.network_id, i, h("worse")) for i in range(100))
    worse = next(tx for tx in tries if QUICK.stamp <= stamp_work(tx) < 128)
    return reason_of(pool.add, worse, World().state)


@case("mempool-model-full")
def _reveals() -> str:
    world, model = plain_world()
    names = [f"w{i}" for i in range(REVEALS_PER_MODEL + 1)]
    world.mine(*(commit(QUICK, model, BOB, name) for name in names))
    world.wait(1)
    dear = replace(QUICK, stamp=1 << 8)
    pool = Mempool(QUICK)
    for name in names[:-1]:
        pool.add(reveal(dear, model, BOB, name, 1), world.state)
    cheap = (reveal(replace(QUICK, stamp=4 + i), model, BOB, names[-1], i) for i in range(50))
    return reason_of(pool.add, next(tx for tx in cheap if stamp_work(tx) < 200), world.state)


# --- announcements -------------------------------------------------------------------------------


@case("announcement-expired")
def _too_long_a_promise() -> str:
    late = announcement(ALICE, expires=NOW + LIFETIME + QUICK.future_limit + 1)
    return reason_of(Announcements(QUICK).add, late, NOW)


@case("announcements-full")
def _no_room() -> str:
    book = Announcements(QUICK, most=1)
    book.add(announcement(ALICE, stamp=1 << 10), NOW)
    return reason_of(book.add, announcement(BOB), NOW)


# --- peers ---------------------------------------------------------------------------------------

OURS = protocol.Version(1, QUICK.network_id, genesis(QUICK).hash, 7, 0, 0, 0, 0, "")

case("bad-message")(lambda: reason_of(protocol.decode, b"\x91\x7f"))
case("bad-message")(lambda: reason_of(protocol.decode, b"\x92\x03\xc1"))
case("message-too-long")(lambda: reason_of(protocol.decode, b"\x92\x03" + bytes(2000)))
case("bad-handshake")(lambda: reason_of(protocol.next_phase, protocol.Phase.NEW, protocol.Verack()))


def version_refused(**changes: Any) -> str:
    theirs = change(OURS, nonce=8)
    theirs = change(theirs, **changes)
    return reason_of(protocol.check_version, QUICK, genesis(QUICK).hash, 7, theirs)


case("wrong-network")(lambda: version_refused(network_id=1))
case("wrong-network")(lambda: version_refused(genesis=h("other")))
case("version-too-old")(lambda: version_refused(protocol=0))
case("self-connect")(lambda: version_refused(nonce=7))


@case("not-requested")
def _data_unasked() -> str:
    peer = Conversation("10.0.0.1", inbound=True, now=0.0)
    return reason_of(peer.took_addresses, ())


@case("too-many-requests")
def _too_many() -> str:
    peer = Conversation("10.0.0.1", inbound=True, now=0.0)
    wanted = (protocol.Item.TX, h("tx"))
    peer.asks(*[wanted] * MAX_REQUESTS)
    return reason_of(peer.asks, wanted)


@case("bad-proof")
def _other_block() -> str:
    world = World()
    block = world.mine(register(QUICK, ALICE))
    key = payee_key(ALICE.key)
    proof = light.Prover(block, world.state).prove(key)
    client = light.LightClient(QUICK)
    return reason_of(client.view(client.headers.genesis).learn, key, proof)


# --- what the cases stand on ---------------------------------------------------------------------


def test_what_is_not_refused_is_accepted() -> None:
    """The worlds above are sound: their honest versions get through."""
    world, model = sealed_world()
    world.committed(model, BOB, "w")
    world.truth.score(model, "w", 9_000)
    world.mine(reveal(QUICK, model, BOB, "w", 9_000))
    world.truth.pair(model, 0, "a", "first", "w", GOOD)
    tx = open_shard(QUICK, model, 0, "a", CAROL)
    assert isinstance(tx, OpenShard) and in_block(world, tx) == "accepted"
    assert isinstance(add_model(QUICK), AddModel)
    assert Chain(QUICK, MemoryStore()).tip.height == 0
