"""One connection to one peer: TCP, the handshake, init, messages, and staying alive.

Everything here is IO around `channels.bolt`. What a message means for a channel is the caller's;
ping and pong never leave this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections import deque
from collections.abc import AsyncIterator

from channels.bolt import features, noise
from channels.bolt.messages import Init, Message, Ping, Pong, Unknown, decode, encode
from channels.errors import OdaError, RemoteProtocolError

HANDSHAKE_SECONDS = 20.0
"""How long a peer may take for the handshake and init together."""

IDLE_SECONDS = 60.0
"""A peer that was silent for so long is pinged; silent for as long again, it is dropped."""

CLOSE_SECONDS = 5.0
"""How long closing waits for the peer to take what was already sent."""

MAX_UNSENT = 8 << 20
"""Bytes that may wait for a peer to read them; one that lets more pile up is dropped."""

MAX_PINGS = 200
PING_WINDOW_SECONDS = 10.0
"""More pings than this in a window are a flood: each can ask for a pong of 64 KiB."""

_READ_SIZE = 1 << 16


class Disconnected(OdaError, ConnectionError):
    """The connection is gone, though nobody broke a rule.

    Channels are not failed for it (BOLT 1); reconnecting may help.
    """


class PeerConnection:
    """A peer that proved its node id and whose init we accepted.

    One task calls `receive`; `send` may be called from anywhere in the event loop.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handshake: noise.Handshake,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """Use `connect` or `accept`."""
        self.remote_node_id = handshake.remote_node_id
        self.their_features: frozenset[int] = frozenset()
        self._reader = reader
        self._writer = writer
        self._transport = handshake.transport
        self._idle_seconds = idle_seconds
        self._inbox: deque[bytes] = deque()
        self._pong_awaited = False
        self._pings = 0
        self._pings_since = 0.0

    @property
    def address(self) -> str:
        """The other end of the connection, as "host:port"."""
        host, port = self._writer.get_extra_info("peername")[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def unsent(self) -> int:
        """Bytes that wait for the peer to read them."""
        return self._writer.transport.get_write_buffer_size()

    async def receive(self) -> Message | Unknown:
        """The next message that is the caller's to handle; Error and Warning_ among them.

        Raises RemoteProtocolError when the peer broke a rule (the caller may send an Error or
        Warning_ and must close) and Disconnected when the connection is gone. Safe to cancel.
        """
        while True:
            while self._inbox:
                message = self._handle(decode(self._inbox.popleft()))
                if message is not None:
                    return message
            self._inbox.extend(self._transport.feed(await self._read_or_ping()))

    def send(self, *messages: Message) -> None:
        """Seal the messages and hand them to the operating system, in this order, all or none.

        Raises LocalProtocolError when one can't be encoded, and Disconnected when the connection
        is closed or the peer lets more than 8 MiB pile up, which closes it.
        """
        encoded = [encode(message) for message in messages]
        if self._writer.is_closing():
            raise Disconnected("connection-closed", "The connection to the peer is closed.")
        self._writer.write(b"".join(map(self._transport.encrypt, encoded)))
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT:
            self._writer.transport.abort()
            raise Disconnected(
                "peer-not-reading", "The peer does not read what it is sent; it was disconnected."
            )

    async def close(self) -> None:
        """Close, after what was sent is out or five seconds have passed. Calling again is fine."""
        await _close(self._writer)

    async def exchange_init(self, chain_hash: bytes, our_features: frozenset[int]) -> None:
        """Send init and check the peer's (BOLT 1). `connect` and `accept` do this."""
        self.send(Init(b"", features.encode_bits(our_features), networks=(chain_hash,)))
        while not self._inbox:
            self._inbox.extend(self._transport.feed(await self._read()))
        init = decode(self._inbox.popleft())
        # BOLT 1: init MUST be the first message.
        if not isinstance(init, Init):
            raise RemoteProtocolError(
                "init-expected", f"The peer began with message type {init.type} instead of init."
            )
        # BOLT 1: a peer MAY be left that shares no network with us.
        if init.networks is not None and chain_hash not in init.networks:
            raise RemoteProtocolError(
                "no-common-network", "The peer is on another network; check both nodes' network."
            )
        # BOLT 1: the two bitmaps MUST be combined.
        bits = features.decode_bits(init.globalfeatures) | features.decode_bits(init.features)
        features.check_compatible(bits)
        self.their_features = bits

    async def _read_or_ping(self) -> bytes:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle_seconds):
                    return await self._read()
            if self._pong_awaited:
                self._writer.transport.abort()
                raise Disconnected(
                    "peer-silent", "The peer did not answer a ping; it was disconnected."
                )
            self._pong_awaited = True
            self.send(Ping(num_pong_bytes=0))

    async def _read(self) -> bytes:
        try:
            data = await self._reader.read(_READ_SIZE)
        except OSError as error:
            raise Disconnected(
                "connection-lost", f"The connection to the peer broke: {error}."
            ) from error
        if not data:
            raise Disconnected("peer-closed", "The peer closed the connection.")
        return data

    def _handle(self, message: Message | Unknown) -> Message | Unknown | None:
        """The message, or None if it was dealt with here."""
        match message:
            case Unknown(must_understand=True):
                # BOLT 1: an even unknown type MUST close the connection.
                raise RemoteProtocolError(
                    "unknown-even-message",
                    f"The peer sent message type {message.type}, which must be understood.",
                )
            case Unknown():
                return None
            case Ping():
                self._answer(message)
                return None
            case Pong():
                # BOLT 1: a pong that no ping asked for MAY close the connection.
                if not self._pong_awaited or message.ignored:
                    raise RemoteProtocolError(
                        "unexpected-pong", "The peer sent a pong that no ping asked for."
                    )
                self._pong_awaited = False
                return None
            case Init():
                raise RemoteProtocolError(
                    "second-init", "The peer sent init again; a connection has one."
                )
        return message

    def _answer(self, ping: Ping) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._pings_since > PING_WINDOW_SECONDS:
            self._pings, self._pings_since = 0, now
        self._pings += 1
        if self._pings > MAX_PINGS:
            raise RemoteProtocolError(
                "ping-flood", f"The peer sent more than {MAX_PINGS} pings in a few seconds."
            )
        # BOLT 1: a ping that asks for 65532 bytes or more MUST be ignored.
        if ping.num_pong_bytes < 65532:
            self.send(Pong(bytes(ping.num_pong_bytes)))


async def connect(
    host: str,
    port: int,
    node_secret: bytes,
    remote_node_id: bytes,
    chain_hash: bytes,
    *,
    our_features: frozenset[int] = features.OUR_INIT,
    handshake_seconds: float = HANDSHAKE_SECONDS,
    idle_seconds: float = IDLE_SECONDS,
) -> PeerConnection:
    """Connect to the node with this id (33 bytes); the connection is ready for messages.

    Raises Disconnected ("connect-failed", "handshake-closed", "handshake-timeout", …) and
    RemoteProtocolError; nothing is left open then.
    """
    handshake = noise.Handshake.initiator(node_secret, secrets.token_bytes(32), remote_node_id)
    async with _limit(handshake_seconds):
        try:
            reader, writer = await asyncio.open_connection(host, port, limit=_READ_SIZE)
        except OSError as error:
            raise Disconnected(
                "connect-failed",
                f"Can't connect to {host}:{port} ({error.strerror or error}); is the node running "
                "and the address right?",
            ) from error
        async with _aborting(writer):
            _no_delay(writer)
            writer.write(handshake.write_act_one())
            handshake.read_act_two(await _exactly(reader, noise.ACT_TWO_LENGTH))
            writer.write(handshake.write_act_three())
            peer = PeerConnection(reader, writer, handshake, idle_seconds)
            await peer.exchange_init(chain_hash, our_features)
            return peer


async def accept(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    node_secret: bytes,
    chain_hash: bytes,
    *,
    our_features: frozenset[int] = features.OUR_INIT,
    handshake_seconds: float = HANDSHAKE_SECONDS,
    idle_seconds: float = IDLE_SECONDS,
) -> PeerConnection:
    """Be connected to, on streams that asyncio.start_server made; as `connect` otherwise."""
    handshake = noise.Handshake.responder(node_secret, secrets.token_bytes(32))
    async with _limit(handshake_seconds), _aborting(writer):
        _no_delay(writer)
        handshake.read_act_one(await _exactly(reader, noise.ACT_ONE_LENGTH))
        writer.write(handshake.write_act_two())
        handshake.read_act_three(await _exactly(reader, noise.ACT_THREE_LENGTH))
        peer = PeerConnection(reader, writer, handshake, idle_seconds)
        await peer.exchange_init(chain_hash, our_features)
        return peer


@contextlib.asynccontextmanager
async def _limit(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Disconnected(
            "handshake-timeout", f"The peer did not finish the handshake within {seconds:g} s."
        ) from error


@contextlib.asynccontextmanager
async def _aborting(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Leave nothing open if what is inside fails or is cancelled."""
    try:
        yield
    except BaseException:
        writer.transport.abort()
        await _close(writer)
        raise


def _no_delay(writer: asyncio.StreamWriter) -> None:
    # Messages are small and each waits for an answer: Nagle's algorithm would add 40 ms to each.
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _exactly(reader: asyncio.StreamReader, length: int) -> bytes:
    try:
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError) as error:
        # BOLT 8: a node that can't accept an act closes without a word.
        raise Disconnected(
            "handshake-closed",
            "The other side closed the connection during the handshake; its node id is probably "
            "another one, or it does not speak Lightning.",
        ) from error


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            # Shielded, because cancelling it would cancel it for whoever else waits or will.
            await asyncio.shield(writer.wait_closed())
    except OSError:
        pass  # TimeoutError among them; broken or slow, what follows ends the connection.
    finally:
        writer.transport.abort()
