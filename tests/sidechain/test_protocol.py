from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidechain import protocol
from sidechain.headers import genesis
from sidechain.light import EntryProof
from sidechain.params import MAIN, REGTEST
from sidechain.protocol import (
    BLOCK_PENALTIES,
    LIMITS,
    MAX_MESSAGE,
    PENALTIES,
    Addr,
    Address,
    Announce,
    AnyMessage,
    BlockData,
    GetAddr,
    GetData,
    GetHeaders,
    GetProofs,
    Headers,
    Inv,
    Item,
    Message,
    NotFound,
    Phase,
    Ping,
    Pong,
    Proofs,
    Reject,
    Tx,
    Verack,
    Version,
    decode,
    next_phase,
)
from sidechain.reasons import REASONS, Rejection

hashes = st.binary(min_size=32, max_size=32)
uints = st.integers(0, (1 << 63) - 1)
u32s = st.integers(0, 0xFFFFFFFF)
ports = st.integers(0, 0xFFFF)
hash_lists = st.lists(hashes, min_size=1, max_size=20).map(tuple)
items = st.sampled_from(Item)
addresses = st.builds(Address, st.text("abc.", min_size=1, max_size=9), st.integers(1, 9), uints)
proofs = st.builds(
    EntryProof,
    hashes,
    st.binary(max_size=512),
    u32s,
    st.lists(hashes, max_size=3).map(tuple),
    st.binary(max_size=64),
    hashes,
    st.binary(max_size=99),
    st.lists(st.tuples(st.integers(0, 255), hashes), max_size=3).map(tuple),
)
messages: st.SearchStrategy[AnyMessage] = st.one_of(
    st.builds(
        Version, u32s, u32s, hashes, uints, u32s, ports, ports, u32s, st.text("ab", max_size=64)
    ),
    st.just(Verack()),
    st.builds(Ping, uints),
    st.builds(Pong, uints),
    st.just(GetAddr()),
    st.builds(Addr, st.lists(addresses, max_size=9).map(tuple)),
    st.builds(GetHeaders, hash_lists, hashes),
    st.builds(Headers, st.lists(st.binary(min_size=80, max_size=80), max_size=9).map(tuple)),
    st.builds(Inv, items, hash_lists),
    st.builds(GetData, items, hash_lists),
    st.builds(NotFound, items, hash_lists),
    st.builds(BlockData, st.binary(max_size=99)),
    st.builds(Tx, st.binary(max_size=99)),
    st.builds(Reject, st.text("ab-", max_size=64), hashes),
    st.builds(
        GetProofs, hashes, st.lists(st.binary(max_size=64), min_size=1, max_size=9).map(tuple)
    ),
    st.builds(Proofs, st.lists(proofs, max_size=3).map(tuple)),
    st.builds(Announce, st.binary(max_size=99)),
)


@given(messages)
def test_messages_round_trip(message: AnyMessage) -> None:
    assert decode(message.encode()) == message


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    try:
        message = decode(data)
    except Rejection as rejection:
        assert rejection.reason in ("bad-message", "message-too-long")
    else:
        assert message.encode() == data


@given(messages, st.data())
def test_a_flipped_bit_is_another_message_or_none(message: AnyMessage, data: st.DataObject) -> None:
    encoded = bytearray(message.encode())
    bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    try:
        assert decode(bytes(encoded)) != message
    except Rejection as rejection:
        assert rejection.reason in ("bad-message", "message-too-long")


def test_the_largest_of_each_kind_fits_its_limit() -> None:
    full = bytes(32)
    proof = EntryProof(
        full,
        bytes(512),
        2**32 - 1,
        (full,) * 32,
        bytes(64),
        full,
        bytes(16384),
        ((255, full),) * 256,
    )
    big: list[Message] = [
        Addr((Address("x" * 255, 65535, 2**63 - 1),) * protocol.MAX_ADDRESSES),
        GetHeaders((full,) * protocol.MAX_LOCATOR, full),
        Headers((bytes(80),) * protocol.MAX_HEADERS),
        Inv(Item.TX, (full,) * protocol.MAX_INVENTORY),
        BlockData(bytes(MAIN.block_bytes)),
        GetProofs(full, (bytes(64),) * protocol.MAX_PROOFS),
        Proofs((proof,) * protocol.MAX_PROOFS),
    ]
    for message in big:
        assert decode(message.encode()) == message
        assert len(message.encode()) <= LIMITS[type(message)] <= MAX_MESSAGE < 1 << 20


@pytest.mark.parametrize(
    "message",
    [
        Headers((bytes(80),) * (protocol.MAX_HEADERS + 1)),
        Headers((bytes(81),)),
        Inv(Item.BLOCK, (bytes(32),) * (protocol.MAX_INVENTORY + 1)),
        Inv(Item.BLOCK, ()),
        GetHeaders((), bytes(32)),
        Addr((Address("x" * 256, 1, 0),)),
        Addr((Address("x", 0, 0),)),
        Reject("x" * 65, bytes(32)),
        Ping(-1),
        Ping(1 << 63),
    ],
)
def test_lengths_and_ranges_are_bounded(message: Message) -> None:
    with pytest.raises(Rejection) as caught:
        decode(message.encode())
    assert caught.value.reason in ("bad-message", "message-too-long")


VERSION = Version(1, REGTEST.network_id, genesis(REGTEST).hash, 5, 0, 0, 0, 0, "")
LEGAL: dict[tuple[Phase, type[Message]], Phase] = {
    (Phase.NEW, Version): Phase.VERSION,
    (Phase.VERSION, Verack): Phase.READY,
    **{(Phase.READY, kind): Phase.READY for kind in LIMITS if kind not in (Version, Verack)},
}
SAMPLES: dict[type[Message], Message] = {
    Version: VERSION,
    Verack: Verack(),
    Ping: Ping(1),
    Pong: Pong(1),
    GetAddr: GetAddr(),
    Addr: Addr(()),
    GetHeaders: GetHeaders((bytes(32),), bytes(32)),
    Headers: Headers(()),
    Inv: Inv(Item.TX, (bytes(32),)),
    GetData: GetData(Item.TX, (bytes(32),)),
    NotFound: NotFound(Item.TX, (bytes(32),)),
    BlockData: BlockData(b""),
    Tx: Tx(b""),
    Reject: Reject("", bytes(32)),
    GetProofs: GetProofs(bytes(32), (b"",)),
    Proofs: Proofs(()),
    Announce: Announce(b""),
}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("kind", LIMITS, ids=lambda kind: kind.__name__)
def test_every_cell_of_the_handshake(phase: Phase, kind: type[Message]) -> None:
    message = SAMPLES[kind]
    if (phase, kind) in LEGAL:
        assert next_phase(phase, message) is LEGAL[phase, kind]
        return
    with pytest.raises(Rejection) as caught:
        next_phase(phase, message)
    assert caught.value.reason == "bad-handshake"


def test_an_acceptable_version() -> None:
    protocol.check_version(REGTEST, genesis(REGTEST).hash, 6, VERSION)


def test_what_honest_peers_do_costs_nothing() -> None:
    assert PENALTIES.keys() == BLOCK_PENALTIES.keys() == REASONS.keys()
    for reason in ("stale-seq", "commit-immature", "mempool-full", "no-gain"):
        assert PENALTIES[reason] == 0
    for reason in ("high-hash", "bad-signature", "bad-stamp", "bad-message"):
        assert PENALTIES[reason] == protocol.BAN
    for reason in ("no-gain", "commit-missing", "bad-state-root", "high-hash"):
        assert BLOCK_PENALTIES[reason] == protocol.BAN
    assert BLOCK_PENALTIES["time-too-new"] == 0
    assert 0 < BLOCK_PENALTIES["bad-score"] < protocol.BAN
