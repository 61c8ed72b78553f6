"""BOLT 4: whether an HTLC may be forwarded, and if not, what its sender is told.

What is decided here needs no other channel's state than the facts in `Outgoing`; whether the
channel has room for the HTLC is for the channel itself to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from channels.bolt.onion_failures import Failure, FailureCode
from channels.bolt.onion_payload import ForwardPayload, HtlcRefused
from channels.bolt.policy import Policy
from channels.units import BlockHeight, Msat

MAX_HTLC_CLTV = 2016
"""BOLT 4: blocks that an HTLC may be from its end when it comes to us."""

EXPIRY_MARGIN = 3
"""Blocks that an outgoing HTLC must have before it: on its way they may be found (BOLT 2)."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The channel that the onion names.

    `policies` are those that may be relied on, the one in force first: after a change the one
    before it is honoured until senders may have heard. `channel_update` is ours, as a message with
    its type; empty when there is none.
    """

    policies: Sequence[Policy]
    usable: bool
    closing: bool
    channel_update: bytes


def fee(policy: Policy, amount_msat: Msat) -> Msat:
    """BOLT 7 "HTLC Fees": what forwarding this amount costs."""
    proportional = amount_msat * policy.fee_proportional_millionths // 1_000_000
    return Msat(policy.fee_base_msat + proportional)


def check(
    payload: ForwardPayload,
    amount_msat: Msat,
    cltv_expiry: int,
    outgoing: Outgoing | None,
    height: BlockHeight,
) -> None:
    """Refuse to forward the HTLC `amount_msat`, `cltv_expiry` as its payload says.

    `outgoing` is None for a channel that we do not have. Raises HtlcRefused with the failure of
    BOLT 4 "Failure Messages", an erring node that forwards.
    """
    if outgoing is None:
        raise _refused(FailureCode.UNKNOWN_NEXT_PEER, "The onion names no channel of ours.")
    if outgoing.closing:
        raise _refused(FailureCode.PERMANENT_CHANNEL_FAILURE, "The next channel is closing.")
    refusals = [
        _against(policy, payload, amount_msat, cltv_expiry, outgoing.channel_update)
        for policy in outgoing.policies
    ]
    if refusals and None not in refusals:
        raise refusals[0] or AssertionError("filtered above")
    _check_time(payload, cltv_expiry, outgoing, height)
    if not outgoing.usable:
        raise unavailable(outgoing.channel_update, "The next peer is away.")


def unavailable(channel_update: bytes, sentence: str) -> HtlcRefused:
    """The channel cannot take the HTLC now: no room, too many HTLCs, its peer away."""
    failure = Failure.of(FailureCode.TEMPORARY_CHANNEL_FAILURE, channel_update=channel_update)
    return HtlcRefused(failure, sentence)


def _against(
    policy: Policy,
    payload: ForwardPayload,
    amount_msat: Msat,
    cltv_expiry: int,
    channel_update: bytes,
) -> HtlcRefused | None:
    amount, expiry = payload.amt_to_forward, payload.outgoing_cltv_value
    if amount < policy.htlc_minimum_msat:
        return _refused(
            FailureCode.AMOUNT_BELOW_MINIMUM,
            "The amount is below the next channel's minimum.",
            htlc_msat=amount,
            channel_update=channel_update,
        )
    if amount > policy.htlc_maximum_msat:
        # BOLT 4 has no code of its own for it; BOLT 7 made the maximum part of the capacity.
        return unavailable(channel_update, "The amount is above the next channel's maximum.")
    if amount_msat - amount < fee(policy, amount):
        return _refused(
            FailureCode.FEE_INSUFFICIENT,
            "The HTLC leaves too little for us.",
            htlc_msat=amount_msat,
            channel_update=channel_update,
        )
    if cltv_expiry - expiry < policy.cltv_expiry_delta:
        return _refused(
            FailureCode.INCORRECT_CLTV_EXPIRY,
            "The HTLC leaves us too few blocks.",
            cltv_expiry=expiry,
            channel_update=channel_update,
        )
    return None


def _check_time(
    payload: ForwardPayload, cltv_expiry: int, outgoing: Outgoing, height: BlockHeight
) -> None:
    if payload.outgoing_cltv_value <= height + EXPIRY_MARGIN:
        raise _refused(
            FailureCode.EXPIRY_TOO_SOON,
            "The HTLC would expire before it could be settled.",
            channel_update=outgoing.channel_update,
        )
    if cltv_expiry > height + MAX_HTLC_CLTV:
        raise _refused(
            FailureCode.EXPIRY_TOO_FAR, f"The HTLC lasts more than {MAX_HTLC_CLTV} blocks."
        )


def _refused(code: FailureCode, sentence: str, **fields: int | bytes) -> HtlcRefused:
    return HtlcRefused(Failure.of(code, **fields), sentence)
