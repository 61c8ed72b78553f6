"""Gossip of a real node against strangers: one asks and tells, one lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from channels.bolt.gossip_queries import offered
from channels.bolt.messages import (
    GossipTimestampFilter,
    Message,
    QueryChannelRange,
    QueryShortChannelIds,
    ReplyChannelRange,
    ReplyShortChannelIdsEnd,
    Unknown,
    Warning_,
)
from channels.node.gossip import STRIKES
from channels.node.peer import Disconnected, PeerConnection, connect
from channels.units import ShortChannelId, UnixTime
from tests.channels.bolt.networks import REGTEST_CHAIN, secret
from tests.channels.bolt.signed_gossip import announcement, channel_update
from tests.nodes import LightningNode, Nodes

NOW = UnixTime(1_700_000_000)


@asynccontextmanager
async def stranger(node: LightningNode) -> AsyncIterator[PeerConnection]:
    peer = await connect(
        "127.0.0.1", node.process.port, secret("stranger"), bytes.fromhex(node.id), REGTEST_CHAIN
    )
    try:
        yield peer
    finally:
        await peer.close()


async def until_one(peer: PeerConnection, kind: type[Message]) -> Message:
    """The next message of a kind; what else comes is passed over."""
    async with asyncio.timeout(30):
        while True:
            message = await peer.receive()
            if not isinstance(message, Unknown) and isinstance(message, kind):
                return message


async def test_a_node_asks_a_new_peer_what_it_knows_and_answers_when_asked(nodes: Nodes) -> None:
    (node,) = await nodes.start("node")
    async with stranger(node) as peer:
        await until_one(peer, GossipTimestampFilter)
        question = await until_one(peer, QueryChannelRange)
        assert isinstance(question, QueryChannelRange) and question.query_option == 1
        peer.send(replace(question, query_option=None))
        answer = await until_one(peer, ReplyChannelRange)
        assert isinstance(answer, ReplyChannelRange)
        assert offered(answer) == [] and answer.sync_complete == 1
        # We offer a channel, so the node asks for it; what it is told is looked up and refused.
        peer.send(
            replace(answer, encoded_short_ids=b"\0" + (1 << 40).to_bytes(8, "big")),
        )
        wanted = await until_one(peer, QueryShortChannelIds)
        assert isinstance(wanted, QueryShortChannelIds)
        assert wanted.encoded_short_ids[1:] == (1 << 40).to_bytes(8, "big")
        peer.send(announcement("A", "B", 1), ReplyShortChannelIdsEnd(REGTEST_CHAIN, 1))
        # Announced again it is known to have no such output, so nothing more is asked about it.
        peer.send(QueryShortChannelIds(REGTEST_CHAIN, b"\0" + bytes(8)))
        await until_one(peer, ReplyShortChannelIdsEnd)
    assert await node.rpc.call("listchannels") == {"channels": []}


async def test_who_keeps_lying_is_warned_and_then_left(nodes: Nodes) -> None:
    (node,) = await nodes.start("node")
    first = announcement("A", "B", 1)
    async with stranger(node) as peer:
        warnings = 0
        forged = replace(first, node_signature_1=first.node_signature_2)
        with suppress(Disconnected):
            for number in range(STRIKES):
                peer.send(replace(forged, extension=bytes(number)))
                warning = await until_one(peer, Warning_)
                assert isinstance(warning, Warning_) and b"lacks a valid signature" in warning.data
                warnings += 1
            await until_one(peer, ReplyShortChannelIdsEnd)
            raise AssertionError("the connection must end")
        assert warnings == STRIKES
    # Stale and unknown things are no lies: the connection stays.
    async with stranger(node) as peer:
        for number in range(2 * STRIKES):
            peer.send(channel_update("A", "B", number, NOW))
        peer.send(QueryShortChannelIds(REGTEST_CHAIN, b"\0" + int(ShortChannelId(1)).to_bytes(8)))
        await until_one(peer, ReplyShortChannelIdsEnd)
