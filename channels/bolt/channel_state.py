"""Everything that must survive a restart about one channel, and the policy it was opened under."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from channels.bolt.commitment import ChannelType
from channels.bolt.htlcs import UpdateLog
from channels.bolt.keys import Basepoints, ChannelSecrets
from channels.bolt.transactions import OutPoint
from channels.units import BlockHeight, FeeratePerKw, Msat, Sat, ShortChannelId


class State(Enum):
    """Where a channel is in its life. The values are lightningd's, as listpeerchannels shows."""

    OPENING = "OPENINGD"
    AWAITING_LOCKIN = "CHANNELD_AWAITING_LOCKIN"
    NORMAL = "CHANNELD_NORMAL"
    SHUTTING_DOWN = "CHANNELD_SHUTTING_DOWN"
    NEGOTIATING = "CLOSINGD_SIGEXCHANGE"
    CLOSING_AGREED = "CLOSINGD_COMPLETE"
    FAILED = "AWAITING_UNILATERAL"
    SPEND_SEEN = "FUNDING_SPEND_SEEN"
    ONCHAIN = "ONCHAIN"
    CLOSED = "CLOSED"


class Opening(Enum):
    """The message that an OPENING channel waits for (BOLT 2, Channel Establishment v1)."""

    ACCEPT_CHANNEL = "accept_channel"
    FUNDING_TRANSACTION = "our wallet's funding transaction"
    FUNDING_CREATED = "funding_created"
    FUNDING_SIGNED = "funding_signed"


@dataclass(frozen=True, slots=True)
class Policy:
    """What we ask of peers and what we put up with. One value per network, see `node.py`."""

    chain_hash: bytes
    dust_limit_satoshis: Sat = Sat(546)
    htlc_minimum_msat: Msat = Msat(1)
    max_accepted_htlcs: int = 483
    to_self_delay: int = 144
    max_to_self_delay: int = 2016
    minimum_depth: int = 3
    min_feerate: FeeratePerKw = FeeratePerKw(253)
    max_feerate: FeeratePerKw = FeeratePerKw(50_000)
    min_funding_satoshis: Sat = Sat(10_000)
    max_dust_htlc_exposure_msat: Msat = Msat(50_000_000)
    fulfillment_deadline: int = 18
    """Blocks before its expiry at which a fulfilled HTLC goes on chain (BOLT 2: 2R+G+S)."""
    reasonable_depth: int = 6
    """Confirmations after which what the chain says of an HTLC is passed on upstream (BOLT 5)."""
    irrevocable_depth: int = 100
    """Confirmations after which an output is irrevocably resolved (BOLT 5)."""


class Party(msgspec.Struct, frozen=True, kw_only=True):
    """What one side said in open_channel or accept_channel: its keys and its demands."""

    funding_pubkey: bytes
    revocation_basepoint: bytes
    payment_basepoint: bytes
    delayed_payment_basepoint: bytes
    htlc_basepoint: bytes
    dust_limit_satoshis: Sat
    max_htlc_value_in_flight_msat: Msat
    channel_reserve_satoshis: Sat
    htlc_minimum_msat: Msat
    to_self_delay: int
    max_accepted_htlcs: int

    @property
    def basepoints(self) -> Basepoints:
        return Basepoints(
            funding_pubkey=self.funding_pubkey,
            revocation_basepoint=self.revocation_basepoint,
            payment_basepoint=self.payment_basepoint,
            delayed_payment_basepoint=self.delayed_payment_basepoint,
            htlc_basepoint=self.htlc_basepoint,
        )


class ClosingState(msgspec.Struct, kw_only=True):
    """The mutual close: who said shutdown with which script, and the fees offered so far."""

    local_scriptpubkey: bytes | None = None
    remote_scriptpubkey: bytes | None = None
    closer: str | None = None  # who said shutdown first: "local" or "remote"
    shutdown_sent: bool = False
    feerate_per_kw: FeeratePerKw | None = None
    sent_fee_satoshis: Sat | None = None
    received_fee_satoshis: Sat | None = None
    agreed_fee_satoshis: Sat | None = None
    transaction: bytes | None = None


class ChannelState(msgspec.Struct, kw_only=True):
    """One channel, as it is stored. `index` numbers our channels and derives this one's keys."""

    index: int
    peer_id: bytes
    temporary_channel_id: bytes
    channel_type_bits: bytes
    funding_satoshis: Sat
    push_msat: Msat
    announce: bool
    local: Party
    log: UpdateLog
    state: State = State.OPENING
    opening: Opening | None = None
    remote: Party | None = None
    funding_txid: bytes | None = None
    funding_output_index: int = 0
    minimum_depth: int = 0
    short_channel_id: ShortChannelId | None = None
    opened_height: BlockHeight | None = None  # of the chain when the channel was opened
    failed_height: BlockHeight | None = None  # of the chain when our commitment was broadcast
    funding_height: BlockHeight | None = None
    spent_height: BlockHeight | None = None  # of the transaction that spent the funding output
    ready_sent: bool = False
    ready_received: bool = False

    # Commitment numbers (BOLT 2, Message Retransmission): the newest commitment of each side, and
    # how many of the peer's are revoked. remote_number - remote_revoked is 0, or 1 while we wait
    # for a revoke_and_ack.
    local_number: int = 0
    remote_number: int = 0
    remote_revoked: int = 0
    remote_current_point: bytes = b""
    remote_next_point: bytes = b""
    revoked_secrets: list[tuple[int, bytes]] = msgspec.field(default_factory=list)

    # What the peer signed for our newest commitment: enough to broadcast it.
    remote_signature: bytes = b""
    remote_htlc_signatures: tuple[bytes, ...] = ()

    # The last unacknowledged commitment_signed with its updates, encoded, in order; and whether a
    # revoke_and_ack went out after it.
    unacked: list[bytes] = msgspec.field(default_factory=list)
    revoked_last: bool = False

    closing: ClosingState = msgspec.field(default_factory=ClosingState)
    failure: tuple[str, str] | None = None

    @property
    def channel_type(self) -> ChannelType:
        return ChannelType.from_bits(self.channel_type_bits)

    @property
    def opener(self) -> bool:
        return self.log.opener

    @property
    def awaiting_revocation(self) -> bool:
        return self.remote_number > self.remote_revoked

    @property
    def funding(self) -> OutPoint:
        assert self.funding_txid is not None, "a funding outpoint is known from funding_created on"
        return OutPoint(self.funding_txid, self.funding_output_index)

    @property
    def peer(self) -> Party:
        assert self.remote is not None, "the peer's terms are known from accept_channel on"
        return self.remote

    @property
    def channel_id(self) -> bytes:
        """BOLT 2: funding_txid XOR funding_output_index in the last two bytes."""
        if self.funding_txid is None:
            return self.temporary_channel_id
        tail = int.from_bytes(self.funding_txid[-2:], "big") ^ self.funding_output_index
        return self.funding_txid[:-2] + tail.to_bytes(2, "big")


@dataclass(slots=True)
class Core:
    """A channel's state with the keys and rules that its transitions need: what they all take."""

    state: ChannelState
    secrets: ChannelSecrets
    policy: Policy
    connected: bool = False
    reestablished: bool = False


def _plain(value: object) -> object:
    if isinstance(value, ShortChannelId):
        return int(value)
    raise TypeError(f"a channel's state holds no {type(value).__name__}")


def _named(kind: type, value: object) -> object:
    return kind(value)


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_decoder = msgspec.msgpack.Decoder(ChannelState, dec_hook=_named)


def encode_state(state: ChannelState) -> bytes:
    return _encoder.encode(state)


def decode_state(blob: bytes) -> ChannelState:
    """Raises msgspec.ValidationError: a state of ours that can't be read must stop the node."""
    return _decoder.decode(blob)
