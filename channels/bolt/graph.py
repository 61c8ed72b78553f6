"""The network as gossip tells it: who has a channel with whom, and what each direction costs.

Only what passed the checks of `gossip` gets in. A channel's two directions are told apart by a
`DirectedChannel`, its short_channel_id and the direction bit of channel_flags (BOLT 7); direction 0
leads from the lesser node id to the greater one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NewType

from channels.bolt.features import Feature, decode_bits
from channels.bolt.messages import ChannelUpdate, NodeAnnouncement
from channels.bolt.transactions import OutPoint
from channels.units import BlockHeight, Msat, Sat, ShortChannelId, msat

DirectedChannel = NewType("DirectedChannel", int)
"""short_channel_id << 1 | direction."""

DISABLE = 2
"""Bit 1 of channel_flags (BOLT 7)."""

_NO_EDGES: Mapping[DirectedChannel, Edge] = {}
_NO_TARGETS: Mapping[DirectedChannel, tuple[bytes, Edge]] = {}


def directed(short_channel_id: ShortChannelId, direction: int) -> DirectedChannel:
    return DirectedChannel(short_channel_id << 1 | direction)


def direction_of(source: bytes, target: bytes) -> int:
    """BOLT 7: node_id_1 is the lesser of the two ids, and 0 is its direction."""
    return int(source > target)


class Edge(NamedTuple):
    """One direction of a channel that may be used, kept under the node that it leads to.

    A route's search unpacks millions of these, which is why it is a tuple.
    """

    source: bytes
    channel: DirectedChannel
    fee_base_msat: int
    fee_proportional_millionths: int
    cltv_expiry_delta: int
    htlc_minimum_msat: int
    htlc_maximum_msat: int
    capacity_msat: int


@dataclass(slots=True)
class GraphChannel:
    """An announced channel: `nodes` in the order of BOLT 7, `updates` by direction.

    `announcement` is the encoded message, empty when there is none to pass on.
    """

    short_channel_id: ShortChannelId
    nodes: tuple[bytes, bytes]
    capacity_sat: Sat
    features: bytes = b""
    announcement: bytes = b""
    updates: list[ChannelUpdate | None] = field(default_factory=lambda: [None, None])
    outpoint: OutPoint | None = None
    spent_height: BlockHeight | None = None

    @property
    def capacity_msat(self) -> Msat:
        return msat(self.capacity_sat)


class Graph:
    """Channels by short_channel_id, nodes by id, and the edges that a route may use."""

    def __init__(self) -> None:
        self.channels: dict[ShortChannelId, GraphChannel] = {}
        self.announcements: dict[bytes, NodeAnnouncement] = {}
        self.avoided: set[bytes] = set()
        self._nodes: dict[bytes, set[ShortChannelId]] = {}
        self._incoming: dict[bytes, dict[DirectedChannel, Edge]] = {}
        self._outgoing: dict[bytes, dict[DirectedChannel, tuple[bytes, Edge]]] = {}

    def __contains__(self, node_id: bytes) -> bool:
        return node_id in self._nodes

    @property
    def nodes(self) -> Collection[bytes]:
        """Every node that has a channel."""
        return self._nodes.keys()

    def channels_of(self, node_id: bytes) -> Iterator[GraphChannel]:
        for short_channel_id in self._nodes.get(node_id, ()):
            yield self.channels[short_channel_id]

    def incoming(self, node_id: bytes) -> Mapping[DirectedChannel, Edge]:
        """The usable edges that lead to a node."""
        return self._incoming.get(node_id, _NO_EDGES)

    def edge(self, channel: DirectedChannel) -> Edge | None:
        """One direction, when it may be used."""
        found = self.channels.get(ShortChannelId(channel >> 1))
        if found is None:
            return None
        return self.incoming(found.nodes[~channel & 1]).get(channel)

    def outgoing(self, node_id: bytes) -> Collection[tuple[bytes, Edge]]:
        """The usable edges that leave a node, with the nodes that they lead to."""
        return self._outgoing.get(node_id, _NO_TARGETS).values()

    # --- changes -------------------------------------------------------------------------------

    def add_channel(self, channel: GraphChannel) -> None:
        self.channels[channel.short_channel_id] = channel
        for node_id in channel.nodes:
            self._nodes.setdefault(node_id, set()).add(channel.short_channel_id)
        for direction in (0, 1):
            self._refresh(channel, direction)

    def remove_channel(self, short_channel_id: ShortChannelId) -> tuple[bytes, ...]:
        """Forget a channel. Gives the nodes that have none left, which are forgotten with it."""
        channel = self.channels.pop(short_channel_id)
        channel.updates = [None, None]
        orphans = []
        for direction, node_id in enumerate(channel.nodes):
            self._refresh(channel, direction)
            of_node = self._nodes[node_id]
            of_node.discard(short_channel_id)
            if not of_node:
                # BOLT 7 "Pruning": a node_announcement depends on a channel_announcement.
                orphans.append(node_id)
                del self._nodes[node_id]
                self.announcements.pop(node_id, None)
                self.avoided.discard(node_id)
        return tuple(orphans)

    def update_channel(self, update: ChannelUpdate) -> None:
        """Put a channel_update of a known channel in force."""
        channel = self.channels[update.short_channel_id]
        direction = update.channel_flags & 1
        channel.updates[direction] = update
        self._refresh(channel, direction)

    def update_node(self, announcement: NodeAnnouncement) -> None:
        """Put a node_announcement of a known node in force."""
        self.announcements[announcement.node_id] = announcement
        # BOLT 7: nothing is routed through a node with unknown even feature bits.
        if unknown_even(announcement.features):
            self.avoided.add(announcement.node_id)
        else:
            self.avoided.discard(announcement.node_id)

    def spend(self, short_channel_id: ShortChannelId, height: BlockHeight | None) -> None:
        """The funding output was spent at this height (None: a reorganization undid that)."""
        self.channels[short_channel_id].spent_height = height

    def _refresh(self, channel: GraphChannel, direction: int) -> None:
        source, target = channel.nodes[direction], channel.nodes[1 - direction]
        key = directed(channel.short_channel_id, direction)
        edge = _edge(channel, source, key, channel.updates[direction])
        if edge is not None:
            self._incoming.setdefault(target, {})[key] = edge
            self._outgoing.setdefault(source, {})[key] = target, edge
        elif key in self._incoming.get(target, ()):
            for edges, node_id in ((self._incoming, target), (self._outgoing, source)):
                del edges[node_id][key]
                if not edges[node_id]:
                    del edges[node_id]


def _edge(
    channel: GraphChannel, source: bytes, key: DirectedChannel, update: ChannelUpdate | None
) -> Edge | None:
    """BOLT 7: which channel_updates a route must leave alone."""
    if (
        update is None
        or update.channel_flags & DISABLE
        or update.htlc_maximum_msat < update.htlc_minimum_msat
        or update.htlc_maximum_msat > channel.capacity_msat
        or unknown_even(channel.features)
    ):
        return None
    return Edge(
        source=source,
        channel=key,
        fee_base_msat=update.fee_base_msat,
        fee_proportional_millionths=update.fee_proportional_millionths,
        cltv_expiry_delta=update.cltv_expiry_delta,
        htlc_minimum_msat=update.htlc_minimum_msat,
        htlc_maximum_msat=update.htlc_maximum_msat,
        capacity_msat=channel.capacity_msat,
    )


_KNOWN = frozenset(int(feature) for feature in Feature)


def unknown_even(features: bytes) -> bool:
    """Whether a features field requires something that BOLT 9 had not yet when this was written."""
    return any(bit % 2 == 0 and bit not in _KNOWN for bit in decode_bits(features))
