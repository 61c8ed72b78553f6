"""One peer's gossip: what it wants to hear, what it is still owed, and what we still ask of it.

Answers are made lazily and taken in small portions, so that a peer that asks for the whole graph
costs no memory, and one that does not read costs nothing more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from channels.bolt import wire
from channels.bolt.gossip import FUTURE_SECONDS, Gossip, News
from channels.bolt.gossip_limits import Bucket
from channels.bolt.gossip_queries import (
    EVERYTHING,
    UNCOMPRESSED,
    WANT_ANNOUNCEMENT,
    WANT_TIMESTAMPS,
    announcement_of,
    answer_ids,
    answer_range,
    channel_messages,
    encode_ids,
    is_public,
    lacking,
    offered,
)
from channels.bolt.graph import DirectedChannel, Graph, directed
from channels.bolt.messages import (
    ChannelUpdate,
    GossipTimestampFilter,
    Message,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
)
from channels.errors import RemoteProtocolError
from channels.units import ShortChannelId, UnixTime

BATCH = 500
"""Channels in one query_short_channel_ids: their answers are checked before more are asked for."""

PER_CHANNEL = 5
"""Messages that a channel may bring: its announcement, two updates, two nodes."""

MAX_OFFERED = 200_000
"""Channels that a peer may claim in answer to one query; more is a flood."""

QUERY_BURST, QUERY_EVERY = 30, 10.0
"""Queries and filters that make us work, and seconds for each further one."""

MAX_OWED = 100
"""Answers and flushes that may wait for a peer to read what came before."""

ALL_BLOCKS = 0xFFFFFFFF


class PeerGossip:
    """The state of one connection. `ours` and `theirs`: gossip_queries(_ex) was offered."""

    def __init__(
        self, peer_id: bytes, gossip: Gossip, *, queries: bool, extended: bool, now: UnixTime
    ) -> None:
        self.peer_id = peer_id
        self.syncing = False
        self.synced = False
        self._gossip = gossip
        self._queries = queries
        self._extended = extended
        self._filter: tuple[int, int] | None = None
        self._answers: deque[Iterator[Message]] = deque()
        self._range: QueryChannelRange | None = None
        self._covered = 0
        self._offered = 0
        self._wanted: dict[ShortChannelId, int] = {}
        self._waiting_for_end = False
        self._work = Bucket.full(QUERY_BURST, QUERY_EVERY, now)

    # --- what the peer wants -------------------------------------------------------------------

    def receive(self, message: Message, chain_hash: bytes, now: UnixTime) -> None:
        """A query, filter or reply. Raises RemoteProtocolError when it makes no sense."""
        if getattr(message, "chain_hash", chain_hash) != chain_hash:
            self._other_chain(message)
            return
        match message:
            case GossipTimestampFilter():
                self._set_filter(message, now)
            case QueryChannelRange():
                self._check_rate(now)
                self._answers.append(answer_range(self._gossip.graph, message))
            case QueryShortChannelIds():
                self._check_rate(now)
                self._answers.append(answer_ids(self._gossip.graph, message))
            case ReplyChannelRange():
                self._on_range(message, now)
            case ReplyShortChannelIdsEnd():
                self._waiting_for_end = False

    def _check_rate(self, now: UnixTime) -> None:
        if not self._work.take(1, now):
            raise RemoteProtocolError(
                "query-flood", "The peer asks for gossip faster than it can read it."
            )

    def _other_chain(self, message: Message) -> None:
        """BOLT 7: who asks about a chain that we do not follow is told that we know nothing."""
        if isinstance(message, QueryShortChannelIds):
            end = ReplyShortChannelIdsEnd(chain_hash=message.chain_hash, full_information=0)
            self._answers.append(iter([end]))
        elif isinstance(message, QueryChannelRange):
            self._answers.append(answer_range(Graph(), message))

    def _set_filter(self, message: GossipTimestampFilter, now: UnixTime) -> None:
        first = message.first_timestamp
        self._filter = first, first + message.timestamp_range
        # What is known already and falls into it; "nothing before now" costs nothing.
        if first <= now + FUTURE_SECONDS and message.timestamp_range and self._work.take(1, now):
            self._answers.append(self._backlog(*self._filter))

    def _backlog(self, first: int, end: int) -> Iterator[Message]:
        graph = self._gossip.graph
        nodes: set[bytes] = set()
        for scid in list(graph.channels):
            channel = graph.channels.get(scid)
            if channel is None or not is_public(channel):
                continue
            flags = 0
            for direction, update in enumerate(channel.updates):
                if update is not None and first <= update.timestamp < end:
                    flags |= WANT_ANNOUNCEMENT | 2 << direction
            for direction, node_id in enumerate(channel.nodes):
                node = graph.announcements.get(node_id)
                if node is not None and first <= node.timestamp < end:
                    flags |= 8 << direction
            yield from channel_messages(graph, channel, flags, nodes)

    def wants(self, timestamp: int) -> bool:
        return self._filter is not None and self._filter[0] <= timestamp < self._filter[1]

    def broadcast(self, news: News) -> None:
        """Queue what is new, if the peer wants it or it is our own, and did not come from it."""
        # Who does not read what it is owed hears no more news: it can ask later.
        if len(self._answers) < MAX_OWED:
            self._answers.append(iter(self._relayed(self._gossip.graph, news)))

    def _relayed(self, graph: Graph, news: News) -> list[Message]:
        due: list[Message] = []
        updates: dict[DirectedChannel, ChannelUpdate] = {}
        for key, source in news.updates.items():
            channel = graph.channels.get(ShortChannelId(key >> 1))
            update = None if channel is None else channel.updates[key & 1]
            if update is not None and self._relays(source, update.timestamp):
                updates[key] = update
        for scid, source in news.channels.items():
            channel = graph.channels.get(scid)
            if channel is None or not is_public(channel) or source == self.peer_id:
                continue
            # BOLT 7: its timestamp is that of a channel_update.
            times = [update.timestamp for update in channel.updates if update is not None]
            if source == b"" or any(self.wants(time) for time in times):
                due.append(announcement_of(channel))
        due += updates.values()
        for node_id, source in news.nodes.items():
            node = graph.announcements.get(node_id)
            if node is not None and self._relays(source, node.timestamp):
                due.append(node)
        return due

    def _relays(self, source: bytes, timestamp: int) -> bool:
        # BOLT 7: our own goes out regardless of any filter, others' only when asked for.
        return source == b"" or (source != self.peer_id and self.wants(timestamp))

    def take(self, count: int) -> list[Message]:
        """The next messages that the peer is owed, at most `count`."""
        taken: list[Message] = []
        while self._answers and len(taken) < count:
            more = list(islice(self._answers[0], count - len(taken)))
            if not more:
                self._answers.popleft()
            taken += more
        return taken

    @property
    def owed(self) -> bool:
        return bool(self._answers)

    # --- what we want --------------------------------------------------------------------------

    def hello(self, chain_hash: bytes, now: UnixTime) -> list[Message]:
        """Ask to be told what is new; a peer that offers no queries is asked for its own only."""
        first, span = (max(0, now - 3600), ALL_BLOCKS) if self._queries else (ALL_BLOCKS, 0)
        return [GossipTimestampFilter(chain_hash, first, span)]

    def start_sync(self, chain_hash: bytes) -> list[Message]:
        """Ask which channels the peer knows; nothing when it is not worth asking."""
        if not self._queries or self.syncing or self.synced:
            return []
        self.syncing = True
        option = WANT_TIMESTAMPS if self._extended else None
        self._range = QueryChannelRange(chain_hash, 0, ALL_BLOCKS, option)
        self._covered = self._offered = 0
        return [self._range]

    def stop_sync(self) -> None:
        """The peer is too slow or not honest; what it still owes is not waited for."""
        self.syncing, self.synced = False, True
        self._range = None
        self._wanted.clear()

    def _on_range(self, reply: ReplyChannelRange, now: UnixTime) -> None:
        query = self._range
        if query is None:
            raise RemoteProtocolError(
                "reply-unasked", "The peer sent a reply_channel_range that nobody asked for."
            )
        # BOLT 7: replies come in order; one that ends at or before the last brings nothing new.
        if reply.first_blocknum > self._covered + 1 and self._covered:
            raise RemoteProtocolError(
                "reply-out-of-order", "A reply_channel_range leaves out blocks before it."
            )
        channels = offered(reply)
        self._offered += max(1, len(channels))
        if self._offered > MAX_OFFERED:
            raise RemoteProtocolError("reply-flood", "The peer claims more channels than can be.")
        for channel in channels:
            if channel.short_channel_id.block > self._gossip.height:
                continue
            flags = lacking(self._gossip.graph, channel)
            if flags == EVERYTHING and self._gossip.knows(channel.short_channel_id, now):
                continue
            if flags:
                self._wanted[channel.short_channel_id] = flags
        self._covered = max(self._covered, reply.first_blocknum + reply.number_of_blocks)
        # Older nodes say sync_complete 0 for "I don't know everything"; the blocks decide.
        if self._covered >= query.first_blocknum + query.number_of_blocks:
            self._range = None

    def want(self, short_channel_id: ShortChannelId) -> None:
        """An update came for a channel that was never announced here (BOLT 7: MAY ask)."""
        if self._queries and len(self._wanted) < BATCH:
            self._wanted[short_channel_id] = EVERYTHING

    def next_query(self, chain_hash: bytes, now: UnixTime) -> list[Message]:
        """The next query_short_channel_ids, once the last was answered and its answers checked."""
        if self._waiting_for_end or self._range is not None:
            return []
        if not self._wanted:
            if self.syncing:
                self.syncing, self.synced = False, True
            return []
        ids = sorted(islice(self._wanted, BATCH))
        flags = [self._wanted.pop(scid) for scid in ids]
        self._waiting_for_end = True
        self._gossip.asked(self.peer_id, PER_CHANNEL * len(ids), now)
        query_flags = None
        if self._extended:
            query_flags = UNCOMPRESSED + b"".join(wire.bigsize(flag) for flag in flags)
        return [QueryShortChannelIds(chain_hash, encode_ids(ids), query_flags)]


def own_news(graph: Graph, own_id: bytes) -> News:
    """All that we have to say of ourselves, for a peer that has just connected."""
    news = News()
    for channel in graph.channels_of(own_id):
        scid = channel.short_channel_id
        news.channels[scid] = b""
        news.updates[directed(scid, channel.nodes.index(own_id))] = b""
    if own_id in graph.announcements:
        news.nodes[own_id] = b""
    return news


GOSSIP_QUERIES: tuple[type[Message], ...] = (
    GossipTimestampFilter,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
)
"""What `PeerGossip.receive` takes; the others go to `Gossip.receive`."""
