"""A node's memory: one SQLite file, one writer.

Every write belongs to the turn of the event loop that makes it, and nothing is durable until
`commit()`, which the node calls once per turn before anything of that turn leaves the machine.
A crash loses whole turns only. Errors of SQLite (a full disk, say) are not handled here: a node
that cannot write must stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from channels.database import OneWriter
from channels.node.schema import node_schema
from channels.node.store_coins import BlockRow, CoinTables, UtxoRow
from channels.node.store_forwards import ForwardRow, ForwardTables
from channels.node.store_gossip import GossipTables
from channels.node.store_invoices import InvoiceRow, InvoiceTable
from channels.node.store_onchain import ClaimRow, OnchainTables
from channels.node.store_payments import AttemptRow, PaymentRow, PaymentTables
from channels.node.tables import counted

__all__ = [
    "AttemptRow",
    "BlockRow",
    "ChannelRow",
    "ClaimRow",
    "ForwardRow",
    "InvoiceRow",
    "PaymentRow",
    "PeerRow",
    "Store",
    "UtxoRow",
]


@dataclass(frozen=True, slots=True)
class PeerRow:
    node_id: bytes
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """`index` derives the channel's keys and is never used again; `state` is the owner's bytes."""

    index: int
    peer_id: bytes
    closed: bool
    state: bytes


class Store(
    InvoiceTable,
    PaymentTables,
    ForwardTables,
    CoinTables,
    OnchainTables,
    GossipTables,
    OneWriter,
):
    """A turn's tables, each part in a file of its own. Errors: as OneWriter's."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, node_schema)

    def meta(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set_meta(self, name: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def save_peer(self, node_id: bytes, host: str, port: int) -> None:
        row = (node_id, host, port)
        self._db.execute("INSERT OR REPLACE INTO peers VALUES (?, ?, ?)", row)

    def forget_peer(self, node_id: bytes) -> None:
        self._db.execute("DELETE FROM peers WHERE node_id = ?", (node_id,))

    def load_peers(self) -> list[PeerRow]:
        rows = self._db.execute("SELECT node_id, host, port FROM peers ORDER BY node_id")
        return [PeerRow(*row) for row in rows]

    def next_channel_index(self) -> int:
        """A number never given out before (0, 1, …), also when no channel came of the last one."""
        return counted(self._db, "channel_index") - 1

    def save_channel(self, channel: ChannelRow) -> None:
        row = (channel.index, channel.peer_id, int(channel.closed), channel.state)
        self._db.execute("INSERT OR REPLACE INTO channels VALUES (?, ?, ?, ?)", row)

    def forget_channel(self, index: int) -> None:
        """Nothing ever came of it."""
        self._db.execute("DELETE FROM channels WHERE channel_index = ?", (index,))

    def load_channels(self) -> list[ChannelRow]:
        """All channels, closed ones too, by index."""
        rows = self._db.execute(
            "SELECT channel_index, peer_id, closed, state FROM channels ORDER BY channel_index"
        )
        return [ChannelRow(index, peer, bool(closed), state) for index, peer, closed, state in rows]
