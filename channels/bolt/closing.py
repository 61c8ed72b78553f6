"""The transaction that both sides sign to close a channel (BOLT 3 "Legacy Closing Transaction")."""

from __future__ import annotations

from channels.bolt.transactions import OutPoint, Transaction, TxIn, TxOut, dust_limit
from channels.errors import LocalProtocolError
from channels.units import Sat

_NO_LIMIT = Sat(0)


def closing_transaction(
    *,
    funding: OutPoint,
    local_script: bytes,
    remote_script: bytes,
    local_satoshis: Sat,
    remote_satoshis: Sat,
    dust_limit_satoshis: Sat = _NO_LIMIT,
) -> Transaction:
    """The unsigned closing transaction.

    The amounts are the final balances, `fee_satoshis` of closing_signed already taken from the
    opener's. An output is left out when it is below the dust limit of its script, or below
    `dust_limit_satoshis` where the side that signs has a larger one of its own. A side that
    leaves out its own output altogether is the same transaction with an amount of 0.

    Raises LocalProtocolError("closing-without-outputs") when nothing is left: the fee is too
    large to propose or accept.
    """
    outputs = tuple(
        TxOut(value, script)
        for value, script in sorted(
            ((local_satoshis, local_script), (remote_satoshis, remote_script))
        )
        if value >= max(dust_limit_satoshis, dust_limit(script), 1)
    )
    if not outputs:
        raise LocalProtocolError(
            "closing-without-outputs", "Closing at this fee would leave no output; use a lower one."
        )
    return Transaction(2, (TxIn(funding),), outputs, 0)
