"""An HTLC that has arrived for good: its onion says whether it is for us (BOLT 4)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from channels.bolt.channel import Channel
from channels.bolt.effects import Effect, HtlcReceived
from channels.bolt.forwarding import MAX_HTLC_CLTV
from channels.bolt.onion import BadOnion, FailureCode, peel

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)


def answer(node: Node, channel: Channel, htlc: HtlcReceived) -> list[Effect]:
    """What to do now; nothing while an HTLC is on its way or waits for more.

    The same HTLC may come again after a restart, and then gets the same answer.
    """
    try:
        peeled = peel(htlc.onion_routing_packet, node.node_secret, htlc.payment_hash)
    except BadOnion as bad:
        return channel.fail_malformed_htlc(htlc.id, bad.failure_code)
    # One that would last longer is refused, if it is to be forwarded.
    until = min(htlc.cltv_expiry, node.height + MAX_HTLC_CLTV)
    if not node.store.note_onion(peeled.shared_secret, channel.state.index, htlc.id, until):
        # BOLT 4 "Accepting and Forwarding a Payment": who sends an onion again wants to learn
        # where it goes.
        log.warning("an onion that came before was refused")
        return channel.fail_malformed_htlc(htlc.id, FailureCode.INVALID_ONION_HMAC)
    if peeled.next_packet is None:
        return node.invoices.receive(channel, htlc, peeled)
    return node.forwards.receive(channel, htlc, peeled)
