"""A channel as `listpeerchannels` shows it, in lightningd's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from channels.bolt.channel import ON_CHAIN, Channel, State
from channels.bolt.channel_commitments import offering_view, opener_cost
from channels.bolt.channel_state import ChannelState
from channels.bolt.commitment import ChannelType, Htlc
from channels.bolt.htlcs import View
from channels.bolt.messages import ChannelUpdate
from channels.units import FeeratePerKw, Msat, msat

if TYPE_CHECKING:
    from channels.node.node import Node

_TYPE_NAMES = {
    ChannelType.STATIC_REMOTEKEY: ["static_remotekey/even"],
    ChannelType.ANCHORS: ["static_remotekey/even", "anchors/even"],
}

_STATUS = {
    State.OPENING: "Opening with the peer",
    State.AWAITING_LOCKIN: "Funding needs more confirmations, or the peer's channel_ready",
    State.NORMAL: "Channel ready for use",
    State.SHUTTING_DOWN: "Closing: waiting for HTLCs or the peer",
    State.NEGOTIATING: "Closing: agreeing on the fee",
    State.CLOSING_AGREED: "Closing: waiting for the closing transaction to confirm",
    State.FAILED: "Attempting to unilaterally close channel",
    State.SPEND_SEEN: "Saw the funding output spent; a reorganization has undone it",
    State.ONCHAIN: "The funding output is spent on chain",
}


def channel_bits(channel_type: ChannelType) -> dict[str, Any]:
    return {"bits": sorted(channel_type.value), "names": _TYPE_NAMES[channel_type]}


def closer(state: ChannelState) -> str:
    """Who began the close of a channel that closes or is closed."""
    if state.failure is not None:
        return "remote" if state.failure[0] == "failed-by-peer" else "local"
    # The peer may broadcast its commitment without a word.
    return state.closing.closer or "remote"


def spendable_msat(channel: Channel) -> Msat:
    """The largest HTLC that we could offer now, fees, anchors and reserve considered."""
    state = channel.state
    view = offering_view(True)
    local, _ = state.log.balances(view)
    cost = 0
    if state.opener:
        # The fee spike buffer (BOLT 2): twice the feerate, with one more HTLC.
        feerate = FeeratePerKw(2 * state.log.feerate(View.PENDING))
        cost = opener_cost(state, feerate, _any_htlc(), view)
    return Msat(max(0, local - cost - msat(state.peer.channel_reserve_satoshis)))


def receivable_msat(channel: Channel) -> Msat:
    state = channel.state
    view = offering_view(False)
    _, remote = state.log.balances(view)
    feerate = state.log.feerate(View.PENDING)
    cost = 0 if state.opener else opener_cost(state, feerate, _any_htlc(), view)
    return Msat(max(0, remote - cost - msat(state.local.channel_reserve_satoshis)))


def _any_htlc() -> Htlc:
    """An HTLC that no dust limit trims: what one more payment may add to the fee."""
    return Htlc(offered=True, amount_msat=Msat(10**12), payment_hash=bytes(32), cltv_expiry=0)


def _terms(update: ChannelUpdate) -> dict[str, Any]:
    return {
        "htlc_minimum_msat": update.htlc_minimum_msat,
        "htlc_maximum_msat": update.htlc_maximum_msat,
        "cltv_expiry_delta": update.cltv_expiry_delta,
        "fee_base_msat": update.fee_base_msat,
        "fee_proportional_millionths": update.fee_proportional_millionths,
    }


def described(node: Node, channel: Channel) -> dict[str, Any]:
    """What has no value yet is left out."""
    state = channel.state
    connected = state.peer_id in node.connections.peers
    entry: dict[str, Any] = {
        "peer_id": state.peer_id.hex(),
        "peer_connected": connected,
        "state": state.state.value,
        "opener": "local" if state.opener else "remote",
        "features": ["option_static_remotekey"],
        "channel_type": channel_bits(state.channel_type),
        "feerate": {
            "perkw": state.log.feerate(View.LOCAL),
            "perkb": 4 * state.log.feerate(View.LOCAL),
        },
        "private": not state.announce,
        **_amounts(channel),
        **_limits(node, channel),
        "funding": _funding(channel),
        "status": [_status(channel), *node.onchain.status(channel)],
        "htlcs": _htlcs(channel),
    }
    if connected:
        entry["reestablished"] = channel.core.reestablished
    if state.funding_txid is not None:
        entry["channel_id"] = state.channel_id.hex()
        entry["funding_txid"] = state.funding_txid[::-1].hex()
        entry["funding_outnum"] = state.funding_output_index
    if state.short_channel_id is not None:
        entry["short_channel_id"] = str(state.short_channel_id)
        entry["direction"] = int(node.node_id > state.peer_id)
    ours, theirs = node.gossip.own.updates(channel)
    if ours is not None:
        entry["updates"] = {"local": _terms(ours)}
        if theirs is not None:
            entry["updates"]["remote"] = _terms(theirs)
    if state.closing.closer is not None or state.state in (State.FAILED, *ON_CHAIN):
        entry["closer"] = closer(state)
    return entry


def _amounts(channel: Channel) -> dict[str, int]:
    state = channel.state
    return {
        "total_msat": msat(state.funding_satoshis),
        "to_us_msat": state.log.local_msat,
        "spendable_msat": spendable_msat(channel),
        "receivable_msat": receivable_msat(channel),
    }


def _limits(node: Node, channel: Channel) -> dict[str, int]:
    """What each side may do, as agreed at opening, and what we ask for forwarding."""
    state, peer = channel.state, channel.state.peer
    policy = node.policies.of(channel)
    return {
        "fee_base_msat": policy.fee_base_msat,
        "fee_proportional_millionths": policy.fee_proportional_millionths,
        "dust_limit_msat": msat(state.local.dust_limit_satoshis),
        "their_max_htlc_value_in_flight_msat": peer.max_htlc_value_in_flight_msat,
        "our_max_htlc_value_in_flight_msat": state.local.max_htlc_value_in_flight_msat,
        # lightningd's words: "their" reserve is what they must keep, so what we asked for.
        "their_reserve_msat": msat(state.local.channel_reserve_satoshis),
        "our_reserve_msat": msat(peer.channel_reserve_satoshis),
        "minimum_htlc_in_msat": state.local.htlc_minimum_msat,
        "minimum_htlc_out_msat": peer.htlc_minimum_msat,
        "their_to_self_delay": peer.to_self_delay,
        "our_to_self_delay": state.local.to_self_delay,
        "max_accepted_htlcs": state.local.max_accepted_htlcs,
    }


def _htlcs(channel: Channel) -> list[dict[str, Any]]:
    return [
        {
            "direction": "out" if h.ours else "in",
            "id": h.id,
            "amount_msat": h.amount_msat,
            "expiry": h.cltv_expiry,
            "payment_hash": h.payment_hash.hex(),
            "state": h.lightningd_state,
        }
        for h in channel.state.log.htlcs
    ]


def _funding(channel: Channel) -> dict[str, Any]:
    state = channel.state
    total = msat(state.funding_satoshis)
    ours, theirs = (total, 0) if state.opener else (0, total)
    return {
        "local_funds_msat": ours,
        "remote_funds_msat": theirs,
        "pushed_msat": state.push_msat,
    }


def _status(channel: Channel) -> str:
    state = channel.state
    text = _STATUS[state.state]
    if state.failure is not None:
        text = f"{text}: {state.failure[1]}"
    return f"{state.state.value}:{text}"
