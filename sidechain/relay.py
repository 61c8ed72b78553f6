"""Transactions and announcements on their way: offered by Inv, asked for once, passed on once.

Blocks don't go this way: they follow their headers (sidechain/sync.py). Pure: `now` is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from sidechain.conversation import Conversation
from sidechain.limits import Known, Patience
from sidechain.protocol import MAX_INVENTORY, GetData, Inv, Item, Service

IN_FLIGHT: Final = 64
"""Things that one peer is asked for at a time."""

MAX_OFFERS: Final = 2 * MAX_INVENTORY
"""What a peer offered and was not asked for yet; beyond that, it is not listened to."""

MAX_FALLBACKS: Final = 4
"""Others who have a thing, to be asked if the first does not send it."""

MAX_REFUSED: Final = 8_192

Thing = tuple[Item, bytes]


@dataclass(slots=True)
class _Peer:
    offers: deque[Thing] = field(default_factory=deque)
    asked: dict[Thing, float] = field(default_factory=dict)
    late: Known = field(default_factory=lambda: Known(IN_FLIGHT))
    """What was given up and may come all the same."""
    fresh: dict[Thing, None] = field(default_factory=dict)
    """What it is to be offered when the turn ends."""


class Relay:
    """`has` says whether the node has a thing, or had it and wants it no more."""

    def __init__(self, has: Callable[[Item, bytes], bool], patience: Patience) -> None:
        self._has = has
        self._patience = patience
        self._peers: dict[Conversation, _Peer] = {}
        self._askers: dict[Thing, list[Conversation]] = {}
        """Who was asked, and behind it who else offered the same."""
        self._refused = Known(MAX_REFUSED)

    # --- what others have ------------------------------------------------------------------------

    def offered(self, peer: Conversation, item: Item, hashes: Iterable[bytes], now: float) -> None:
        offers = self._of(peer).offers
        for each in hashes:
            peer.known.add(each)
            if len(offers) < MAX_OFFERS and not self._unwanted(item, each):
                offers.append((item, each))
        self._ask(peer, now)

    def _unwanted(self, item: Item, each: bytes) -> bool:
        return each in self._refused or self._has(item, each)

    def _ask(self, peer: Conversation, now: float) -> None:
        mine = self._of(peer)
        asking: dict[Item, list[bytes]] = {}
        while mine.offers and len(mine.asked) < IN_FLIGHT:
            item, each = thing = mine.offers.popleft()
            if self._unwanted(item, each):
                self._askers.pop(thing, None)
                continue
            askers = self._askers.setdefault(thing, [])
            if peer not in askers and len(askers) <= MAX_FALLBACKS:
                askers.append(peer)
            if askers[0] is peer and thing not in mine.asked:
                mine.asked[thing] = now
                asking.setdefault(item, []).append(each)
        for item, hashes in asking.items():
            peer.send(GetData(item, tuple(hashes)))

    def arrived(self, peer: Conversation, item: Item, each: bytes, now: float) -> bool:
        """A thing came. Whether the peer was asked for it."""
        mine, thing = self._of(peer), (item, each)
        if mine.asked.pop(thing, None) is None:
            if each not in mine.late:
                return False
            mine.late.discard(each)
        self._askers.pop(thing, None)
        self._ask(peer, now)
        return True

    def refuse(self, each: bytes) -> None:
        """Not to be asked for again while the tip stays."""
        self._refused.add(each)

    def missing(self, peer: Conversation, item: Item, hashes: Iterable[bytes], now: float) -> bool:
        """The peer does not have these any more. Whether any of them had been asked."""
        found = False
        for each in hashes:
            thing = (item, each)
            if self._of(peer).asked.pop(thing, None) is not None:
                found = True
                self._pass_on(peer, thing, now)
        self._ask(peer, now)
        return found

    def _pass_on(self, peer: Conversation, thing: Thing, now: float) -> None:
        """Ask the next one who offered it."""
        askers = self._askers.get(thing)
        if askers is None or peer not in askers:
            return
        first = askers[0] is peer
        askers.remove(peer)
        if not askers:
            del self._askers[thing]
        elif first:
            self._of(askers[0]).offers.appendleft(thing)
            self._ask(askers[0], now)

    # --- what others may want --------------------------------------------------------------------

    def joined(self, peer: Conversation, txids: Iterable[bytes], hashes: Iterable[bytes]) -> None:
        """Offer a new peer what waits here: transactions, and hashes of announcements."""
        if peer.offers(Service.FULL):
            for txid in txids:
                self._offer(peer, (Item.TX, txid))
        for each in hashes:
            self._offer(peer, (Item.ANNOUNCEMENT, each))

    def added(self, peers: Iterable[Conversation], item: Item, each: bytes) -> None:
        """The node took something in: offer it to whoever does not have it."""
        for peer in peers:
            if peer.ready and (item is not Item.TX or peer.offers(Service.FULL)):
                self._offer(peer, (item, each))

    def _offer(self, peer: Conversation, thing: Thing) -> None:
        if peer.known.add(thing[1]):
            fresh = self._of(peer).fresh
            fresh[thing] = None
            if len(fresh) > MAX_OFFERS:
                del fresh[next(iter(fresh))]

    def flush(self) -> None:
        """Send the offers of this turn."""
        for peer, mine in self._peers.items():
            if not mine.fresh:
                continue
            for item in (Item.TX, Item.ANNOUNCEMENT):
                hashes = tuple(each for kind, each in mine.fresh if kind is item)
                for start in range(0, len(hashes), MAX_INVENTORY):
                    peer.send(Inv(item, hashes[start : start + MAX_INVENTORY]))
            mine.fresh.clear()

    # --- time ------------------------------------------------------------------------------------

    def moved(self) -> None:
        """The tip moved: what was refused may be right now."""
        self._refused.clear()

    def left(self, peer: Conversation, now: float) -> None:
        mine = self._peers.pop(peer, None)
        if mine is None:
            return
        for thing in [thing for thing, askers in self._askers.items() if peer in askers]:
            self._pass_on(peer, thing, now)

    def tick(self, now: float) -> None:
        for peer, mine in list(self._peers.items()):
            late = [t for t, asked in mine.asked.items() if asked + self._patience.item <= now]
            for thing in late:
                del mine.asked[thing]
                mine.late.add(thing[1])
                self._pass_on(peer, thing, now)
            if late:
                self._ask(peer, now)

    def _of(self, peer: Conversation) -> _Peer:
        return self._peers.setdefault(peer, _Peer())
