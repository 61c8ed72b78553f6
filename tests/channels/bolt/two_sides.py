"""Two sides of a channel with fixed keys, to build commitments of either."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from channels.bolt import keys
from channels.bolt.commitment import (
    ChannelType,
    Commitment,
    CommitmentKeys,
    CommitmentSpec,
    Htlc,
    build,
    check_signatures,
    fully_signed,
    sign_commitment,
    sign_htlcs,
)
from channels.bolt.keys import FIRST_INDEX, ChannelSecrets
from channels.bolt.transactions import OutPoint, Transaction, TxOut, p2wsh
from channels.units import FeeratePerKw, Msat, Sat

ALICE = ChannelSecrets.derive(b"\x0a" * 32, 0)
BOB = ChannelSecrets.derive(b"\x0b" * 32, 0)
FUNDING = OutPoint(hashlib.sha256(b"funding").digest(), 1)
CAPACITY = Sat(1_000_000)
DELAY = 144
OWNER_MSAT, OTHER_MSAT = Msat(600_000_000), Msat(300_000_000)
FEERATE = FeeratePerKw(1000)
DUST_LIMIT = Sat(546)


def preimage(number: int) -> bytes:
    return hashlib.sha256(b"preimage %d" % number).digest()


def htlc(offered: bool, amount_msat: int, number: int, cltv_expiry: int = 500) -> Htlc:
    payment_hash = hashlib.sha256(preimage(number)).digest()
    return Htlc(offered, Msat(amount_msat), payment_hash, cltv_expiry, number)


@dataclass(frozen=True)
class Side:
    """The owner of a commitment, the other side, and what the owner's has on it."""

    channel_type: ChannelType
    htlcs: tuple[Htlc, ...] = ()
    to_owner_msat: Msat = OWNER_MSAT
    to_other_msat: Msat = OTHER_MSAT
    owner: ChannelSecrets = ALICE
    other: ChannelSecrets = BOB
    owner_is_opener: bool = True
    feerate: FeeratePerKw = FEERATE
    dust_limit: Sat = DUST_LIMIT
    number: int = 7
    capacity: Sat = CAPACITY

    @property
    def point(self) -> bytes:
        return self.owner.per_commitment_point(FIRST_INDEX - self.number)

    @property
    def commitment(self) -> Commitment:
        opener, accepter = (
            (self.owner, self.other) if self.owner_is_opener else (self.other, self.owner)
        )
        spec = CommitmentSpec(
            channel_type=self.channel_type,
            funding=FUNDING,
            funding_satoshis=self.capacity,
            commitment_number=self.number,
            opener_payment_basepoint=opener.public().payment_basepoint,
            accepter_payment_basepoint=accepter.public().payment_basepoint,
            owner_is_opener=self.owner_is_opener,
            keys=CommitmentKeys.derive(self.owner.public(), self.other.public(), self.point),
            to_self_delay=DELAY,
            dust_limit=self.dust_limit,
            feerate=self.feerate,
            to_owner_msat=self.to_owner_msat,
            to_other_msat=self.to_other_msat,
            htlcs=self.htlcs,
        )
        return build(spec)

    @property
    def funding_output(self) -> TxOut:
        return TxOut(self.capacity, p2wsh(self.commitment.funding_script))

    def remote_signatures(self, commitment: Commitment) -> tuple[bytes, tuple[bytes, ...]]:
        """What the other side sends in commitment_signed."""
        htlc_key = keys.derive_privkey(self.other.htlc_basepoint, self.point)
        return sign_commitment(commitment, self.other.funding), sign_htlcs(commitment, htlc_key)

    def local_htlc_signature(self, commitment: Commitment, index: int) -> bytes:
        htlc_key = keys.derive_privkey(self.owner.htlc_basepoint, self.point)
        return keys.sign(htlc_key, commitment.htlc_digest(index, for_remote_signature=False))

    def check(self, commitment: Commitment) -> None:
        """The owner checks what the other side sends."""
        signature, htlc_signatures = self.remote_signatures(commitment)
        remote = commitment.spec.keys
        check_signatures(
            commitment, remote.remote_funding, signature, remote.remote_htlc, htlc_signatures
        )

    def signed(self, commitment: Commitment) -> Transaction:
        signature, _ = self.remote_signatures(commitment)
        return fully_signed(commitment, sign_commitment(commitment, self.owner.funding), signature)
