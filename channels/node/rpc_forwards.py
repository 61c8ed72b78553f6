"""RPC methods about forwarding: its terms, what was forwarded, and the HTLCs under way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from channels.bolt.announcing import bounded
from channels.bolt.channel import Channel, State
from channels.bolt.onion_failures import FailureCode
from channels.node import rpc_params as params
from channels.node.rpc_params import Param, RpcErrorCode, RpcMethodError
from channels.node.rpc_server import Arguments, Call, Command
from channels.node.store import ForwardRow

if TYPE_CHECKING:
    from channels.node.node import Node

ALL = "all"

_SETTABLE = (State.NORMAL, State.AWAITING_LOCKIN)


class ForwardMethods:
    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> tuple[Command, ...]:
        return (
            Command(
                "setchannel",
                (
                    Param("id", True, params.string),
                    Param("feebase", False, params.u32_msat),
                    Param("feeppm", False, params.u32),
                    Param("htlcmin", False, params.msat),
                    Param("htlcmax", False, params.msat),
                    Param("enforcedelay", False, params.u32, 600),
                ),
                self.setchannel,
                "Set the terms on which we forward over a channel.",
            ),
            Command(
                "listforwards",
                (
                    Param(
                        "status",
                        False,
                        params.one_of("offered", "settled", "local_failed", "failed"),
                    ),
                    Param("in_channel", False, params.short_channel_id),
                    Param("out_channel", False, params.short_channel_id),
                ),
                self.listforwards,
                "HTLCs that were, or were to be, forwarded.",
            ),
            Command(
                "listhtlcs",
                (Param("id", False, params.string),),
                self.listhtlcs,
                "HTLCs under way.",
            ),
        )

    # --- terms ---------------------------------------------------------------------------------

    async def setchannel(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        chosen = self._chosen(arguments["id"])
        for channel in chosen:
            policy = self._node.policies.of(channel)
            named = {
                "fee_base_msat": arguments["feebase"],
                "fee_proportional_millionths": arguments["feeppm"],
                "htlc_minimum_msat": arguments["htlcmin"],
                "htlc_maximum_msat": arguments["htlcmax"],
            }
            changed = {name: value for name, value in named.items() if value is not None}
            policy = replace(policy, **changed)
            if None not in (arguments["htlcmin"], arguments["htlcmax"]) and (
                policy.htlc_maximum_msat < policy.htlc_minimum_msat
            ):
                raise RpcMethodError(RpcErrorCode.LIGHTNINGD, "htlcmax cannot be less than htlcmin")
            self._node.policies.set(channel, policy, arguments["enforcedelay"])
        await self._node.turn.committed()
        return {"channels": [self._describe(c, arguments) for c in chosen]}

    def _chosen(self, text: str) -> list[Channel]:
        channels = [c for c in self._node.channels.values() if c.state.state in _SETTABLE]
        if text == ALL:
            return channels
        found = [c for c in channels if text in (*_names(c), c.state.peer_id.hex())]
        if not found:
            raise RpcMethodError(
                RpcErrorCode.INVALID_PARAMS, f"id: no channel is named {text[:80]!r}"
            )
        return found

    def _describe(self, channel: Channel, arguments: Arguments) -> dict[str, Any]:
        state, policy = channel.state, self._node.policies.of(channel)
        terms = bounded(state, policy)
        entry: dict[str, Any] = {
            "peer_id": state.peer_id.hex(),
            "channel_id": state.channel_id.hex(),
            "fee_base_msat": terms.fee_base_msat,
            "fee_proportional_millionths": terms.fee_proportional_millionths,
            "ignore_fee_limits": False,
            "minimum_htlc_out_msat": terms.htlc_minimum_msat,
            "maximum_htlc_out_msat": terms.htlc_maximum_msat,
        }
        if state.short_channel_id is not None:
            entry["short_channel_id"] = str(state.short_channel_id)
        if (arguments["htlcmin"] or 0) < terms.htlc_minimum_msat and arguments["htlcmin"]:
            entry["warning_htlcmin_too_low"] = "The peer accepts nothing below its own minimum"
        if (arguments["htlcmax"] or 0) > terms.htlc_maximum_msat:
            entry["warning_htlcmax_too_high"] = "The channel can carry no more than this"
        return entry

    # --- HTLCs ---------------------------------------------------------------------------------

    async def listforwards(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        status, into, out = (arguments[n] for n in ("status", "in_channel", "out_channel"))
        rows = [
            row
            for row in self._node.store.list_forwards()
            if status in (None, row.status)
            and into in (None, row.in_channel)
            and out in (None, row.out_channel)
        ]
        return {"forwards": [describe_forward(row) for row in rows]}

    async def listhtlcs(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        wanted = arguments["id"]
        channels = list(self._node.channels.values())
        if wanted is not None:
            channels = [c for c in channels if wanted in _names(c)]
            if not channels:
                raise params.bad_param("id", "no channel is named so", wanted)
        entries: list[dict[str, Any]] = []
        for channel in channels:
            state = channel.state
            if state.short_channel_id is None:
                continue
            for htlc in state.log.htlcs:
                entries.append(
                    {
                        "short_channel_id": str(state.short_channel_id),
                        "created_index": len(entries) + 1,
                        "id": htlc.id,
                        "expiry": htlc.cltv_expiry,
                        "direction": "out" if htlc.ours else "in",
                        "amount_msat": htlc.amount_msat,
                        "payment_hash": htlc.payment_hash.hex(),
                        "state": htlc.lightningd_state,
                    }
                )
        return {"htlcs": entries}


def describe_forward(row: ForwardRow) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "created_index": row.created_index,
        "in_channel": str(row.in_channel),
        "in_htlc_id": row.in_htlc_id,
        "in_msat": row.in_msat,
        "status": row.status,
        "style": "tlv",
        "received_time": row.received_time,
    }
    if row.updated_index is not None:
        entry["updated_index"] = row.updated_index
    if row.out_channel is not None:
        entry["out_channel"] = str(row.out_channel)
    if row.out_msat is not None and row.out_htlc_id is not None:
        entry |= {
            "out_htlc_id": row.out_htlc_id,
            "out_msat": row.out_msat,
            "fee_msat": row.in_msat - row.out_msat,
        }
    if row.resolved_time is not None and row.status != "local_failed":
        entry["resolved_time"] = row.resolved_time
    if row.failcode is not None:
        entry["failcode"] = row.failcode
        name = failcodename(row.failcode)
        if name is not None:
            entry["failreason"] = name
    return entry


def failcodename(code: int) -> str | None:
    """lightningd's name of a failure; None for a number that BOLT 4 does not know."""
    try:
        return f"WIRE_{FailureCode(code).name}"
    except ValueError:
        return None


def _names(channel: Channel) -> tuple[str, str]:
    return channel.state.channel_id.hex(), str(channel.state.short_channel_id)
