from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.bolt.noise import Handshake, Transport
from channels.errors import LocalProtocolError, RemoteProtocolError
from tests.vectors import bolt08

RESPONDER_PUB = bytes.fromhex(bolt08.RESPONDER_PUB)
CHAINING_KEY = bytes.fromhex(bolt08.MESSAGE_CHAINING_KEY)
SENDING_KEY = bytes.fromhex(bolt08.SENDING_KEY)
RECEIVING_KEY = bytes.fromhex(bolt08.RECEIVING_KEY)


def initiator() -> Handshake:
    return Handshake.initiator(
        bytes.fromhex(bolt08.INITIATOR_KEY),
        bytes.fromhex(bolt08.INITIATOR_EPHEMERAL),
        RESPONDER_PUB,
    )


def responder() -> Handshake:
    return Handshake.responder(
        bytes.fromhex(bolt08.RESPONDER_KEY), bytes.fromhex(bolt08.RESPONDER_EPHEMERAL)
    )


def transports() -> tuple[Transport, Transport]:
    return (
        Transport(CHAINING_KEY, SENDING_KEY, RECEIVING_KEY),
        Transport(CHAINING_KEY, RECEIVING_KEY, SENDING_KEY),
    )


def test_appendix_a_initiator() -> None:
    handshake = initiator()
    assert handshake.write_act_one().hex() == bolt08.ACT_ONE
    handshake.read_act_two(bytes.fromhex(bolt08.ACT_TWO))
    assert handshake.write_act_three().hex() == bolt08.ACT_THREE
    assert handshake.remote_node_id == RESPONDER_PUB
    # sk and rk: the vectors' own keys understand it, in both directions.
    _, other = transports()
    assert other.feed(handshake.transport.encrypt(b"there")) == [b"there"]
    assert handshake.transport.feed(other.encrypt(b"back")) == [b"back"]


def test_appendix_a_responder() -> None:
    handshake = responder()
    handshake.read_act_one(bytes.fromhex(bolt08.ACT_ONE))
    assert handshake.write_act_two().hex() == bolt08.ACT_TWO
    handshake.read_act_three(bytes.fromhex(bolt08.ACT_THREE))
    assert handshake.remote_node_id.hex() == bolt08.INITIATOR_PUB
    other, _ = transports()
    assert other.feed(handshake.transport.encrypt(b"there")) == [b"there"]
    assert handshake.transport.feed(other.encrypt(b"back")) == [b"back"]


@pytest.mark.parametrize(("name", "act_two", "reason"), bolt08.INITIATOR_FAILURES)
def test_appendix_a_initiator_failures(name: str, act_two: str, reason: str) -> None:
    handshake = initiator()
    handshake.write_act_one()
    with pytest.raises(RemoteProtocolError) as caught:
        handshake.read_act_two(bytes.fromhex(act_two))
    assert caught.value.reason == reason
    with pytest.raises(LocalProtocolError):
        handshake.write_act_three()


@pytest.mark.parametrize(("name", "act_one", "act_three", "reason"), bolt08.RESPONDER_FAILURES)
def test_appendix_a_responder_failures(
    name: str, act_one: str, act_three: str | None, reason: str
) -> None:
    handshake = responder()
    with pytest.raises(RemoteProtocolError) as caught:
        handshake.read_act_one(bytes.fromhex(act_one))
        assert handshake.write_act_two().hex() == bolt08.ACT_TWO
        assert act_three is not None
        handshake.read_act_three(bytes.fromhex(act_three))
    assert caught.value.reason == reason
    for forbidden in (handshake.write_act_two, lambda: handshake.remote_node_id):
        with pytest.raises(LocalProtocolError):
            forbidden()


def test_appendix_a_messages() -> None:
    sender, receiver = transports()
    sealed = [sender.encrypt(bolt08.MESSAGE) for _ in range(1002)]
    assert {n: sealed[n].hex() for n in bolt08.SEALED} == bolt08.SEALED
    assert receiver.feed(b"".join(sealed)) == [bolt08.MESSAGE] * 1002


ACTS: list[Callable[[Handshake], object]] = [
    lambda h: h.write_act_one(),
    lambda h: h.read_act_one(bytes.fromhex(bolt08.ACT_ONE)),
    lambda h: h.write_act_two(),
    lambda h: h.read_act_two(bytes.fromhex(bolt08.ACT_TWO)),
    lambda h: h.write_act_three(),
    lambda h: h.read_act_three(bytes.fromhex(bolt08.ACT_THREE)),
    lambda h: h.transport,
    lambda h: h.remote_node_id,
]


@pytest.mark.parametrize(
    ("start", "order"),
    [(initiator, [0, 3, 4]), (responder, [1, 2, 5])],
    ids=["initiator", "responder"],
)
def test_acts_out_of_order(start: Callable[[], Handshake], order: list[int]) -> None:
    for done in range(len(order)):
        for act, call in enumerate(ACTS):
            if act == order[done]:
                continue
            handshake = start()
            for earlier in order[:done]:
                ACTS[earlier](handshake)
            with pytest.raises(LocalProtocolError) as caught:
                call(handshake)
            assert caught.value.reason == "handshake-out-of-order"


def test_a_node_id_that_is_no_point() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Handshake.initiator(bytes([1] * 32), bytes([2] * 32), b"\x05" * 33)
    assert caught.value.reason == "invalid-point"


def test_the_initiator_means_another_node() -> None:
    ours = Handshake.initiator(
        bytes([1] * 32), bytes([2] * 32), bytes.fromhex(bolt08.INITIATOR_PUB)
    )
    with pytest.raises(RemoteProtocolError) as caught:
        responder().read_act_one(ours.write_act_one())
    assert caught.value.reason == "act-one-mac"


@given(st.binary(max_size=80))
def test_act_one_from_strangers(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        responder().read_act_one(data)


@settings(max_examples=50)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.just(bytes(65535)), st.just(b""))),
    st.data(),
)
def test_messages_in_pieces(messages: list[bytes], data: st.DataObject) -> None:
    sender, receiver = transports()
    stream = b"".join(map(sender.encrypt, messages))
    received = []
    while stream:
        size = data.draw(st.sampled_from([1, 17, 18, 19, 5000, 10**6]))
        received += receiver.feed(stream[:size])
        stream = stream[size:]
        if len(received) == len(messages):
            break
        if len(stream) > 5000 and size < 100:
            received += receiver.feed(stream[:4000])
            stream = stream[4000:]
    assert received == messages


@pytest.mark.parametrize("place", [0, 1, 17, 18, 30])
def test_a_changed_byte(place: int) -> None:
    sender, receiver = transports()
    good, bad = sender.encrypt(b"good"), bytearray(sender.encrypt(b"a changed message"))
    assert receiver.feed(good) == [b"good"]
    bad[place] ^= 1
    for data in (bytes(bad), sender.encrypt(b"too late"), b""):
        with pytest.raises(RemoteProtocolError) as caught:
            receiver.feed(data)
        assert caught.value.reason == "bad-mac"


def test_a_replayed_message() -> None:
    sender, receiver = transports()
    sealed = sender.encrypt(b"once")
    assert receiver.feed(sealed) == [b"once"]
    with pytest.raises(RemoteProtocolError):
        receiver.feed(sealed)


def test_a_message_too_long() -> None:
    sender, receiver = transports()
    with pytest.raises(LocalProtocolError) as caught:
        sender.encrypt(bytes(65536))
    assert caught.value.reason == "message-too-long"
    # The failure used up no key: the next message is understood.
    assert receiver.feed(sender.encrypt(b"next")) == [b"next"]
