"""RPC methods about the network: who is in it, and how to get through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from channels.bolt.announcing import alias_text
from channels.bolt.graph import DISABLE, DirectedChannel, GraphChannel, direction_of
from channels.bolt.messages import ChannelUpdate
from channels.bolt.route import (
    MAX_DELAY,
    MAX_HOPS,
    Hop,
    Knowledge,
    NoRoute,
    directed_channels,
    find,
    find_parts,
    success_ppm,
)
from channels.node import rpc_params as params
from channels.node.routing import local_channels
from channels.node.rpc_chain import describe_addresses
from channels.node.rpc_params import Param, RpcErrorCode, RpcMethodError
from channels.node.rpc_server import Arguments, Call, Command
from channels.units import Msat, ShortChannelId, UnixTime

if TYPE_CHECKING:
    from channels.node.node import Node

_FOR_EVER = UnixTime(1 << 62)

LOCALCHANS, SOURCEFREE, NO_MPP = "auto.localchans", "auto.sourcefree", "auto.no_mpp_support"
"""The layers of getroutes that every node has; the embedded one keeps no others."""


class GossipMethods:
    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> tuple[Command, ...]:
        return (
            Command(
                "listnodes",
                (Param("id", False, params.node_id),),
                self.listnodes,
                "Nodes that gossip knows.",
            ),
            Command(
                "listchannels",
                (
                    Param("short_channel_id", False, params.short_channel_id),
                    Param("source", False, params.node_id),
                    Param("destination", False, params.node_id),
                ),
                self.listchannels,
                "Public channels that gossip knows, by direction.",
            ),
            Command(
                "getroute",
                (
                    Param("id", True, params.node_id),
                    Param("amount_msat", True, params.msat),
                    Param("riskfactor", True, _riskfactor),
                    Param("cltv", False, params.u32, 9),
                    Param("fromid", False, params.node_id),
                    Param("fuzzpercent", False, params.u32),
                    Param("exclude", False, params.array(_excluded), []),
                    Param("maxhops", False, params.u32, MAX_HOPS),
                ),
                self.getroute,
                "The best route for one payment.",
            ),
            Command(
                "getroutes",
                (
                    Param("source", True, params.node_id),
                    Param("destination", True, params.node_id),
                    Param("amount_msat", True, params.msat),
                    Param("layers", True, params.array(_layer)),
                    Param("maxfee_msat", True, params.msat),
                    Param("final_cltv", True, params.u32),
                    Param("maxdelay", False, params.u32, MAX_DELAY),
                    Param("maxparts", False, params.u32, 100),
                ),
                self.getroutes,
                "Routes for a payment that may come in parts.",
            ),
        )

    # --- what is known -------------------------------------------------------------------------

    async def listnodes(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        graph, wanted = self._node.gossip.graph, arguments["id"]
        ids = sorted(graph.nodes) if wanted is None else [wanted] if wanted in graph else []
        return {"nodes": [self._describe_node(node_id) for node_id in ids]}

    def _describe_node(self, node_id: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"nodeid": node_id.hex()}
        announced = self._node.gossip.graph.announcements.get(node_id)
        if announced is not None:
            entry |= {
                "alias": alias_text(announced.alias),
                "color": announced.rgb_color.hex(),
                "last_timestamp": announced.timestamp,
                "features": announced.features.hex(),
                "addresses": describe_addresses(announced),
            }
        return entry

    async def listchannels(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        graph = self._node.gossip.graph
        scid, source, target = (
            arguments[name] for name in ("short_channel_id", "source", "destination")
        )
        if sum(value is not None for value in (scid, source, target)) > 1:
            raise RpcMethodError(
                RpcErrorCode.INVALID_PARAMS,
                "Can only specify one of `short_channel_id`, `source` or `destination`",
            )
        if scid is not None:
            known = graph.channels.get(scid)
            channels = [] if known is None else [known]
        elif source is not None or target is not None:
            channels = list(graph.channels_of(source or target))
        else:
            channels = list(graph.channels.values())
        found = []
        for channel in sorted(channels, key=lambda c: c.short_channel_id):
            for direction, update in enumerate(channel.updates):
                ends = channel.nodes[direction], channel.nodes[1 - direction]
                if update is None or source not in (None, ends[0]) or target not in (None, ends[1]):
                    continue
                found.append(_describe_direction(channel, *ends, update))
        return {"channels": found}

    # --- routes --------------------------------------------------------------------------------

    async def getroute(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        source = arguments["fromid"] or node.node_id
        learned = Knowledge()
        for excluded in arguments["exclude"]:
            if isinstance(excluded, bytes):
                learned.avoid_node(excluded, _FOR_EVER)
            else:
                learned.avoid_channel(excluded, _FOR_EVER)
        try:
            route = find(
                node.gossip.graph,
                source,
                arguments["id"],
                arguments["amount_msat"],
                arguments["cltv"],
                now=node.now(),
                learned=learned,
                local=local_channels(node) if source == node.node_id else None,
                max_hops=arguments["maxhops"],
                riskfactor=arguments["riskfactor"],
            )
        except NoRoute as error:
            if error.reason == "payee-unknown":  # another code than that of getroutes
                raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, str(error)) from error
            raise _no_route(error) from error
        return {"route": _describe_route(source, route)}

    async def getroutes(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node, layers = self._node, arguments["layers"]
        source, maxfee = arguments["source"], arguments["maxfee_msat"]
        own = source == node.node_id and LOCALCHANS in layers
        if arguments["maxdelay"] > MAX_DELAY:
            raise params.bad_param("maxdelay", "maximum delay allowed is 2016", MAX_DELAY)
        learned = Knowledge()
        try:
            routes = find_parts(
                node.gossip.graph,
                source,
                arguments["destination"],
                arguments["amount_msat"],
                arguments["final_cltv"],
                max_parts=1 if NO_MPP in layers else arguments["maxparts"],
                now=node.now(),
                learned=learned,
                local=local_channels(node) if own else None,
                maxfee=maxfee,
                max_delay=arguments["maxdelay"],
            )
        except NoRoute as error:
            raise _no_route(error) from error
        described, likely = [], 1_000_000
        for route in routes:
            ppm = success_ppm(node.gossip.graph, source, route, learned, node.now())
            likely = likely * ppm // 1_000_000
            described.append(
                {
                    "probability_ppm": ppm,
                    "amount_msat": route[-1].amount_msat,
                    "final_cltv": arguments["final_cltv"],
                    "path": self._path(source, route, free=SOURCEFREE in layers),
                }
            )
        total = sum(route["path"][0]["amount_in_msat"] for route in described)
        if total - arguments["amount_msat"] > maxfee:
            raise RpcMethodError(
                RpcErrorCode.PAY_ROUTE_TOO_EXPENSIVE, "The source's own fee exceeds maxfee_msat"
            )
        return {"probability_ppm": likely, "routes": described}

    def _path(self, source: bytes, route: Sequence[Hop], *, free: bool) -> list[dict[str, Any]]:
        """`free`: the source charges itself neither fee nor delay for its own channel."""
        channels = list(directed_channels(source, route))
        first = None if free else self._node.gossip.graph.edge(channels[0])
        amount, delay = route[0].amount_msat, route[0].delay
        if first is not None:
            fee = first.fee_base_msat + amount * first.fee_proportional_millionths // 1_000_000
            amount, delay = Msat(amount + fee), delay + first.cltv_expiry_delta
        path = []
        for channel, hop in zip(channels, route, strict=True):
            path.append(
                {
                    "short_channel_id_dir": f"{hop.short_channel_id}/{channel & 1}",
                    "node_id_in": source.hex(),
                    "node_id_out": hop.node_id.hex(),
                    "amount_in_msat": amount,
                    "amount_out_msat": hop.amount_msat,
                    "cltv_in": delay,
                    "cltv_out": hop.delay,
                }
            )
            source, amount, delay = hop.node_id, hop.amount_msat, hop.delay
        return path


def _describe_direction(
    channel: GraphChannel, source: bytes, target: bytes, update: ChannelUpdate
) -> dict[str, Any]:
    return {
        "source": source.hex(),
        "destination": target.hex(),
        "short_channel_id": str(channel.short_channel_id),
        "direction": update.channel_flags & 1,
        "public": True,
        "amount_msat": channel.capacity_msat,
        "message_flags": update.message_flags,
        "channel_flags": update.channel_flags,
        "active": not update.channel_flags & DISABLE,
        "last_update": update.timestamp,
        "base_fee_millisatoshi": update.fee_base_msat,
        "fee_per_millionth": update.fee_proportional_millionths,
        "delay": update.cltv_expiry_delta,
        "htlc_minimum_msat": update.htlc_minimum_msat,
        "htlc_maximum_msat": update.htlc_maximum_msat,
        "features": channel.features.hex(),
    }


def _describe_route(source: bytes, route: Sequence[Hop]) -> list[dict[str, Any]]:
    described = []
    for hop in route:
        described.append(
            {
                "id": hop.node_id.hex(),
                "channel": str(hop.short_channel_id),
                "direction": direction_of(source, hop.node_id),
                "amount_msat": hop.amount_msat,
                "delay": hop.delay,
                "style": "tlv",
            }
        )
        source = hop.node_id
    return described


def _no_route(error: NoRoute) -> RpcMethodError:
    # lightningd's code 215, not enough funds, is documented for getroutes but never given.
    code = RpcErrorCode.PAY_ROUTE_NOT_FOUND
    if error.reason == "route-too-expensive":
        code = RpcErrorCode.PAY_ROUTE_TOO_EXPENSIVE
    return RpcMethodError(code, str(error))


def _riskfactor(name: str, value: Any) -> int:
    """Percent per year; lightningd takes fractions, which make no difference here."""
    whole, _, fraction = str(value).partition(".")
    if isinstance(value, bool) or not (whole + fraction).isdecimal() or len(whole) > 6:
        raise params.bad_param(name, "should be a non-negative floating-point number", value)
    return int(whole or "0")


def _layer(name: str, value: Any) -> str:
    layer = params.string(name, value)
    if layer not in (LOCALCHANS, SOURCEFREE, NO_MPP):
        raise params.bad_param(name, "unknown layer", value)
    return layer


def _excluded(name: str, value: Any) -> bytes | DirectedChannel:
    """A node id, or a short_channel_id/direction."""
    text, slash, direction = params.string(name, value).partition("/")
    if not slash:
        return params.node_id(name, value)
    if direction not in ("0", "1"):
        raise params.bad_param(name, "should be short_channel_id/direction or node_id", value)
    scid: ShortChannelId = params.short_channel_id(name, text)
    return DirectedChannel(scid << 1 | int(direction))
