"""What happens, told to whoever listens on GET /events (server-sent events)."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from aiohttp import web

from sidechain import api, views
from sidechain.events import (
    AnnouncementAdded,
    BlockPending,
    BlockRejected,
    Event,
    HeadersAdded,
    ScoreAdded,
    TipChanged,
    TransactionAdded,
)
from sidechain.light_node import LightNode
from sidechain.node import ChainNode
from sidechain.primitives import display

LISTENERS: Final = 64
BACKLOG: Final = 256
"""Events that may wait for one listener; who is slower is left, and may come again."""

QUIET: Final = 15.0
"""Seconds of silence after which a comment shows that the connection lives."""


def shown(node: ChainNode | LightNode, event: Event) -> api.Event:
    """The event as the API has it."""
    if isinstance(event, TipChanged):
        assert isinstance(node, ChainNode)  # light nodes have no tip
        tip = node.chain.tip
        block = views.summary(node.chain, tip, node.chain.block(tip.hash))
        return api.TipEvent(block, len(event.advance.connected), len(event.advance.disconnected))
    if isinstance(event, HeadersAdded):
        return api.HeadersEvent(event.best.height, display(event.best.hash))
    if isinstance(event, TransactionAdded):
        return api.TransactionEvent(views.transaction(event.tx))
    if isinstance(event, BlockPending):
        return api.PendingEvent(display(event.block_hash), len(event.requests))
    if isinstance(event, BlockRejected):
        return api.RejectedEvent(display(event.block_hash), event.reason)
    if isinstance(event, AnnouncementAdded):
        return api.AnnouncementEvent(views.announcement(event.announcement))
    assert isinstance(event, ScoreAdded)
    return views.score(event.request, event.answer)


class Feed:
    """`hear` is a listener of the node; `handle` serves one reader until he leaves."""

    def __init__(self, node: ChainNode | LightNode) -> None:
        self._node = node
        self._queues: set[asyncio.Queue[bytes | None]] = set()

    def hear(self, event: Event) -> None:
        if not self._queues:
            return
        told = shown(self._node, event)
        name = type(told).__struct_config__.tag
        data = b"event: %s\ndata: %s\n\n" % (str(name).encode(), msgspec.json.encode(told))
        for queue in self._queues:
            if queue.qsize() < BACKLOG:
                queue.put_nowait(data)
            elif queue.qsize() == BACKLOG:
                queue.put_nowait(None)

    def close(self) -> None:
        """Let all readers go."""
        for queue in self._queues:
            queue.put_nowait(None)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if len(self._queues) >= LISTENERS:
            raise web.HTTPServiceUnavailable
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._queues.add(queue)
        try:
            response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream",
                    "Cache-Control": "no-store",
                    "X-Accel-Buffering": "no",
                }
            )
            await response.prepare(request)
            await response.write(b": listening\n\n")
            while True:
                try:
                    data = await asyncio.wait_for(queue.get(), QUIET)
                except TimeoutError:
                    data = b": still here\n\n"
                if data is None:
                    return response
                await response.write(data)
        finally:
            self._queues.discard(queue)
