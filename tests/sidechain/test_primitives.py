from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from coincurve.keys import PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sidechain.model import sealed
from sidechain.primitives import (
    MAX_INT,
    NO_SIGNATURE,
    AddModel,
    AnyTransaction,
    Block,
    Commit,
    Header,
    OpenShard,
    Producer,
    RegisterPayee,
    Reveal,
    Transaction,
    commitment,
    decode_transaction,
    display,
    sha256d,
    shard_key_hash,
    sign_schnorr,
    signed,
    stamp_work,
    stamped,
    verify_schnorr,
    x_only,
)
from sidechain.reasons import Rejection
from tests.sidechain.world import ALICE, BOB, QUICK, World, add_model, h, register

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "bip340.json").read_text()
)

# Bitcoin's genesis block: the header's format is the same (bitcoin wiki, "Genesis block").
BITCOIN_GENESIS = bytes.fromhex(
    "01000000" + "00" * 32 + "3ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a"
    "29ab5f49ffff001d1dac2b7c"
)

hashes = st.binary(min_size=32, max_size=32)
uints = st.integers(0, MAX_INT)
uint32s = st.integers(0, 0xFFFFFFFF)
signatures = st.binary(min_size=64, max_size=64)
transactions: st.SearchStrategy[AnyTransaction] = st.one_of(
    st.builds(Producer, uint32s, uints, uint32s, hashes, hashes, st.binary(max_size=64)),
    st.builds(
        RegisterPayee,
        uint32s,
        uints,
        hashes,
        uints,
        st.binary(min_size=33, max_size=33),
        st.text(min_size=1, max_size=256),
        st.text(max_size=128),
        signatures,
    ),
    st.builds(
        AddModel,
        uint32s,
        uints,
        hashes,
        hashes,
        st.binary(min_size=1, max_size=4096),
        st.binary(min_size=1, max_size=256),
        hashes,
        st.lists(hashes, max_size=64).map(tuple),
        st.lists(hashes, max_size=8).map(tuple),
        st.integers(1, MAX_INT),
        uints,
        st.integers(1, MAX_INT),
        hashes,
        signatures,
    ),
    st.builds(Commit, uint32s, uints, hashes),
    st.builds(Reveal, uint32s, uints, hashes, hashes, hashes, uints, hashes, hashes, signatures),
    st.builds(OpenShard, uint32s, uints, hashes, st.integers(0, 63), hashes, signatures),
)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: str(case["index"]))
def test_bip340_vectors(case: dict[str, Any]) -> None:
    key, message, signature = (
        bytes.fromhex(case[name]) for name in ("public_key", "message", "signature")
    )
    assert verify_schnorr(key, message, signature) == case["valid"]
    if case["secret_key"] and len(message) == 32:
        secret = bytes.fromhex(case["secret_key"])
        assert x_only(secret) == key
        randomness = bytes.fromhex(case["aux_rand"])
        assert PrivateKey(secret).sign_schnorr(message, randomness) == signature
        if randomness == bytes(32):
            assert sign_schnorr(secret, message) == signature


@given(st.binary(max_size=40), st.binary(max_size=70))
def test_garbage_is_no_signature(key: bytes, signature: bytes) -> None:
    assert not verify_schnorr(key, bytes(32), signature)


def test_the_header_is_bitcoins() -> None:
    header = Header.decode(BITCOIN_GENESIS)
    assert header.encode() == BITCOIN_GENESIS
    assert display(header.hash) == (
        "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f"
    )
    assert (header.version, header.time, header.bits) == (1, 1231006505, 0x1D00FFFF)


@given(st.builds(Header, st.integers(-(1 << 31), (1 << 31) - 1), hashes, hashes, *[uint32s] * 3))
def test_headers_round_trip(header: Header) -> None:
    assert len(header.encode()) == 80
    assert Header.decode(header.encode()) == header


@given(transactions)
def test_transactions_round_trip(tx: AnyTransaction) -> None:
    assert decode_transaction(tx.encode()) == tx
    assert tx.txid == sha256d(tx.encode())


@given(st.binary(max_size=300))
def test_garbage_is_refused_with_one_reason(data: bytes) -> None:
    try:
        tx = decode_transaction(data)
    except Rejection as rejection:
        assert rejection.reason == "tx-decode"
    else:
        assert tx.encode() == data


@given(transactions, st.data())
def test_a_flipped_bit_never_gives_the_same_transaction(
    tx: Transaction, data: st.DataObject
) -> None:
    encoded = bytearray(tx.encode())
    bit = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    try:
        other = decode_transaction(bytes(encoded))
    except Rejection:
        return
    assert other != tx and other.encode() == encoded


def test_other_encodings_of_the_same_values_are_refused() -> None:
    tx = Commit(1, 2, h("blind"))
    plain = tx.encode()
    assert plain[:4] == bytes([0x94, 3, 1, 2])
    for other in (
        b"\xdc\x00\x04" + plain[1:],  # the array's length in two bytes
        plain[:1] + b"\xcc\x03" + plain[2:],  # the type in two bytes
        plain[:3] + b"\xcd\x00\x02" + plain[4:],  # the nonce in three
        plain[:3] + b"\xcb\x40\x00\x00\x00\x00\x00\x00\x00" + plain[4:],  # the nonce as a float
        plain[:4] + b"\xc5\x00\x20" + plain[6:],  # the bytes' length in two bytes
        plain + b"\x00",  # something behind it
        b"\x95" + plain[1:] + b"\x00",  # one field more
    ):
        with pytest.raises(Rejection) as caught:
            decode_transaction(other)
        assert caught.value.reason == "tx-decode"


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(Rejection, match="canonical"):
        decode_transaction(b"\x91" * 10_000)


def test_the_signature_is_over_everything_else() -> None:
    tx = add_model(QUICK, shards=("a",), openers=(BOB,))
    assert verify_schnorr(ALICE.key, tx.signature_hash(), tx.sig)
    changes: dict[str, Any] = {
        "network_id": tx.network_id + 1,
        "stamp_nonce": tx.stamp_nonce + 1,
        "infohash": h("x"),
        "weights_root": h("x"),
        "architecture": b"x",
        "objective": b"x",
        "dataset_root": h("x"),
        "shards": (),
        "openers": (),
        "min_gain": tx.min_gain + 1,
        "score": tx.score + 1,
        "score_cost": tx.score_cost + 1,
        "trainer": h("x"),
    }
    assert changes.keys() | {"sig"} == set(AddModel.__struct_fields__)
    for name, value in changes.items():
        other = msgspec.structs.replace(tx, **{name: value})
        assert not verify_schnorr(ALICE.key, other.signature_hash(), tx.sig), name


def test_types_can_not_be_taken_for_each_other() -> None:
    """The type number is signed, too."""
    tx = register(QUICK, ALICE)
    assert tx.unsigned()[1] == 1
    assert tx.encode()[1] == 1


def test_a_stamp_is_worth_its_hashes_and_does_not_hang_on_the_signature() -> None:
    tx = Reveal(1, 0, h("m"), h("i"), h("w"), 5, ALICE.key, h("salt"), NO_SIGNATURE)
    assert stamp_work(stamped(tx, 1 << 8)) >= 1 << 8
    stamp = stamped(tx, 1 << 8)
    assert stamp_work(signed(stamp, ALICE.secret)) == stamp_work(stamp)


def test_shards_are_sealed_under_the_hash_that_the_chain_checks() -> None:
    assert shard_key_hash(h("key")) == sealed.key_hash(h("key"))


def test_a_commitment_binds_all_its_parts() -> None:
    parts = [h("weights"), h("model"), ALICE.key, h("salt")]
    one = commitment(*parts)
    for i in range(4):
        other = list(parts)
        other[i] = h("other")
        assert commitment(*other) != one


def test_blocks_round_trip_and_other_forms_are_refused() -> None:
    world = World()
    block = world.build(register(QUICK, ALICE))
    data = block.encode()
    assert Block.decode(data, 1 << 16) == block
    cases = {
        "bad-blk-length": (data, len(data) - 1),
        "blk-decode": (data[:80], 1 << 16),
        "tx-decode": (data[:80] + b"\x91\x91\x00", 1 << 16),
    }
    for reason, (bad, most) in cases.items():
        with pytest.raises(Rejection) as caught:
            Block.decode(bad, most)
        assert caught.value.reason == reason
    for bad in (
        data + b"\x00",
        data[:80] + b"\xdc\x00\x02" + data[81:],  # two bytes for the number of transactions
        data[:80] + b"\xc1",
    ):
        with pytest.raises(Rejection) as caught:
            Block.decode(bad, 1 << 16)
        assert caught.value.reason == "blk-decode"
