from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from channels.bolt import features, noise, wire
from channels.bolt.keys import public_key
from channels.bolt.messages import (
    CommitmentSigned,
    Error,
    Init,
    Message,
    Ping,
    Pong,
    Shutdown,
    Warning_,
    encode,
)
from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError
from channels.node import peer as peer_module
from channels.node.peer import Disconnected, PeerConnection, accept, connect

REGTEST = bytes.fromhex("06226e46111a0b59caaf126043eb5bbf28c34f3a5e332a1fc7b2b73cf188910f")
ALICE, BOB = bytes([1] * 32), bytes([2] * 32)
ALICE_ID, BOB_ID = public_key(ALICE), public_key(BOB)
OUR_INIT = Init(b"", features.encode_bits(features.OUR_INIT), networks=(REGTEST,))


@dataclass
class Listener:
    """Bob, listening; what came of each connection is in `accepted`."""

    port: int
    accepted: asyncio.Queue[PeerConnection | BaseException]

    async def peer(self) -> PeerConnection:
        outcome = await self.accepted.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def failure(self, reason: str) -> None:
        with pytest.raises(OdaError) as caught:
            await self.peer()
        assert caught.value.reason == reason


@contextlib.asynccontextmanager
async def listening(
    *,
    chain_hash: bytes = REGTEST,
    handshake_seconds: float = 20,
    idle_seconds: float = 60,
) -> AsyncIterator[Listener]:
    accepted: asyncio.Queue[PeerConnection | BaseException] = asyncio.Queue()
    opened: list[PeerConnection] = []

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            connection = await accept(
                reader,
                writer,
                BOB,
                chain_hash,
                handshake_seconds=handshake_seconds,
                idle_seconds=idle_seconds,
            )
        except OdaError as error:
            accepted.put_nowait(error)
            return
        opened.append(connection)
        accepted.put_nowait(connection)

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        try:
            yield Listener(server.sockets[0].getsockname()[1], accepted)
        finally:
            for connection in opened:
                await connection.close()


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[PeerConnection, PeerConnection]]:
    async with listening() as bob:
        alice = await connect("127.0.0.1", bob.port, ALICE, BOB_ID, REGTEST)
        try:
            yield alice, await bob.peer()
        finally:
            await alice.close()


class Raw:
    """A stranger who speaks the transport but otherwise does as a test pleases."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.transport: noise.Transport

    async def shake_hands(self) -> None:
        handshake = noise.Handshake.initiator(ALICE, bytes([9] * 32), BOB_ID)
        self.writer.write(handshake.write_act_one())
        handshake.read_act_two(await self.reader.readexactly(noise.ACT_TWO_LENGTH))
        self.writer.write(handshake.write_act_three())
        self.transport = handshake.transport

    def send(self, *messages: Message | bytes) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else encode(message)
            self.writer.write(self.transport.encrypt(data))

    async def messages(self, count: int) -> list[bytes]:
        received: list[bytes] = []
        while len(received) < count:
            received += self.transport.feed(await self.reader.read(1 << 16))
        return received

    async def until_closed(self) -> None:
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass


@contextlib.asynccontextmanager
async def stranger(port: int) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def stranger_after_init() -> AsyncIterator[tuple[Raw, PeerConnection]]:
    async with listening() as bob, stranger(bob.port) as raw:
        await raw.shake_hands()
        raw.send(OUR_INIT)
        yield raw, await bob.peer()


async def test_two_ends_meet() -> None:
    async with connected() as (alice, bob):
        assert (alice.remote_node_id, bob.remote_node_id) == (BOB_ID, ALICE_ID)
        assert alice.their_features == bob.their_features == features.OUR_INIT
        shutdown = Shutdown(bytes(32), b"script")
        signed = CommitmentSigned(bytes(32), bytes(64), (bytes(64),) * 483)
        alice.send(shutdown, signed)
        assert await bob.receive() == shutdown
        assert await bob.receive() == signed
        bob.send(*[shutdown] * 1500)
        assert [await alice.receive() for _ in range(1500)] == [shutdown] * 1500


async def test_small_messages_are_not_held_back() -> None:
    async with connected() as ends:
        for end in ends:
            connection: socket.socket = end._writer.get_extra_info("socket")
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_errors_and_warnings_are_the_callers() -> None:
    async with connected() as (alice, bob):
        alice.send(Warning_(bytes(32), b"careful"), Error(bytes(32), b"no"))
        assert await bob.receive() == Warning_(bytes(32), b"careful")
        assert await bob.receive() == Error(bytes(32), b"no")


async def test_the_init_that_is_sent() -> None:
    async with listening() as bob, stranger(bob.port) as raw:
        await raw.shake_hands()
        assert await raw.messages(1) == [encode(OUR_INIT)]


async def test_another_node_than_meant() -> None:
    async with listening() as bob:
        with pytest.raises(Disconnected) as caught:
            await connect("127.0.0.1", bob.port, ALICE, ALICE_ID, REGTEST)
        assert caught.value.reason == "handshake-closed"
        await bob.failure("act-one-mac")


async def test_nobody_listens() -> None:
    async with listening() as bob:
        port = bob.port
    with pytest.raises(Disconnected) as caught:
        await connect("127.0.0.1", port, ALICE, BOB_ID, REGTEST)
    assert caught.value.reason == "connect-failed"


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3, bytes(50)])
async def test_garbage_instead_of_act_one(garbage: bytes) -> None:
    async with listening() as bob, stranger(bob.port) as raw:
        raw.writer.write(garbage)
        await raw.until_closed()
        with pytest.raises(RemoteProtocolError):
            await bob.peer()


async def test_garbage_instead_of_act_two() -> None:
    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0" + b"SSH-2.0-OpenSSH" * 10)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RemoteProtocolError) as caught:
            await connect("127.0.0.1", port, ALICE, BOB_ID, REGTEST)
        assert caught.value.reason == "act-two-key"


async def test_garbage_instead_of_messages() -> None:
    async with stranger_after_init() as (raw, bob):
        raw.writer.write(b"x" * 100)
        with pytest.raises(RemoteProtocolError) as caught:
            await bob.receive()
        assert caught.value.reason == "bad-mac"


@pytest.mark.parametrize("acts", [0, 1, 3])
async def test_a_slow_handshake(acts: int) -> None:
    async with listening(handshake_seconds=0.2) as bob, stranger(bob.port) as raw:
        if acts == 1:
            handshake = noise.Handshake.initiator(ALICE, bytes([9] * 32), BOB_ID)
            raw.writer.write(handshake.write_act_one())
        elif acts == 3:
            await raw.shake_hands()
        await raw.until_closed()
        await bob.failure("handshake-timeout")


async def test_a_listener_that_says_nothing() -> None:
    hung_up = asyncio.Event()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        hung_up.set()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Disconnected) as caught:
            await connect("127.0.0.1", port, ALICE, BOB_ID, REGTEST, handshake_seconds=0.2)
        assert caught.value.reason == "handshake-timeout"
        await hung_up.wait()


async def test_connecting_can_be_cancelled() -> None:
    arrived, hung_up = asyncio.Event(), asyncio.Event()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        hung_up.set()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        task = asyncio.create_task(connect("127.0.0.1", port, ALICE, BOB_ID, REGTEST))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await hung_up.wait()


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (Ping(0), "init-expected"),
        (Warning_(bytes(32), b""), "init-expected"),
        (b"\xff\xff", "init-expected"),
        (b"\x00", "truncated-message"),
        (Init(b"", b"\x01", networks=(bytes(32),)), "no-common-network"),
        (Init(b"", b"", networks=()), "no-common-network"),
        # Bits of globalfeatures count like those of features.
        (Init(features.encode_bits({30}), b""), "unknown-required-feature"),
        (Init(b"", features.encode_bits({17})), "missing-feature-dependency"),
    ],
)
async def test_an_init_that_is_refused(first: Message | bytes, reason: str) -> None:
    async with listening() as bob, stranger(bob.port) as raw:
        await raw.shake_hands()
        raw.send(first)
        await bob.failure(reason)
        await raw.until_closed()


async def test_both_feature_maps_are_combined() -> None:
    async with listening() as bob, stranger(bob.port) as raw:
        await raw.shake_hands()
        raw.send(Init(b"\x02", features.encode_bits({23})))
        assert (await bob.peer()).their_features == {1, 23}


async def test_another_network_is_refused_by_both() -> None:
    async with listening(chain_hash=bytes(32)) as bob:
        with pytest.raises(RemoteProtocolError) as caught:
            await connect("127.0.0.1", bob.port, ALICE, BOB_ID, REGTEST)
        assert caught.value.reason == "no-common-network"
        with pytest.raises(OdaError):
            await bob.peer()


async def test_init_comes_once() -> None:
    async with stranger_after_init() as (raw, bob):
        raw.send(OUR_INIT)
        with pytest.raises(RemoteProtocolError) as caught:
            await bob.receive()
        assert caught.value.reason == "second-init"


async def test_messages_right_behind_init_are_not_lost() -> None:
    async with listening() as bob, stranger(bob.port) as raw:
        await raw.shake_hands()
        raw.send(OUR_INIT, Error(bytes(32), b"at once"))
        assert await (await bob.peer()).receive() == Error(bytes(32), b"at once")


async def test_unknown_messages() -> None:
    async with stranger_after_init() as (raw, bob):
        raw.send(wire.u16(32769) + b"odd", Error(bytes(32), b"next"))
        assert await bob.receive() == Error(bytes(32), b"next")
        raw.send(wire.u16(32768) + b"even")
        with pytest.raises(RemoteProtocolError) as caught:
            await bob.receive()
        assert caught.value.reason == "unknown-even-message"


async def test_a_malformed_message() -> None:
    async with stranger_after_init() as (raw, bob):
        raw.send(encode(Error(bytes(32), b"text"))[:-1])
        with pytest.raises(RemoteProtocolError) as caught:
            await bob.receive()
        assert caught.value.reason == "truncated-message"
        # The caller can still say why before it closes.
        bob.send(Warning_(bytes(32), b"malformed"))
        assert (await raw.messages(2))[1] == encode(Warning_(bytes(32), b"malformed"))


@pytest.mark.parametrize("size", [0, 1, 1000, 65531])
async def test_pings_are_answered(size: int) -> None:
    async with stranger_after_init() as (raw, bob):
        raw.send(Ping(size, b"padding"), Error(bytes(32), b"next"))
        assert await bob.receive() == Error(bytes(32), b"next")
        assert (await raw.messages(2))[1] == encode(Pong(bytes(size)))


@pytest.mark.parametrize("size", [65532, 65535])
async def test_pings_for_no_pong(size: int) -> None:
    async with stranger_after_init() as (raw, bob):
        raw.send(Ping(size), Ping(3), Error(bytes(32), b"next"))
        assert await bob.receive() == Error(bytes(32), b"next")
        assert (await raw.messages(2))[1] == encode(Pong(bytes(3)))


async def test_a_flood_of_pings() -> None:
    async with stranger_after_init() as (raw, bob):
        raw.send(*[Ping(0)] * (peer_module.MAX_PINGS + 1))
        with pytest.raises(RemoteProtocolError) as caught:
            await bob.receive()
        assert caught.value.reason == "ping-flood"


async def test_a_flood_of_pings_by_one_who_does_not_read() -> None:
    async with stranger_after_init() as (raw, bob):
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a TCP transport reads
        raw.send(*[Ping(65531)] * peer_module.MAX_PINGS)
        with pytest.raises(Disconnected) as caught:
            await bob.receive()
        assert caught.value.reason == "peer-not-reading"


async def test_pongs_that_nobody_asked_for() -> None:
    async with stranger_after_init() as (raw, bob):
        raw.send(Pong(b""))
        with pytest.raises(RemoteProtocolError) as caught:
            await bob.receive()
        assert caught.value.reason == "unexpected-pong"


async def test_an_idle_peer_is_pinged_and_lives() -> None:
    async with listening(idle_seconds=0.25) as bob, stranger(bob.port) as raw:
        await raw.shake_hands()
        raw.send(OUR_INIT)
        receiving = asyncio.create_task((await bob.peer()).receive())
        assert await raw.messages(1) == [encode(OUR_INIT)]
        for _ in range(2):
            assert await raw.messages(1) == [encode(Ping(0))]
            raw.send(Pong())
        raw.send(Error(bytes(32), b"still here"))
        assert await receiving == Error(bytes(32), b"still here")


async def test_a_silent_peer_is_dropped() -> None:
    async with listening(idle_seconds=0.05) as bob, stranger(bob.port) as raw:
        await raw.shake_hands()
        raw.send(OUR_INIT)
        connection = await bob.peer()
        with pytest.raises(Disconnected) as caught:
            await connection.receive()
        assert caught.value.reason == "peer-silent"
        assert await raw.messages(2) == [encode(OUR_INIT), encode(Ping(0))]
        await raw.until_closed()


async def test_a_peer_that_does_not_read() -> None:
    async with stranger_after_init() as (raw, bob):
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a TCP transport reads
        big = Error(bytes(32), bytes(60_000))
        with pytest.raises(Disconnected) as caught:
            for _ in range(1000):
                bob.send(big)
        assert caught.value.reason == "peer-not-reading"
        with pytest.raises(Disconnected) as caught:
            bob.send(big)
        assert caught.value.reason == "connection-closed"


async def test_closing_does_not_wait_for_one_who_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer_module, "CLOSE_SECONDS", 0.05)
    async with stranger_after_init() as (raw, bob):
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a TCP transport reads
        while not bob._writer.transport.get_write_buffer_size():
            bob.send(Error(bytes(32), bytes(60_000)))
        await bob.close()
        assert bob._writer.transport.is_closing()
        await bob.close()


async def test_a_message_that_does_not_fit_sends_nothing() -> None:
    async with connected() as (alice, bob):
        with pytest.raises(LocalProtocolError):
            alice.send(Error(bytes(32), b"first"), Error(bytes(31), b"wrong"))
        alice.send(Error(bytes(32), b"second"))
        assert await bob.receive() == Error(bytes(32), b"second")


async def test_what_was_sent_arrives_before_the_close() -> None:
    async with connected() as (alice, bob):
        alice.send(*[Error(bytes(32), bytes(50_000))] * 20)
        closing = asyncio.create_task(alice.close())
        for _ in range(20):
            assert await bob.receive() == Error(bytes(32), bytes(50_000))
        with pytest.raises(Disconnected) as caught:
            await bob.receive()
        assert caught.value.reason == "peer-closed"
        await closing
        with pytest.raises(Disconnected) as caught:
            alice.send(Ping(0))
        assert caught.value.reason == "connection-closed"


async def test_receive_ends_when_the_connection_breaks() -> None:
    async with stranger_after_init() as (raw, bob):
        receiving = asyncio.create_task(bob.receive())
        raw.send(Ping(0))
        await raw.messages(2)
        raw.writer.transport.abort()
        with pytest.raises(ConnectionError) as caught:
            await receiving
        assert isinstance(caught.value, Disconnected)
        assert caught.value.reason in ("peer-closed", "connection-lost")
        assert str(caught.value).endswith(".")


async def test_receive_can_be_cancelled() -> None:
    async with connected() as (alice, bob):
        receiving = asyncio.create_task(bob.receive())
        await asyncio.sleep(0)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        alice.send(Error(bytes(32), b"afterwards"))
        assert await bob.receive() == Error(bytes(32), b"afterwards")
