"""Which bodies are asked of whom: windows over several peers at once, time-outs, and asking again.

Each peer is asked for what leads to the best header that it showed, so that work whose bodies are
withheld keeps nobody from the chain that the others are on. Pure: `now` is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sidechain.chain import Chain, Status
from sidechain.conversation import Conversation
from sidechain.headers import HeaderRecord
from sidechain.limits import Patience
from sidechain.protocol import GetData, Item, Service

FIRST_WINDOW: Final = 16
LAST_WINDOW: Final = 128
"""Blocks that one peer is asked for at a time: from the first to the last as it proves itself."""

AHEAD: Final = 1_024
"""Bodies that may be here before the one that they all wait for."""

MAX_STALLS: Final = 3
"""In a row, before a peer that was asked for bodies and sends none is left."""

_REPLAN: Final = 0.1
"""Seconds before looking again for what is missing, where nothing was found to ask for."""


@dataclass(slots=True)
class _Download:
    """What one peer is asked for."""

    window: int = FIRST_WINDOW
    asked: dict[bytes, float] = field(default_factory=dict)
    """When each block was asked for."""
    moved: float = 0.0
    """When a block last came, or was asked for with nothing else on its way."""
    rest_until: float = 0.0
    stalls: int = 0
    plan: deque[HeaderRecord] = field(default_factory=deque)
    goal: HeaderRecord | None = None
    replan_at: float = 0.0
    late: set[bytes] = field(default_factory=set)
    """What was given up and may come all the same."""


class Downloads:
    """The bodies under way."""

    def __init__(self, chain: Chain, patience: Patience) -> None:
        self._chain = chain
        self._patience = patience
        self._peers: dict[Conversation, _Download] = {}
        self._asked: dict[bytes, list[Conversation]] = {}

    @property
    def under_way(self) -> int:
        return len(self._asked)

    # --- what is asked ---------------------------------------------------------------------------

    def fill(self, peers: Iterable[Conversation], now: float, *, steal: bool = False) -> None:
        """Ask every peer for as much as it may be asked. steal: those with nothing else to do are
        asked for what others were asked for a while ago."""
        for peer in peers:
            if peer.offers(Service.FULL) and peer.best is not None:
                hashes = self._next(peer, peer.best, now, steal)
                if hashes:
                    peer.send(GetData(Item.BLOCK, tuple(hashes)))

    def _next(self, peer: Conversation, best: HeaderRecord, now: float, steal: bool) -> list[bytes]:
        download = self._peers.setdefault(peer, _Download())
        room = download.window - len(download.asked)
        # Half a window at a time: one question for many blocks.
        if now < download.rest_until or room < (download.window + 1) // 2:
            return []
        if best.invalid is not None or best.work <= self._chain.tip.work:
            return []
        found = self._planned(download, best, room, now)
        if steal and not found and not download.asked:
            found = self._stolen(best, now)
        if found and not download.asked:
            download.moved = now
        for block_hash in found:
            download.asked[block_hash] = now
            self._asked.setdefault(block_hash, []).append(peer)
        return found

    def _planned(
        self, download: _Download, best: HeaderRecord, room: int, now: float
    ) -> list[bytes]:
        """The lowest blocks towards the peer's best header that nobody was asked for."""
        found: dict[bytes, None] = {}
        planned = False
        while len(found) < room:
            if not download.plan:
                # Walking back from the best header is dear, so it is done for many at once, and
                # not again at once where it found nothing.
                if planned or (now < download.replan_at and download.goal is best):
                    break
                download.plan.extend(self._chain.wanted(best, AHEAD))
                download.goal, planned = best, True
                continue
            record = download.plan.popleft()
            missing = self._chain.status(record.hash) is Status.HEADER
            if missing and record.hash not in self._asked:
                found[record.hash] = None
        if not found:
            download.replan_at = now + _REPLAN
        return [*found]

    def _stolen(self, best: HeaderRecord, now: float) -> list[bytes]:
        """What others were asked for a while ago and all else waits for."""
        late = []
        for record in self._chain.wanted(best, FIRST_WINDOW):
            askers = self._asked.get(record.hash, [])
            times = [self._peers[each].asked[record.hash] for each in askers]
            if times and len(times) < MAX_STALLS and max(times) + self._patience.steal <= now:
                late.append(record.hash)
        return late

    # --- what comes ------------------------------------------------------------------------------

    def arrived(self, peer: Conversation, block_hash: bytes, now: float) -> bool:
        """A body came. Whether the peer was asked for it."""
        download = self._peers.get(peer)
        if download is None:
            return False
        if download.asked.pop(block_hash, None) is None:
            if block_hash in download.late:
                download.late.discard(block_hash)
                return True
            return False
        download.moved = now
        download.stalls = 0
        download.window = min(LAST_WINDOW, download.window + 1)
        self._release(peer, block_hash)
        return True

    def missing(self, peer: Conversation, hashes: Iterable[bytes], now: float) -> bool:
        """The peer lacks something that it was asked for: it left the chain that it showed, and
        lacks the rest too. Whether this is news."""
        download = self._peers.get(peer)
        if download is None or not any(each in download.asked for each in hashes):
            return False
        self._give_up(peer, download, now)
        return True

    def failed(self) -> None:
        """A body that came was not the right one: ask somebody else."""
        self._look_again()

    def _release(self, peer: Conversation, block_hash: bytes) -> None:
        askers = self._asked[block_hash]
        askers.remove(peer)
        if not askers:
            del self._asked[block_hash]

    def left(self, peer: Conversation) -> None:
        """The connection is gone: others are asked for what it was asked for."""
        download = self._peers.pop(peer, None)
        for block_hash in download.asked if download else ():
            self._release(peer, block_hash)
        self._look_again()

    def tick(self, now: float) -> None:
        """Give up on peers that let us wait."""
        for peer, download in self._peers.items():
            first = min(download.asked.values(), default=now)
            waited = download.moved + self._patience.block <= now
            if download.asked and (waited or first + self._patience.any_block <= now):
                self._give_up(peer, download, now)

    def _give_up(self, peer: Conversation, download: _Download, now: float) -> None:
        for block_hash in download.asked:
            self._release(peer, block_hash)
        download.late = set(download.asked)
        download.asked.clear()
        download.stalls += 1
        download.window = max(1, download.window // 2)
        download.rest_until = now + self._patience.block * download.stalls
        if download.stalls >= MAX_STALLS:
            peer.close("peer-stalling")
        self._look_again()

    def _look_again(self) -> None:
        """What was given up is below what the plans have left."""
        for download in self._peers.values():
            download.plan.clear()
            download.replan_at = 0.0
