"""What a sidechain node must not forget: one SQLite file, one writer.

Nothing is durable before `commit()`, which the node calls once per turn, and reads see what was
written but not committed. A crash loses whole turns only. Errors of SQLite (a full disk, say) are
not handled here: a node that cannot write must stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from channels.database import OneWriter
from sidechain.primitives import AnyTransaction, decode_transaction
from sidechain.schema import chain_schema
from sidechain.scores import (
    Answer,
    PairedRequest,
    PairedSums,
    Request,
    Scored,
    ScoreRequest,
    Unusable,
)
from sidechain.state import Changes, Undo

_undo: Final = msgspec.msgpack.Decoder(Undo)
_ELSEWHERE: Final = bytes(32)
"""The infohash of an answered request: it is no part of the question and nobody fetches again."""


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """Where a node listens. Times are seconds since 1970; `banned_until` 0 is not banned."""

    host: str
    port: int
    last_seen: int
    banned_until: int = 0


class SqliteStore(OneWriter):
    """A chain.BlockStore, and what else outlives a restart: waiting transactions, scores, peers.
    Errors: as OneWriter's."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, chain_schema)

    # --- chain.BlockStore ------------------------------------------------------------------------

    def add_header(self, block_hash: bytes, header: bytes) -> None:
        sql = "INSERT OR IGNORE INTO headers (hash, header) VALUES (?, ?)"
        self._db.execute(sql, (block_hash, header))

    def add_body(self, block_hash: bytes, block: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO bodies VALUES (?, ?)", (block_hash, block))

    def body(self, block_hash: bytes) -> bytes | None:
        return self._value("SELECT block FROM bodies WHERE hash = ?", block_hash)

    def invalidate(self, block_hash: bytes, reason: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO invalid VALUES (?, ?)", (block_hash, reason))

    def connect(self, block_hash: bytes, changes: Changes, undo: Undo) -> None:
        row = (block_hash, msgspec.msgpack.encode(undo))
        self._db.execute("INSERT OR REPLACE INTO undos VALUES (?, ?)", row)
        self._move(block_hash, changes.items())

    def disconnect(self, block_hash: bytes, parent: bytes, undo: Undo) -> None:
        self._move(parent, undo)

    def _move(self, tip: bytes, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        for key, value in changes:
            if value is None:
                self._db.execute("DELETE FROM entries WHERE key = ?", (key,))
            else:
                self._db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (key, value))
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('tip', ?)", (tip,))

    def undo(self, block_hash: bytes) -> Undo:
        """Raises KeyError for a block that was never connected."""
        data = self._value("SELECT undo FROM undos WHERE hash = ?", block_hash)
        if data is None:
            raise KeyError(block_hash)
        return _undo.decode(data)

    def headers(self) -> Iterable[bytes]:
        rows = self._db.execute("SELECT header FROM headers ORDER BY number")
        return (header for (header,) in rows)

    def bodies(self) -> Iterable[bytes]:
        return (block_hash for (block_hash,) in self._db.execute("SELECT hash FROM bodies"))

    def invalid(self) -> Iterable[tuple[bytes, str]]:
        rows: Iterable[tuple[bytes, str]] = self._db.execute("SELECT hash, reason FROM invalid")
        return rows

    def entries(self) -> Iterable[tuple[bytes, bytes]]:
        rows: Iterable[tuple[bytes, bytes]] = self._db.execute("SELECT key, value FROM entries")
        return rows

    def tip(self) -> bytes | None:
        return self._value("SELECT value FROM meta WHERE name = ?", "tip")

    def _value(self, sql: str, name: bytes | str) -> bytes | None:
        row = self._db.execute(sql, (name,)).fetchone()
        return None if row is None else row[0]

    # --- waiting transactions --------------------------------------------------------------------

    def add_transaction(self, tx: AnyTransaction) -> None:
        sql = "INSERT OR IGNORE INTO transactions (txid, tx) VALUES (?, ?)"
        self._db.execute(sql, (tx.txid, tx.encode()))

    def keep_transactions(self, waiting: Mapping[bytes, AnyTransaction]) -> None:
        """Have these, by their txid, and no others."""
        had = {txid for (txid,) in self._db.execute("SELECT txid FROM transactions")}
        gone = [(txid,) for txid in had - waiting.keys()]
        if gone:
            self._db.executemany("DELETE FROM transactions WHERE txid = ?", gone)
        for txid, tx in waiting.items():
            if txid not in had:
                self.add_transaction(tx)

    def transactions(self) -> list[AnyTransaction]:
        """In the order in which they were added."""
        rows = self._db.execute("SELECT tx FROM transactions ORDER BY number")
        return [decode_transaction(tx) for (tx,) in rows]

    # --- scores ----------------------------------------------------------------------------------

    def add_score(self, request: Request, answer: Answer) -> None:
        if isinstance(answer, PairedSums):
            assert isinstance(request, PairedRequest)  # Scores.of
            question = (request.model, request.index, request.key, request.old_root)
            sums = (answer.n, str(answer.total), str(answer.squares))
            row = (*question, request.new_root, *sums)
            self._db.execute("INSERT OR REPLACE INTO paired VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            return
        assert isinstance(request, ScoreRequest)  # Scores.of
        score, cost, unusable = None, None, None
        if isinstance(answer, Unusable):
            unusable = answer.reason
        else:
            score, cost = str(answer.score), str(answer.score_cost)
        sql = "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)"
        self._db.execute(sql, (request.model, request.weights_root, score, cost, unusable))

    def scores(self) -> Iterable[tuple[Request, Answer]]:
        """All that was ever answered; the requests have an infohash of zeros."""
        for model, root, score, cost, unusable in self._db.execute("SELECT * FROM scores"):
            answer = Scored(int(score), int(cost)) if unusable is None else Unusable(unusable)
            yield ScoreRequest(model, root, _ELSEWHERE), answer
        for row in self._db.execute("SELECT * FROM paired"):
            model, index, key, old, new, n, total, squares = row
            request = PairedRequest(model, index, key, old, new, _ELSEWHERE, _ELSEWHERE)
            yield request, PairedSums(n, int(total), int(squares))

    # --- peers -----------------------------------------------------------------------------------

    def put_peer(self, peer: KnownPeer) -> None:
        row = (peer.host, peer.port, peer.last_seen, peer.banned_until)
        self._db.execute("INSERT OR REPLACE INTO peers VALUES (?, ?, ?, ?)", row)

    def remove_peer(self, host: str, port: int) -> None:
        self._db.execute("DELETE FROM peers WHERE host = ? AND port = ?", (host, port))

    def peers(self) -> Iterable[KnownPeer]:
        """The last seen first."""
        rows = self._db.execute(
            "SELECT host, port, last_seen, banned_until FROM peers ORDER BY last_seen DESC, host"
        )
        return [KnownPeer(*row) for row in rows]
