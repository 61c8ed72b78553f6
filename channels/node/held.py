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
        """Its channel can still remove it; from a dead one it can only be claimed on chain."""
        return self.channel.state.state not in _DEAD

    @property
    def gone(self) -> bool:
        """It had no output, and its channel is history."""
        return self.channel.state.state is State.CLOSED


@dataclass(slots=True)
class HtlcSet:
    """The parts of one payment so far, by channel and HTLC id."""

    total_msat: Msat
    parts: dict[tuple[int, int], Part] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


class Held:
    def __init__(self, node: Node, timed_out: Callable[[bytes], None]) -> None:
        """`timed_out` is called with the payment hash of a set that stays incomplete."""
        self._node = node
        self._timed_out = timed_out
        self._sets: dict[bytes, HtlcSet] = {}

    def received_msat(self, payment_hash: bytes) -> Msat:
        """What the preimage would bring now, from dead channels too (BOLT 5)."""
        held = self._sets.get(payment_hash)
        parts = () if held is None else held.parts.values()
        return Msat(sum(p.htlc.amount_msat for p in parts if self._ours_for_the_preimage(p)))

    def complete(self, payment_hash: bytes) -> bool:
        """Everything that the payer promised is here."""
        held = self._sets.get(payment_hash)
        return held is not None and self.received_msat(payment_hash) >= held.total_msat

    def _ours_for_the_preimage(self, part: Part) -> bool:
        return part.alive or self._node.onchain.claimable(part.channel, part.htlc.id)

    def add(self, payment_hash: bytes, part: Part, final: FinalPayload) -> bool:
        """Keep a part with the others; False when the parts disagree about the total."""
        held = self._sets.get(payment_hash)
        if held is None:
            held = self._sets[payment_hash] = HtlcSet(final.total_msat)
            held.timer = asyncio.get_running_loop().call_later(
                MPP_SECONDS, self._on_timer, payment_hash
            )
        if held.total_msat != final.total_msat:
            return False
        held.parts[part.channel.state.index, part.htlc.id] = part
        if held.timer is not None and self.complete(payment_hash):
            held.timer.cancel()
        return True

    def _on_timer(self, payment_hash: bytes) -> None:
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
        """Payments of which an HTLC is lost, or soon too late to be claimed (BOLT 2, BOLT 5)."""
        last = height + self._node.params.policy.fulfillment_deadline + CLAIM_MARGIN
        return [
            payment_hash
            for payment_hash, held in self._sets.items()
            if any(p.htlc.cltv_expiry <= last or p.gone for p in held.parts.values())
        ]

    def stop(self) -> None:
        for held in self._sets.values():
            if held.timer is not None:
                held.timer.cancel()
