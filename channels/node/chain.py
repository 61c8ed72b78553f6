"""bitcoind: its JSON-RPC, and the stream of blocks that it connects and disconnects."""

from __future__ import annotations

import asyncio
import binascii
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

import aiohttp
import msgspec

from channels.errors import OdaError, UserError
from channels.loopback import is_loopback
from channels.units import BlockHeight

MAX_ANSWER: Final = 16 << 20
"""A block has at most 4 million weight units, so at most 8 MB of hexadecimal."""

LONG_POLL_MS: Final = 2000
"""How long bitcoind may hold a request back while nothing happens."""

REMEMBERED: Final = 1008
"""How many blocks a follower can walk back when bitcoind itself no longer knows them."""

RPC_INVALID_ADDRESS_OR_KEY: Final = -5  # Bitcoin Core, src/rpc/protocol.h: also "Block not found"
RPC_IN_WARMUP: Final = -28

OnOutage = Callable[["BitcoindUnreachable | None"], None]


class BitcoindUnreachable(OdaError):
    """bitcoind did not answer, or is still starting. What a request did is unknown."""


class BitcoindError(OdaError):
    """bitcoind's own refusal, with the `code` of its RPC."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__("bitcoind-error", message)
        self.code = code


class Bitcoind:
    """One bitcoind's JSON-RPC; only on this machine, because the cookie travels in the clear.

    url: `http://127.0.0.1:18443`, with `user:password@` where there is no cookie file, and
    with `/wallet/NAME` for one of its wallets. The cookie is read again for every request: a
    bitcoind that was started again has a new one.
    """

    def __init__(self, url: str, cookie: Path | None = None, timeout: float = 30) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not is_loopback(parts.hostname or ""):
            raise UserError(
                "bitcoind-not-local",
                "bitcoind must be an http:// address of this machine, such as "
                f"http://127.0.0.1:18443, not {parts.scheme}://{parts.hostname}.",
            )
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self.url = f"http://{host}:{parts.port or 8332}{parts.path}"
        self._login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        self._cookie = cookie
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, method: str, *params: object, limit: float | None = None) -> Any:
        """One request; `limit` is in seconds.

        Raises BitcoindError where bitcoind said no, and BitcoindUnreachable where it said nothing
        (`bitcoind-unreachable`, `bitcoind-login`, `bitcoind-starting`, `bitcoind-busy`).
        """
        request = {"jsonrpc": "1.0", "id": 0, "method": method, "params": params}
        status, body = await self._post(msgspec.json.encode(request), limit or self._timeout)
        if status in (401, 403):
            raise BitcoindUnreachable(
                "bitcoind-login",
                f"bitcoind at {self.url} refuses our login; check its cookie file or password.",
            )
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except msgspec.DecodeError:
            raise BitcoindUnreachable(
                "bitcoind-busy", f"{self.url} answered {status} and not as a bitcoind does."
            ) from None
        if answer.error is None:
            return answer.result
        if answer.error.code == RPC_IN_WARMUP:
            raise BitcoindUnreachable(
                "bitcoind-starting", f"bitcoind is still starting: {answer.error.message}"
            )
        raise BitcoindError(answer.error.code, f"bitcoind refuses {method}: {answer.error.message}")

    async def _post(self, body: bytes, limit: float) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False)
        headers = {"Authorization": _basic(self._read_login()), "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=limit)
        try:
            async with self._session.post(
                self.url, data=body, headers=headers, timeout=timeout
            ) as response:
                answer = bytearray()
                async for chunk in response.content.iter_any():
                    answer += chunk
                    if len(answer) > MAX_ANSWER:
                        raise BitcoindUnreachable(
                            "bitcoind-busy", f"{self.url} answered more than {MAX_ANSWER} bytes."
                        )
                return response.status, bytes(answer)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise BitcoindUnreachable(
                "bitcoind-unreachable",
                f"bitcoind does not answer at {self.url} ({type(error).__name__}); is it running?",
            ) from error

    def _read_login(self) -> str:
        if self._cookie is None:
            return self._login
        try:
            return self._cookie.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            raise BitcoindUnreachable(
                "bitcoind-login",
                f"bitcoind's cookie file {self._cookie} can't be read; is bitcoind running?",
            ) from None

    async def follow(
        self,
        from_height: BlockHeight,
        from_hash: bytes,
        on_outage: OnOutage | None = None,
    ) -> AsyncGenerator[Connected | Disconnected, None]:
        """Every change of the best chain after block (from_height, from_hash), for ever.

        Blocks are disconnected from the top down before others are connected, also when
        `from_hash` itself has left the best chain. While bitcoind does not answer it is asked
        again, ever more slowly; `on_outage` hears of it once, and gets None when it is back.
        Raises OdaError `unknown-block` when bitcoind knows nothing of where to start.
        """
        walk = _Walk(self, from_height, from_hash)
        delay = 0.0
        while True:
            try:
                change = await walk.next()
            except BitcoindUnreachable as error:
                if not delay and on_outage is not None:
                    on_outage(error)
                delay = min(5.0, delay * 2 or 0.1)
                await asyncio.sleep(delay)
                continue
            if delay and on_outage is not None:
                on_outage(None)
            delay = 0.0
            if change is not None:
                yield change


@dataclass(frozen=True, slots=True)
class Block:
    """hash and previous: 32 bytes in internal byte order; transactions as they are serialized."""

    height: BlockHeight
    hash: bytes
    previous: bytes
    transactions: tuple[bytes, ...]

    @property
    def hash_hex(self) -> str:
        """In display order, as RPC and explorers show it."""
        return self.hash[::-1].hex()


@dataclass(frozen=True, slots=True)
class Connected:
    block: Block


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The block at `height` is no longer in the best chain; `previous` is the tip now."""

    height: BlockHeight
    hash: bytes
    previous: bytes


class _Walk:
    """Where a follower stands, and the one step that brings it nearer to bitcoind's tip."""

    def __init__(self, bitcoind: Bitcoind, height: BlockHeight, hash_: bytes) -> None:
        self._bitcoind = bitcoind
        self._height = height
        self._hash = hash_
        # The blocks below the present one. A bitcoind that was killed may have forgotten its
        # newest blocks, and then only we know what they were built on.
        self._below: deque[bytes] = deque(maxlen=REMEMBERED)

    async def next(self) -> Connected | Disconnected | None:
        """One step, or None when it took one long poll to learn that nothing has happened."""
        call = self._bitcoind.call
        if await call("getbestblockhash") == self._hash[::-1].hex():
            # Unlike waitfornewblock it can't miss a block that came since the line above; a
            # best chain that does not grow in height is noticed at the end of the poll.
            limit = LONG_POLL_MS / 1000 + 30
            await call("waitforblockheight", self._height + 1, LONG_POLL_MS, limit=limit)
            return None
        try:
            header = await call("getblockheader", self._hash[::-1].hex())
        except BitcoindError as error:
            if error.code != RPC_INVALID_ADDRESS_OR_KEY:
                raise
            return self._forgotten()
        if header["height"] != self._height:
            raise OdaError(
                "unknown-block",
                f"Block {self._hash[::-1].hex()} has height {header['height']} in bitcoind and "
                f"{self._height} here; the two belong to different chains.",
            )
        if header["confirmations"] < 0:
            return self._step_down(bytes.fromhex(header["previousblockhash"])[::-1])
        if "nextblockhash" not in header:
            return None
        raw = bytes.fromhex(await call("getblock", header["nextblockhash"], 0))
        block = parse_block(raw, BlockHeight(self._height + 1))
        if block.previous != self._hash or block.hash_hex != header["nextblockhash"]:
            raise BitcoindUnreachable(
                "bitcoind-busy", f"bitcoind gave another block than {header['nextblockhash']}."
            )
        self._below.append(self._hash)
        self._height, self._hash = block.height, block.hash
        return Connected(block)

    def _forgotten(self) -> Disconnected:
        if not self._below:
            raise OdaError(
                "unknown-block",
                f"bitcoind does not know block {self._hash[::-1].hex()} at height {self._height}: "
                "it is on another chain, or has lost its newest blocks.",
            )
        return self._step_down(self._below[-1])

    def _step_down(self, previous: bytes) -> Disconnected:
        gone = Disconnected(self._height, self._hash, previous)
        if self._below:
            self._below.pop()
        self._height, self._hash = BlockHeight(self._height - 1), previous
        return gone


class _RpcError(msgspec.Struct):
    code: int
    message: str


class _Answer(msgspec.Struct):
    result: Any = None
    error: _RpcError | None = None


def parse_block(raw: bytes, height: BlockHeight) -> Block:
    """Split a serialized block into its transactions. Raises OdaError `bad-block`."""
    cursor = _Cursor(raw)
    header = cursor.take(80)
    transactions = tuple(cursor.transaction() for _ in range(cursor.compact_size()))
    if cursor.offset != len(raw):
        raise OdaError("bad-block", f"The block at height {height} has bytes after its end.")
    hash_ = hashlib.sha256(hashlib.sha256(header).digest()).digest()
    return Block(height, hash_, header[4:36], transactions)


class _Cursor:
    """Reads Bitcoin's own serialization: little-endian, lengths as CompactSize."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.offset = 0

    def take(self, length: int) -> bytes:
        piece = self._raw[self.offset : self.offset + length]
        if len(piece) != length:
            raise OdaError("bad-block", "A block ends in the middle of a transaction.")
        self.offset += length
        return piece

    def compact_size(self) -> int:
        first = self.take(1)[0]
        width = {0xFD: 2, 0xFE: 4, 0xFF: 8}.get(first, 0)
        return int.from_bytes(self.take(width), "little") if width else first

    def transaction(self) -> bytes:
        start = self.offset
        self.take(4)  # version
        inputs = self.compact_size()
        # BIP 144: no inputs here means that this byte is the marker of a segwit transaction.
        segwit = inputs == 0
        if segwit:
            self.take(1)
            inputs = self.compact_size()
        for _ in range(inputs):
            self.take(36)
            self.take(self.compact_size())
            self.take(4)
        for _ in range(self.compact_size()):
            self.take(8)
            self.take(self.compact_size())
        if segwit:
            for _ in range(inputs):
                for _ in range(self.compact_size()):
                    self.take(self.compact_size())
        self.take(4)  # locktime
        return self._raw[start : self.offset]


def _basic(login: str) -> str:
    return "Basic " + binascii.b2a_base64(login.encode(), newline=False).decode()
