"""Whether an HTLC is forwarded, and what its sender is told when it is not (BOLT 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from channels.bolt.onion_failures import Failure, FailureCode
from channels.bolt.onion_payload import ForwardPayload, HtlcRefused
from channels.bolt.policy import Policy
from channels.units import BlockHeight, Msat

MAX_HTLC_CLTV = 2016
"""BOLT 4: an HTLC that may lock our money up for longer is not forwarded."""

SOONEST = 3
"""Blocks: an outgoing HTLC that expires sooner would be refused, or end on chain, downstream."""


class Condition(Enum):
    """What an outgoing channel is good for at the moment."""

    USABLE = "usable"
    AWAY = "its peer is not connected"
    DISABLED = "it is closing, or its peer has been away for long"
    GONE = "it is closed, or will be without its peer"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The channel that an onion asks for.

    `terms` are those that it advertises, then older ones that still hold because not everybody
    has heard of the new ones. `channel_update` says the first of them, encoded; it may be empty.
    """

    condition: Condition
    terms: Sequence[Policy]
    channel_update: bytes = b""


def check(
    incoming_msat: Msat,
    incoming_cltv: int,
    payload: ForwardPayload,
    outgoing: Outgoing | None,
    height: BlockHeight,
) -> None:
    """Return when an HTLC is to be offered over `outgoing`; None is a channel that we don't have.

    Raises HtlcRefused, with the first failure that applies in the order of BOLT 4 "Failure
    Messages"; that a channel is full is found out by offering.
    """
    if outgoing is None:
        raise HtlcRefused(
            Failure.of(FailureCode.UNKNOWN_NEXT_PEER), "The onion asks for a channel we don't have."
        )
    if outgoing.condition is Condition.GONE:
        raise HtlcRefused(
            Failure.of(FailureCode.PERMANENT_CHANNEL_FAILURE), "The outgoing channel is closed."
        )
    refusals = [
        _refused_by(policy, incoming_msat, incoming_cltv, payload, outgoing)
        for policy in outgoing.terms
    ]
    if refusals[0] is not None and all(refusals):
        raise refusals[0]
    update = outgoing.channel_update
    if payload.outgoing_cltv_value < height + SOONEST:
        raise HtlcRefused(
            Failure.of(FailureCode.EXPIRY_TOO_SOON, channel_update=update),
            "The outgoing HTLC would expire too soon.",
        )
    if outgoing.condition is Condition.DISABLED:
        raise HtlcRefused(
            Failure.of(FailureCode.CHANNEL_DISABLED, disabled_flags=0, channel_update=update),
            "The outgoing channel is disabled.",
        )
    if incoming_cltv > height + MAX_HTLC_CLTV:
        raise HtlcRefused(
            Failure.of(FailureCode.EXPIRY_TOO_FAR), "The incoming HTLC would lock up for too long."
        )
    if outgoing.condition is Condition.AWAY:
        raise full(outgoing, "The outgoing channel's peer is not connected.")


def full(outgoing: Outgoing, sentence: str) -> HtlcRefused:
    """The refusal of an HTLC that the outgoing channel can't carry now."""
    update = outgoing.channel_update
    return HtlcRefused(
        Failure.of(FailureCode.TEMPORARY_CHANNEL_FAILURE, channel_update=update), sentence
    )


def _refused_by(
    policy: Policy,
    incoming_msat: Msat,
    incoming_cltv: int,
    payload: ForwardPayload,
    outgoing: Outgoing,
) -> HtlcRefused | None:
    """Why these terms refuse it."""
    amount, update = payload.amt_to_forward, outgoing.channel_update
    if amount > policy.htlc_maximum_msat:
        # No code is for it; it is what an HTLC gets that exceeds the capacity.
        return full(outgoing, "The amount is above the outgoing channel's htlc_maximum_msat.")
    if amount < policy.htlc_minimum_msat:
        return HtlcRefused(
            Failure.of(FailureCode.AMOUNT_BELOW_MINIMUM, htlc_msat=amount, channel_update=update),
            "The amount is below the outgoing channel's htlc_minimum_msat.",
        )
    if incoming_msat < amount + policy.fee(amount):
        return HtlcRefused(
            Failure.of(
                FailureCode.FEE_INSUFFICIENT, htlc_msat=incoming_msat, channel_update=update
            ),
            "The incoming HTLC does not pay our fee.",
        )
    if incoming_cltv < payload.outgoing_cltv_value + policy.cltv_expiry_delta:
        return HtlcRefused(
            Failure.of(
                FailureCode.INCORRECT_CLTV_EXPIRY,
                cltv_expiry=payload.outgoing_cltv_value,
                channel_update=update,
            ),
            "The incoming HTLC leaves less than our cltv_expiry_delta.",
        )
    return None


def returned(malformed: tuple[int, bytes]) -> Failure:
    """The failure for upstream when the next node could not read its onion (BOLT 2, removing)."""
    failure_code, sha256_of_onion = malformed
    return Failure(failure_code, sha256_of_onion)
