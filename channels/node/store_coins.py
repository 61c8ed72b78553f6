"""The wallet's coins, transactions that must reach the chain, and the blocks last seen.

Transaction ids and block hashes are 32 bytes in internal order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from channels.node.tables import Tables
from channels.units import BlockHeight, Sat, UnixTime

BLOCKS_KEPT = 200


@dataclass(frozen=True, slots=True)
class UtxoRow:
    """An output of ours. `height` is None until it confirms.

    `spent_by` is the transaction that spends it, as far as known, and `spent_height` where that
    confirmed. `keyindex` counts on the external chain, or with `change` on the internal one.
    """

    txid: bytes
    vout: int
    value: Sat
    script: bytes
    keyindex: int
    change: bool
    coinbase: bool = False
    height: BlockHeight | None = None
    spent_by: bytes | None = None
    spent_height: BlockHeight | None = None
    reserved_until: UnixTime | None = None


@dataclass(frozen=True, slots=True)
class BlockRow:
    height: BlockHeight
    hash: bytes


_UTXO = (
    "SELECT txid, vout, value, script, keyindex, change, coinbase, height, spent_by, spent_height,"
    " reserved_until FROM utxos "
)


def _utxo(row: tuple[Any, ...]) -> UtxoRow:
    txid, vout, value, script, keyindex, change, coinbase, *chain = row
    return UtxoRow(txid, vout, value, script, keyindex, bool(change), bool(coinbase), *chain)


class CoinTables(Tables):
    """Part of `Store`."""

    def add_utxo(self, utxo: UtxoRow) -> None:
        """Remember an output; when it is known already only its height is updated."""
        self._db.execute(
            "INSERT INTO utxos (txid, vout, value, script, keyindex, change, coinbase, height)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (txid, vout) DO UPDATE SET height = coalesce(excluded.height, height)",
            (
                *(utxo.txid, utxo.vout, utxo.value, utxo.script, utxo.keyindex),
                *(int(utxo.change), int(utxo.coinbase), utxo.height),
            ),
        )

    def utxo(self, txid: bytes, vout: int) -> UtxoRow | None:
        row = self._db.execute(_UTXO + "WHERE txid = ? AND vout = ?", (txid, vout)).fetchone()
        return None if row is None else _utxo(row)

    def list_utxos(self, *, spent: bool = False) -> list[UtxoRow]:
        """Coins that nothing spends; with `spent` the others too. In a fixed order."""
        where = "" if spent else "WHERE spent_by IS NULL "
        rows = self._db.execute(_UTXO + where + "ORDER BY height IS NULL, height, txid, vout")
        return [_utxo(row) for row in rows]

    def spend_utxo(
        self, txid: bytes, vout: int, spent_by: bytes, height: BlockHeight | None
    ) -> bool:
        """Note who spends a coin; whether it was a coin of ours."""
        cursor = self._db.execute(
            "UPDATE utxos SET spent_by = ?, spent_height = ? WHERE txid = ? AND vout = ?",
            (spent_by, height, txid, vout),
        )
        return cursor.rowcount == 1

    def unspend_utxos(self, spent_by: bytes) -> None:
        """The transaction will never confirm: its inputs are free again, its outputs never were."""
        self._db.execute("UPDATE utxos SET spent_by = NULL WHERE spent_by = ?", (spent_by,))
        self._db.execute("DELETE FROM utxos WHERE txid = ? AND height IS NULL", (spent_by,))

    def unsent_spends(self) -> list[bytes]:
        """Txids that coins are set aside for, but that were never handed over for broadcasting."""
        rows = self._db.execute(
            "SELECT DISTINCT spent_by FROM utxos WHERE spent_by IS NOT NULL"
            " AND spent_height IS NULL AND spent_by NOT IN (SELECT txid FROM transactions)"
        )
        return [txid for (txid,) in rows]

    def reserve_utxo(self, txid: bytes, vout: int, until: UnixTime | None) -> None:
        """Keep a coin for one purpose until then; None lets it go."""
        self._db.execute(
            "UPDATE utxos SET reserved_until = ? WHERE txid = ? AND vout = ?", (until, txid, vout)
        )

    def add_transaction(self, txid: bytes, raw: bytes, *, broadcast: bool = True) -> None:
        """Keep a transaction; with `broadcast` it is to be sent again until it confirms."""
        self._db.execute(
            "INSERT INTO transactions (txid, raw, broadcast) VALUES (?, ?, ?) ON CONFLICT (txid)"
            " DO UPDATE SET raw = excluded.raw, broadcast = max(broadcast, excluded.broadcast)",
            (txid, raw, int(broadcast)),
        )

    def transaction(self, txid: bytes) -> bytes | None:
        row = self._db.execute("SELECT raw FROM transactions WHERE txid = ?", (txid,)).fetchone()
        return None if row is None else row[0]

    def transactions_to_broadcast(self) -> list[bytes]:
        """What must reach the chain and has not, oldest first."""
        rows = self._db.execute(
            "SELECT raw FROM transactions WHERE broadcast = 1 AND height IS NULL ORDER BY rowid"
        )
        return [raw for (raw,) in rows]

    def is_wanted(self, txid: bytes) -> bool:
        """Whether a transaction of ours has confirmed or is still to be broadcast."""
        row = self._db.execute(
            "SELECT 1 FROM transactions WHERE txid = ? AND (broadcast = 1 OR height IS NOT NULL)",
            (txid,),
        ).fetchone()
        return row is not None

    def stop_broadcast(self, txid: bytes) -> None:
        self._db.execute("UPDATE transactions SET broadcast = 0 WHERE txid = ?", (txid,))

    def transaction_confirmed(self, txid: bytes, height: BlockHeight) -> None:
        """Note where one of our transactions confirmed; nothing happens for any other."""
        self._db.execute("UPDATE transactions SET height = ? WHERE txid = ?", (height, txid))

    def undo_coins(self, height: BlockHeight) -> None:
        """Take back what the block at this height said, because the chain dropped it.

        Our own transactions go on as unconfirmed ones. Coins that others sent are forgotten until
        a block brings them again, unless we spent them, because they may have been sent elsewhere.
        """
        self._db.execute("UPDATE transactions SET height = NULL WHERE height = ?", (height,))
        self._db.execute("UPDATE utxos SET spent_height = NULL WHERE spent_height = ?", (height,))
        self._db.execute(
            "DELETE FROM utxos WHERE height = ? AND spent_by IS NULL"
            " AND txid NOT IN (SELECT txid FROM transactions)",
            (height,),
        )
        self._db.execute("UPDATE utxos SET height = NULL WHERE height = ?", (height,))

    def add_block(self, block: BlockRow) -> None:
        """Make it the tip; blocks too deep to be reorganised away are forgotten."""
        row = (block.height, block.hash)
        self._db.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?)", row)
        self._db.execute("DELETE FROM blocks WHERE height <= ?", (block.height - BLOCKS_KEPT,))

    def remove_block(self, height: BlockHeight) -> None:
        """Forget it and what came after it."""
        self._db.execute("DELETE FROM blocks WHERE height >= ?", (height,))

    def block_hash(self, height: BlockHeight) -> bytes | None:
        row = self._db.execute("SELECT hash FROM blocks WHERE height = ?", (height,)).fetchone()
        return None if row is None else row[0]

    def tip(self) -> BlockRow | None:
        row = self._db.execute(
            "SELECT height, hash FROM blocks ORDER BY height DESC LIMIT 1"
        ).fetchone()
        return None if row is None else BlockRow(*row)
