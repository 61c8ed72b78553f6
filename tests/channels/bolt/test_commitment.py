from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.bolt import keys
from channels.bolt.commitment import (
    ChannelType,
    Commitment,
    CommitmentKeys,
    CommitmentSpec,
    Htlc,
    build,
    check_signatures,
    commitment_fee,
    commitment_number,
    fully_signed,
    htlc_success_fee,
    htlc_timeout_fee,
    is_trimmed,
    obscuring_factor,
    sign_commitment,
    sign_htlcs,
    signed_htlc,
)
from channels.bolt.keys import Basepoints
from channels.bolt.transactions import OutPoint
from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.units import FeeratePerKw, Msat, Sat
from tests.channels.bolt.two_sides import ALICE, BOB, Side, htlc, preimage
from tests.vectors.bolt03 import ANCHORS, COMMON, STATIC_REMOTEKEY

BOTH = list(ChannelType)
SAME_PREIMAGE = "commitment tx with 3 htlc outputs, 2 offered having the same amount and preimage"


def _common(name: str) -> bytes:
    return bytes.fromhex(COMMON[name])


def _vector_keys() -> CommitmentKeys:
    owner = Basepoints(
        _common("local_funding_pubkey"),
        _common("local_funding_pubkey"),  # not used by its owner's commitment
        _common("local_payment_basepoint"),
        _common("local_delayed_payment_basepoint"),
        _common("local_htlc_basepoint"),
    )
    other = Basepoints(
        _common("remote_funding_pubkey"),
        _common("remote_revocation_basepoint"),
        _common("remote_payment_basepoint"),
        _common("remote_payment_basepoint"),  # not used by the owner's commitment
        _common("remote_htlc_basepoint"),
    )
    return CommitmentKeys.derive(owner, other, _common("local_per_commitment_point"))


def _vector_htlcs(numbers: list[int]) -> tuple[Htlc, ...]:
    chosen = []
    for number in numbers:
        entry = COMMON["htlcs"][number]
        payment_hash = hashlib.sha256(bytes.fromhex(entry["payment_preimage"])).digest()
        amount = Msat(entry["amount_msat"])
        chosen.append(Htlc(entry["offered"], amount, payment_hash, entry["expiry"], number))
    return tuple(chosen)


def _vector(
    channel_type: ChannelType, balances: tuple[int, int], feerate: int, dust: int, htlcs: list[int]
) -> Commitment:
    return build(
        CommitmentSpec(
            channel_type=channel_type,
            funding=OutPoint(_common("funding_tx_id")[::-1], COMMON["funding_output_index"]),
            funding_satoshis=COMMON["funding_amount_satoshi"],
            commitment_number=COMMON["commitment_number"],
            opener_payment_basepoint=_common("local_payment_basepoint"),
            accepter_payment_basepoint=_common("remote_payment_basepoint"),
            owner_is_opener=True,
            keys=_vector_keys(),
            to_self_delay=COMMON["local_delay"],
            dust_limit=Sat(dust),
            feerate=FeeratePerKw(feerate),
            to_owner_msat=Msat(balances[0]),
            to_other_msat=Msat(balances[1]),
            htlcs=_vector_htlcs(htlcs),
        )
    )


def _signed(commitment: Commitment) -> str:
    local = sign_commitment(commitment, _common("local_funding_privkey"))
    remote = sign_commitment(commitment, _common("remote_funding_privkey"))
    return fully_signed(commitment, local, remote).serialize().hex()


def _htlc_secrets() -> tuple[bytes, bytes]:
    point = _common("local_per_commitment_point")
    return (
        keys.derive_privkey(_common("local_payment_basepoint_secret"), point),
        keys.derive_privkey(_common("remote_payment_basepoint_secret"), point),
    )


def _signed_stage(commitment: Commitment, index: int) -> tuple[bytes, bytes, str]:
    local_key, remote_key = _htlc_secrets()
    remote = sign_htlcs(commitment, remote_key)[index]
    local = keys.sign(local_key, commitment.htlc_digest(index, for_remote_signature=False))
    entry = commitment.htlcs[index].htlc
    known = bytes.fromhex(COMMON["htlcs"][entry.id]["payment_preimage"])
    tx = signed_htlc(commitment, index, local, remote, None if entry.offered else known)
    return local, remote, tx.serialize().hex()


def test_keys_of_appendix_c() -> None:
    derived = _vector_keys()
    assert derived.local_htlc == _common("local_htlcpubkey")
    assert derived.remote_htlc == _common("remote_htlcpubkey")
    assert derived.local_delayed == _common("local_delayedpubkey")
    assert derived.revocation == _common("local_revocation_pubkey")
    assert _htlc_secrets() == (_common("local_privkey"), _common("remote_privkey"))
    points = _common("local_payment_basepoint"), _common("remote_payment_basepoint")
    assert obscuring_factor(*points) == int(COMMON["obscuring_factor"], 16)


@pytest.mark.parametrize("case", STATIC_REMOTEKEY, ids=lambda case: case["name"])
def test_appendix_c(case: dict[str, Any]) -> None:
    commitment = _vector(
        ChannelType.STATIC_REMOTEKEY,
        (case["to_local_msat"], case["to_remote_msat"]),
        case["local_feerate_per_kw"],
        COMMON["local_dust_limit_satoshi"],
        case["htlcs"],
    )
    local = sign_commitment(commitment, _common("local_funding_privkey"))
    remote = sign_commitment(commitment, _common("remote_funding_privkey"))
    assert keys.der(local).hex() == case["local_signature"]
    assert keys.der(remote).hex() == case["remote_signature"]
    assert _signed(commitment) == case["commit_tx"]
    if case["actual_fee"] is not None:
        assert commitment.fee == case["actual_fee"]
        base = commitment_fee(
            ChannelType.STATIC_REMOTEKEY, case["local_feerate_per_kw"], len(commitment.htlcs)
        )
        assert base == case["base_fee"]
    stages = case["second_stages"]
    assert [output.htlc.id for output in commitment.htlcs] == [s["htlc"] for s in stages]
    for index, stage in enumerate(stages):
        local, remote, raw = _signed_stage(commitment, index)
        assert keys.der(local).hex() == stage["local_signature"]
        assert keys.der(remote).hex() == stage["remote_signature"]
        assert raw == stage["tx"]
    witness_scripts = {output.htlc.id: output.script.hex() for output in commitment.htlcs}
    assert witness_scripts == dict(case["htlc_scripts"])


@pytest.mark.parametrize("case", ANCHORS, ids=lambda case: case["Name"])
def test_appendix_f(case: dict[str, Any]) -> None:
    htlcs = [0, 1, 2, 3, 4] if case["UseTestHtlcs"] else []
    commitment = _vector(
        ChannelType.ANCHORS,
        (case["LocalBalance"], case["RemoteBalance"]),
        case["FeePerKw"],
        case["DustLimitSatoshis"],
        [1, 5, 6] if case["Name"] == SAME_PREIMAGE else htlcs,
    )
    remote = sign_commitment(commitment, _common("remote_funding_privkey"))
    assert keys.der(remote).hex() == case["RemoteSigHex"]
    assert _signed(commitment) == case["ExpectedCommitmentTxHex"]
    assert len(commitment.htlcs) == len(case["HtlcDescs"])
    for index, stage in enumerate(case["HtlcDescs"]):
        _, remote, raw = _signed_stage(commitment, index)
        assert keys.der(remote).hex() == stage["RemoteSigHex"]
        assert raw == stage["ResolutionTxHex"]


def test_the_example_of_bolt_3_fee_calculation() -> None:
    feerate, static = FeeratePerKw(5000), ChannelType.STATIC_REMOTEKEY
    assert htlc_timeout_fee(static, feerate) == 3315
    assert htlc_success_fee(static, feerate) == 3515
    amounts = [(True, 5_000), (True, 1_000), (False, 7_000), (False, 800)]
    htlcs = [htlc(offered, sat * 1000, n) for n, (offered, sat) in enumerate(amounts)]
    trimmed = [is_trimmed(h, Sat(546), feerate, static) for h in htlcs]
    assert trimmed == [False, True, False, True]
    assert commitment_fee(static, feerate, 2) == 5340


@pytest.mark.parametrize("offered", [True, False])
@pytest.mark.parametrize("channel_type", BOTH)
def test_an_htlc_is_trimmed_below_dust_limit_and_fee(
    channel_type: ChannelType, offered: bool
) -> None:
    feerate = FeeratePerKw(1000)
    fee = (htlc_timeout_fee if offered else htlc_success_fee)(channel_type, feerate)
    edge = (546 + fee) * 1000
    assert not is_trimmed(htlc(offered, edge, 0), Sat(546), feerate, channel_type)
    assert is_trimmed(htlc(offered, edge - 1, 0), Sat(546), feerate, channel_type)


def test_channel_types() -> None:
    assert ChannelType.STATIC_REMOTEKEY.bits.hex() == "1000"
    assert ChannelType.ANCHORS.bits.hex() == "401000"
    for channel_type in BOTH:
        assert ChannelType.from_bits(channel_type.bits) is channel_type
        assert ChannelType.from_bits(b"\x00" + channel_type.bits) is channel_type
    for bits in (b"", b"\x00", b"\x40\x00\x00", b"\x50\x10\x00", b"\x40\x10\x00" * 20_000):
        with pytest.raises(RemoteProtocolError) as caught:
            ChannelType.from_bits(bits)
        assert caught.value.reason == "unknown-channel-type"


htlcs = st.lists(
    st.builds(
        htlc,
        st.booleans(),
        st.integers(1, 30_000_000),
        st.integers(0, 3),  # few, so that some are alike
        st.integers(500, 503),
    ),
    max_size=10,
)


@st.composite
def sides(draw: st.DrawFn) -> Side:
    chosen = tuple(draw(htlcs))
    rest = 1_000_000_000 - sum(h.amount_msat for h in chosen)
    to_owner = draw(st.integers(0, rest))
    return Side(
        draw(st.sampled_from(BOTH)),
        chosen,
        Msat(to_owner),
        Msat(rest - to_owner),
        owner_is_opener=draw(st.booleans()),
        feerate=FeeratePerKw(draw(st.sampled_from([0, 253, 1000, 20_000]))),
        dust_limit=Sat(draw(st.sampled_from([354, 546, 3000]))),
        number=draw(st.integers(0, 1000)),
    )


def _cost(side: Side, untrimmed: int) -> int:
    anchors = 660_000 if side.channel_type is ChannelType.ANCHORS else 0
    return commitment_fee(side.channel_type, side.feerate, untrimmed) * 1000 + anchors


def _expected_fee_msat(side: Side, commitment: Commitment) -> int:
    """Base fee, what was trimmed, fractions of a satoshi, and anchors that were left out."""
    cost = _cost(side, len(commitment.htlcs))
    owner, other = int(side.to_owner_msat), int(side.to_other_msat)
    paid = min(cost, owner if side.owner_is_opener else other)
    owner, other = (owner - paid, other) if side.owner_is_opener else (owner, other - paid)
    fee = paid + sum(h.amount_msat for h in commitment.trimmed)
    fee += sum(output.htlc.amount_msat % 1000 for output in commitment.htlcs)
    for amount, vout in ((owner, commitment.to_local_vout), (other, commitment.to_remote_vout)):
        fee += amount if vout is None else amount % 1000
    anchors = (commitment.local_anchor_vout, commitment.remote_anchor_vout)
    return fee - 330_000 * sum(vout is not None for vout in anchors)


@settings(max_examples=150)
@given(sides())
def test_no_money_is_made_or_lost_and_each_side_signs_for_the_other(side: Side) -> None:
    try:
        commitment = side.commitment
    except RemoteProtocolError as error:
        assert error.reason == "commitment-overspends"
        opener = side.to_owner_msat if side.owner_is_opener else side.to_other_msat
        assert opener < 660_000
        return
    paid_out = sum(output.value for output in commitment.tx.outputs)
    assert paid_out + commitment.fee == side.capacity
    assert commitment.fee * 1000 == _expected_fee_msat(side, commitment)
    assert commitment.trimmed_msat == sum(h.amount_msat for h in commitment.trimmed)
    assert len(commitment.trimmed) + len(commitment.htlcs) == len(side.htlcs)
    balances = (commitment.to_local_vout, commitment.to_remote_vout)
    for vout in (*balances, *(output.vout for output in commitment.htlcs)):
        assert vout is None or commitment.tx.outputs[vout].value >= side.dust_limit
    _check_order(commitment)
    for output in commitment.htlcs:
        assert output.second_stage.outputs[0].value >= side.dust_limit
    assert (
        commitment_number(
            commitment.tx,
            commitment.spec.opener_payment_basepoint,
            commitment.spec.accepter_payment_basepoint,
        )
        == side.number
    )
    side.check(commitment)
    # The peer's commitment has the same balances and HTLCs, seen from the other side.
    mirrored = replace(
        side,
        owner=side.other,
        other=side.owner,
        owner_is_opener=not side.owner_is_opener,
        to_owner_msat=side.to_other_msat,
        to_other_msat=side.to_owner_msat,
        htlcs=tuple(replace(h, offered=not h.offered) for h in side.htlcs),
    )
    mirrored.check(mirrored.commitment)


def _check_order(commitment: Commitment) -> None:
    expiry = {output.vout: output.htlc.cltv_expiry for output in commitment.htlcs}
    order = [
        (output.value, output.script, expiry.get(vout, 0))
        for vout, output in enumerate(commitment.tx.outputs)
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("channel_type", BOTH)
def test_wrong_signatures_are_named(channel_type: ChannelType) -> None:
    side = Side(channel_type, (htlc(True, 20_000_000, 0), htlc(False, 30_000_000, 1)))
    commitment = side.commitment
    signature, htlc_signatures = side.remote_signatures(commitment)
    funding, htlc_key = commitment.spec.keys.remote_funding, commitment.spec.keys.remote_htlc

    def reason(signature: bytes, htlc_signatures: tuple[bytes, ...]) -> str:
        with pytest.raises(RemoteProtocolError) as caught:
            check_signatures(commitment, funding, signature, htlc_key, htlc_signatures)
        return caught.value.reason

    check_signatures(commitment, funding, signature, htlc_key, htlc_signatures)
    assert reason(bytes(64), htlc_signatures) == "bad-commitment-signature"
    assert reason(htlc_signatures[0], htlc_signatures) == "bad-commitment-signature"
    assert reason(signature, htlc_signatures[:1]) == "wrong-htlc-signature-count"
    assert reason(signature, (*htlc_signatures, signature)) == "wrong-htlc-signature-count"
    assert reason(signature, htlc_signatures[::-1]) == "bad-htlc-signature"


def test_the_preimage_must_fit() -> None:
    side = Side(ChannelType.ANCHORS, (htlc(True, 20_000_000, 0), htlc(False, 30_000_000, 1)))
    commitment = side.commitment
    sig = side.local_htlc_signature(commitment, 0)
    for index, wrong in ((0, preimage(0)), (1, None), (1, preimage(0)), (1, b"")):
        with pytest.raises(LocalProtocolError) as caught:
            signed_htlc(commitment, index, sig, sig, wrong)
        assert caught.value.reason == "wrong-preimage"


def test_anchors_that_nobody_pays_for_are_refused() -> None:
    side = Side(ChannelType.ANCHORS, (), Msat(0), Msat(1_000_000_000))
    with pytest.raises(RemoteProtocolError) as caught:
        _ = side.commitment
    assert caught.value.reason == "commitment-overspends"


def test_other_transactions_have_no_commitment_number() -> None:
    tx = Side(ChannelType.ANCHORS).commitment.tx
    points = ALICE.public().payment_basepoint, BOB.public().payment_basepoint
    assert commitment_number(tx, *points) == 7
    assert commitment_number(replace(tx, locktime=0), *points) is None
    assert commitment_number(replace(tx, inputs=tx.inputs * 2), *points) is None
    closing = replace(tx.inputs[0], sequence=0xFFFFFFFF)
    assert commitment_number(replace(tx, inputs=(closing,)), *points) is None
