"""One peer, as the protocol sees it: how far the handshake is, what it showed, what it may cost.

Pure: what is to be sent gathers in `outbox`, and whoever owns the socket takes it from there.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from sidechain.headers import HeaderRecord
from sidechain.limits import Known, TokenBucket
from sidechain.protocol import (
    BAN,
    MAX_ADDRESSES,
    NO_BAN,
    Address,
    AnyMessage,
    GetHeaders,
    GetProofs,
    Item,
    Message,
    Phase,
    Service,
    Verack,
    Version,
)
from sidechain.reasons import Rejection

MESSAGES_PER_SECOND: Final = 200.0
MESSAGES_AT_ONCE: Final = 2_000.0
BYTES_PER_SECOND: Final = 256.0 * 1024
BYTES_AT_ONCE: Final = 4.0 * 1024 * 1024
"""What a peer may send unasked. Beyond that it is read more slowly, which costs it no points."""

LESSER_HEADERS_PER_SECOND: Final = 50.0
LESSER_HEADERS_AT_ONCE: Final = 8_000.0
"""Headers that lead to less work than the tip has, and that we keep for ever all the same."""

SERVED_PER_SECOND: Final = 4.0 * 1024 * 1024
SERVED_AT_ONCE: Final = 32.0 * 1024 * 1024
"""Bytes of answers. Beyond that they come more slowly."""

MAX_REQUESTS: Final = 1_024
"""Things that a peer may have asked for and not been sent yet."""

MAX_OUTBOX: Final = 2_048
"""Messages that may wait for a peer that does not read."""

MAX_KNOWN: Final = 8_192

Served = tuple[Item, bytes] | GetHeaders | GetProofs


class Conversation:
    """What is known of one peer. `host` is where the connection comes from or goes to."""

    def __init__(self, host: str, *, inbound: bool, now: float, port: int = 0) -> None:
        """`port` is what was dialled; 0 for inbound connections, which come from any port."""
        self.host = host
        self.dialled_port = port
        self.inbound = inbound
        self.since = now
        self.heard = now
        """When its last message came."""
        self.phase = Phase.NEW
        self.version: Version | None = None
        self.outbox: deque[Message] = deque()
        self.served: deque[Served] = deque()
        """What it asked for, in the order in which it will be sent."""
        self.over: str | None = None
        """Why the connection must be closed, once it must."""
        self.misbehaved = False
        """Whether its host is to be banned."""
        self.points = 0

        self.best: HeaderRecord | None = None
        """The header with the most work that it showed us."""
        self.told: HeaderRecord | None = None
        """The last of our headers that it was told of."""
        self.headers_asked: float | None = None
        self.headers_at = now
        """When it was last asked for headers."""
        self.known = Known(MAX_KNOWN)
        """Transactions and announcements that it has, or was offered."""
        self.addresses_asked = False
        self.addresses_given = False
        self.addresses: tuple[Address, ...] = ()
        """What it answered to GetAddr, to be taken by whoever keeps the book."""
        self.pinged: tuple[int, float] | None = None
        self.ping_at = now
        self.latency: float | None = None
        """Seconds from the fastest ping to its pong."""
        self.useful: float | None = None
        """When it last gave us a block that we did not have."""
        self._messages = TokenBucket(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE, now)
        self._bytes = TokenBucket(BYTES_PER_SECOND, BYTES_AT_ONCE, now)
        self._lesser = TokenBucket(LESSER_HEADERS_PER_SECOND, LESSER_HEADERS_AT_ONCE, now)
        self._served = TokenBucket(SERVED_PER_SECOND, SERVED_AT_ONCE, now)

    def __repr__(self) -> str:
        return f"<{'from' if self.inbound else 'to'} {self.host}:{self.port}>"

    @property
    def port(self) -> int:
        """Where it listens, as far as we know; 0 if it does not."""
        return self.dialled_port or (self.version.port if self.version else 0)

    @property
    def ready(self) -> bool:
        return self.phase is Phase.READY and self.over is None

    def offers(self, service: Service) -> bool:
        return self.ready and self.version is not None and bool(self.version.services & service)

    # --- the end ---------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """The connection must end, though no rule was broken."""
        if self.over is None:
            self.over = reason
            self.served.clear()

    def refused(self, reason: str, points: int) -> None:
        """Something that the peer sent was refused; enough points end the conversation."""
        self.points += points
        if self.points >= BAN:
            self.misbehaved = self.misbehaved or reason not in NO_BAN
            self.close(reason)

    # --- what goes out ---------------------------------------------------------------------------

    def send(self, message: AnyMessage) -> None:
        if self.over is not None:
            return
        self.outbox.append(message)
        if len(self.outbox) > MAX_OUTBOX:
            self.close("peer-not-reading")

    def welcome(self, ours: Version) -> None:
        """Send our Version if the peer waits for it, and say that its own is acceptable."""
        if self.inbound:
            self.send(ours)
        self.send(Verack())

    def asks(self, *wanted: Served) -> None:
        """The peer asked for something. Raises Rejection("too-many-requests")."""
        if len(self.served) + len(wanted) > MAX_REQUESTS:
            raise Rejection("too-many-requests")
        self.served.extend(wanted)

    # --- what it costs ---------------------------------------------------------------------------

    def charge(self, size: int, now: float) -> None:
        """For a message that nobody asked for."""
        self._messages.take(1, now)
        self._bytes.take(size, now)

    def charge_lesser(self, headers: int, now: float) -> None:
        self._lesser.take(headers, now)

    def charge_served(self, size: int, now: float) -> None:
        self._served.take(size, now)

    def pause(self, now: float) -> float:
        """Seconds to wait before reading on."""
        return max(self._messages.wait(now), self._bytes.wait(now), self._lesser.wait(now))

    def serving_pause(self, now: float) -> float:
        """Seconds to wait before sending more of what was asked for."""
        return self._served.wait(now)

    # --- addresses -------------------------------------------------------------------------------

    def took_addresses(self, addresses: tuple[Address, ...]) -> None:
        """Raises Rejection("not-requested") unless this is the one answer to the one question."""
        if not self.addresses_asked:
            raise Rejection("not-requested", "addresses")
        self.addresses_asked = False
        self.addresses = addresses[:MAX_ADDRESSES]
