"""One attempt of a payment: an onion for a route, the HTLC that carries it, and who failed it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from channels.bolt import onion, wire
from channels.bolt.channel import Channel
from channels.bolt.effects import HtlcFailed
from channels.bolt.onion import Failure
from channels.bolt.route import Hop
from channels.errors import LocalProtocolError
from channels.node.store import AttemptRow
from channels.units import Msat, ShortChannelId

if TYPE_CHECKING:
    from channels.node.node import Node

HOP_SIZE = 33 + 8 + 8 + 4


@dataclass(frozen=True, slots=True)
class ForPayee:
    """What the last hop's payload says beside its HTLC's amount and expiry (BOLT 4)."""

    payment_hash: bytes
    payment_secret: bytes | None = field(repr=False)
    total_msat: Msat
    payment_metadata: bytes | None = None
    custom: Mapping[int, bytes] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an attempt failed. `at` is the hop that said so (0 is the first), None when nobody did.

    `failure` is None when the error could not be read, or when the chain gave the HTLC back.
    """

    at: int | None
    failure: Failure | None
    sentence: str


def encode_route(route: Sequence[Hop]) -> bytes:
    return b"".join(
        hop.node_id
        + wire.u64(hop.short_channel_id)
        + wire.u64(hop.amount_msat)
        + wire.u32(hop.delay)
        for hop in route
    )


def decode_route(hops: bytes) -> tuple[Hop, ...]:
    route = []
    for start in range(0, len(hops), HOP_SIZE):
        reader = wire.Reader(hops[start : start + HOP_SIZE])
        node_id, scid = reader.take(33), ShortChannelId(reader.u64())
        route.append(Hop(node_id, scid, Msat(reader.u64()), reader.u32()))
    return tuple(route)


def build_onion(session_key: bytes, route: Sequence[Hop], height: int, payee: ForPayee) -> bytes:
    """Raises LocalProtocolError when the payloads do not fit."""
    hops = [
        onion.Hop(
            hop.node_id,
            onion.forward_payload(after.amount_msat, height + after.delay, after.short_channel_id),
        )
        for hop, after in pairwise(route)
    ]
    last = route[-1]
    payload = onion.final_payload(
        amt_to_forward=last.amount_msat,
        outgoing_cltv_value=height + last.delay,
        payment_secret=payee.payment_secret,
        total_msat=payee.total_msat,
        payment_metadata=payee.payment_metadata,
        custom=payee.custom,
    )
    hops.append(onion.Hop(last.node_id, payload))
    return onion.build_packet(session_key, hops, payee.payment_hash)


@dataclass(frozen=True, slots=True)
class Offered:
    """An HTLC that will leave with the turn; `session_key` reads the error that may come back."""

    channel: Channel
    htlc_id: int
    session_key: bytes = field(repr=False)


def offer(node: Node, route: Sequence[Hop], payee: ForPayee) -> Offered:
    """Offer the route's first HTLC; the caller notes in the same turn what it is for.

    Raises LocalProtocolError when the first channel does not take it now: nothing was done then.
    """
    first = route[0]
    channel = next(
        (
            c
            for c in node.channels_of(first.node_id)
            if c.state.short_channel_id == first.short_channel_id
        ),
        None,
    )
    if channel is None:
        raise LocalProtocolError("no-such-channel", "The route's first channel is not ours.")
    session_key = secrets.token_bytes(32)
    packet = build_onion(session_key, route, node.height, payee)
    cltv_expiry = node.height + first.delay
    htlc_id, effects = channel.offer_htlc(
        first.amount_msat, payee.payment_hash, cltv_expiry, packet
    )
    node.carry_out(channel, effects)
    return Offered(channel, htlc_id, session_key)


def read_fault(attempt: AttemptRow, effect: HtlcFailed) -> Fault:
    """Whom to blame for a failed HTLC (BOLT 4 "Returning Errors", the origin node)."""
    route = decode_route(attempt.hops)
    if effect.on_chain:
        return Fault(None, None, "The HTLC timed out on chain")
    if effect.unsent:
        return Fault(None, None, "The peer disconnected before it had the HTLC")
    if effect.malformed is not None:
        code = effect.malformed[0]
        return Fault(None, None, f"The peer could not read our onion (failure_code {code:#x})")
    read = read_erroronion(attempt, effect.reason)
    if read is None:
        return Fault(None, None, "Malformed error reply")
    at, failure = read
    who = "Destination" if at == len(route) - 1 else f"Hop {at + 1}, {route[at].node_id.hex()},"
    return Fault(at, failure, f"{who} said {failure.name}")


def read_erroronion(attempt: AttemptRow, erroronion: bytes) -> tuple[int, Failure] | None:
    """The hop (0 is the first) that made an error, and what it says."""
    node_ids = [hop.node_id for hop in decode_route(attempt.hops)]
    return onion.read_error(onion.shared_secrets(attempt.session_key, node_ids), erroronion)
