"""Hosts that are not spoken with until some time, kept over restarts."""

from __future__ import annotations

from typing import Final

from sidechain.store import KnownPeer, SqliteStore

BAN_SECONDS: Final = 24 * 3600
MAX_BANS: Final = 4_096
"""Beyond that, the ban that ends first is lifted."""

ANY_PORT: Final = 0
"""The port of a ban, which is for a host."""


class Bans:
    """Writes to the store; the caller commits."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        known = [each for each in store.peers() if each.port == ANY_PORT]
        self._until = {each.host: each.banned_until for each in known}

    def add(self, host: str, now: int, seconds: int = BAN_SECONDS) -> None:
        until = max(now + seconds, self._until.get(host, 0))
        if host not in self._until and len(self._until) >= MAX_BANS:
            self.lift(min(self._until, key=lambda each: self._until[each]))
        self._until[host] = until
        self._store.put_peer(KnownPeer(host, ANY_PORT, now, until))

    def lift(self, host: str) -> None:
        if self._until.pop(host, None) is not None:
            self._store.remove_peer(host, ANY_PORT)

    def __contains__(self, host_and_now: tuple[str, int]) -> bool:
        host, now = host_and_now
        return self._until.get(host, 0) > now

    def active(self, now: int) -> dict[str, int]:
        """Hosts, and when their ban ends, in seconds since 1970."""
        return {host: until for host, until in self._until.items() if until > now}
