"""Our own channels in the gossip: announced, their terms said, and hinted at in invoices."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from channels.bolt.address_descriptors import ip_descriptor
from channels.bolt.announcing import (
    Endpoint,
    channel_update,
    complete,
    node_announcement,
    our_signatures,
)
from channels.bolt.channel import Channel, State
from channels.bolt.gossip import DONT_FORWARD, STALE_SECONDS, FundingOutput, Gossip
from channels.bolt.gossip_signatures import check_update
from channels.bolt.graph import DISABLE, GraphChannel, direction_of
from channels.bolt.invoice_fields import RouteHop
from channels.bolt.messages import AnnouncementSignatures, ChannelUpdate, Message, encode
from channels.bolt.opening import funding_output_script
from channels.errors import RemoteProtocolError
from channels.units import Msat, ShortChannelId, UnixTime

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

RENEW_SECONDS = STALE_SECONDS // 2
"""An update is renewed long before others may prune the channel."""

AWAY_SECONDS = 600
"""A peer may be away so long before the network is told not to use the channel."""

MAX_HINTS = 3


class OwnGossip:
    """What we say of our channels and ourselves."""

    def __init__(self, node: Node, gossip: Gossip) -> None:
        self._node = node
        self._gossip = gossip
        self._end = Endpoint(node.params.policy.chain_hash, node.node_secret)
        self._halves: dict[int, AnnouncementSignatures] = {}
        self._half_sent: set[int] = set()
        self._private: dict[ShortChannelId, ChannelUpdate] = {}
        self._told: set[int] = set()
        self._theirs: dict[ShortChannelId, ChannelUpdate] = {}
        self._away_since: dict[int, UnixTime] = {}

    def on_disconnected(self, peer_id: bytes) -> None:
        for channel in self._node.channels_of(peer_id):
            self._half_sent.discard(channel.state.index)
            self._told.discard(channel.state.index)

    # --- from the peer -------------------------------------------------------------------------

    def on_signatures(self, peer_id: bytes, message: AnnouncementSignatures) -> None:
        """Raises RemoteProtocolError for a half that does not fit our channel."""
        channel = self._node.find_channel(peer_id, message.channel_id)
        if channel is None or not channel.state.announce:
            raise RemoteProtocolError(
                "announcement-unasked", "The peer announces a channel that is not to be public."
            )
        state = channel.state
        if state.short_channel_id is not None:
            complete(state, channel.core.secrets, self._end, message)
        # BOLT 7: an announcement_signatures that comes early is kept until ours is due.
        self._halves[state.index] = message
        if self._public(channel) is not None:
            # BOLT 7: MUST respond with our own, once for each connection.
            self._send_half(channel)
        self.refresh(channel)

    def on_update(self, peer_id: bytes, message: ChannelUpdate) -> bool:
        """The peer's terms for a channel with us that is not public; False for any other.

        Raises RemoteProtocolError when the peer did not sign it.
        """
        scid = message.short_channel_id
        if scid in self._gossip.graph.channels:
            return False
        known = {c.state.short_channel_id for c in self._node.channels_of(peer_id)}
        if scid not in known or message.chain_hash != self._end.chain_hash:
            return False
        if message.channel_flags & 1 != direction_of(peer_id, self._node.node_id):
            return True  # our own, come back
        before = self._theirs.get(scid)
        if before is None or before.timestamp < message.timestamp:
            check_update(message, peer_id)
            self._theirs[scid] = message
        return True

    # --- to the network ------------------------------------------------------------------------

    def refresh(self, channel: Channel) -> None:
        """Announce the channel if that is due, and say its terms where they are new."""
        state = channel.state
        if state.short_channel_id is None or not (state.ready_sent and state.ready_received):
            return
        public = self._public(channel)
        if public is None and self._announceable(channel):
            self._send_half(channel)
            public = self._announce(channel)
        if public is not None:
            self._say(channel, public)
        elif channel.usable:
            self._tell_peer(channel)

    def _public(self, channel: Channel) -> GraphChannel | None:
        scid = channel.state.short_channel_id
        return None if scid is None else self._gossip.graph.channels.get(scid)

    def _announceable(self, channel: Channel) -> bool:
        """BOLT 7: ready on both sides, deep enough, and nobody has begun to close it."""
        state = channel.state
        if not (state.announce and channel.usable) or state.funding_height is None:
            return False
        depth = self._node.height - state.funding_height + 1
        return depth >= self._gossip.announce_depth

    def _send_half(self, channel: Channel) -> None:
        index = channel.state.index
        if index in self._half_sent:
            return
        self._half_sent.add(index)
        self._send(channel, our_signatures(channel.state, channel.core.secrets, self._end))

    def _send(self, channel: Channel, message: Message) -> None:
        """After the turn's commit, so after the channel_ready that it may rest on."""
        send = self._node.connections.sender(channel.state.peer_id)
        self._node.turn.after(partial(send, message))

    def _announce(self, channel: Channel) -> GraphChannel | None:
        state = channel.state
        half = self._halves.get(state.index)
        if half is None or state.short_channel_id is None:
            return None
        try:
            whole = complete(state, channel.core.secrets, self._end, half)
        except RemoteProtocolError as error:
            # It came before a reorganization moved the channel; the peer signs again.
            log.warning("channel %s is not announced: %s", state.short_channel_id, error)
            del self._halves[state.index]
            return None
        output = FundingOutput(
            state.funding, funding_output_script(channel.core), state.funding_satoshis
        )
        self._gossip.accept_channel(whole, output)
        log.info("channel %s is public", state.short_channel_id)
        theirs = self._theirs.pop(state.short_channel_id, None)
        if theirs is not None and not theirs.message_flags & DONT_FORWARD:
            # The peer was faster, and its public update came before its half.
            self._gossip.accept_update(theirs, state.peer_id)
        return self._gossip.graph.channels[state.short_channel_id]

    def _say(self, channel: Channel, public: GraphChannel) -> None:
        before = public.updates[direction_of(self._node.node_id, channel.state.peer_id)]
        update = self._update(channel, before, public=True)
        if update is not None:
            self._gossip.accept_update(update)

    def _tell_peer(self, channel: Channel) -> None:
        """BOLT 7: the peer of a channel that is not public needs our terms for its own invoices."""
        index, scid = channel.state.index, channel.state.short_channel_id
        assert scid is not None, "refresh has checked it"
        update = self._update(channel, self._private.get(scid), public=False)
        if update is not None:
            self._private[scid] = update
        elif index in self._told:
            return
        self._told.add(index)
        self._send(channel, self._private[scid])

    def _update(
        self, channel: Channel, before: ChannelUpdate | None, *, public: bool
    ) -> ChannelUpdate | None:
        now = self._node.now()
        if before is not None and before.timestamp + RENEW_SECONDS < now:
            before = None
        return channel_update(
            channel.state,
            self._node.policy(channel),
            self._end,
            public=public,
            disabled=self._disabled(channel, now),
            now=now,
            before=before,
        )

    def newest_update(self, channel: Channel) -> bytes:
        """Our terms for a channel as a failure message carries them (BOLT 4); empty if unsaid."""
        scid, public = channel.state.short_channel_id, self._public(channel)
        update = None if scid is None else self._private.get(scid)
        if public is not None:
            update = public.updates[direction_of(self._node.node_id, channel.state.peer_id)]
        return b"" if update is None else encode(update)

    def _disabled(self, channel: Channel, now: UnixTime) -> bool:
        index = channel.state.index
        if channel.usable:
            self._away_since.pop(index, None)
            return False
        closing = channel.state.closing.local_scriptpubkey is not None
        if channel.state.state is not State.NORMAL or closing:
            return True
        return now - self._away_since.setdefault(index, now) >= AWAY_SECONDS

    def updates(self, channel: Channel) -> tuple[ChannelUpdate | None, ChannelUpdate | None]:
        """The terms of our channel that we have last told, and that the peer has."""
        state, public = channel.state, self._public(channel)
        if public is not None:
            ours = direction_of(self._node.node_id, state.peer_id)
            return public.updates[ours], public.updates[1 - ours]
        scid = state.short_channel_id
        return (None, None) if scid is None else (self._private.get(scid), self._theirs.get(scid))

    def refresh_node(self) -> None:
        """BOLT 7: a node that has no public channel is ignored, so it says nothing."""
        node, graph = self._node, self._gossip.graph
        if node.node_id not in graph:
            return
        host, port = node.connections.address
        message = node_announcement(
            self._end,
            alias=node.alias,
            rgb_color=node.node_id[:3],
            addresses=ip_descriptor(host, port) if host else b"",
            now=node.now(),
            before=graph.announcements.get(node.node_id),
        )
        if message is not None:
            self._gossip.accept_node(message)

    # --- for our invoices ----------------------------------------------------------------------

    def hints(self) -> tuple[tuple[RouteHop, ...], ...]:
        """Private channels over which we can be paid; none when a public one will do.

        Core Lightning's rule: a private channel is nobody's business unless it is needed.
        """
        usable = [channel for channel in self._node.channels.values() if channel.usable]
        if any(self._public(channel) is not None for channel in usable):
            return ()
        hints: list[tuple[RouteHop, ...]] = []
        for channel in sorted(usable, key=lambda c: -c.state.log.remote_msat):
            _, update = self.updates(channel)
            if update is None or update.channel_flags & DISABLE:
                continue
            hop = RouteHop(
                pubkey=channel.state.peer_id,
                short_channel_id=update.short_channel_id,
                fee_base_msat=Msat(update.fee_base_msat),
                fee_proportional_millionths=update.fee_proportional_millionths,
                cltv_expiry_delta=update.cltv_expiry_delta,
            )
            hints.append((hop,))
        return tuple(hints[:MAX_HINTS])
