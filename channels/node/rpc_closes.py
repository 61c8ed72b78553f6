"""`oda-listcloses`: what a close on chain still has to bring, and when. Core Lightning has only
the status lines of listpeerchannels for that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from channels.bolt.channel import Channel, State
from channels.bolt.resolution import Resolution, Tracked
from channels.node import rpc_params as params
from channels.node.rpc_params import Param
from channels.node.rpc_server import Arguments, Call, Command
from channels.units import msat

if TYPE_CHECKING:
    from channels.node.node import Node


class CloseMethods:
    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> tuple[Command, ...]:
        return (
            Command(
                "oda-listcloses",
                (Param("id", False, params.node_id),),
                self.listcloses,
                "Channels that close on chain: each output, whose it is and when it can be spent.",
            ),
        )

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
