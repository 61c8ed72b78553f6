"""One WebSocket to one peer: bytes in, bytes out, and an end. What they mean is `Conversation`'s.

The owner empties `inbox` at each turn and calls `turned`; the connection reads no further ahead
than one batch, and no faster than the conversation allows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import aiohttp
from aiohttp import ClientWebSocketResponse, WSMsgType, web

from sidechain.conversation import Conversation
from sidechain.protocol import PENALTIES

BATCH_MESSAGES: Final = 256
BATCH_BYTES: Final = 1 << 20
"""What one peer may send between two turns."""

CLOSE_SECONDS: Final = 2.0
"""How long a peer may take to say goodbye."""

Socket = web.WebSocketResponse | ClientWebSocketResponse


class Connection:
    """`serve` fills the outbox with the next of what the peer asked for; `clock` goes forward."""

    def __init__(
        self,
        socket: Socket,
        peer: Conversation,
        *,
        clock: Callable[[], float],
        arrived: Callable[[], None],
        serve: Callable[[Conversation, float], None],
    ) -> None:
        self.peer = peer
        self.inbox: list[bytes] = []
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake is through, cancelled if it won't be."""
        self._socket = socket
        self._writing_since: float | None = None
        self._clock = clock
        self._arrived = arrived
        self._serve = serve
        self._waiting = 0
        self._writer: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._turned = asyncio.Event()

    async def run(self) -> None:
        """Until one side has had enough. Closes the socket."""
        self._writer = asyncio.create_task(self._write())
        tasks = {asyncio.create_task(self._read()), self._writer}
        self.turned()
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self.close()
        for task in tasks:
            if not task.cancelled():
                task.result()  # an error that nobody foresaw must be seen

    def take(self, most: int) -> list[bytes]:
        """The next messages to be handled."""
        taken, self.inbox = self.inbox[:most], self.inbox[most:]
        self._waiting = sum(map(len, self.inbox))
        return taken

    def turned(self) -> None:
        """A turn is over: read on, and send what came of it."""
        if self.peer.ready and not self.ready.done():
            self.ready.set_result(None)
        if not self._full:
            self._turned.set()
        if self.peer.outbox or self.peer.served or self.peer.over is not None:
            self._wake.set()

    def tick(self, now: float, patience: float) -> None:
        """Leave a peer that does not read what it is sent."""
        if self._writing_since is None or self._writer is None:
            return
        waited = now - self._writing_since
        if waited > patience or (self.peer.over is not None and waited > CLOSE_SECONDS):
            self.peer.close("peer-not-reading")
            self._writer.cancel()

    @property
    def _full(self) -> bool:
        return len(self.inbox) >= BATCH_MESSAGES or self._waiting >= BATCH_BYTES

    async def _read(self) -> None:
        with contextlib.suppress(OSError, aiohttp.ClientError):
            while self.peer.over is None:
                message = await self._socket.receive()
                if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                    return
                if message.type is not WSMsgType.BINARY:
                    self._refuse(message)
                    return
                self.inbox.append(message.data)
                self._waiting += len(message.data)
                self._arrived()
                if self._full:
                    self._turned.clear()
                    await self._turned.wait()
                pause = self.peer.pause(self._clock())
                if pause:
                    await asyncio.sleep(pause)

    def _refuse(self, message: aiohttp.WSMessage) -> None:
        """A frame that is no message: text, a control frame, one that is too long or broken."""
        error = message.data
        too_long = (
            isinstance(error, aiohttp.WebSocketError)
            and error.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        )
        reason = "message-too-long" if too_long else "bad-message"
        self.peer.refused(reason, PENALTIES[reason])

    async def _write(self) -> None:
        peer = self.peer
        with contextlib.suppress(OSError, aiohttp.ClientError):
            while True:
                while peer.outbox:
                    self._writing_since = self._clock()
                    await self._socket.send_bytes(peer.outbox.popleft().encode())
                    self._writing_since = None
                if peer.over is not None:
                    return
                if peer.served:
                    pause = peer.serving_pause(self._clock())
                    # Without a pause, others have their turn before the next answers are made.
                    await asyncio.sleep(pause)
                    self._serve(peer, self._clock())
                else:
                    self._wake.clear()
                    await self._wake.wait()

    async def close(self) -> None:
        """Say goodbye, without waiting long for the peer's."""
        self.ready.cancel()
        with contextlib.suppress(OSError, aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._socket.close()
