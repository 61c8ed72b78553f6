"""What one node says to strangers, and what strangers can do to it: no sockets, virtual time."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidechain import exchange, serving
from sidechain.light import PROVABLE
from sidechain.limits import PATIENCE, Known, TokenBucket
from sidechain.primitives import sha256d
from sidechain.protocol import (
    BAN,
    AnyMessage,
    GetHeaders,
    GetProofs,
    Headers,
    Item,
    Message,
    NotFound,
    Ping,
    Pong,
    Proofs,
    Verack,
    Version,
)
from sidechain.state import TIP_KEY, payee_key
from tests.sidechain.test_protocol import messages
from tests.sidechain.wire import Side, Stranger, Wire, headers, mine, stranger, version
from tests.sidechain.world import (
    ALICE,
    BOB,
    CAROL,
    QUICK,
    h,
    register,
)

# --- handshake -----------------------------------------------------------------------------------


def test_both_sides_greet(wire: Wire) -> None:
    one, other = wire.full(), wire.full()
    there, here = wire.link(one, other)
    assert there.ready and here.ready
    assert there.version is not None and there.version.swarm_port == 2002
    assert here.version is not None and here.version.agent == "node 1"
    assert (there.port, here.port) == (1, 1001)


def test_who_is_dialled_speaks_second(side: Side) -> None:
    inbound = Stranger(side.wire, side, "10.1.0.1")
    inbound.hears()
    assert inbound.told == []
    inbound.says(version())
    assert [type(each) for each in inbound.told] == [Version, Verack]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"network_id": 7}, "wrong-network"),
        ({"genesis": h("other")}, "wrong-network"),
        ({"protocol": 0}, "version-too-old"),
        ({"nonce": 1}, "self-connect"),
    ],
)
def test_who_can_not_be_spoken_with_is_left_and_not_banned(
    side: Side, change: dict[str, object], reason: str
) -> None:
    peer = Stranger(side.wire, side, "10.1.0.1")
    refusal = peer.says(msgspec.structs.replace(version(), **change))
    assert refusal is not None and refusal.reason == peer.seen.over == reason
    assert not peer.seen.misbehaved


@pytest.mark.parametrize("message", [Verack(), Ping(1), GetHeaders((bytes(32),), bytes(32))])
def test_nothing_before_the_handshake(side: Side, message: Message) -> None:
    peer = Stranger(side.wire, side, "10.1.0.1")
    peer.says(message)
    assert peer.seen.over == "bad-handshake" and peer.seen.misbehaved
    assert peer.told == []


def test_outbound_slots_are_for_nodes_with_blocks(side: Side) -> None:
    peer = Stranger(side.wire, side, "10.1.0.1", inbound=False)
    peer.says(version(services=0))
    assert peer.seen.over == "peer-not-full" and not peer.seen.misbehaved


def test_silence_ends_a_handshake(side: Side) -> None:
    mute, slow = (Stranger(side.wire, side, "10.1.0.1") for _ in range(2))
    slow.says(version())
    side.wire.wait(PATIENCE.handshake)
    assert mute.seen.over == slow.seen.over == "peer-silent"


def test_pings(side: Side) -> None:
    answers, mute = stranger(side), stranger(side)
    answers.says(Headers(()), Ping(5))
    mute.says(Headers(()))
    assert answers.was_told(Pong) == [Pong(5)]
    side.wire.wait(PATIENCE.ping)
    (ping,) = answers.was_told(Ping)
    assert isinstance(ping, Ping)
    answers.says(Pong(ping.nonce))
    side.wire.wait(PATIENCE.pong)
    assert answers.seen.ready and answers.seen.latency == 0.0
    assert mute.seen.over == "peer-silent" and not mute.seen.misbehaved


# --- anything at all -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def any_side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    wire = Wire(tmp_path_factory.mktemp("any"))
    side = wire.full()
    mine(side.chain_node, 3, register(QUICK, ALICE))
    yield side
    wire.close()


EVERYTHING = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@EVERYTHING
@given(st.lists(st.binary(max_size=300), max_size=5), st.booleans())
def test_any_bytes_give_messages_or_a_rejection(
    any_side: Side, data: list[bytes], greeted: bool
) -> None:
    peer = Stranger(any_side.wire, any_side, "10.1.0.1")
    if greeted:
        peer.greets()
    for each in data:
        refusal = peer.sends(each)
        assert refusal is not None or peer.seen.over is not None
    peer.leaves()


@EVERYTHING
@given(st.lists(messages, max_size=10))
def test_any_messages_give_messages_or_a_rejection(any_side: Side, said: list[AnyMessage]) -> None:
    peer = stranger(any_side)
    tip = any_side.chain.tip
    for message in said:
        points = peer.seen.points
        refusal = peer.says(message)
        assert refusal is not None or peer.seen.points == points
    any_side.exchange.tick(any_side.wire.now)
    peer.leaves()
    assert any_side.chain.tip is tip
    assert any_side.exchange.peers == []


# --- proofs --------------------------------------------------------------------------------------


def test_proofs_are_given_of_recent_blocks(side: Side) -> None:
    blocks = mine(side.chain_node, serving.PROOF_DEPTH + 5, register(QUICK, BOB))
    peer = stranger(side)
    keys = (TIP_KEY, payee_key(BOB.key), payee_key(CAROL.key))
    peer.says(GetProofs(blocks[-3].hash, keys))
    (answer,) = peer.was_told(Proofs)
    assert isinstance(answer, Proofs) and len(answer.proofs) == 3
    for gone in (blocks[3].hash, h("nobody's")):
        peer.says(GetProofs(gone, keys))
        assert peer.was_told(NotFound) == [NotFound(Item.BLOCK, (gone,))]
    assert peer.seen.points == 0
    peer.says(GetProofs(blocks[-1].hash, (b"E" + bytes(4),)))
    assert peer.seen.over == "bad-proof" and b"E" not in PROVABLE


# --- small things --------------------------------------------------------------------------------


def test_token_buckets() -> None:
    bucket = TokenBucket(10, 50, 0.0)
    bucket.take(50, 0.0)
    assert bucket.wait(0.0) == 0
    bucket.take(20, 0.0)
    assert bucket.wait(0.0) == 2 and bucket.wait(1.5) == 0.5
    bucket.take(0, 1000.0)
    bucket.take(51, 1000.0)
    assert bucket.wait(1000.0) == pytest.approx(0.1)  # no more than 50 were saved up


def test_known_hashes_are_forgotten_in_their_order() -> None:
    known = Known(3)
    assert [known.add(bytes([i])) for i in (1, 2, 3, 2, 4)] == [True, True, True, False, True]
    assert bytes([1]) not in known and bytes([2]) in known and len(known) == 3
    known.discard(bytes([2]))
    assert known.add(bytes([2]))
    known.clear()
    assert len(known) == 0


def test_points_add_up_to_a_ban(side: Side) -> None:
    peer = stranger(side)
    peer.seen.refused("bad-score", 20)
    assert peer.seen.over is None
    peer.seen.refused("bad-score", BAN - 20)
    assert peer.seen.over == "bad-score" and peer.seen.misbehaved


def test_a_flood_of_known_headers_costs_little(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = mine(side.chain_node, 100)
    hashed = []

    def counted(data: bytes) -> bytes:
        hashed.append(data)
        return sha256d(data)

    monkeypatch.setattr(exchange, "sha256d", counted)
    peer = stranger(side)
    assert peer.says(headers(blocks)) is None
    assert peer.seen.best is side.chain.tip
    assert len(hashed) < 10
