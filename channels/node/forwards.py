"""Forwarding: an incoming HTLC becomes an outgoing one, and what became of that goes back (BOLT 4).

That the one belongs to the other is written in the turn that offers the outgoing HTLC, and what
ends the one ends the other in the same turn. So a crash at any moment finds both or neither.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from channels.bolt import forwarding
from channels.bolt.channel import ON_CHAIN, Channel, State
from channels.bolt.channel_commitments import dust_exposure
from channels.bolt.effects import Effect, HtlcFailed, HtlcFulfilled, HtlcReceived
from channels.bolt.forwarding import Outgoing, unavailable
from channels.bolt.onion import (
    Failure,
    FailureCode,
    HtlcRefused,
    Peeled,
    check_forward,
    create_error,
    parse_payload,
    wrap_error,
)
from channels.bolt.onion_payload import ForwardPayload
from channels.errors import LocalProtocolError
from channels.node.store import ForwardRow
from channels.units import Msat, ShortChannelId

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

_DEAD = (State.FAILED, *ON_CHAIN, State.CLOSED)


class Forwards:
    def __init__(self, node: Node) -> None:
        self._node = node
        self.fees_collected = node.store.fees_collected()

    def receive(self, channel: Channel, htlc: HtlcReceived, peeled: Peeled) -> list[Effect]:
        """What to do with an incoming HTLC that is for somebody else."""
        store, state = self._node.store, channel.state
        row = store.forward_by_incoming(state.index, htlc.id)
        if row is not None:
            return self._again(channel, row)
        assert state.short_channel_id is not None, "HTLCs come over confirmed channels"
        payload: ForwardPayload | None = None
        try:
            payload = check_forward(parse_payload(peeled.payload), htlc.onion_routing_packet)
            self._forward(channel, htlc, peeled, payload)
        except HtlcRefused as refused:
            log.info("HTLC of %s is not forwarded: %s", htlc.payment_hash.hex(), refused)
            store.add_forward(
                in_channel_index=state.index,
                in_htlc_id=htlc.id,
                in_channel=state.short_channel_id,
                in_msat=htlc.amount_msat,
                payment_hash=htlc.payment_hash,
                shared_secret=peeled.shared_secret,
                out_channel=None if payload is None else payload.short_channel_id,
                status="local_failed",
                failcode=refused.failure.code,
                now=self._node.now(),
            )
            return channel.fail_htlc(htlc.id, create_error(peeled.shared_secret, refused.failure))
        return []

    def _again(self, channel: Channel, row: ForwardRow) -> list[Effect]:
        """Told again of an HTLC after a restart: it is on its way, or its end must be told."""
        if row.status == "offered":
            return []
        if row.preimage is not None:
            return channel.fulfill_htlc(row.in_htlc_id, row.preimage)
        failure = Failure.of(FailureCode.TEMPORARY_NODE_FAILURE)
        return channel.fail_htlc(row.in_htlc_id, create_error(row.shared_secret, failure))

    def _forward(
        self, channel: Channel, htlc: HtlcReceived, peeled: Peeled, payload: ForwardPayload
    ) -> None:
        """Offer the outgoing HTLC. Raises HtlcRefused."""
        node, state = self._node, channel.state
        named = self._by_scid(payload.short_channel_id)
        outgoing = None if named is None else self._outgoing(named)
        forwarding.check(payload, htlc.amount_msat, htlc.cltv_expiry, outgoing, node.height)
        assert named is not None and outgoing is not None, "checked"
        if dust_exposure(state) > node.params.policy.max_dust_htlc_exposure_msat:
            raise unavailable(outgoing.channel_update, "Too much is in flight as dust.")
        assert peeled.next_packet is not None, "receive is for those that are not the last"
        assert state.short_channel_id is not None, "HTLCs come over confirmed channels"
        out, htlc_id, effects = self._offer(named, outgoing, htlc, payload, peeled.next_packet)
        node.store.add_forward(
            in_channel_index=state.index,
            in_htlc_id=htlc.id,
            in_channel=state.short_channel_id,
            in_msat=htlc.amount_msat,
            payment_hash=htlc.payment_hash,
            shared_secret=peeled.shared_secret,
            out_channel=out.state.short_channel_id,
            out_channel_index=out.state.index,
            out_htlc_id=htlc_id,
            out_msat=payload.amt_to_forward,
            now=node.now(),
        )
        node.carry_out(out, effects)

    def _offer(
        self,
        named: Channel,
        outgoing: Outgoing,
        htlc: HtlcReceived,
        payload: ForwardPayload,
        packet: bytes,
    ) -> tuple[Channel, int, list[Effect]]:
        """BOLT 4: any channel with the same peer will do; the one that is named comes first."""
        others = self._node.channels_of(named.state.peer_id)
        why = "The next channel cannot take the HTLC."
        for out in sorted(others, key=lambda c: c is not named):
            if not out.usable:
                continue
            try:
                htlc_id, effects = out.offer_htlc(
                    payload.amt_to_forward, htlc.payment_hash, payload.outgoing_cltv_value, packet
                )
            except LocalProtocolError as error:
                why = str(error)
                continue
            return out, htlc_id, effects
        raise unavailable(outgoing.channel_update, why)

    def _by_scid(self, short_channel_id: ShortChannelId) -> Channel | None:
        return next(
            (
                c
                for c in self._node.channels.values()
                if c.state.short_channel_id == short_channel_id and c.state.ready_received
            ),
            None,
        )

    def _outgoing(self, channel: Channel) -> Outgoing:
        node, state = self._node, channel.state
        peers = node.channels_of(state.peer_id)
        closing = state.closing
        return Outgoing(
            policies=node.policies.accepted(channel),
            usable=any(c.usable for c in peers),
            closing=state.state is not State.NORMAL
            or closing.local_scriptpubkey is not None
            or closing.remote_scriptpubkey is not None,
            channel_update=node.gossip.own.newest_update(channel),
        )

    # --- what became of it ---------------------------------------------------------------------

    def resolved(self, channel: Channel, effect: HtlcFulfilled | HtlcFailed) -> None:
        """An HTLC that we offered has ended; it may be told more than once."""
        row = self._node.store.forward_by_outgoing(channel.state.index, effect.id)
        if row is None or row.status != "offered":
            return
        if isinstance(effect, HtlcFulfilled):
            self._fulfilled(row, effect)
        else:
            self._failed(row, effect)

    def _fulfilled(self, row: ForwardRow, effect: HtlcFulfilled) -> None:
        node, preimage = self._node, effect.payment_preimage
        node.store.finish_forward(row.created_index, "settled", node.now(), preimage=preimage)
        if row.out_msat is not None:
            self.fees_collected = Msat(self.fees_collected + row.in_msat - row.out_msat)
        incoming = node.channels.get(row.in_channel_index)
        if incoming is None:
            log.error("a forwarded HTLC was claimed after its incoming channel was forgotten")
            return
        try:
            effects = incoming.fulfill_htlc(row.in_htlc_id, preimage)
        except LocalProtocolError as error:
            log.error("a forwarded HTLC was claimed too late for us to claim ours: %s", error)
            return
        node.carry_out(incoming, effects)

    def _failed(self, row: ForwardRow, effect: HtlcFailed) -> None:
        node = self._node
        failure: Failure | None = None
        if effect.on_chain:
            failure = Failure.of(FailureCode.PERMANENT_CHANNEL_FAILURE)
        elif effect.malformed is not None:
            # BOLT 2: the next peer could not read the onion; what it said is passed on as an error.
            code, sha256_of_onion = effect.malformed
            failure = Failure(code, sha256_of_onion)
        elif effect.unsent:
            node.store.free_forward_htlc(row.created_index)
            failure = Failure.of(FailureCode.TEMPORARY_CHANNEL_FAILURE, channel_update=b"")
        node.store.finish_forward(
            row.created_index,
            "failed",
            node.now(),
            failcode=None if failure is None else failure.code,
        )
        incoming = node.channels.get(row.in_channel_index)
        if incoming is None or incoming.state.state in _DEAD:
            return  # the chain gives it back to its sender
        reason = (
            wrap_error(row.shared_secret, effect.reason)
            if failure is None
            else create_error(row.shared_secret, failure)
        )
        node.carry_out(incoming, incoming.fail_htlc(row.in_htlc_id, reason))
