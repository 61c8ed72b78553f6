"""Graphs for tests of routing: nodes with names, channels with fees, nothing signed."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from channels.bolt.graph import Graph, GraphChannel, direction_of
from channels.bolt.keys import public_key
from channels.bolt.messages import ChannelUpdate
from channels.units import Msat, Sat, ShortChannelId, msat

REGTEST_CHAIN = bytes.fromhex("06226e46111a0b59caaf126043eb5bbf28c34f3a5e332a1fc7b2b73cf188910f")


@lru_cache(maxsize=1024)
def secret(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@lru_cache(maxsize=1024)
def node(name: str) -> bytes:
    return public_key(secret(name))


def scid(number: int) -> ShortChannelId:
    return ShortChannelId.of(number, 1, 0)


def update(
    source: str,
    target: str,
    number: int,
    *,
    base: int = 0,
    millionths: int = 0,
    delta: int = 6,
    minimum: int = 0,
    maximum: int = 0,
    disabled: bool = False,
    timestamp: int = 1,
) -> ChannelUpdate:
    """An unsigned channel_update of the direction from `source` to `target`."""
    return ChannelUpdate(
        signature=bytes(64),
        chain_hash=REGTEST_CHAIN,
        short_channel_id=scid(number),
        timestamp=timestamp,
        message_flags=1,
        channel_flags=direction_of(node(source), node(target)) | 2 * disabled,
        cltv_expiry_delta=delta,
        htlc_minimum_msat=Msat(minimum),
        fee_base_msat=base,
        fee_proportional_millionths=millionths,
        htlc_maximum_msat=Msat(maximum),
    )


def connect(
    graph: Graph,
    one: str,
    other: str,
    number: int,
    *,
    capacity: int = 10_000_000,
    base: int = 0,
    millionths: int = 0,
    delta: int = 6,
    minimum: int = 0,
    maximum: int | None = None,
    only: str | None = None,
) -> None:
    """A channel of `capacity` sat with the same policy both ways, or only from `only`."""
    first, second = sorted((node(one), node(other)))
    graph.add_channel(GraphChannel(scid(number), (first, second), Sat(capacity)))
    for source, target in ((one, other), (other, one)):
        if only in (None, source):
            graph.update_channel(
                update(
                    source,
                    target,
                    number,
                    base=base,
                    millionths=millionths,
                    delta=delta,
                    minimum=minimum,
                    maximum=msat(Sat(capacity)) if maximum is None else maximum,
                )
            )
