"""BOLT 7 "Query Messages": asking for parts of the graph, and answering who asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from channels.bolt import wire
from channels.bolt.graph import Graph, GraphChannel
from channels.bolt.messages import (
    ChannelAnnouncement,
    ChannelUpdate,
    Message,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    decode,
    encode,
)
from channels.errors import RemoteProtocolError
from channels.units import ShortChannelId

UNCOMPRESSED = b"\0"
"""The only encoding there is: 1 was zlib, and MUST NOT be used (BOLT 7)."""

WANT_TIMESTAMPS, WANT_CHECKSUMS = 1, 2
"""The bits of query_option_flags."""

WANT_ANNOUNCEMENT, WANT_UPDATE_1, WANT_UPDATE_2, WANT_NODE_1, WANT_NODE_2 = 1, 2, 4, 8, 16
"""The bits of a query_flag."""

EVERYTHING = 31

MAX_IDS = 2_500
"""Ids in one message: with timestamps and checksums they fit into 65535 bytes."""


def encode_ids(ids: Iterable[ShortChannelId]) -> bytes:
    """`encoded_short_ids`, in ascending order as BOLT 7 wants them."""
    return UNCOMPRESSED + b"".join(map(wire.u64, sorted(ids)))


def decode_ids(field: bytes) -> list[ShortChannelId]:
    """Raises RemoteProtocolError: "query-encoding-unknown", "query-ids-malformed"."""
    data = _uncompressed(field)
    if len(data) % 8:
        raise RemoteProtocolError(
            "query-ids-malformed", "The short_channel_ids of a query are not a whole number."
        )
    return [
        ShortChannelId(int.from_bytes(data[at : at + 8], "big")) for at in range(0, len(data), 8)
    ]


def _uncompressed(field: bytes) -> bytes:
    if field[:1] != UNCOMPRESSED:
        raise RemoteProtocolError(
            "query-encoding-unknown", f"Encoding {field[:1].hex() or 'none'} is not known: use 0."
        )
    return field[1:]


def decode_flags(field: bytes | None, count: int) -> list[int]:
    """The query_flags of `count` ids, all of them when there are none.

    Raises RemoteProtocolError("query-flags-malformed") unless there is one for each.
    """
    if field is None:
        return [EVERYTHING] * count
    reader = wire.Reader(_uncompressed(field))
    flags: list[int] = []
    while not reader.at_end() and len(flags) <= count:
        flags.append(reader.bigsize())
    if len(flags) != count:
        raise RemoteProtocolError(
            "query-flags-malformed", f"A query for {count} channels needs as many query_flags."
        )
    return flags


def decode_pairs(field: bytes) -> list[tuple[int, int]]:
    """Timestamps or checksums, without the encoding byte: a u32 for each node of each channel."""
    if len(field) % 8:
        raise RemoteProtocolError(
            "query-pairs-malformed", "The timestamps or checksums of a reply are cut short."
        )
    return [
        (int.from_bytes(field[at : at + 4], "big"), int.from_bytes(field[at + 4 : at + 8], "big"))
        for at in range(0, len(field), 8)
    ]


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC32C = _crc_table()


def crc32c(data: bytes) -> int:
    """RFC 3720, appendix B.4: the Castagnoli polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def checksum(update: ChannelUpdate | None) -> int:
    """Of a channel_update without its signature and timestamp; 0 when there is none."""
    if update is None:
        return 0
    # type (2), signature (64) | chain_hash (32), short_channel_id (8) | timestamp (4) | the rest
    encoded = encode(update)
    return crc32c(encoded[66:106] + encoded[110:])


def _timestamp(update: ChannelUpdate | None) -> int:
    return 0 if update is None else update.timestamp


# --- answering ---------------------------------------------------------------------------------


def is_public(channel: GraphChannel) -> bool:
    """Whether others may be told of the channel: BOLT 7 wants an update, and an unspent output."""
    return (
        bool(channel.announcement)
        and channel.spent_height is None
        and channel.updates != [None, None]
    )


def answer_range(graph: Graph, query: QueryChannelRange) -> Iterator[ReplyChannelRange]:
    """The replies to query_channel_range, as many as it takes, in ascending order."""
    first, count = query.first_blocknum, query.number_of_blocks
    last = min(first + count, 1 << 32)
    found = sorted(
        scid
        for scid, channel in graph.channels.items()
        if first <= scid.block < last and is_public(channel)
    )
    chunks = [found[at : at + MAX_IDS] for at in range(0, len(found), MAX_IDS)] or [[]]
    # A reply covers its blocks up to the next one's first, which it shares when that one is split.
    starts = [first, *(chunk[0].block for chunk in chunks[1:])]
    ends = [
        max(after[0].block, before[-1].block + (before[-1].block == after[0].block))
        for before, after in pairwise(chunks)
    ]
    for chunk, start, end in zip(chunks, starts, [*ends, first + count], strict=True):
        yield _reply(graph, query, chunk, start, end - start, chunk is chunks[-1])


def _reply(
    graph: Graph,
    query: QueryChannelRange,
    ids: Sequence[ShortChannelId],
    first: int,
    count: int,
    complete: bool,
) -> ReplyChannelRange:
    options = query.query_option or 0
    updates = [graph.channels[scid].updates for scid in ids]
    timestamps = checksums = None
    if options & WANT_TIMESTAMPS:
        timestamps = UNCOMPRESSED + b"".join(
            wire.u32(_timestamp(update)) for pair in updates for update in pair
        )
    if options & WANT_CHECKSUMS:
        checksums = b"".join(wire.u32(checksum(update)) for pair in updates for update in pair)
    return ReplyChannelRange(
        chain_hash=query.chain_hash,
        first_blocknum=first,
        number_of_blocks=count,
        sync_complete=int(complete),
        encoded_short_ids=encode_ids(ids),
        timestamps_tlv=timestamps,
        checksums_tlv=checksums,
    )


def answer_ids(graph: Graph, query: QueryShortChannelIds) -> Iterator[Message]:
    """The messages that query_short_channel_ids asks for, and the end.

    Raises RemoteProtocolError for a query that can't be read, before anything is answered.
    """
    ids = decode_ids(query.encoded_short_ids)
    flags = decode_flags(query.query_flags, len(ids))
    end = ReplyShortChannelIdsEnd(chain_hash=query.chain_hash, full_information=1)
    return _answers(graph, list(zip(ids, flags, strict=True)), end)


def _answers(
    graph: Graph, wanted: Sequence[tuple[ShortChannelId, int]], end: ReplyShortChannelIdsEnd
) -> Iterator[Message]:
    nodes: set[bytes] = set()
    for scid, flags in wanted:
        channel = graph.channels.get(scid)
        if channel is not None and is_public(channel):
            yield from channel_messages(graph, channel, flags, nodes)
    yield end


def channel_messages(
    graph: Graph, channel: GraphChannel, flags: int, nodes: set[bytes]
) -> Iterator[Message]:
    """What `flags` name of a channel, in BOLT 7's order; `nodes` are those already sent."""
    if flags & WANT_ANNOUNCEMENT:
        yield announcement_of(channel)
    for update, wanted in zip(channel.updates, (WANT_UPDATE_1, WANT_UPDATE_2), strict=True):
        if flags & wanted and update is not None:
            yield update
    for node_id, wanted in zip(channel.nodes, (WANT_NODE_1, WANT_NODE_2), strict=True):
        node = graph.announcements.get(node_id)
        if flags & wanted and node is not None and node_id not in nodes:
            nodes.add(node_id)
            yield node


def announcement_of(channel: GraphChannel) -> ChannelAnnouncement:
    message = decode(channel.announcement)
    assert isinstance(message, ChannelAnnouncement), "only what was decoded is kept"
    return message


# --- reading answers ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offered:
    """A channel that a peer has, and the times of its updates (0, 0 when it did not say)."""

    short_channel_id: ShortChannelId
    timestamps: tuple[int, int]


def offered(reply: ReplyChannelRange) -> list[Offered]:
    """The channels of a reply. Raises RemoteProtocolError when it can't be read."""
    ids = decode_ids(reply.encoded_short_ids)
    times = [(0, 0)] * len(ids)
    if reply.timestamps_tlv is not None:
        times = decode_pairs(_uncompressed(reply.timestamps_tlv))
        if len(times) != len(ids):
            raise RemoteProtocolError(
                "query-pairs-malformed", "A reply needs two timestamps for each of its channels."
            )
    return [Offered(scid, pair) for scid, pair in zip(ids, times, strict=True)]


def lacking(graph: Graph, channel: Offered) -> int:
    """The query_flags for what the peer has newer than we; 0 when there is nothing."""
    known = graph.channels.get(channel.short_channel_id)
    if known is None:
        return EVERYTHING
    flags = 0
    for update, theirs, flag in zip(
        known.updates, channel.timestamps, (WANT_UPDATE_1, WANT_UPDATE_2), strict=True
    ):
        if theirs > _timestamp(update):
            flags |= flag
    return flags
