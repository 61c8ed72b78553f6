"""HTLCs that this node forwards, the onions that it has seen, and its terms for each channel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from channels.bolt.policy import Policy
from channels.node.tables import Tables, counted
from channels.units import BlockHeight, Msat, ShortChannelId, UnixTime

KEPT_REFUSALS = 10_000
"""How many forwards that came to nothing are remembered: they cost a stranger nothing."""

PRUNE_EVERY = 256
"""Forwards after which the older ones are looked for."""

KEPT_ONIONS = 200_000


@dataclass(frozen=True, slots=True)
class ForwardRow:
    """An incoming HTLC and the outgoing one that it has become, with lightningd's statuses.

    `out_htlc_id` is None when nothing was offered (local_failed). The shared secret wraps the
    error that may come back.
    """

    created_index: int
    updated_index: int | None
    in_channel_index: int
    in_htlc_id: int
    in_channel: ShortChannelId
    in_msat: Msat
    payment_hash: bytes
    shared_secret: bytes = field(repr=False)
    out_channel: ShortChannelId | None
    out_channel_index: int | None
    out_htlc_id: int | None
    out_msat: Msat | None
    status: str
    failcode: int | None
    preimage: bytes | None = field(repr=False)
    received_time: UnixTime
    resolved_time: UnixTime | None


_FORWARD = (
    "SELECT created_index, updated_index, in_channel_index, in_htlc_id, in_channel, in_msat,"
    " payment_hash, shared_secret, out_channel, out_channel_index, out_htlc_id, out_msat, status,"
    " failcode, preimage, received_time, resolved_time FROM forwards "
)


def _forward(row: tuple[Any, ...]) -> ForwardRow:
    values = list(row)
    for column in (4, 8):
        if values[column] is not None:
            values[column] = ShortChannelId(values[column])
    return ForwardRow(*values)


class ForwardTables(Tables):
    """Part of `Store`."""

    def add_forward(
        self,
        *,
        in_channel_index: int,
        in_htlc_id: int,
        in_channel: ShortChannelId,
        in_msat: Msat,
        payment_hash: bytes,
        shared_secret: bytes,
        now: UnixTime,
        status: str = "offered",
        out_channel: ShortChannelId | None = None,
        out_channel_index: int | None = None,
        out_htlc_id: int | None = None,
        out_msat: Msat | None = None,
        failcode: int | None = None,
    ) -> None:
        resolved = None if status == "offered" else now
        cursor = self._db.execute(
            "INSERT INTO forwards (in_channel_index, in_htlc_id, in_channel, in_msat, payment_hash,"
            " shared_secret, out_channel, out_channel_index, out_htlc_id, out_msat, status,"
            " failcode, received_time, resolved_time)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(in_channel_index, in_htlc_id, int(in_channel), in_msat, payment_hash),
                *(shared_secret, None if out_channel is None else int(out_channel)),
                *(out_channel_index, out_htlc_id, out_msat, status, failcode, now, resolved),
            ),
        )
        if cursor.lastrowid is not None and cursor.lastrowid % PRUNE_EVERY == 0:
            self._prune_forwards()

    def _prune_forwards(self) -> None:
        """None of these is asked for again: the incoming HTLC was failed in the same turn."""
        refused = "forwards WHERE status IN ('failed', 'local_failed')"
        self._db.execute(
            f"DELETE FROM {refused} AND created_index <= coalesce((SELECT created_index"  # noqa: S608  # our own words
            f" FROM {refused} ORDER BY created_index DESC LIMIT 1 OFFSET ?), 0)",
            (KEPT_REFUSALS,),
        )

    def forward_by_incoming(self, channel_index: int, htlc_id: int) -> ForwardRow | None:
        return self._one_forward("in_channel_index = ? AND in_htlc_id = ?", channel_index, htlc_id)

    def forward_by_outgoing(self, channel_index: int, htlc_id: int) -> ForwardRow | None:
        where = "out_channel_index = ? AND out_htlc_id = ?"
        return self._one_forward(where, channel_index, htlc_id)

    def finish_forward(
        self,
        created_index: int,
        status: str,
        now: UnixTime,
        *,
        preimage: bytes | None = None,
        failcode: int | None = None,
    ) -> None:
        """Settle or fail one that is offered; one that has ended stays as it is."""
        self._db.execute(
            "UPDATE forwards SET status = ?, resolved_time = ?, preimage = ?, failcode = ?,"
            " updated_index = ? WHERE created_index = ? AND status = 'offered'",
            (
                *(status, now, preimage, failcode, counted(self._db, "forward_updated")),
                created_index,
            ),
        )

    def free_forward_htlc(self, created_index: int) -> None:
        """The outgoing HTLC was never signed: its id will be that of another."""
        self._db.execute(
            "UPDATE forwards SET out_htlc_id = NULL WHERE created_index = ?", (created_index,)
        )

    def list_forwards(self) -> list[ForwardRow]:
        """All that are kept, in the order they came."""
        return [_forward(r) for r in self._db.execute(_FORWARD + "ORDER BY created_index")]

    def fees_collected(self) -> Msat:
        """By forwards that were settled."""
        (fees,) = self._db.execute(
            "SELECT coalesce(sum(in_msat - out_msat), 0) FROM forwards WHERE status = 'settled'"
        ).fetchone()
        return Msat(fees)

    def _one_forward(self, where: str, *values: int) -> ForwardRow | None:
        row = self._db.execute(f"{_FORWARD} WHERE {where}", values).fetchone()
        return None if row is None else _forward(row)

    # --- onions --------------------------------------------------------------------------------

    def note_onion(
        self, shared_secret: bytes, channel_index: int, htlc_id: int, cltv_expiry: int
    ) -> bool:
        """Remember an onion until `cltv_expiry`; False when another HTLC had it before."""
        self._db.execute(
            "INSERT OR IGNORE INTO onions VALUES (?, ?, ?, ?)",
            (shared_secret, channel_index, htlc_id, cltv_expiry),
        )
        owner = self._db.execute(
            "SELECT channel_index, htlc_id FROM onions WHERE shared_secret = ?", (shared_secret,)
        ).fetchone()
        return bool(owner == (channel_index, htlc_id))

    def forget_onions(self, height: BlockHeight) -> None:
        """Those of HTLCs that have expired, which nobody accepts again, and the oldest of many."""
        self._db.execute("DELETE FROM onions WHERE cltv_expiry <= ?", (height,))
        self._db.execute(
            "DELETE FROM onions WHERE rowid <= (SELECT max(rowid) FROM onions) - ?", (KEPT_ONIONS,)
        )

    # --- terms ---------------------------------------------------------------------------------

    def save_policy(self, channel_index: int, policy: Policy) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO policies VALUES (?, ?, ?, ?, ?, ?)",
            (
                *(channel_index, policy.fee_base_msat, policy.fee_proportional_millionths),
                *(policy.cltv_expiry_delta, policy.htlc_minimum_msat),
                # An integer of SQLite has 63 bits.
                min(policy.htlc_maximum_msat, (1 << 63) - 1),
            ),
        )

    def load_policies(self) -> dict[int, Policy]:
        """Those that were set, by channel index."""
        rows = self._db.execute(
            "SELECT channel_index, fee_base_msat, fee_proportional_millionths, cltv_expiry_delta,"
            " htlc_minimum_msat, htlc_maximum_msat FROM policies"
        )
        return {index: Policy(*policy) for index, *policy in rows}
