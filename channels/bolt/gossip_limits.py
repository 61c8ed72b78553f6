"""How much gossip anybody may cause: token buckets, and memories that stay small."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from channels.units import UnixTime

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class Bucket:
    """`burst` tokens at first; one more every `every` seconds, never more than `burst`."""

    burst: int
    every: float
    tokens: float
    since: UnixTime

    @classmethod
    def full(cls, burst: int, every: float, now: UnixTime) -> Bucket:
        return cls(burst, every, burst, now)

    def take(self, count: int, now: UnixTime) -> bool:
        """Whether there were `count` tokens; they are gone then."""
        self._refill(now)
        if self.tokens < count:
            return False
        self.tokens -= count
        return True

    def grant(self, count: int, most: int) -> None:
        """Tokens for what we asked for ourselves, up to `most` in all."""
        self.tokens = min(max(self.tokens, most), self.tokens + count)

    def _refill(self, now: UnixTime) -> None:
        # Granted tokens may stand above the burst; they don't grow.
        if self.tokens < self.burst:
            self.tokens = min(self.burst, self.tokens + max(0, now - self.since) / self.every)
        self.since = now


class Bounded(Generic[K, V]):
    """A dict of at most `size` entries, the oldest forgotten first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[K, V] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        return self._entries.get(key)

    def put(self, key: K, value: V) -> None:
        self._entries.pop(key, None)
        while len(self._entries) >= self._size:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = value

    def pop(self, key: K) -> V | None:
        return self._entries.pop(key, None)
