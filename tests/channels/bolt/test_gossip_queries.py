"""BOLT 7's queries: its vectors, what is asked and answered, and two nodes that catch up."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.bolt import gossip_queries, gossip_sync
from channels.bolt.gossip import Gossip, Ignored
from channels.bolt.gossip_queries import (
    EVERYTHING,
    Offered,
    answer_ids,
    answer_range,
    checksum,
    crc32c,
    decode_flags,
    decode_ids,
    encode_ids,
    lacking,
    offered,
)
from channels.bolt.gossip_sync import (
    ALL_BLOCKS,
    GOSSIP_QUERIES,
    QUERY_BURST,
    PeerGossip,
    own_news,
)
from channels.bolt.messages import (
    ChannelAnnouncement,
    ChannelUpdate,
    GossipTimestampFilter,
    Message,
    NodeAnnouncement,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    decode,
    encode,
)
from channels.errors import RemoteProtocolError
from channels.units import BlockHeight, ShortChannelId, UnixTime
from tests.channels.bolt.networks import REGTEST_CHAIN, node, scid
from tests.channels.bolt.signed_gossip import (
    announcement,
    channel_update,
    node_announcement,
    output,
)
from tests.vectors import bolt07_queries

NOW = UnixTime(1_700_000_000)
IDS = st.lists(st.integers(0, 2**64 - 1).map(ShortChannelId), unique=True, max_size=50)


def heard(links: int, *, own: str = "me") -> Gossip:
    """A node that knows A-B, B-C, C-D … with updates both ways and every node."""
    gossip = Gossip(REGTEST_CHAIN, node(own))
    gossip.height = BlockHeight(1000)
    for number in range(1, links + 1):
        one, other = f"node {number}", f"node {number + 1}"
        for message in (
            announcement(one, other, number),
            channel_update(one, other, number, NOW),
            channel_update(other, one, number, NOW + 1),
            node_announcement(one, NOW),
        ):
            with suppress(Ignored):  # our own, in some tests
                gossip.receive(b"", message, NOW)
        gossip.funding(scid(number), output(one, other, number), NOW)
    gossip.take_news()
    return gossip


def vectors(name: str) -> list[Message]:
    texts = [text for text, kind, _ in bolt07_queries.QUERIES if kind == name]
    decoded = [decode(bytes.fromhex(text)) for text in texts]
    return [message for message in decoded if isinstance(message, Message)]


def test_vectors_without_compression_are_read() -> None:
    plain = [m for m in vectors("QueryShortChannelIds") if m.encoded_short_ids[:1] == b"\0"]  # type: ignore[attr-defined]  # of this class by name
    assert [int(i) for i in decode_ids(plain[0].encoded_short_ids)] == [142, 15465, 4564676]  # type: ignore[attr-defined]  # as above
    replies = [m for m in vectors("ReplyChannelRange") if m.encoded_short_ids[:1] == b"\0"]  # type: ignore[attr-defined]  # as above
    first, second = (m for m in replies if isinstance(m, ReplyChannelRange))
    assert [int(o.short_channel_id) for o in offered(first)] == [142, 15465, 4564676]
    assert offered(second) == [
        Offered(ShortChannelId(12355), (164545, 948165)),
        Offered(ShortChannelId(489686), (489645, 4786864)),
        Offered(ShortChannelId(4645313), (46456, 9788415)),
    ]
    assert second.checksums_tlv is not None
    assert gossip_queries.decode_pairs(second.checksums_tlv) == [
        (1111, 2222),
        (3333, 4444),
        (5555, 6666),
    ]


def test_zlib_is_refused() -> None:
    """BOLT 7: encoding 1 MUST NOT be used; the vectors still have it."""
    packed = [m for m in vectors("ReplyChannelRange") if m.encoded_short_ids[:1] == b"\1"]  # type: ignore[attr-defined]  # of this class by name
    assert len(packed) == 2
    for message in packed:
        assert isinstance(message, ReplyChannelRange)
        with pytest.raises(RemoteProtocolError) as raised:
            offered(message)
        assert raised.value.reason == "query-encoding-unknown"


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c(data: bytes, crc: int) -> None:
    """RFC 3720, appendix B.4 (there the bytes of each are shown in the order of the wire)."""
    assert crc32c(data) == crc


def test_checksums_leave_out_time_and_signature() -> None:
    first = channel_update("A", "B", 1, NOW)
    assert checksum(first) == checksum(channel_update("A", "B", 1, NOW + 1)) != 0
    assert checksum(first) != checksum(channel_update("A", "B", 1, NOW, base=1))
    assert checksum(None) == 0


@given(IDS)
def test_ids_round_trip(ids: list[ShortChannelId]) -> None:
    assert decode_ids(encode_ids(ids)) == sorted(ids)


@pytest.mark.parametrize(
    ("flags", "count", "reason"),
    [
        (b"\0\x01", 2, "query-flags-malformed"),
        (b"\0\x01\x02\x03", 2, "query-flags-malformed"),
        (b"\x01\x01", 1, "query-encoding-unknown"),
        (b"", 0, "query-encoding-unknown"),
    ],
)
def test_query_flags_of_another_number(flags: bytes, count: int, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as raised:
        decode_flags(flags, count)
    assert raised.value.reason == reason


def test_half_an_id_is_no_query() -> None:
    query = QueryShortChannelIds(REGTEST_CHAIN, b"\0" + bytes(7))
    with pytest.raises(RemoteProtocolError) as raised:
        answer_ids(heard(0).graph, query)
    assert raised.value.reason == "query-ids-malformed"


@pytest.mark.parametrize("option", [None, 1, 2, 3])
@pytest.mark.parametrize("per_reply", [1, 2, 100])
def test_replies_cover_the_range_in_order(
    option: int | None, per_reply: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gossip_queries, "MAX_IDS", per_reply)
    graph = heard(5).graph
    query = QueryChannelRange(REGTEST_CHAIN, 2, 3, option)
    replies = list(answer_range(graph, query))
    assert all(decode(encode(reply)) == reply for reply in replies)
    found = [item for reply in replies for item in offered(reply)]
    assert [item.short_channel_id.block for item in found] == [2, 3, 4]
    times = (option or 0) & 1
    assert {t for item in found for t in item.timestamps} == ({NOW, NOW + 1} if times else {0})
    assert all((r.checksums_tlv is not None) == bool((option or 0) & 2) for r in replies)
    covered = 2
    for reply in replies:
        assert reply.first_blocknum == covered
        covered += reply.number_of_blocks
    assert covered == 5
    assert [r.sync_complete for r in replies] == [0] * (len(replies) - 1) + [1]


def test_a_range_without_channels_is_answered_too() -> None:
    (reply,) = answer_range(heard(1).graph, QueryChannelRange(REGTEST_CHAIN, 500, ALL_BLOCKS))
    assert (reply.first_blocknum, reply.number_of_blocks) == (500, ALL_BLOCKS)
    assert reply.sync_complete == 1 and offered(reply) == []


def test_answers_to_ids_follow_the_flags() -> None:
    graph = heard(3).graph
    everything = list(answer_ids(graph, QueryShortChannelIds(REGTEST_CHAIN, encode_ids([scid(2)]))))
    assert [type(m) for m in everything] == [
        ChannelAnnouncement,
        ChannelUpdate,
        ChannelUpdate,
        NodeAnnouncement,
        NodeAnnouncement,
        ReplyShortChannelIdsEnd,
    ]
    for bit, message in zip((1, 2, 4), everything, strict=False):
        query = QueryShortChannelIds(REGTEST_CHAIN, encode_ids([scid(2)]), bytes([0, bit]))
        assert list(answer_ids(graph, query)) == [message, everything[-1]]
    unknown = QueryShortChannelIds(REGTEST_CHAIN, encode_ids([scid(9)]))
    assert list(answer_ids(graph, unknown)) == [everything[-1]]
    several = QueryShortChannelIds(REGTEST_CHAIN, encode_ids([scid(1), scid(2)]))
    nodes = [m for m in answer_ids(graph, several) if isinstance(m, NodeAnnouncement)]
    assert len({n.node_id for n in nodes}) == len(nodes) == 3, "each node once"


def test_what_is_lacking() -> None:
    graph = heard(1).graph
    assert lacking(graph, Offered(scid(7), (0, 0))) == EVERYTHING
    have = tuple(u.timestamp for u in graph.channels[scid(1)].updates if u is not None)
    assert lacking(graph, Offered(scid(1), (have[0], have[1]))) == 0
    assert lacking(graph, Offered(scid(1), (have[0] + 1, have[1]))) == 2
    assert lacking(graph, Offered(scid(1), (have[0], have[1] + 1))) == 4


def peer(gossip: Gossip, **more: Any) -> PeerGossip:
    more = {"queries": True, "extended": True, **more}
    return PeerGossip(node("peer"), gossip, now=NOW, **more)


@pytest.mark.parametrize("extended", [True, False])
def test_a_new_node_catches_up_by_asking(extended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip_sync, "BATCH", 3)
    monkeypatch.setattr(gossip_queries, "MAX_IDS", 4)
    old, new = heard(10), heard(2)
    server, client = peer(old, extended=extended), peer(new, extended=extended)
    to_server = client.start_sync(REGTEST_CHAIN)
    rounds = 0
    while to_server:
        rounds += 1
        for message in to_server:
            assert len(encode(message)) < 65535
            server.receive(message, REGTEST_CHAIN, NOW)
        for message in server.take(10_000):
            if isinstance(message, GOSSIP_QUERIES):
                client.receive(message, REGTEST_CHAIN, NOW)
                continue
            with suppress(Ignored):  # the node of a channel before, once more
                for look_up in new.receive(node("peer"), message, NOW):
                    number = look_up.short_channel_id.block
                    found = output(f"node {number}", f"node {number + 1}", number)
                    new.funding(scid(number), found, NOW)
        to_server = client.next_query(REGTEST_CHAIN, NOW)
    assert rounds == 1 + 3, "ten are known, two were, three at a time"
    assert client.synced and not client.syncing and not server.owed
    assert new.graph.channels.keys() == old.graph.channels.keys()
    assert new.graph.announcements.keys() == old.graph.announcements.keys()
    for number, channel in old.graph.channels.items():
        assert new.graph.channels[number].updates == channel.updates


def test_a_peer_without_queries_is_asked_for_nothing() -> None:
    client = peer(heard(0), queries=False)
    assert client.start_sync(REGTEST_CHAIN) == []
    (message,) = client.hello(REGTEST_CHAIN, NOW)
    # BOLT 7: SHOULD set first_timestamp to 0xFFFFFFFF and timestamp_range to 0.
    assert message == GossipTimestampFilter(REGTEST_CHAIN, 0xFFFFFFFF, 0)
    client.want(scid(1))
    assert client.next_query(REGTEST_CHAIN, NOW) == []


def test_a_filter_brings_what_falls_into_it_in_small_portions() -> None:
    server = peer(heard(4))
    server.receive(GossipTimestampFilter(REGTEST_CHAIN, NOW + 1, 1), REGTEST_CHAIN, NOW)
    portions = [server.take(3) for _ in range(4)]
    assert [len(portion) for portion in portions] == [3, 3, 2, 0]
    messages = [message for portion in portions for message in portion]
    assert [type(m) for m in messages] == [ChannelAnnouncement, ChannelUpdate] * 4
    assert all(m.timestamp == NOW + 1 for m in messages if isinstance(m, ChannelUpdate))


def test_news_go_to_whom_wants_them_and_not_back() -> None:
    gossip = heard(2)
    server = peer(gossip)
    gossip.receive(node("another"), channel_update("node 1", "node 2", 1, NOW + 5), NOW)
    news = gossip.take_news()
    server.broadcast(news)
    assert server.take(9) == [], "MUST NOT relay until gossip_timestamp_filter"
    server.receive(GossipTimestampFilter(REGTEST_CHAIN, NOW + 4, 100), REGTEST_CHAIN, NOW)
    assert len(server.take(9)) == 2, "the backlog: the channel and the update"
    server.broadcast(news)
    assert [type(m) for m in server.take(9)] == [ChannelUpdate]
    server.receive(GossipTimestampFilter(REGTEST_CHAIN, NOW + 6, 100), REGTEST_CHAIN, NOW)
    server.broadcast(news)
    assert server.take(9) == []
    gossip.receive(node("peer"), channel_update("node 2", "node 3", 2, NOW + 7), NOW)
    server.broadcast(gossip.take_news())
    assert server.take(9) == [], "it told us"


def test_our_own_words_need_no_filter() -> None:
    gossip = heard(2, own="node 2")
    gossip.accept_update(channel_update("node 2", "node 3", 2, NOW + 9))
    gossip.accept_node(node_announcement("node 2", NOW))
    gossip.take_news()
    server = peer(gossip)
    server.broadcast(own_news(gossip.graph, node("node 2")))
    sent = server.take(20)
    assert {m.short_channel_id for m in sent if isinstance(m, ChannelAnnouncement)} == {
        scid(1),
        scid(2),
    }
    assert sum(isinstance(m, NodeAnnouncement) for m in sent) == 1


def test_other_chains_are_answered_with_nothing() -> None:
    server = peer(heard(2))
    other = bytes(32)
    server.receive(QueryShortChannelIds(other, encode_ids([scid(1)])), REGTEST_CHAIN, NOW)
    server.receive(QueryChannelRange(other, 0, 1000), REGTEST_CHAIN, NOW)
    end, reply = server.take(9)
    assert end == ReplyShortChannelIdsEnd(other, 0)
    assert isinstance(reply, ReplyChannelRange) and offered(reply) == []


def reason(server: PeerGossip, message: Message) -> str:
    with pytest.raises(RemoteProtocolError) as raised:
        server.receive(message, REGTEST_CHAIN, NOW)
    return raised.value.reason


def test_who_asks_too_much_is_stopped() -> None:
    server = peer(heard(1))
    for _ in range(QUERY_BURST):
        server.receive(QueryChannelRange(REGTEST_CHAIN, 0, 1), REGTEST_CHAIN, NOW)
    assert reason(server, QueryChannelRange(REGTEST_CHAIN, 0, 1)) == "query-flood"


def test_replies_that_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip_sync, "MAX_OFFERED", 3)
    client = peer(heard(0))

    def reply(first: int, count: int, *ids: int) -> ReplyChannelRange:
        return ReplyChannelRange(REGTEST_CHAIN, first, count, 0, encode_ids(map(scid, ids)))

    assert reason(client, reply(0, 10)) == "reply-unasked"
    client.start_sync(REGTEST_CHAIN)
    client.receive(reply(0, 10, 1), REGTEST_CHAIN, NOW)
    assert reason(client, reply(100, 10)) == "reply-out-of-order"
    client.receive(reply(10, 10, 11, 5000), REGTEST_CHAIN, NOW)
    assert reason(client, reply(20, 10, 21)) == "reply-flood"
    short = ReplyChannelRange(REGTEST_CHAIN, 20, 10, 0, encode_ids([scid(1)]), b"\0" + bytes(16))
    client = peer(heard(0))
    client.start_sync(REGTEST_CHAIN)
    assert reason(client, short) == "query-pairs-malformed"


def test_refused_channels_are_not_asked_for() -> None:
    gossip = heard(0)
    with pytest.raises(Ignored):
        gossip.receive(b"", channel_update("A", "B", 1, NOW), NOW)
    gossip.receive(b"", announcement("A", "B", 1), NOW)
    gossip.funding(scid(1), None, NOW)
    client = peer(gossip)
    client.start_sync(REGTEST_CHAIN)
    ids = encode_ids([scid(1), scid(5000)])
    client.receive(ReplyChannelRange(REGTEST_CHAIN, 0, ALL_BLOCKS, 1, ids), REGTEST_CHAIN, NOW)
    assert client.next_query(REGTEST_CHAIN, NOW) == [] and client.synced
