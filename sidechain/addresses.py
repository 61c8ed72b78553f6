"""Which nodes we know of, whom to dial next, and whom to send away when there is no room.

Pure: randomness and time are arguments. An eclipse is an attacker on every connection that we have.
Against it: each source of addresses has a small part of the book, few of the nodes that we dial are
in one network, and whoever served us long or well is not pushed out by newcomers.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from sidechain.conversation import Conversation
from sidechain.protocol import MAX_ADDRESSES, Address

MAX_BOOK: Final = 2_048
MAX_PER_SOURCE: Final = 64
MAX_PER_GROUP: Final = 2
"""Nodes of one network that are dialled at a time."""

FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 600.0
LAST_RETRY_KEPT: Final = 30.0
"""Seconds; the second for nodes that the operator named."""

STEADY: Final = 60.0
"""Seconds after which a connection counts as one that was worth having."""

FORGET_AFTER: Final = 8
"""Failures in a row after which a node that was never reached is forgotten."""

Place = tuple[str, int]
"""Host, an IP address, and port."""

T = TypeVar("T")


class Random(Protocol):
    """What random.Random offers of chance."""

    def random(self) -> float: ...
    def uniform(self, a: float, b: float) -> float: ...
    def choice(self, seq: Sequence[T]) -> T: ...
    def sample(self, population: Sequence[T], k: int) -> list[T]: ...


def group(host: str) -> str:
    """The network of an address: what one owner can fill. /16 of IPv4, /32 of IPv6."""
    address = ipaddress.ip_address(host)
    prefix = 16 if address.version == 4 else 32
    return str(ipaddress.ip_network(f"{host}/{prefix}", strict=False))


def is_dialable(host: str, *, loopback: bool) -> bool:
    """Whether an address that a stranger names may be dialled: an IP address of the public
    network, or of this machine on regtest. Names are not looked up, and nobody makes us knock at
    the doors of a private network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if str(address) != host or getattr(address, "scope_id", None):
        return False  # another spelling would be another entry
    return address.is_loopback if loopback else address.is_global and not address.is_multicast


@dataclass(slots=True)
class _Entry:
    source: str
    """Who told us: a group; empty if we were told by the operator."""
    seen: int
    """When we were last connected, in seconds since 1970; 0: never."""
    failures: int = 0
    retry_at: float = 0.0


class AddressBook:
    def __init__(self, *, loopback: bool) -> None:
        """loopback: addresses of this machine only (regtest)."""
        self._loopback = loopback
        self._entries: dict[Place, _Entry] = {}
        self._kept: set[Place] = set()
        self._shunned: set[Place] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, place: Place) -> bool:
        return place in self._entries

    # --- what is in it ---------------------------------------------------------------------------

    def add(self, place: Place, source: str, random: Random) -> None:
        """Note an address that a peer told us; `source` is the peer's host."""
        host, port = place
        if not 1 <= port <= 0xFFFF or not is_dialable(host, loopback=self._loopback):
            return
        if place in self._entries or place in self._shunned:
            return
        told_by = group(source)
        mine = [
            at for at, each in self._entries.items() if each.source == told_by and not each.seen
        ]
        if len(mine) >= MAX_PER_SOURCE:
            # Who tells more than its part replaces what it told before, and nothing else.
            del self._entries[random.choice(mine)]
        elif len(self._entries) >= MAX_BOOK:
            new = [
                at for at, each in self._entries.items() if not each.seen and at not in self._kept
            ]
            if not new:
                return
            del self._entries[random.choice(new)]
        self._entries[place] = _Entry(told_by, 0)

    def restore(self, place: Place, seen: int) -> None:
        """An address that was kept over a restart."""
        if len(self._entries) < MAX_BOOK and is_dialable(place[0], loopback=self._loopback):
            self._entries[place] = _Entry("", seen)

    def keep(self, place: Place) -> None:
        """Try this one for ever, whatever its group: the operator said so."""
        self._shunned.discard(place)
        self._kept.add(place)
        self._entries.setdefault(place, _Entry("", 0))

    def is_kept(self, place: Place) -> bool:
        return place in self._kept

    def shun(self, place: Place) -> None:
        """Never to be dialled again: it is ourselves, or misbehaves."""
        self._kept.discard(place)
        self._entries.pop(place, None)
        if len(self._shunned) < MAX_BOOK:
            self._shunned.add(place)

    def sample(self, random: Random) -> tuple[Address, ...]:
        """What to answer to GetAddr: only nodes that we reached ourselves."""
        seen = [(place, each.seen) for place, each in self._entries.items() if each.seen]
        chosen = random.sample(seen, min(len(seen), MAX_ADDRESSES))
        return tuple(Address(host, port, at) for (host, port), at in chosen)

    # --- whom to dial ----------------------------------------------------------------------------

    def reached(self, place: Place, seen: int) -> None:
        """A handshake went through at this time, in seconds since 1970."""
        self._entries.setdefault(place, _Entry("", seen)).seen = seen

    def failed(self, place: Place, now: float, random: Random, lasted: float = 0.0) -> None:
        """Dialling failed, or the connection broke after so many seconds: wait twice as long as
        the last time, more or less, so that nodes which dial each other don't stay in step."""
        entry = self._entries.get(place)
        if entry is None:
            return
        if lasted >= STEADY:
            entry.failures = 0
        most = LAST_RETRY_KEPT if place in self._kept else LAST_RETRY
        delay = min(most, FIRST_RETRY * 2.0 ** min(entry.failures, 16))
        entry.retry_at = now + delay * random.uniform(0.5, 1.5)
        entry.failures += 1
        if entry.failures >= FORGET_AFTER and not entry.seen and place not in self._kept:
            del self._entries[place]

    def due(self, connected: Collection[Place], now: float) -> list[Place]:
        """The operator's nodes that are not connected and whose time has come."""
        return [
            place
            for place in self._kept
            if place not in connected and self._entries[place].retry_at <= now
        ]

    def pick(self, connected: Collection[Place], now: float, random: Random) -> Place | None:
        """Another node to dial: as often one that was reached before as one that was not, and
        none of a group of which there are enough."""
        groups = Counter(group(host) for host, _ in connected)
        able: dict[bool, list[Place]] = {True: [], False: []}
        for place, entry in self._entries.items():
            fresh = place not in connected and place not in self._kept and entry.retry_at <= now
            if fresh and groups[group(place[0])] < MAX_PER_GROUP:
                able[entry.seen > 0].append(place)
        choices = able[random.random() < 0.5] or able[True] or able[False]
        return random.choice(choices) if choices else None


# --- inbound slots -------------------------------------------------------------------------------

PROTECTED: Final = 4
"""Of each kind of merit, so many inbound peers are never sent away."""


def eviction(inbound: Sequence[Conversation]) -> Conversation | None:
    """Whom to send away for a newcomer, as Bitcoin Core chooses: those who gave us blocks last,
    those who answer pings fastest, and the half that has been here longest stay; of the others,
    the youngest of the group that has most. None if all deserve to stay."""
    left = list(inbound)
    useful = [each for each in left if each.useful is not None]
    _protect(left, sorted(useful, key=lambda each: -(each.useful or 0)), PROTECTED)
    quick = [each for each in left if each.latency is not None]
    _protect(left, sorted(quick, key=lambda each: each.latency or 0), PROTECTED)
    _protect(left, sorted(left, key=lambda each: each.since), len(left) // 2)
    if not left:
        return None
    groups = Counter(group(each.host) for each in left)
    return max(left, key=lambda each: (groups[group(each.host)], each.since))


def _protect(left: list[Conversation], best: Iterable[Conversation], most: int) -> None:
    for peer, _ in zip(best, range(most), strict=False):
        left.remove(peer)
