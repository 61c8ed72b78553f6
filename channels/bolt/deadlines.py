"""When a channel must go on chain because an HTLC runs out of time (BOLT 2, "cltv_expiry_delta
Selection")."""

from __future__ import annotations

from channels.bolt.channel_state import Core, State
from channels.bolt.htlcs import LiveHtlc, Stage, View
from channels.errors import LocalProtocolError
from channels.units import BlockHeight

GRACE = 2
"""BOLT 2's G: blocks that a peer may be behind before an HTLC that timed out fails the channel."""

FORGET_UNFUNDED = 2016
"""BOLT 2: the accepter SHOULD forget a channel whose funding it has not seen after so many."""

_OPEN = (State.NORMAL, State.SHUTTING_DOWN)


def overdue(core: Core, height: BlockHeight) -> LocalProtocolError | None:
    """Why the channel must be failed with the chain at `height`, or None."""
    if core.state.state not in _OPEN:
        return None
    for htlc in core.state.log.htlcs:
        # A peer that is there and does not let us commit to an HTLC is no better than one that
        # does not let go of it: who waits upstream has as little time (BOLT 2).
        stuck = htlc.ours and htlc.added is Stage.PROPOSED and core.reestablished
        if not (stuck or _committed(htlc)):
            continue
        if htlc.ours and height >= htlc.cltv_expiry + GRACE:
            return LocalProtocolError(
                "htlc-timed-out",
                f"HTLC {htlc.id} expired at block {htlc.cltv_expiry} and was not given back.",
            )
        # Only with the HTLC on chain before it expires is the preimage worth its amount.
        last = htlc.cltv_expiry - core.policy.fulfillment_deadline
        if not htlc.ours and htlc.payment_preimage is not None and height >= last:
            return LocalProtocolError(
                "htlc-not-settled",
                f"HTLC {htlc.id} was fulfilled, expires at block {htlc.cltv_expiry} and is still "
                "there.",
            )
    return None


def never_funded(core: Core, height: BlockHeight) -> bool:
    """A channel that a peer opened and whose funding transaction never came."""
    state = core.state
    waits = state.state in (State.AWAITING_LOCKIN, State.SHUTTING_DOWN, State.FAILED)
    if state.opener or not waits or state.funding_height is not None:
        return False
    return state.opened_height is not None and height >= state.opened_height + FORGET_UNFUNDED


def _committed(htlc: LiveHtlc) -> bool:
    """In either side's commitment as it stands."""
    return any(htlc.in_view(view) for view in (View.LOCAL, View.REMOTE, View.PREVIOUS_REMOTE))
