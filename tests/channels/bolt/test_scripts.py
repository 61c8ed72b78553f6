"""Every way to spend an output of BOLT 3, executed by an independent script interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from channels.bolt import keys, scripts
from channels.bolt.closing import closing_transaction
from channels.bolt.commitment import ChannelType, Commitment, signed_htlc
from channels.bolt.keys import FIRST_INDEX
from channels.bolt.transactions import (
    OutPoint,
    Transaction,
    TxIn,
    TxOut,
    p2wpkh,
    p2wpkh_script_code,
    p2wsh,
)
from channels.errors import LocalProtocolError
from channels.units import Sat
from tests.channels.bolt.two_sides import ALICE, BOB, DELAY, FUNDING, Side, htlc, preimage
from tests.script_vm import accepts

DESTINATION = p2wpkh(keys.public_key(b"\x77" * 32))
OFFERED, RECEIVED = 0, 1
Witness = Callable[[bytes], tuple[bytes, ...]]


@pytest.fixture(params=list(ChannelType), ids=lambda channel_type: channel_type.name.lower())
def side(request: pytest.FixtureRequest) -> Side:
    htlcs = (htlc(True, 20_000_000, OFFERED), htlc(False, 30_000_000, RECEIVED))
    return Side(request.param, htlcs)


def _anchors(side: Side) -> bool:
    return side.channel_type is ChannelType.ANCHORS


def _spend(
    parent: Transaction,
    vout: int,
    script: bytes,
    secret: bytes,
    witness: Witness,
    sequence: int = 0,
    locktime: int = 0,
) -> bool:
    """Whether the VM lets `secret` spend an output with the witness that it makes."""
    spent = parent.outputs[vout]
    tx = Transaction(
        2,
        (TxIn(OutPoint(parent.txid, vout), sequence),),
        (TxOut(Sat(spent.value - 200), DESTINATION),),
        locktime,
    )
    signature = keys.sign(secret, tx.segwit_digest(0, script, spent.value))
    return accepts(tx.with_witness(0, (*witness(keys.der(signature) + b"\x01"), script)), spent)


def _revocation_secret(side: Side) -> bytes:
    return keys.derive_revocation_privkey(
        side.other.revocation_basepoint,
        side.owner.per_commitment_secret(FIRST_INDEX - side.number),
    )


def _delayed_secret(side: Side) -> bytes:
    return keys.derive_privkey(side.owner.delayed_payment_basepoint, side.point)


def _place(commitment: Commitment, number: int) -> int:
    return next(i for i, output in enumerate(commitment.htlcs) if output.htlc.id == number)


def _stage(side: Side, number: int) -> Transaction:
    commitment = side.commitment
    index = _place(commitment, number)
    _, remote = side.remote_signatures(commitment)
    known = None if commitment.htlcs[index].htlc.offered else preimage(number)
    local = side.local_htlc_signature(commitment, index)
    return signed_htlc(commitment, index, local, remote[index], known)


@pytest.mark.parametrize("swapped", [False, True])
def test_commitment(side: Side, swapped: bool) -> None:
    # Either order of the two funding keys.
    if swapped:
        side = Side(side.channel_type, side.htlcs, owner=BOB, other=ALICE)
    signed = side.signed(side.commitment)
    assert accepts(signed, side.funding_output)
    _, first, second, script = signed.inputs[0].witness
    assert not accepts(signed.with_witness(0, (b"", second, first, script)), side.funding_output)


def test_expected_weight_bounds_the_signed_commitment(side: Side) -> None:
    weight = side.signed(side.commitment).weight
    expected = (1124 if _anchors(side) else 724) + 2 * 172
    # Two signatures of up to 73 bytes; anchors count the outputs with 3 bytes (Appendix A).
    assert expected - 4 - (8 if _anchors(side) else 0) <= weight <= expected


@pytest.mark.parametrize("number", [OFFERED, RECEIVED])
def test_second_stage(side: Side, number: int) -> None:
    commitment = side.commitment
    spent = commitment.tx.outputs[commitment.htlcs[_place(commitment, number)].vout]
    stage = _stage(side, number)
    assert accepts(stage, spent)
    assert stage.locktime == (500 if number == OFFERED else 0)
    zero, remote, local, known, script = stage.inputs[0].witness
    assert not accepts(stage.with_witness(0, (zero, local, remote, known, script)), spent)
    wrong = b"" if known else preimage(OFFERED)
    assert not accepts(stage.with_witness(0, (zero, remote, local, wrong, script)), spent)


def test_anchor_second_stages_can_take_more_inputs_to_pay_a_fee(side: Side) -> None:
    commitment = side.commitment
    index = _place(commitment, RECEIVED)
    _, remote = side.remote_signatures(commitment)
    output = commitment.htlcs[index]
    coin_secret = b"\x55" * 32
    coin = TxOut(Sat(5_000), p2wpkh(keys.public_key(coin_secret)))
    bumped = Transaction(
        2,
        (*output.second_stage.inputs, TxIn(OutPoint(b"\x99" * 32, 0))),
        (*output.second_stage.outputs, TxOut(Sat(1_000), DESTINATION)),
        0,
    )
    spent = commitment.tx.outputs[output.vout]
    htlc_key = keys.derive_privkey(side.owner.htlc_basepoint, side.point)
    local = keys.sign(htlc_key, bumped.segwit_digest(0, output.script, spent.value))
    flag = bytes((commitment.htlc_sighash_type(for_remote_signature=True),))
    stack = (keys.der(remote[index]) + flag, keys.der(local) + b"\x01", preimage(RECEIVED))
    bumped = bumped.with_witness(0, (b"", *stack, output.script))
    code = p2wpkh_script_code(keys.public_key(coin_secret))
    signature = keys.sign(coin_secret, bumped.segwit_digest(1, code, coin.value))
    pair = (keys.der(signature) + b"\x01", keys.public_key(coin_secret))
    assert accepts(bumped.with_witness(1, pair), spent, coin) is _anchors(side)


@pytest.mark.parametrize("source", ["commitment", "htlc-timeout", "htlc-success"])
def test_delayed_outputs(side: Side, source: str) -> None:
    commitment = side.commitment
    if source == "commitment":
        assert commitment.to_local_vout is not None
        parent, vout = commitment.tx, commitment.to_local_vout
    else:
        parent, vout = _stage(side, OFFERED if source == "htlc-timeout" else RECEIVED), 0
    script = commitment.to_local_script
    delayed, revocation = _delayed_secret(side), _revocation_secret(side)

    def later(signature: bytes) -> tuple[bytes, ...]:
        return signature, b""

    def punish(signature: bytes) -> tuple[bytes, ...]:
        return signature, b"\x01"

    assert _spend(parent, vout, script, delayed, later, sequence=DELAY)
    assert not _spend(parent, vout, script, delayed, later, sequence=DELAY - 1)
    assert not _spend(parent, vout, script, delayed, later, sequence=DELAY | 1 << 22)
    assert _spend(parent, vout, script, revocation, punish)
    assert not _spend(parent, vout, script, delayed, punish)
    assert not _spend(parent, vout, script, revocation, later, sequence=DELAY)


@pytest.mark.parametrize("number", [OFFERED, RECEIVED])
def test_revoked_htlc(side: Side, number: int) -> None:
    commitment = side.commitment
    output = commitment.htlcs[_place(commitment, number)]
    secret = _revocation_secret(side)
    pubkey = keys.public_key(secret)
    assert pubkey == commitment.spec.keys.revocation

    def punish(signature: bytes) -> tuple[bytes, ...]:
        return signature, pubkey

    parent = commitment.tx
    assert _spend(parent, output.vout, output.script, secret, punish)
    assert not _spend(parent, output.vout, output.script, _delayed_secret(side), punish)


def test_remote_claims_an_offered_htlc_with_the_preimage(side: Side) -> None:
    commitment = side.commitment
    output = commitment.htlcs[_place(commitment, OFFERED)]
    secret = keys.derive_privkey(side.other.htlc_basepoint, side.point)

    def claim(known: bytes, sequence: int) -> bool:
        return _spend(
            commitment.tx,
            output.vout,
            output.script,
            secret,
            lambda signature: (signature, known),
            sequence,
        )

    assert claim(preimage(OFFERED), 1)
    assert not claim(preimage(RECEIVED), 1)
    # Only anchors need an nSequence of 1.
    assert claim(preimage(OFFERED), 0) is not _anchors(side)


def test_remote_times_out_a_received_htlc(side: Side) -> None:
    commitment = side.commitment
    output = commitment.htlcs[_place(commitment, RECEIVED)]
    secret = keys.derive_privkey(side.other.htlc_basepoint, side.point)

    def timeout(locktime: int, sequence: int) -> bool:
        return _spend(
            commitment.tx,
            output.vout,
            output.script,
            secret,
            lambda signature: (signature, b""),
            sequence,
            locktime,
        )

    assert timeout(500, 1)
    assert not timeout(499, 1)
    assert not timeout(500, 0xFFFFFFFF)
    assert timeout(500, 0) is not _anchors(side)


def test_to_remote(side: Side) -> None:
    commitment = side.commitment
    vout, secret = commitment.to_remote_vout, side.other.payment_basepoint
    assert vout is not None
    pubkey = keys.public_key(secret)
    if _anchors(side):
        script = scripts.to_remote_script(pubkey)
        alone: Witness = lambda signature: (signature,)  # noqa: E731  a def each would be longer
        assert _spend(commitment.tx, vout, script, secret, alone, sequence=1)
        assert not _spend(commitment.tx, vout, script, secret, alone, sequence=0)
        assert not _spend(
            commitment.tx, vout, script, side.owner.payment_basepoint, alone, sequence=1
        )
        return
    spent = commitment.tx.outputs[vout]
    tx = Transaction(
        2,
        (TxIn(OutPoint(commitment.tx.txid, vout)),),
        (TxOut(Sat(1_000), DESTINATION),),
        0,
    )
    signature = keys.sign(secret, tx.segwit_digest(0, p2wpkh_script_code(pubkey), spent.value))
    assert accepts(tx.with_witness(0, (keys.der(signature) + b"\x01", pubkey)), spent)


def test_anchors() -> None:
    side = Side(ChannelType.ANCHORS)
    commitment = side.commitment
    for vout, secret in (
        (commitment.local_anchor_vout, side.owner.funding),
        (commitment.remote_anchor_vout, side.other.funding),
    ):
        assert vout is not None
        script = scripts.anchor_script(keys.public_key(secret))
        assert _spend(commitment.tx, vout, script, secret, lambda signature: (signature,))
        assert not _spend(
            commitment.tx, vout, script, side.owner.htlc_basepoint, lambda signature: (signature,)
        )
        # Anybody may sweep it, 16 blocks later.
        assert _spend(commitment.tx, vout, script, secret, lambda _: (b"",), sequence=16)
        assert not _spend(commitment.tx, vout, script, secret, lambda _: (b"",), sequence=15)


def _close(local: int, remote: int, **options: Sat) -> Transaction:
    return closing_transaction(
        funding=FUNDING,
        local_script=DESTINATION,
        remote_script=p2wsh(b"\x51"),
        local_satoshis=Sat(local),
        remote_satoshis=Sat(remote),
        **options,
    )


def test_closing_transaction() -> None:
    side = Side(ChannelType.ANCHORS)
    script, spent = side.commitment.funding_script, side.funding_output
    tx = _close(600_000, 399_000)
    assert [output.value for output in tx.outputs] == [399_000, 600_000]
    assert (tx.version, tx.locktime, tx.inputs[0].sequence) == (2, 0, 0xFFFFFFFF)
    digest = tx.segwit_digest(0, script, spent.value)
    signatures = {
        keys.public_key(secret): keys.der(keys.sign(secret, digest)) + b"\x01"
        for secret in (side.owner.funding, side.other.funding)
    }
    ordered = [signatures[pubkey] for pubkey in sorted(signatures)]
    assert accepts(tx.with_witness(0, (b"", *ordered, script)), spent)
    assert not accepts(tx.with_witness(0, (b"", *ordered[::-1], script)), spent)


@pytest.mark.parametrize(
    ("local", "remote", "limit", "values"),
    [
        (293, 330, 0, [330]),
        (294, 329, 0, [294]),
        (294, 330, 0, [294, 330]),
        (545, 546, 546, [546]),
        (330, 330, 0, [330, 330]),
        (0, 999_000, 0, [999_000]),
    ],
)
def test_closing_leaves_out_dust(local: int, remote: int, limit: int, values: list[int]) -> None:
    tx = _close(local, remote, dust_limit_satoshis=Sat(limit))
    assert [output.value for output in tx.outputs] == values
    assert list(tx.outputs) == sorted(tx.outputs, key=lambda out: (out.value, out.script))


def test_closing_needs_an_output() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        _close(293, 329)
    assert caught.value.reason == "closing-without-outputs"
