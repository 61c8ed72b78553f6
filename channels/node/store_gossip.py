"""The graph on disk. Losing some of it costs a question to a peer, so it is written in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from channels.bolt.graph import GraphChannel
from channels.bolt.messages import ChannelUpdate, NodeAnnouncement, decode, encode
from channels.bolt.transactions import OutPoint
from channels.node.tables import Tables
from channels.units import BlockHeight, Sat, ShortChannelId

# Where things are in an encoded channel_announcement (BOLT 7): after the type and four signatures
# come the features with their length, chain_hash, short_channel_id and the two node ids.
_FEATURES = 2 + 4 * 64


class GossipTables(Tables):
    """Part of `Store`."""

    def save_gossip_channels(self, channels: Iterable[GraphChannel]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO gossip_channels VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    int(channel.short_channel_id),
                    channel.announcement,
                    channel.capacity_sat,
                    None if channel.outpoint is None else channel.outpoint.txid,
                    None if channel.outpoint is None else channel.outpoint.vout,
                    *(None if update is None else encode(update) for update in channel.updates),
                    channel.spent_height,
                )
                for channel in channels
            ),
        )

    def forget_gossip_channels(self, ids: Iterable[ShortChannelId]) -> None:
        self._db.executemany(
            "DELETE FROM gossip_channels WHERE short_channel_id = ?", ((int(i),) for i in ids)
        )

    def save_gossip_nodes(self, nodes: Iterable[NodeAnnouncement]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO gossip_nodes VALUES (?, ?)",
            ((node.node_id, encode(node)) for node in nodes),
        )

    def forget_gossip_nodes(self, ids: Iterable[bytes]) -> None:
        self._db.executemany("DELETE FROM gossip_nodes WHERE node_id = ?", ((i,) for i in ids))

    def load_gossip_channels(self) -> Iterator[GraphChannel]:
        """Nothing is checked again: what is here was checked when it came."""
        for scid, announcement, capacity, txid, vout, *rest in self._db.execute(
            "SELECT short_channel_id, announcement, capacity_sat, txid, vout, update_0, update_1,"
            " spent_height FROM gossip_channels"
        ):
            nodes = _FEATURES + 2 + int.from_bytes(announcement[_FEATURES : _FEATURES + 2]) + 40
            spent = rest[2]
            yield GraphChannel(
                short_channel_id=ShortChannelId(scid),
                nodes=(announcement[nodes : nodes + 33], announcement[nodes + 33 : nodes + 66]),
                capacity_sat=Sat(capacity),
                features=announcement[_FEATURES + 2 : nodes - 40],
                announcement=announcement,
                outpoint=None if txid is None else OutPoint(txid, vout),
                updates=[_update(rest[0]), _update(rest[1])],
                spent_height=None if spent is None else BlockHeight(spent),
            )

    def load_gossip_nodes(self) -> Iterator[NodeAnnouncement]:
        for (raw,) in self._db.execute("SELECT announcement FROM gossip_nodes"):
            message = decode(raw)
            assert isinstance(message, NodeAnnouncement), "the table holds nothing else"
            yield message


def _update(raw: bytes | None) -> ChannelUpdate | None:
    if raw is None:
        return None
    message = decode(raw)
    assert isinstance(message, ChannelUpdate), "the column holds nothing else"
    return message
