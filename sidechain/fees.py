"""Who is owed what of what was spent: exact integers that sum to it.

A share is a part of the whole that a session spent, rounded up, computed from the running total
and not per token: so nothing is lost to rounding, and nobody's share is zero once the total allows
it. The chain can't force anyone to pay; this is the sum that users check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from channels.errors import LocalProtocolError
from channels.units import Msat
from sidechain.params import PPM, Params
from sidechain.state import View


@dataclass(frozen=True, slots=True)
class Terms:
    """The parts of a session, in millionths, fixed in its challenge."""

    trainer_ppm: int
    producers_ppm: int

    @classmethod
    def default(cls, params: Params) -> Terms:
        return cls(params.trainer_ppm, params.producers_ppm)

    def check(self, params: Params) -> None:
        """Raises LocalProtocolError("share-below-floor" or "shares-above-whole")."""
        if (
            self.trainer_ppm < params.trainer_floor_ppm
            or self.producers_ppm < params.producers_floor_ppm
        ):
            raise LocalProtocolError(
                "share-below-floor",
                f"Trainers get at least {params.trainer_floor_ppm} and producers "
                f"{params.producers_floor_ppm} millionths; refuse these terms.",
            )
        if self.trainer_ppm + self.producers_ppm > PPM:
            raise LocalProtocolError(
                "shares-above-whole", "The shares are more than the whole; refuse these terms."
            )


@dataclass(frozen=True, slots=True)
class Beneficiaries:
    """Whose keys are owed. trainer and accepting_producer are None for unregistered models."""

    trainer: bytes | None
    last_producer: bytes | None
    accepting_producer: bytes | None


@dataclass(frozen=True, slots=True)
class Shares:
    """What a session owes. The four parts sum to what was spent."""

    provider: Msat
    trainer: Msat
    last_producer: Msat
    accepting_producer: Msat

    @property
    def total(self) -> Msat:
        return Msat(self.provider + self.trainer + self.last_producer + self.accepting_producer)


def beneficiaries(view: View, model: bytes | None, weights_root: bytes | None) -> Beneficiaries:
    """Who is owed for serving these weights, by the state at the session's tip.

    `view` is the state `fee_depth` blocks below the best tip, or what a light client has proven
    of it. model: None for one that is not on the chain, whose users pay the producer alone.
    """
    tip = view.tip()
    last = None if tip is None else tip.producer
    known = None if model is None else view.model(model)
    if model is None or known is None:
        return Beneficiaries(None, last, None)
    # Provisional weights give no right to shares yet, and weights that failed never did: the
    # last confirmed version stands behind both.
    root = None if weights_root is None else view.root_of(weights_root)
    if root is not None and root.confirmed and root.model == model:
        return Beneficiaries(root.trainer, last, root.producer)
    return Beneficiaries(known.confirmed.trainer, last, known.confirmed.producer)


def split(spent: Msat, owed: Beneficiaries, terms: Terms) -> Shares:
    """The parts of everything that a session spent so far.

    Every party that exists gets at least 1 msat as soon as there is one left for it; the trainer
    comes first, then the last producer, then the accepting one. A missing trainer's part stays
    with the provider, a missing producer's with the other one.
    """
    left = int(spent)

    def take(wanted: int) -> int:
        nonlocal left
        taken = min(wanted, left)
        left -= taken
        return taken

    def part(ppm: int) -> int:
        return -(-spent * ppm // PPM)

    producers = part(terms.producers_ppm)
    half = producers // 2
    last = accepting = 0
    trainer = take(part(terms.trainer_ppm)) if owed.trainer is not None else 0
    if owed.last_producer is not None and owed.accepting_producer is not None:
        last = take(producers - half)
        accepting = take(max(half, 1))
    elif owed.last_producer is not None:
        last = take(producers)
    return Shares(Msat(left), Msat(trainer), Msat(last), Msat(accepting))


def by_key(shares: Shares, owed: Beneficiaries) -> dict[bytes, Msat]:
    """What each key is owed; one key may hold several parts."""
    amounts: dict[bytes, Msat] = {}
    for key, amount in (
        (owed.trainer, shares.trainer),
        (owed.last_producer, shares.last_producer),
        (owed.accepting_producer, shares.accepting_producer),
    ):
        if key is not None and amount:
            amounts[key] = Msat(amounts.get(key, 0) + amount)
    return amounts


@dataclass(frozen=True, slots=True)
class Settlement:
    """What can be paid now and what is carried over to the next time: together all that is owed."""

    payable: Mapping[bytes, Msat]
    carried: Mapping[bytes, Msat]


def settle(carried: Mapping[bytes, Msat], owed: Mapping[bytes, Msat], smallest: Msat) -> Settlement:
    """Add what is newly owed to what was carried; below `smallest` nothing is payable."""
    totals = {
        key: Msat(carried.get(key, 0) + owed.get(key, 0)) for key in sorted({*carried, *owed})
    }
    return Settlement(
        {key: amount for key, amount in totals.items() if amount and amount >= smallest},
        {key: amount for key, amount in totals.items() if 0 < amount < smallest},
    )
