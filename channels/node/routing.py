"""Our own channels as the first hops of a route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from channels.bolt.route import LocalChannel
from channels.node.channel_listing import spendable_msat
from channels.units import Msat

if TYPE_CHECKING:
    from channels.node.node import Node


def local_channels(node: Node) -> list[LocalChannel]:
    """The channels that can carry a payment right now, and how much."""
    found = []
    for channel in node.channels.values():
        state = channel.state
        if not channel.usable or state.short_channel_id is None:
            continue
        in_flight = state.peer.max_htlc_value_in_flight_msat
        found.append(
            LocalChannel(
                node_id=state.peer_id,
                short_channel_id=state.short_channel_id,
                spendable_msat=Msat(min(spendable_msat(channel), in_flight)),
                htlc_minimum_msat=state.peer.htlc_minimum_msat,
            )
        )
    return found
