"""What bounds a stranger: token buckets, sets that forget, and how long we are patient.

Everything here is pure: `now` is an argument, in seconds of a clock that only goes forward.
"""

from __future__ import annotations

from dataclasses import dataclass


class TokenBucket:
    """`rate` tokens a second, at most `burst` of them saved up.

    Taking is always allowed and may leave a debt; whoever took waits until it is paid.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, cost: float, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + self._rate * (now - self._at)) - cost
        self._at = now

    def wait(self, now: float) -> float:
        """Seconds until there is no debt."""
        return max(0.0, -self._tokens / self._rate - (now - self._at))


class Known:
    """A set of hashes that forgets the oldest when it is full."""

    __slots__ = ("_hashes", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._hashes: dict[bytes, None] = {}

    def __contains__(self, item: bytes) -> bool:
        return item in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, item: bytes) -> bool:
        """Whether it is new."""
        if item in self._hashes:
            return False
        self._hashes[item] = None
        if len(self._hashes) > self._most:
            del self._hashes[next(iter(self._hashes))]
        return True

    def discard(self, item: bytes) -> None:
        self._hashes.pop(item, None)

    def clear(self) -> None:
        self._hashes.clear()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long we wait for what, in seconds."""

    handshake: float = 10.0
    ping: float = 30.0
    """Between two pings."""
    pong: float = 20.0
    headers: float = 30.0
    """For an answer to GetHeaders."""
    block: float = 10.0
    """For the next of the blocks that one peer was asked for."""
    any_block: float = 60.0
    """For each of them, however steadily others come."""
    steal: float = 2.0
    """Before a peer that has nothing else to do is asked for what another was asked for."""
    item: float = 5.0
    """For a transaction or an announcement."""
    proofs: float = 5.0
    unsent: float = 30.0
    """For a peer to read what it is sent."""
    resync: float = 60.0
    """Between two questions for headers that nobody announced."""


PATIENCE = Patience()
