"""BOLT 7 from the receiving end: what of a peer's gossip is believed, and when it is forgotten.

`Gossip` judges messages and keeps the graph. What it believes, it wants others to have too: the
keys in `news` are what the next flush passes on, those in `changed` what must be stored. It asks
the chain with `LookUp`, answered by `funding`. A message that is merely of no use raises `Ignored`;
one that no honest node sends raises RemoteProtocolError, and its peer gets a warning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from channels.bolt.address_descriptors import read_addresses
from channels.bolt.gossip_limits import Bounded, Bucket
from channels.bolt.gossip_signatures import check_announcement, check_node, check_update
from channels.bolt.graph import (
    DISABLE,
    DirectedChannel,
    Graph,
    GraphChannel,
    directed,
)
from channels.bolt.messages import (
    ChannelAnnouncement,
    ChannelUpdate,
    Message,
    NodeAnnouncement,
    decode,
    encode,
)
from channels.bolt.transactions import OutPoint, funding_script, p2wsh
from channels.errors import OdaError
from channels.units import BlockHeight, Sat, ShortChannelId, UnixTime

STALE_SECONDS = 1_209_600
"""BOLT 7 "Pruning": two weeks without a channel_update, and the channel may be forgotten."""

FUTURE_SECONDS = 86_400
"""A timestamp further ahead than a day is no timestamp."""

FORGET_BLOCKS = 72
"""BOLT 7: a spent channel is forgotten so many blocks later; it may have been spliced."""

DONT_FORWARD = 2
"""Bit 1 of message_flags (BOLT 7): between the two ends of the channel only."""

EARLY_BLOCKS = 6
"""An announcement that is so few blocks too early waits: our newest blocks may be missing."""

PEER_BURST, PEER_EVERY = 3_000, 0.02
"""Unasked messages that a peer may have us check at once, and seconds for each further one."""

MAX_GRANT = 100_000
"""What a peer may send at most because we asked for it."""

CHANGE_BURST, CHANGE_EVERY = 10, 60.0
"""The same for changes of one channel's direction, or of one node."""

MAX_PENDING, MAX_CANDIDATES = 2_000, 3
MAX_REMEMBERED = 20_000
FORGET_REFUSAL_SECONDS = 3_600


class Ignored(OdaError):
    """Gossip that is of no use here. `reason` is stable; nobody needs to be told."""


@dataclass(frozen=True, slots=True)
class LookUp:
    """What is in the chain at this place? Answer with `Gossip.funding`."""

    short_channel_id: ShortChannelId


@dataclass(frozen=True, slots=True)
class FundingOutput:
    """An unspent output, as the chain has it."""

    outpoint: OutPoint
    script: bytes
    value: Sat


@dataclass(slots=True)
class _Pending:
    """Announcements of one short_channel_id, rightly signed, whose output is not looked up yet.

    Anybody can sign for an output that is not theirs, so the first to come must not keep the real
    one out. What follows them is kept, in order, as it came.
    """

    candidates: list[tuple[bytes, ChannelAnnouncement]]
    due: BlockHeight
    asked: bool = False
    later: list[tuple[bytes, ChannelUpdate | NodeAnnouncement]] = field(default_factory=list)


@dataclass(slots=True)
class News:
    """What a flush must pass on, and whom each thing came from (b"": made here)."""

    channels: dict[ShortChannelId, bytes] = field(default_factory=dict)
    updates: dict[DirectedChannel, bytes] = field(default_factory=dict)
    nodes: dict[bytes, bytes] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.channels or self.updates or self.nodes)


@dataclass(slots=True)
class Changed:
    """What must be written again, or deleted if the graph has it no longer."""

    channels: set[ShortChannelId] = field(default_factory=set)
    nodes: set[bytes] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.channels or self.nodes)


class Gossip:
    """Judges gossip for one chain. What `own_id`, our node, says of itself is never taken from
    others: `accept_channel`, `accept_update` and `accept_node` are for that."""

    def __init__(self, chain_hash: bytes, own_id: bytes, *, announce_depth: int = 6) -> None:
        self.graph = Graph()
        self.news = News()
        self.changed = Changed()
        self.outpoints: dict[OutPoint, ShortChannelId] = {}
        self.height = BlockHeight(0)
        self.announce_depth = announce_depth
        self._chain_hash = chain_hash
        self._own_id = own_id
        self._pending: dict[ShortChannelId, _Pending] = {}
        self._awaited: dict[bytes, set[ShortChannelId]] = {}
        self._refused: Bounded[ShortChannelId, UnixTime] = Bounded(MAX_REMEMBERED)
        self._blacklist: Bounded[bytes, UnixTime] = Bounded(MAX_REMEMBERED)
        self._peers: Bounded[bytes, Bucket] = Bounded(MAX_REMEMBERED)
        self._changes: Bounded[DirectedChannel | bytes, Bucket] = Bounded(MAX_REMEMBERED)

    @property
    def pending(self) -> int:
        """Announcements that wait for the chain."""
        return len(self._pending)

    def knows(self, short_channel_id: ShortChannelId, now: UnixTime) -> bool:
        """Whether asking a peer about this channel would be a waste."""
        refused = self._refused.get(short_channel_id)
        return (
            short_channel_id in self.graph.channels
            or short_channel_id in self._pending
            or (refused is not None and refused > now)
        )

    def asked(self, peer: bytes, messages: int, now: UnixTime) -> None:
        """We asked the peer for so many messages: they do not count as unasked."""
        self._bucket(peer, now).grant(messages, MAX_GRANT)

    def _bucket(self, peer: bytes, now: UnixTime) -> Bucket:
        bucket = self._peers.get(peer)
        if bucket is None:
            bucket = Bucket.full(PEER_BURST, PEER_EVERY, now)
            self._peers.put(peer, bucket)
        return bucket

    # --- from peers ----------------------------------------------------------------------------

    def receive(self, peer: bytes, message: Message, now: UnixTime) -> tuple[LookUp, ...]:
        """Judge an announcement or update. Raises Ignored and RemoteProtocolError."""
        match message:
            case ChannelAnnouncement():
                return self._channel(peer, message, now)
            case ChannelUpdate():
                self._update(peer, message, now)
            case NodeAnnouncement():
                self._node(peer, message, now)
        return ()

    def _spend_token(self, peer: bytes, now: UnixTime) -> None:
        if not self._bucket(peer, now).take(1, now):
            raise Ignored("gossip-flood", "The peer sends more gossip than it was asked for.")

    def _channel(
        self, peer: bytes, message: ChannelAnnouncement, now: UnixTime
    ) -> tuple[LookUp, ...]:
        scid = message.short_channel_id
        if message.chain_hash != self._chain_hash:
            raise Ignored("announcement-wrong-chain", f"{scid} is on another chain.")
        if message.node_id_1 >= message.node_id_2:
            raise Ignored("announcement-node-order", f"The nodes of {scid} are in the wrong order.")
        if message.node_id_1 in self._blacklist or message.node_id_2 in self._blacklist:
            raise Ignored("announcement-node-blacklisted", f"A node of {scid} contradicts itself.")
        known = self.graph.channels.get(scid)
        if known is not None and known.nodes == (message.node_id_1, message.node_id_2):
            raise Ignored("announcement-known", f"{scid} is known already.")
        refused = self._refused.get(scid)
        if refused is not None and refused > now:
            raise Ignored("announcement-refused-before", f"{scid} has no unspent output.")
        due = BlockHeight(scid.block + self.announce_depth - 1)
        if due > self.height + EARLY_BLOCKS:
            raise Ignored("announcement-too-early", f"{scid} is not deep enough in the chain.")
        self._spend_token(peer, now)
        check_announcement(message)
        if known is not None:
            self._contradiction(known, message, now)
        return self._remember(peer, message, due)

    def _contradiction(
        self, known: GraphChannel, message: ChannelAnnouncement, now: UnixTime
    ) -> None:
        """BOLT 7: one output, two announcements with different nodes: keys have leaked."""
        first = decode(known.announcement)
        if not isinstance(first, ChannelAnnouncement) or (
            {first.bitcoin_key_1, first.bitcoin_key_2}
            != {message.bitcoin_key_1, message.bitcoin_key_2}
        ):
            raise Ignored(
                "announcement-funding-script",
                f"The output of {known.short_channel_id} pays to other keys.",
            )
        nodes = {*known.nodes, message.node_id_1, message.node_id_2} - {self._own_id}
        for node_id in nodes:
            self._blacklist.put(node_id, now)
            for channel in list(self.graph.channels_of(node_id)):
                if self._own_id not in channel.nodes:
                    self.forget(channel.short_channel_id)
        raise Ignored(
            "announcement-contradiction",
            f"{known.short_channel_id} was announced for other nodes; all of them are ignored.",
        )

    def _remember(
        self, peer: bytes, message: ChannelAnnouncement, due: BlockHeight
    ) -> tuple[LookUp, ...]:
        scid = message.short_channel_id
        pending = self._pending.get(scid)
        if pending is None:
            if len(self._pending) >= MAX_PENDING:
                raise Ignored("announcement-backlog", "Too many channels wait to be looked up.")
            pending = self._pending[scid] = _Pending([], due)
        nodes = (message.node_id_1, message.node_id_2)
        keys = {message.bitcoin_key_1, message.bitcoin_key_2}
        for _, other in pending.candidates:
            if {other.bitcoin_key_1, other.bitcoin_key_2} == keys and nodes == (
                other.node_id_1,
                other.node_id_2,
            ):
                raise Ignored("announcement-pending", f"{scid} is being looked up already.")
        if len(pending.candidates) >= MAX_CANDIDATES:
            raise Ignored("announcement-candidates", f"{scid} was announced in too many ways.")
        pending.candidates.append((peer, message))
        for node_id in nodes:
            self._awaited.setdefault(node_id, set()).add(scid)
        return self._look_up(scid, pending)

    def _look_up(self, scid: ShortChannelId, pending: _Pending) -> tuple[LookUp, ...]:
        if pending.asked or pending.due > self.height:
            return ()
        pending.asked = True
        return (LookUp(scid),)

    def _update(self, peer: bytes, message: ChannelUpdate, now: UnixTime) -> None:
        scid = message.short_channel_id
        if message.chain_hash != self._chain_hash:
            raise Ignored("update-wrong-chain", f"The update of {scid} is for another chain.")
        if message.timestamp > now + FUTURE_SECONDS:
            raise Ignored("update-from-the-future", f"The update of {scid} is dated too late.")
        if message.timestamp + STALE_SECONDS < now:
            raise Ignored("update-too-old", f"The update of {scid} is older than two weeks.")
        if message.message_flags & DONT_FORWARD:
            raise Ignored("update-not-to-forward", f"The update of {scid} is for its peer only.")
        channel = self.graph.channels.get(scid)
        if channel is None:
            self._postpone(scid, peer, message)
            return
        self._apply(peer, message, channel, now)

    def _postpone(
        self, scid: ShortChannelId, peer: bytes, message: ChannelUpdate | NodeAnnouncement
    ) -> None:
        pending = self._pending.get(scid)
        if pending is None:
            raise Ignored("update-unknown-channel", f"{scid} was never announced here.")
        # Two updates and two nodes follow an announcement; a candidate more, the same again.
        if len(pending.later) >= 4 * MAX_CANDIDATES:
            raise Ignored("gossip-too-soon", f"{scid} is still being looked up.")
        pending.later.append((peer, message))

    def _apply(
        self, peer: bytes, message: ChannelUpdate, channel: GraphChannel, now: UnixTime
    ) -> None:
        scid, direction = message.short_channel_id, message.channel_flags & 1
        node_id = channel.nodes[direction]
        if node_id == self._own_id:
            raise Ignored("update-our-own", f"The update of {scid} is our own, come back.")
        known = channel.updates[direction]
        if known is not None and message.timestamp < known.timestamp:
            raise Ignored("update-stale", f"A newer update of {scid} is known.")
        if known is not None and message.timestamp == known.timestamp:
            # BOLT 7 lets a node be blacklisted whose updates differ within a second. Whoever has
            # two processes behind one key does that by mistake; the first is kept.
            raise Ignored("update-duplicate", f"An update of {scid} with this time is known.")
        if channel.spent_height is not None and not message.channel_flags & DISABLE:
            raise Ignored("update-spent-channel", f"The output of {scid} is spent.")
        self._spend_token(peer, now)
        check_update(message, node_id)
        key = directed(scid, direction)
        # After the signature: nobody may use up the changes of another's channel.
        self._limit(key, now, "update-rate")
        self.accept_update(message, peer)

    def accept_update(self, message: ChannelUpdate, peer: bytes = b"") -> None:
        """A channel_update that was checked, or is our own: from now on it counts."""
        scid = message.short_channel_id
        channel = self.graph.channels[scid]
        if channel.updates == [None, None]:
            # BOLT 7: the first update is what makes the announcement worth sending.
            self.news.channels[scid] = peer
        self.graph.update_channel(message)
        self.news.updates[directed(scid, message.channel_flags & 1)] = peer
        self.changed.channels.add(scid)

    def _node(self, peer: bytes, message: NodeAnnouncement, now: UnixTime) -> None:
        node_id = message.node_id
        if node_id == self._own_id:
            raise Ignored("node-our-own", "The node_announcement is our own, come back.")
        if message.timestamp > now + FUTURE_SECONDS:
            raise Ignored("node-from-the-future", f"{node_id.hex()} dates itself too late.")
        if node_id not in self.graph:
            awaited = self._awaited.get(node_id)
            if not awaited:
                raise Ignored("node-unknown", f"{node_id.hex()} has no channel that is known.")
            self._postpone(min(awaited), peer, message)
            return
        known = self.graph.announcements.get(node_id)
        if known is not None and message.timestamp <= known.timestamp:
            raise Ignored("node-stale", f"{node_id.hex()} has said something newer.")
        self._spend_token(peer, now)
        read_addresses(message.addresses)
        check_node(message)
        self._limit(node_id, now, "node-rate")
        self.accept_node(message, peer)

    def accept_node(self, message: NodeAnnouncement, peer: bytes = b"") -> None:
        """A node_announcement that was checked, or is our own."""
        self.graph.update_node(message)
        self.news.nodes[message.node_id] = peer
        self.changed.nodes.add(message.node_id)

    def _limit(self, key: DirectedChannel | bytes, now: UnixTime, reason: str) -> None:
        bucket = self._changes.get(key)
        if bucket is None:
            bucket = Bucket.full(CHANGE_BURST, CHANGE_EVERY, now)
            self._changes.put(key, bucket)
        if not bucket.take(1, now):
            raise Ignored(reason, "It changes more often than anybody needs to know.")

    # --- from the chain ------------------------------------------------------------------------

    def funding(
        self, scid: ShortChannelId, output: FundingOutput | None, now: UnixTime
    ) -> tuple[tuple[bytes, OdaError], ...]:
        """The answer to LookUp; None: no such unspent output. Gives what peers are to blame for.

        Whoever cannot look now calls `unavailable` instead.
        """
        channel = self.graph.channels.get(scid)
        if channel is not None:
            self._seen_again(channel, output)
            return ()
        pending = self._drop(scid)
        if pending is None:
            return ()
        if output is None:
            self._refused.put(scid, UnixTime(now + FORGET_REFUSAL_SECONDS))
            return ()
        for peer, message in pending.candidates:
            script = p2wsh(funding_script(message.bitcoin_key_1, message.bitcoin_key_2))
            if script == output.script:
                self.accept_channel(message, output, peer)
                return self._follow_up(pending.later, now)
        return tuple(
            (
                peer,
                Ignored("announcement-funding-script", f"The output of {scid} pays other keys."),
            )
            for peer, _ in pending.candidates
        )

    def unavailable(self, scid: ShortChannelId) -> None:
        """The chain could not be asked: the announcement may come again."""
        self._drop(scid)

    def accept_channel(
        self, message: ChannelAnnouncement, output: FundingOutput, peer: bytes = b""
    ) -> None:
        """A channel that was checked, or is our own. It is passed on with its first update."""
        scid = message.short_channel_id
        self._drop(scid)
        self.graph.add_channel(
            GraphChannel(
                short_channel_id=scid,
                nodes=(message.node_id_1, message.node_id_2),
                capacity_sat=output.value,
                features=message.features,
                announcement=encode(message),
                outpoint=output.outpoint,
            )
        )
        self.outpoints[output.outpoint] = scid
        self.changed.channels.add(scid)

    def _drop(self, scid: ShortChannelId) -> _Pending | None:
        pending = self._pending.pop(scid, None)
        if pending is not None:
            for _, message in pending.candidates:
                for node_id in (message.node_id_1, message.node_id_2):
                    awaited = self._awaited.get(node_id)
                    if awaited is not None:
                        awaited.discard(scid)
                        if not awaited:
                            del self._awaited[node_id]
        return pending

    def _follow_up(
        self, later: Iterable[tuple[bytes, ChannelUpdate | NodeAnnouncement]], now: UnixTime
    ) -> tuple[tuple[bytes, OdaError], ...]:
        """What came after an announcement, now that the channel is known."""
        blamed = []
        for peer, message in later:
            try:
                self.receive(peer, message, now)
            except OdaError as error:
                blamed.append((peer, error))
        return tuple(blamed)

    def _seen_again(self, channel: GraphChannel, output: FundingOutput | None) -> None:
        """After a reorganization: is the output where it was?"""
        if output is not None and output.outpoint == channel.outpoint:
            self.graph.spend(channel.short_channel_id, None)
            self.changed.channels.add(channel.short_channel_id)

    def block_connected(self, height: BlockHeight, spent: Iterable[OutPoint]) -> tuple[LookUp, ...]:
        """A block that spends these outputs. Gives what can be looked up from now on."""
        self.height = height
        for outpoint in spent:
            scid = self.outpoints.get(outpoint)
            if scid is not None and self.graph.channels[scid].spent_height is None:
                self.graph.spend(scid, height)
                self.changed.channels.add(scid)
        due: list[LookUp] = []
        for scid, channel in list(self.graph.channels.items()):
            if channel.spent_height is None:
                continue
            if channel.spent_height + FORGET_BLOCKS <= height:
                self.forget(scid)
            elif scid.block == height:
                due.append(LookUp(scid))  # reorganized out, and perhaps in again
        for scid, pending in self._pending.items():
            due += self._look_up(scid, pending)
        return tuple(due)

    def block_disconnected(self, height: BlockHeight) -> None:
        """The block at `height` left the chain: what it spent is unspent, what it funded gone."""
        self.height = BlockHeight(height - 1)
        for scid, channel in self.graph.channels.items():
            if scid.block == height:
                self.graph.spend(scid, height)
            elif channel.spent_height == height:
                self.graph.spend(scid, None)
            else:
                continue
            self.changed.channels.add(scid)

    # --- forgetting ----------------------------------------------------------------------------

    def forget(self, scid: ShortChannelId) -> None:
        outpoint = self.graph.channels[scid].outpoint
        self.changed.nodes.update(self.graph.remove_channel(scid))
        if outpoint is not None:
            self.outpoints.pop(outpoint, None)
        self.changed.channels.add(scid)

    def prune(self, now: UnixTime) -> int:
        """Forget channels that one side has not updated for two weeks. Gives how many."""
        stale = [scid for scid in self.graph.channels if self._is_stale(scid, now)]
        for scid in stale:
            self.forget(scid)
        return len(stale)

    def _is_stale(self, scid: ShortChannelId, now: UnixTime) -> bool:
        channel = self.graph.channels[scid]
        if self._own_id in channel.nodes:
            return False  # it is in our own hands
        times = [update.timestamp for update in channel.updates if update is not None]
        if not times:
            # Nobody may have used it yet. 2016 blocks are two weeks.
            return scid.block + 2016 < self.height
        # BOLT 7: the older of the two decides, because both sides must be there.
        return min(times) + STALE_SECONDS < now

    def take_news(self) -> News:
        """What to pass on; the next call gives only what came after this one."""
        news, self.news = self.news, News()
        return news

    def take_changed(self) -> Changed:
        """What to write; as `take_news`."""
        changed, self.changed = self.changed, Changed()
        return changed

    def restore(self, channels: Iterable[GraphChannel], nodes: Iterable[NodeAnnouncement]) -> None:
        """What was stored: it was checked when it came."""
        for channel in channels:
            self.graph.add_channel(channel)
            if channel.outpoint is not None:
                self.outpoints[channel.outpoint] = channel.short_channel_id
        for node in nodes:
            if node.node_id in self.graph:
                self.graph.update_node(node)
