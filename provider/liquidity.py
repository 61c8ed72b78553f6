"""What the provider's channels can send and receive; asked seldom, because it costs the node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from msgspec import Struct

from channels import lightning_answers as answers
from channels.errors import OdaError

FRESH: Final = 10.0
"""Seconds for which an answer is good."""
PATIENCE: Final = 3.0
"""Seconds after which a node that says nothing is one that can't be reached."""


class Node(Protocol):
    """What is used of channels.lightning.Lightning."""

    async def listpeerchannels(self, node_id: str | None = None) -> list[answers.PeerChannel]: ...


class Channel(Struct, frozen=True):
    """state: lightningd's word for it."""

    peer_id: str
    short_channel_id: str | None
    state: str
    connected: bool
    spendable_msat: int
    receivable_msat: int


class Liquidity(Struct, frozen=True):
    """trouble: why the node can't be asked now; the rest is as it was last known."""

    spendable_msat: int = 0
    receivable_msat: int = 0
    channels: tuple[Channel, ...] = ()
    trouble: str | None = None


class Channels:
    """Several ask at once and the node is asked once."""

    def __init__(self, node: Node, clock: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._clock = clock
        self._known = Liquidity()
        self._asked = float("-inf")
        self._task: asyncio.Task[None] | None = None

    async def look(self) -> Liquidity:
        """As it was at most FRESH seconds ago, or why that can't be said."""
        if self._clock() - self._asked >= FRESH:
            if self._task is None:
                self._task = asyncio.create_task(self._ask())
            # It goes on where it takes longer: a node is not asked twice at a time.
            await asyncio.wait({self._task}, timeout=PATIENCE)
            if self._task is not None and not self._task.done():
                return self._failed("The Lightning node does not answer.")
        return self._known

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self) -> None:
        try:
            self._known = _sum(await self._node.listpeerchannels())
        except OdaError as error:
            self._known = self._failed(str(error))
        finally:
            self._asked = self._clock()
            self._task = None

    def _failed(self, sentence: str) -> Liquidity:
        known = self._known
        return Liquidity(known.spendable_msat, known.receivable_msat, known.channels, sentence)


def _sum(found: list[answers.PeerChannel]) -> Liquidity:
    """Only channels in CHANNELD_NORMAL send and receive."""
    channels = tuple(
        Channel(
            each.peer_id,
            each.short_channel_id,
            each.state,
            each.peer_connected,
            each.spendable_msat or 0,
            each.receivable_msat or 0,
        )
        for each in found
    )
    usable = [each for each in channels if each.state == "CHANNELD_NORMAL" and each.connected]
    return Liquidity(
        sum(each.spendable_msat for each in usable),
        sum(each.receivable_msat for each in usable),
        channels,
    )
