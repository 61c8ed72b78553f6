"""What a channel wants done to the world, in the order in which it must be done.

A state machine returns these; `channels.node` carries them out. A `Send` or `Broadcast` may leave
the machine only after the `Persist` before it is on disk: whatever a peer knows of us, we know too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from channels.bolt.messages import Message
from channels.bolt.transactions import OutPoint, Transaction
from channels.units import Msat, Sat


@dataclass(frozen=True, slots=True)
class Persist:
    """Write the channel's state before any later effect is carried out."""


@dataclass(frozen=True, slots=True)
class Send:
    message: Message


@dataclass(frozen=True, slots=True)
class Broadcast:
    transaction: Transaction


@dataclass(frozen=True, slots=True)
class Watch:
    """Report the confirmation, and later the spending, of this output."""

    outpoint: OutPoint
    script: bytes
    value: Sat


@dataclass(frozen=True, slots=True)
class FundingNeeded:
    """accept_channel arrived: build (and do not broadcast) a transaction that pays this script."""

    script: bytes
    value: Sat


@dataclass(frozen=True, slots=True)
class ChannelReady:
    """Both sides sent channel_ready: payments may flow."""


@dataclass(frozen=True, slots=True)
class HtlcReceived:
    """An incoming HTLC is irrevocably committed on both sides: it may be fulfilled or failed."""

    id: int
    amount_msat: Msat
    payment_hash: bytes
    cltv_expiry: int
    onion_routing_packet: bytes


@dataclass(frozen=True, slots=True)
class HtlcFulfilled:
    """The peer showed the preimage of an HTLC that we offered. The payment is complete."""

    id: int
    payment_hash: bytes
    payment_preimage: bytes


@dataclass(frozen=True, slots=True)
class HtlcFailed:
    """An HTLC that we offered is gone from both commitments: the money is ours again.

    `reason` is the onion-encrypted error (BOLT 4); for update_fail_malformed_htlc it is empty and
    `malformed` holds (failure_code, sha256_of_onion). When the chain gave it back, `on_chain`, the
    peer said nothing: a forwarder answers permanent_channel_failure (BOLT 5). One that is `unsent`
    was never signed when the connection dropped, and its id will be that of another.
    """

    id: int
    payment_hash: bytes
    reason: bytes
    malformed: tuple[int, bytes] | None = None
    on_chain: bool = False
    unsent: bool = False


@dataclass(frozen=True, slots=True)
class MutualClose:
    """Both sides signed the same closing transaction."""

    transaction: Transaction


@dataclass(frozen=True, slots=True)
class ChannelFailed:
    """The channel can't go on; `reason` is the stable slug, `sentence` the explanation."""

    reason: str
    sentence: str


Effect: TypeAlias = (
    Persist
    | Send
    | Broadcast
    | Watch
    | FundingNeeded
    | ChannelReady
    | HtlcReceived
    | HtlcFulfilled
    | HtlcFailed
    | MutualClose
    | ChannelFailed
)
