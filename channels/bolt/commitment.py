"""Commitment transactions and the HTLC transactions that spend them (BOLT 3).

Everything is told from the side of the commitment's *owner*, the one who can broadcast it: the
"local node" of BOLT 3. The other side builds the very same transaction to sign it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from channels.bolt import keys, scripts
from channels.bolt.keys import Basepoints
from channels.bolt.transactions import (
    SIGHASH_ALL,
    SIGHASH_SINGLE_ANYONECANPAY,
    OutPoint,
    Transaction,
    TxIn,
    TxOut,
    funding_script,
    p2wpkh,
    p2wsh,
)
from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.units import FeeratePerKw, Msat, Sat, msat, sat_floor

ANCHOR_SATOSHIS = Sat(330)
"""BOLT 3: the value of each anchor output."""


class ChannelType(Enum):
    """The channel types that are spoken, by the feature bits of their `channel_type`."""

    STATIC_REMOTEKEY = frozenset({12})
    ANCHORS = frozenset({22, 12})

    @property
    def bits(self) -> bytes:
        """As in the `channel_type` of open_channel (BOLT 2)."""
        number = sum(1 << bit for bit in self.value)
        return number.to_bytes((number.bit_length() + 7) // 8, "big")

    @classmethod
    def from_bits(cls, bits: bytes) -> ChannelType:
        """Raises RemoteProtocolError("unknown-channel-type")."""
        for channel_type in cls:
            if bits.lstrip(b"\x00") == channel_type.bits:
                return channel_type
        raise RemoteProtocolError(
            "unknown-channel-type", "The channel type is neither anchors nor static_remotekey."
        )

    @property
    def htlc_sighash(self) -> int:
        """How the other side signs HTLC transactions (BOLT 3, BOLT 5)."""
        return SIGHASH_SINGLE_ANYONECANPAY if self is ChannelType.ANCHORS else SIGHASH_ALL


@dataclass(frozen=True, slots=True)
class CommitmentKeys:
    """The public keys of one commitment (33 bytes each); "local" is its owner."""

    per_commitment_point: bytes
    local_htlc: bytes
    remote_htlc: bytes
    local_delayed: bytes
    revocation: bytes
    remote_payment: bytes
    local_funding: bytes
    remote_funding: bytes

    @classmethod
    def derive(
        cls, owner: Basepoints, other: Basepoints, per_commitment_point: bytes
    ) -> CommitmentKeys:
        """The keys of the owner's commitment with that point (BOLT 3 "Key Derivation")."""
        point = per_commitment_point
        return cls(
            per_commitment_point=point,
            local_htlc=keys.derive_pubkey(owner.htlc_basepoint, point),
            remote_htlc=keys.derive_pubkey(other.htlc_basepoint, point),
            local_delayed=keys.derive_pubkey(owner.delayed_payment_basepoint, point),
            revocation=keys.derive_revocation_pubkey(other.revocation_basepoint, point),
            # option_static_remotekey, part of both channel types: not derived.
            remote_payment=other.payment_basepoint,
            local_funding=owner.funding_pubkey,
            remote_funding=other.funding_pubkey,
        )


@dataclass(frozen=True, slots=True)
class Htlc:
    """An HTLC in a commitment; `offered` by the commitment's owner, else received by it."""

    offered: bool
    amount_msat: Msat
    payment_hash: bytes
    cltv_expiry: int
    id: int = 0


@dataclass(frozen=True, slots=True)
class CommitmentSpec:
    """Everything that fixes one commitment transaction.

    `to_owner_msat` and `to_other_msat` are the balances without what is in `htlcs`, before fee
    and anchors are taken from the opener's.
    """

    channel_type: ChannelType
    funding: OutPoint
    funding_satoshis: Sat
    commitment_number: int
    opener_payment_basepoint: bytes
    accepter_payment_basepoint: bytes
    owner_is_opener: bool
    keys: CommitmentKeys
    to_self_delay: int
    dust_limit: Sat
    feerate: FeeratePerKw
    to_owner_msat: Msat
    to_other_msat: Msat
    htlcs: tuple[Htlc, ...]


@dataclass(frozen=True, slots=True)
class HtlcOutput:
    """An HTLC that has an output, with the transaction that spends it for the owner."""

    htlc: Htlc
    vout: int
    script: bytes
    second_stage: Transaction
    """The unsigned HTLC-timeout or HTLC-success transaction."""


@dataclass(frozen=True)
class Commitment:
    """A built commitment transaction, unsigned. Outputs that were trimmed have vout None."""

    spec: CommitmentSpec
    tx: Transaction
    htlcs: tuple[HtlcOutput, ...]
    """In the order of the outputs, which is that of `htlc_signature` in commitment_signed."""
    trimmed: tuple[Htlc, ...]
    to_local_script: bytes
    """Also the witness script of the output of every second stage transaction."""
    to_local_vout: int | None
    to_remote_vout: int | None
    local_anchor_vout: int | None
    remote_anchor_vout: int | None

    @property
    def funding_script(self) -> bytes:
        return funding_script(self.spec.keys.local_funding, self.spec.keys.remote_funding)

    @property
    def fee(self) -> Sat:
        """What the transaction really pays: the base fee and all that was trimmed."""
        return Sat(self.spec.funding_satoshis - sum(out.value for out in self.tx.outputs))

    @property
    def trimmed_msat(self) -> Msat:
        """The HTLCs that have no output: they would be lost to the fee."""
        return Msat(sum(htlc.amount_msat for htlc in self.trimmed))

    @cached_property
    def _sighash(self) -> bytes:
        return self.tx.segwit_digest(0, self.funding_script, self.spec.funding_satoshis)

    def sighash(self) -> bytes:
        """What both sides sign, 32 bytes."""
        return self._sighash

    def htlc_sighash_type(self, for_remote_signature: bool) -> int:
        """The sighash byte: the owner signs all, the other side leaves room for fees."""
        return self.spec.channel_type.htlc_sighash if for_remote_signature else SIGHASH_ALL

    def htlc_digest(self, index: int, for_remote_signature: bool = True) -> bytes:
        """What is signed for `htlcs[index]`: by the other side, or else by the owner."""
        output = self.htlcs[index]
        sighash = self.htlc_sighash_type(for_remote_signature)
        value = sat_floor(output.htlc.amount_msat)
        return output.second_stage.segwit_digest(0, output.script, value, sighash)


def commitment_fee(channel_type: ChannelType, feerate: FeeratePerKw, untrimmed_htlcs: int) -> Sat:
    """The base fee that the opener pays (BOLT 3 "Fee Calculation")."""
    base = 1124 if channel_type is ChannelType.ANCHORS else 724
    return Sat((base + 172 * untrimmed_htlcs) * feerate // 1000)


def htlc_timeout_fee(channel_type: ChannelType, feerate: FeeratePerKw) -> Sat:
    """The fee of an HTLC-timeout transaction; with anchors, whoever broadcasts it adds one."""
    return Sat(0 if channel_type is ChannelType.ANCHORS else 663 * feerate // 1000)


def htlc_success_fee(channel_type: ChannelType, feerate: FeeratePerKw) -> Sat:
    """The fee of an HTLC-success transaction; with anchors, whoever broadcasts it adds one."""
    return Sat(0 if channel_type is ChannelType.ANCHORS else 703 * feerate // 1000)


def _second_stage_fee(offered: bool, channel_type: ChannelType, feerate: FeeratePerKw) -> Sat:
    fee = htlc_timeout_fee if offered else htlc_success_fee
    return fee(channel_type, feerate)


def is_trimmed(
    htlc: Htlc, dust_limit: Sat, feerate: FeeratePerKw, channel_type: ChannelType
) -> bool:
    """Whether the HTLC is too small for an output (BOLT 3 "Trimmed Outputs").

    `dust_limit` is that of the commitment's owner.
    """
    fee = _second_stage_fee(htlc.offered, channel_type, feerate)
    return sat_floor(htlc.amount_msat) < dust_limit + fee


def obscuring_factor(opener_payment_basepoint: bytes, accepter_payment_basepoint: bytes) -> int:
    """What commitment numbers are XORed with (BOLT 3 "Commitment Transaction")."""
    digest = hashlib.sha256(opener_payment_basepoint + accepter_payment_basepoint).digest()
    return int.from_bytes(digest[-6:], "big")


def commitment_number(
    tx: Transaction, opener_payment_basepoint: bytes, accepter_payment_basepoint: bytes
) -> int | None:
    """The number of a commitment transaction seen on chain; None when it is not one."""
    sequence, locktime = tx.inputs[0].sequence, tx.locktime
    if len(tx.inputs) != 1 or sequence >> 24 != 0x80 or locktime >> 24 != 0x20:
        return None
    obscured = (sequence & 0xFFFFFF) << 24 | locktime & 0xFFFFFF
    return obscured ^ obscuring_factor(opener_payment_basepoint, accepter_payment_basepoint)


@dataclass(frozen=True, slots=True)
class _Output:
    """An output before it has a place in the transaction."""

    value: Sat
    script: bytes
    role: str
    witness_script: bytes = b""
    htlc: Htlc | None = None

    def order(self) -> tuple[int, bytes, int]:
        """BOLT 3 "Transaction Output Ordering"."""
        return self.value, self.script, self.htlc.cltv_expiry if self.htlc else 0


def _balances(spec: CommitmentSpec, untrimmed_htlcs: int) -> tuple[Sat, Sat]:
    """to_local and to_remote after the opener has paid for fee and anchors."""
    cost = msat(commitment_fee(spec.channel_type, spec.feerate, untrimmed_htlcs))
    if spec.channel_type is ChannelType.ANCHORS:
        cost = Msat(cost + 2 * msat(ANCHOR_SATOSHIS))
    owner, other = spec.to_owner_msat, spec.to_other_msat
    # An opener that can't pay pays all it has (Appendix C, "fee greater than opener amount").
    if spec.owner_is_opener:
        owner = Msat(max(0, owner - cost))
    else:
        other = Msat(max(0, other - cost))
    return sat_floor(owner), sat_floor(other)


def _htlc_outputs(spec: CommitmentSpec, htlcs: Sequence[Htlc]) -> list[_Output]:
    k, anchors = spec.keys, spec.channel_type is ChannelType.ANCHORS
    outputs = []
    for htlc in htlcs:
        if htlc.offered:
            script = scripts.offered_htlc_script(
                k.revocation, k.local_htlc, k.remote_htlc, htlc.payment_hash, anchors=anchors
            )
        else:
            script = scripts.received_htlc_script(
                k.revocation,
                k.local_htlc,
                k.remote_htlc,
                htlc.payment_hash,
                htlc.cltv_expiry,
                anchors=anchors,
            )
        value = sat_floor(htlc.amount_msat)
        outputs.append(_Output(value, p2wsh(script), "htlc", script, htlc))
    return outputs


def _outputs(spec: CommitmentSpec, to_local_script: bytes, htlcs: Sequence[Htlc]) -> list[_Output]:
    """All outputs in their order (BOLT 3 "Commitment Transaction Construction", 3 to 9)."""
    k, anchors = spec.keys, spec.channel_type is ChannelType.ANCHORS
    to_local, to_remote = _balances(spec, len(htlcs))
    outputs = _htlc_outputs(spec, htlcs)
    has_local, has_remote = to_local >= spec.dust_limit, to_remote >= spec.dust_limit
    if has_local:
        outputs.append(_Output(to_local, p2wsh(to_local_script), "to_local"))
    if has_remote:
        script = k.remote_payment
        script = p2wsh(scripts.to_remote_script(script)) if anchors else p2wpkh(script)
        outputs.append(_Output(to_remote, script, "to_remote"))
    if anchors and (has_local or htlcs):
        script = p2wsh(scripts.anchor_script(k.local_funding))
        outputs.append(_Output(ANCHOR_SATOSHIS, script, "local_anchor"))
    if anchors and (has_remote or htlcs):
        script = p2wsh(scripts.anchor_script(k.remote_funding))
        outputs.append(_Output(ANCHOR_SATOSHIS, script, "remote_anchor"))
    outputs.sort(key=_Output.order)
    if sum(output.value for output in outputs) > spec.funding_satoshis:
        raise RemoteProtocolError(
            "commitment-overspends", "A commitment would pay out more than its channel holds."
        )
    return outputs


def build(spec: CommitmentSpec) -> Commitment:
    """The commitment transaction and its HTLC transactions, all unsigned.

    Raises RemoteProtocolError("commitment-overspends") when the outputs are worth more than the
    funding output; checking an update before it is accepted avoids that.
    """
    kept: list[Htlc] = []
    trimmed: list[Htlc] = []
    for htlc in spec.htlcs:
        dust = is_trimmed(htlc, spec.dust_limit, spec.feerate, spec.channel_type)
        (trimmed if dust else kept).append(htlc)
    to_local_script = scripts.to_local_script(
        spec.keys.revocation, spec.to_self_delay, spec.keys.local_delayed
    )
    outputs = _outputs(spec, to_local_script, kept)
    obscured = spec.commitment_number ^ obscuring_factor(
        spec.opener_payment_basepoint, spec.accepter_payment_basepoint
    )
    tx = Transaction(
        2,
        (TxIn(spec.funding, 0x80 << 24 | obscured >> 24),),
        tuple(TxOut(output.value, output.script) for output in outputs),
        0x20 << 24 | obscured & 0xFFFFFF,
    )
    places = {output.role: vout for vout, output in enumerate(outputs)}
    return Commitment(
        spec=spec,
        tx=tx,
        htlcs=_second_stages(spec, tx, outputs, p2wsh(to_local_script)),
        trimmed=tuple(trimmed),
        to_local_script=to_local_script,
        to_local_vout=places.get("to_local"),
        to_remote_vout=places.get("to_remote"),
        local_anchor_vout=places.get("local_anchor"),
        remote_anchor_vout=places.get("remote_anchor"),
    )


def _second_stages(
    spec: CommitmentSpec, tx: Transaction, outputs: Sequence[_Output], script: bytes
) -> tuple[HtlcOutput, ...]:
    """BOLT 3 "HTLC-Timeout and HTLC-Success Transactions", in the order of the outputs."""
    sequence = 1 if spec.channel_type is ChannelType.ANCHORS else 0
    stages = []
    for vout, output in enumerate(outputs):
        htlc = output.htlc
        if htlc is None:
            continue
        fee = _second_stage_fee(htlc.offered, spec.channel_type, spec.feerate)
        second_stage = Transaction(
            2,
            (TxIn(OutPoint(tx.txid, vout), sequence),),
            (TxOut(Sat(output.value - fee), script),),
            htlc.cltv_expiry if htlc.offered else 0,
        )
        stages.append(HtlcOutput(htlc, vout, output.witness_script, second_stage))
    return tuple(stages)


def sign_commitment(commitment: Commitment, funding_secret: bytes) -> bytes:
    """A 64-byte signature of the commitment transaction, by either side."""
    return keys.sign(funding_secret, commitment.sighash())


def sign_htlcs(commitment: Commitment, htlc_privkey: bytes) -> tuple[bytes, ...]:
    """The `htlc_signature`s of commitment_signed, by the side that does not own the commitment.

    `htlc_privkey` is its derived one: derive_privkey(htlc_basepoint secret, owner's point).
    """
    count = len(commitment.htlcs)
    return tuple(keys.sign(htlc_privkey, commitment.htlc_digest(i)) for i in range(count))


def check_signatures(
    commitment: Commitment,
    remote_funding_pubkey: bytes,
    signature: bytes,
    remote_htlc_pubkey: bytes,
    htlc_signatures: Sequence[bytes],
) -> None:
    """Check commitment_signed against our own commitment.

    Raises RemoteProtocolError with "bad-commitment-signature", "wrong-htlc-signature-count" or
    "bad-htlc-signature".
    """
    if not keys.verify(remote_funding_pubkey, commitment.sighash(), signature):
        raise RemoteProtocolError(
            "bad-commitment-signature", "commitment_signed does not sign our commitment."
        )
    if len(htlc_signatures) != len(commitment.htlcs):
        raise RemoteProtocolError(
            "wrong-htlc-signature-count",
            f"commitment_signed has {len(htlc_signatures)} HTLC signatures for "
            f"{len(commitment.htlcs)} HTLC outputs.",
        )
    for index, htlc_signature in enumerate(htlc_signatures):
        if not keys.verify(remote_htlc_pubkey, commitment.htlc_digest(index), htlc_signature):
            raise RemoteProtocolError(
                "bad-htlc-signature", f"HTLC signature {index} of commitment_signed is wrong."
            )


def fully_signed(
    commitment: Commitment, local_signature: bytes, remote_signature: bytes
) -> Transaction:
    """The commitment transaction ready for broadcast; `local_signature` is the owner's."""
    k = commitment.spec.keys
    sighash = bytes((SIGHASH_ALL,))
    local, remote = keys.der(local_signature) + sighash, keys.der(remote_signature) + sighash
    # BOLT 3 "Funding Transaction Output": signatures in the order of the sorted keys.
    first, second = (local, remote) if k.local_funding < k.remote_funding else (remote, local)
    return commitment.tx.with_witness(0, (b"", first, second, commitment.funding_script))


def signed_htlc(
    commitment: Commitment,
    index: int,
    local_signature: bytes,
    remote_signature: bytes,
    preimage: bytes | None = None,
) -> Transaction:
    """The HTLC transaction of `htlcs[index]` with its witness.

    `local_signature` is the owner's, of htlc_digest(index, for_remote_signature=False); the
    preimage belongs to a received HTLC and to no other ("wrong-preimage").
    """
    output = commitment.htlcs[index]
    right = (
        preimage is None
        if output.htlc.offered
        else preimage is not None and hashlib.sha256(preimage).digest() == output.htlc.payment_hash
    )
    if not right:
        raise LocalProtocolError(
            "wrong-preimage", "A received HTLC needs its preimage, and an offered one has none."
        )
    stack = (
        b"",
        keys.der(remote_signature) + bytes((commitment.htlc_sighash_type(True),)),
        keys.der(local_signature) + bytes((commitment.htlc_sighash_type(False),)),
        preimage or b"",
        output.script,
    )
    return output.second_stage.with_witness(0, stack)
