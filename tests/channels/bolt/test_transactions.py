from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt import keys, transactions
from channels.bolt.transactions import (
    MAX_MONEY,
    OutPoint,
    Transaction,
    TxIn,
    TxOut,
    dust_limit,
    funding_script,
    hash160,
    is_valid_shutdown_script,
    p2wpkh,
    p2wpkh_script_code,
    p2wsh,
    push,
    script_number,
)
from channels.errors import RemoteProtocolError
from channels.units import Sat
from tests.script_vm import accepts
from tests.vectors.bolt03 import ANCHORS, FUNDING, STATIC_REMOTEKEY

u32 = st.integers(0, 0xFFFFFFFF)
outpoints = st.builds(OutPoint, st.binary(min_size=32, max_size=32), u32)
inputs = st.builds(
    TxIn,
    outpoints,
    u32,
    st.binary(max_size=300),
    st.lists(st.binary(max_size=300), max_size=4).map(tuple),
)
outputs = st.builds(TxOut, st.integers(0, MAX_MONEY).map(Sat), st.binary(max_size=300))
transactions_ = st.builds(
    Transaction,
    u32,
    st.lists(inputs, min_size=1, max_size=4).map(tuple),
    st.lists(outputs, min_size=1, max_size=4).map(tuple),
    u32,
)
SECRET = bytes(range(1, 33))
PUBKEY = keys.public_key(SECRET)


def test_appendix_b() -> None:
    tx = Transaction.parse(bytes.fromhex(FUNDING["funding_tx"]))
    assert tx.serialize().hex() == FUNDING["funding_tx"]
    assert tx.txid_hex == FUNDING["txid"]
    assert tx.inputs[0].outpoint == OutPoint(
        bytes.fromhex(FUNDING["input_txid"])[::-1], FUNDING["input_index"]
    )
    script = funding_script(
        bytes.fromhex(FUNDING["remote_funding_pubkey"]),
        bytes.fromhex(FUNDING["local_funding_pubkey"]),
    )
    assert script.hex() == FUNDING["funding_witness_script"]
    funding = tx.outputs[FUNDING["funding_output"]]
    assert funding == TxOut(FUNDING["funding_satoshis"], p2wsh(script))
    assert tx.outputs[1].value == FUNDING["change_satoshis"]


@pytest.mark.parametrize(
    "raw",
    [case["commit_tx"] for case in STATIC_REMOTEKEY]
    + [stage["tx"] for case in STATIC_REMOTEKEY for stage in case["second_stages"]]
    + [case["ExpectedCommitmentTxHex"] for case in ANCHORS],
)
def test_signed_transactions_of_the_appendices_round_trip(raw: str) -> None:
    tx = Transaction.parse(bytes.fromhex(raw))
    assert tx.serialize().hex() == raw
    bare = tx.with_witness(0, ())
    assert tx.weight == 3 * len(bare.serialize()) + len(raw) // 2


@given(transactions_)
def test_round_trip(tx: Transaction) -> None:
    parsed = Transaction.parse(tx.serialize())
    assert parsed == tx
    bare = Transaction(
        tx.version,
        tuple(TxIn(i.outpoint, i.sequence, i.script_sig) for i in tx.inputs),
        tx.outputs,
        tx.locktime,
    )
    assert bare.txid == tx.txid
    assert bare.weight == 4 * len(bare.serialize())
    assert tx.weight <= 4 * len(tx.serialize())


@given(transactions_, st.data())
def test_damaged_transactions_are_refused_or_say_exactly_what_they_are(
    tx: Transaction, data: st.DataObject
) -> None:
    raw = bytearray(tx.serialize())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    _refused_or_same(bytes(raw))
    _refused_or_same(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@given(st.binary(max_size=200))
def test_hostile_bytes(data: bytes) -> None:
    _refused_or_same(data)
    _refused_or_same(b"\x02\x00\x00\x00\x00\x01" + data)


def _refused_or_same(data: bytes) -> None:
    try:
        parsed = Transaction.parse(data)
    except RemoteProtocolError as error:
        assert error.reason == "bad-transaction"
    else:
        assert parsed.serialize() == data


GOOD = Transaction(2, (TxIn(OutPoint(bytes(32), 0)),), (TxOut(Sat(1), b""),), 0).serialize()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD + b"\x00",
        GOOD[:4] + b"\x00\x00" + bytes(4),  # neither inputs nor outputs
        GOOD[:4] + b"\x00\x01" + GOOD[4:-4] + b"\x00" + GOOD[-4:],  # an announced witness, empty
        GOOD[:4] + b"\xff" + b"\xff" * 8,  # 2^64 - 1 inputs
        GOOD[:4] + b"\xfd\x01\x00" + GOOD[5:],  # a count that is longer than needed
        GOOD.replace(b"\x01" + bytes(8), b"\xff" * 9),  # more money than there is
        bytes(transactions.MAX_SIZE + 1),
    ],
)
def test_illegal_transactions(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Transaction.parse(data)


@pytest.mark.parametrize("sighash", [0x01, 0x83])
def test_bip_143_digests_satisfy_the_script_vm(sighash: int) -> None:
    spent = (TxOut(Sat(70_000), p2wpkh(PUBKEY)), TxOut(Sat(5_000), p2wsh(push(PUBKEY) + b"\xac")))
    tx = Transaction(
        2,
        (TxIn(OutPoint(b"\x01" * 32, 3), 7), TxIn(OutPoint(b"\x02" * 32, 0), 9)),
        (TxOut(Sat(60_000), p2wpkh(PUBKEY)), TxOut(Sat(1), b"\x6a")),
        500,
    )
    codes = (p2wpkh_script_code(PUBKEY), push(PUBKEY) + b"\xac")
    for index, last in ((0, PUBKEY), (1, codes[1])):
        digest = tx.segwit_digest(index, codes[index], spent[index].value, sighash)
        signature = keys.der(keys.sign(SECRET, digest)) + bytes((sighash,))
        tx = tx.with_witness(index, (signature, last))
    assert accepts(tx, *spent)
    changed = Transaction(tx.version, tx.inputs, (tx.outputs[0],), tx.locktime)
    assert not accepts(changed, *spent)
    assert not accepts(tx, TxOut(Sat(70_001), spent[0].script), spent[1])


def test_a_single_signature_without_an_output_of_its_own_signs_none() -> None:
    script = push(PUBKEY) + b"\xac"
    spent = TxOut(Sat(9), p2wsh(script))
    tx = Transaction(
        2,
        (TxIn(OutPoint(bytes(32), 0)), TxIn(OutPoint(bytes(32), 1))),
        (TxOut(Sat(1), b"\x51"),),
        0,
    )
    for index in (0, 1):
        signature = keys.sign(SECRET, tx.segwit_digest(index, script, Sat(9), 0x83))
        tx = tx.with_witness(index, (keys.der(signature) + b"\x83", script))
    assert accepts(tx, spent, spent)


def test_other_sighash_types_are_refused() -> None:
    tx = Transaction.parse(GOOD)
    with pytest.raises(ValueError, match="0x2"):
        tx.segwit_digest(0, b"", Sat(0), 0x02)


@pytest.mark.parametrize(
    ("number", "script"),
    [
        (0, "00"),
        (1, "51"),
        (16, "60"),
        (17, "0111"),
        (127, "017f"),
        (128, "028000"),
        (144, "029000"),
        (255, "02ff00"),
        (256, "020001"),
        (32767, "02ff7f"),
        (32768, "03008000"),
        (500_000, "0320a107"),
        (0xFFFFFFFF, "05ffffffff00"),
    ],
)
def test_script_numbers(number: int, script: str) -> None:
    assert script_number(number).hex() == script


def test_pushes() -> None:
    assert push(bytes(75))[:1] == b"\x4b"
    assert push(bytes(76))[:2] == b"\x4c\x4c"
    with pytest.raises(ValueError, match="256"):
        push(bytes(256))


P2PKH = b"\x76\xa9\x14" + bytes(20) + b"\x88\xac"
P2SH = b"\xa9\x14" + bytes(20) + b"\x87"
P2WPKH, P2WSH = b"\x00\x14" + bytes(20), b"\x00\x20" + bytes(32)
P2TR = b"\x51\x20" + bytes(32)


@pytest.mark.parametrize(
    ("script", "limit"),
    [
        (P2PKH, 546),
        (P2SH, 540),
        (P2WPKH, 294),
        (P2WSH, 330),
        (b"\x51\x02\x4e\x73", 240),
        (P2TR, 354),
        (b"\x60\x28" + bytes(40), 354),
        (b"\x6a\x06" + bytes(6), 0),
    ],
)
def test_dust_limits_of_bolt_3(script: bytes, limit: int) -> None:
    assert dust_limit(script) == limit


@pytest.mark.parametrize(
    ("script", "always", "anysegwit"),
    [
        (P2WPKH, True, True),
        (P2WSH, True, True),
        (P2TR, False, True),
        (b"\x60\x02\x00\x00", False, True),
        (b"\x51\x28" + bytes(40), False, True),
        (b"\x51\x29" + bytes(41), False, False),
        (b"\x51\x01\x00", False, False),
        (b"\x51\x20" + bytes(31), False, False),
        (b"\x61\x20" + bytes(32), False, False),
        (b"\x00\x15" + bytes(21), False, False),
        (P2PKH, False, False),
        (P2SH, False, False),
        (b"\x6a\x06" + bytes(6), False, False),
        (b"", False, False),
    ],
)
def test_shutdown_scripts_of_bolt_2(script: bytes, always: bool, anysegwit: bool) -> None:
    assert is_valid_shutdown_script(script, anysegwit=False) is always
    assert is_valid_shutdown_script(script, anysegwit=True) is anysegwit


def test_hash160() -> None:
    # BIP 173's example: the key of the generator pays to this program.
    generator = keys.public_key((1).to_bytes(32, "big"))
    assert hash160(generator).hex() == "751e76e8199196d454941c45d1b3a323f1433bd6"
