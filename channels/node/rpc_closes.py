"""RPC methods about channels that end: `listclosedchannels` for those that are history, and our own
`oda-listcloses` for what a close on chain still has to bring, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from channels.bolt.channel import Channel, State
from channels.bolt.channel_commitments import local_commitment
from channels.bolt.channel_state import ChannelState
from channels.bolt.htlcs import View
from channels.bolt.resolution import Resolution, Tracked
from channels.bolt.transactions import Transaction
from channels.node import rpc_params as params
from channels.node.channel_listing import channel_bits, closer
from channels.node.rpc_params import Param
from channels.node.rpc_server import Arguments, Call, Command
from channels.units import Sat, msat

if TYPE_CHECKING:
    from channels.node.node import Node


_INTERNAL = ("htlc-timed-out", "htlc-not-settled")
"""Why we close a channel whose peer has broken no rule (bolt/deadlines.py)."""


class CloseMethods:
    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> tuple[Command, ...]:
        return (
            Command(
                "listclosedchannels",
                (Param("id", False, params.node_id),),
                self.listclosedchannels,
                "Channels that are closed for good.",
            ),
            Command(
                "oda-listcloses",
                (Param("id", False, params.node_id),),
                self.listcloses,
                "Channels that close on chain: each output, whose it is and when it can be spent.",
            ),
        )

    async def listclosedchannels(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        closed = [
            describe_closed(node.restored(row))
            for row in node.store.load_channels()
            if row.closed and arguments["id"] in (None, row.peer_id)
        ]
        return {"closedchannels": closed}

    async def listcloses(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        closes = []
        for channel in self._node.channels.values():
            if arguments["id"] not in (None, channel.state.peer_id):
                continue
            resolution = self._node.onchain.resolution(channel)
            if resolution is not None and channel.state.state is not State.CLOSED:
                closes.append(self._describe(channel, resolution))
        return {"closes": closes}

    def _describe(self, channel: Channel, resolution: Resolution) -> dict[str, Any]:
        """Heights of a commitment that is not confirmed suppose that the next block has it."""
        state, node = channel.state, self._node
        entry: dict[str, Any] = {
            "peer_id": state.peer_id.hex(),
            "channel_id": state.channel_id.hex(),
            "state": state.state.value,
            "closer": resolution.close.closer.name.lower(),
            "txid": resolution.close.transaction.txid_hex,
            "confirmed": state.spent_height is not None,
            "blockheight": resolution.closed,
            "outputs": [self._output(channel, tracked) for tracked in resolution.outputs],
        }
        if state.spent_height is not None and resolution.resolved is not None:
            depth = node.params.policy.irrevocable_depth
            entry["forgotten_blockheight"] = resolution.resolved + depth - 1
        return entry

    def _output(self, channel: Channel, tracked: Tracked) -> dict[str, Any]:
        output, claim = tracked.output, tracked.claim
        entry: dict[str, Any] = {
            "txid": output.outpoint.txid[::-1].hex(),
            "outnum": output.outpoint.vout,
            "type": output.kind.value,
            "amount_msat": msat(output.value),
            "status": self._status(channel, tracked),
        }
        if tracked.spend is not None:
            entry["spent_txid"] = tracked.spend.transaction.txid_hex
        if output.htlc is not None:
            entry["payment_hash"] = output.htlc.payment_hash.hex()
            entry["expiry"] = output.htlc.cltv_expiry
        if claim is not None:
            entry["claim"] = claim.name
            # In the block after this one it can be spent.
            entry["claimable_blockheight"] = claim.from_height
            if claim.deadline is not None:
                entry["deadline"] = claim.deadline
        return entry

    def _status(self, channel: Channel, tracked: Tracked) -> str:
        if tracked.spend is not None:
            return "spent"
        claim = tracked.claim
        if claim is None:
            return "theirs" if tracked.resolved is None else "ignored"
        row = self._node.store.claim(channel.state.index, claim.outpoint)
        if row is not None and self._node.store.is_wanted(row.claim_txid):
            return "claiming"
        return "waiting"


def describe_closed(channel: Channel) -> dict[str, Any]:
    """A channel as lightningd's listclosedchannels shows it."""
    state, log = channel.state, channel.state.log
    low, high = log.extremes
    final, fee = _final(channel)
    entry: dict[str, Any] = {
        "peer_id": state.peer_id.hex(),
        "channel_id": state.channel_id.hex(),
        "opener": "local" if state.opener else "remote",
        "closer": closer(state),
        "private": not state.announce,
        "channel_type": channel_bits(state.channel_type),
        "total_local_commitments": state.local_number,
        "total_remote_commitments": state.remote_number,
        "total_htlcs_sent": log.next_local_id,
        "funding_txid": state.funding.txid[::-1].hex(),
        "funding_outnum": state.funding_output_index,
        "funding_withheld": False,
        "leased": False,
        "total_msat": msat(state.funding_satoshis),
        "final_to_us_msat": log.balances(View.LOCAL)[0],
        "min_to_us_msat": low,
        "max_to_us_msat": high,
        "last_commitment_txid": final.txid_hex,
        "last_commitment_fee_msat": msat(fee),
        "close_cause": _cause(state),
    }
    if state.short_channel_id is not None:
        entry["short_channel_id"] = str(state.short_channel_id)
    if state.push_msat:
        entry["funding_pushed_msat"] = state.push_msat
    return entry


def _final(channel: Channel) -> tuple[Transaction, Sat]:
    """The mutual close, or else our newest commitment, and what it pays the miners."""
    state = channel.state
    if state.closing.transaction is None:
        commitment = local_commitment(channel.core)
        return commitment.tx, commitment.fee
    transaction = Transaction.parse(state.closing.transaction)
    return transaction, Sat(state.funding_satoshis - sum(o.value for o in transaction.outputs))


def _cause(state: ChannelState) -> str:
    """lightningd's word for it."""
    reason = None if state.failure is None else state.failure[0]
    if reason == "failed-by-peer":
        return "remote"
    if reason == "closed-by-user" or (reason is None and state.closing.closer == "local"):
        return "user"
    if reason is not None:
        return "local" if reason in _INTERNAL else "protocol"
    return "onchain" if state.closing.closer is None else "remote"
