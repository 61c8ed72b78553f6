"""What the chain did to closed channels, what we did about it, and what old commitments held.

Transaction ids are 32 bytes in internal order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from channels.bolt.onchain import PastHtlc
from channels.bolt.resolution import Spend
from channels.bolt.transactions import OutPoint, Transaction
from channels.node.tables import Tables
from channels.units import BlockHeight, FeeratePerKw


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """The newest transaction `claim_txid` of ours that spends an output, and what it pays."""

    outpoint: OutPoint
    claim_txid: bytes
    feerate: FeeratePerKw


class OnchainTables(Tables):
    """Part of `Store`."""

    def add_past_htlcs(self, channel_index: int, htlcs: Iterable[PastHtlc]) -> None:
        """Remember what a commitment of the peer's may hold, for the day it broadcasts it.

        An id may come twice: one that was never signed is given out again.
        """
        self._db.executemany(
            "INSERT OR REPLACE INTO past_htlcs VALUES (?, ?, ?, ?, ?)",
            ((channel_index, int(h.ours), h.id, h.payment_hash, h.cltv_expiry) for h in htlcs),
        )

    def past_htlcs(self, channel_index: int) -> list[PastHtlc]:
        rows = self._db.execute(
            "SELECT ours, id, payment_hash, cltv_expiry FROM past_htlcs WHERE channel_index = ?"
            " ORDER BY ours, id",
            (channel_index,),
        )
        return [PastHtlc(bool(ours), *rest) for ours, *rest in rows]

    def add_spend(self, channel_index: int, outpoint: OutPoint, spend: Spend) -> None:
        """A transaction in a block spends the funding output, or one that came of it."""
        raw = spend.transaction.serialize()
        self._db.execute(
            "INSERT OR REPLACE INTO spends VALUES (?, ?, ?, ?, ?)",
            (channel_index, outpoint.txid, outpoint.vout, raw, spend.height),
        )

    def spends(self, channel_index: int) -> dict[OutPoint, Spend]:
        rows = self._db.execute(
            "SELECT txid, vout, raw, height FROM spends WHERE channel_index = ?", (channel_index,)
        )
        return {
            OutPoint(txid, vout): Spend(Transaction.parse(raw), height)
            for txid, vout, raw, height in rows
        }

    def undo_spends(self, height: BlockHeight) -> None:
        """The block at this height left the chain, and what it spent is unspent."""
        self._db.execute("DELETE FROM spends WHERE height >= ?", (height,))

    def claim(self, channel_index: int, outpoint: OutPoint) -> ClaimRow | None:
        row = self._db.execute(
            "SELECT claim_txid, feerate FROM claims"
            " WHERE channel_index = ? AND txid = ? AND vout = ?",
            (channel_index, outpoint.txid, outpoint.vout),
        ).fetchone()
        return None if row is None else ClaimRow(outpoint, *row)

    def claims(self, channel_index: int) -> list[ClaimRow]:
        rows = self._db.execute(
            "SELECT txid, vout, claim_txid, feerate FROM claims WHERE channel_index = ?",
            (channel_index,),
        )
        return [ClaimRow(OutPoint(txid, vout), *rest) for txid, vout, *rest in rows]

    def save_claim(self, channel_index: int, claim: ClaimRow) -> None:
        outpoint = claim.outpoint
        self._db.execute(
            "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?)",
            (channel_index, outpoint.txid, outpoint.vout, claim.claim_txid, claim.feerate),
        )

    def forget_claim(self, channel_index: int, outpoint: OutPoint) -> None:
        self._db.execute(
            "DELETE FROM claims WHERE channel_index = ? AND txid = ? AND vout = ?",
            (channel_index, outpoint.txid, outpoint.vout),
        )

    def forget_close(self, channel_index: int) -> None:
        """Everything is irrevocably resolved: none of this is needed any more."""
        for table in ("past_htlcs", "spends", "claims"):
            self._db.execute(
                f"DELETE FROM {table} WHERE channel_index = ?",  # noqa: S608  # our own names
                (channel_index,),
            )
