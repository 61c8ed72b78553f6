"""HTLCs for us that wait: for the other parts of their payment, or for a preimage (BOLT 4, MPP).

Nothing of it is stored: a channel tells of its unresolved HTLCs after a restart again, and they
come together as before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from channels.bolt.channel import ON_CHAIN, Channel, State
from channels.bolt.effects import HtlcReceived
from channels.bolt.onion import FinalPayload
from channels.bolt.onion_failures import Failure, create_error
from channels.errors import LocalProtocolError
from channels.units import BlockHeight, Msat

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

MPP_SECONDS = 60.0
"""BOLT 4: the least that a receiver waits for the rest."""

CLAIM_MARGIN = 2
"""Blocks before the deadline of a fulfilled HTLC at which one that waits is given back."""

_DEAD = (State.FAILED, *ON_CHAIN, State.CLOSED)


@dataclass(frozen=True, slots=True)
class Part:
    channel: Channel
    htlc: HtlcReceived
    shared_secret: bytes = field(repr=False)

    @property
    def alive(self) -> bool:
        """Its channel can still remove it; a dead one leaves it to the chain."""
        return self.channel.state.state not in _DEAD


@dataclass(slots=True)
class HtlcSet:
    """The parts of one payment so far, by channel and HTLC id."""

    total_msat: Msat
    parts: dict[tuple[int, int], Part] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None

    @property
    def received_msat(self) -> Msat:
        return Msat(sum(p.htlc.amount_msat for p in self.parts.values() if p.alive))

    @property
    def complete(self) -> bool:
        return self.received_msat >= self.total_msat


class Held:
    def __init__(self, node: Node, timed_out: Callable[[bytes], None]) -> None:
        """`timed_out` is called with the payment hash of a set that stays incomplete."""
        self._node = node
        self._timed_out = timed_out
        self._sets: dict[bytes, HtlcSet] = {}

    def get(self, payment_hash: bytes) -> HtlcSet | None:
        return self._sets.get(payment_hash)

    def add(self, payment_hash: bytes, part: Part, final: FinalPayload) -> HtlcSet | None:
        """The set with this part in it; None when the parts disagree about the total."""
        held = self._sets.get(payment_hash)
        if held is None:
            held = self._sets[payment_hash] = HtlcSet(final.total_msat)
            held.timer = asyncio.get_running_loop().call_later(
                MPP_SECONDS, self._on_timer, payment_hash
            )
        if held.total_msat != final.total_msat:
            return None
        held.parts[part.channel.state.index, part.htlc.id] = part
        return held

    def _on_timer(self, payment_hash: bytes) -> None:
        held = self._sets.get(payment_hash)
        if held is not None and not held.complete:
            self._timed_out(payment_hash)

    def _take(self, payment_hash: bytes) -> list[Part]:
        held = self._sets.pop(payment_hash, None)
        if held is None:
            return []
        if held.timer is not None:
            held.timer.cancel()
        return list(held.parts.values())

    def fulfill(self, payment_hash: bytes, preimage: bytes) -> None:
        """All of them, in the turn in which the invoice is settled; the chain's too."""
        for part in self._take(payment_hash):
            try:
                effects = part.channel.fulfill_htlc(part.htlc.id, preimage)
            except LocalProtocolError as error:
                log.error("a part of payment %s is gone: %s", payment_hash.hex(), error)
                continue
            self._node.carry_out(part.channel, effects)

    def fail(self, payment_hash: bytes, failure: Callable[[HtlcReceived], Failure]) -> None:
        """Give all of them back, each with its failure."""
        for part in self._take(payment_hash):
            if part.alive:
                reason = create_error(part.shared_secret, failure(part.htlc))
                self._node.carry_out(part.channel, part.channel.fail_htlc(part.htlc.id, reason))

    def expiring(self, height: BlockHeight) -> list[bytes]:
        """Payments of which an HTLC could soon no longer be claimed in time (BOLT 2)."""
        last = height + self._node.params.policy.fulfillment_deadline + CLAIM_MARGIN
        return [
            payment_hash
            for payment_hash, held in self._sets.items()
            if any(p.alive and p.htlc.cltv_expiry <= last for p in held.parts.values())
        ]

    def stop(self) -> None:
        for held in self._sets.values():
            if held.timer is not None:
                held.timer.cancel()
