"""RPC methods about peers and channels."""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING, Any

from channels.bolt import features
from channels.bolt.address import to_script
from channels.bolt.channel import ON_CHAIN, Channel, State
from channels.bolt.channel_commitments import offering_view, opener_cost
from channels.bolt.commitment import ChannelType, Htlc
from channels.bolt.htlcs import View
from channels.bolt.messages import ChannelUpdate
from channels.bolt.opening import MAX_FUNDING_SATOSHIS
from channels.bolt.transactions import Transaction, p2wsh
from channels.errors import LocalProtocolError, OdaError, UserError
from channels.node import rpc_params as params
from channels.node.rpc_chain import ChainMethods, address_network
from channels.node.rpc_params import ALL, Param, RpcErrorCode, RpcMethodError
from channels.node.rpc_server import Arguments, Call, Command
from channels.node.wallet import ANCHOR_RESERVE
from channels.units import FeeratePerKw, Msat, Sat, msat

if TYPE_CHECKING:
    from channels.node.node import Node
    from channels.node.peer import PeerConnection

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


_CLOSED = (State.CLOSING_AGREED, State.FAILED, *ON_CHAIN, State.CLOSED)
"""How a channel is closed is decided."""


def channel_bits(channel_type: ChannelType) -> dict[str, Any]:
    return {"bits": sorted(channel_type.value), "names": _TYPE_NAMES[channel_type]}


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


class ChannelMethods:
    def __init__(self, node: Node, chain: ChainMethods) -> None:
        self._node = node
        self._chain = chain

    def commands(self) -> tuple[Command, ...]:
        node_id = Param("id", False, params.node_id)
        return (
            Command(
                "connect",
                (
                    Param("id", True, params.string),
                    Param("host", False, params.string),
                    Param("port", False, params.u16),
                ),
                self.connect,
                "Connect to a peer: ID, ID@HOST:PORT, or ID HOST PORT.",
            ),
            Command(
                "disconnect",
                (Param("id", True, params.node_id), Param("force", False, params.boolean, False)),
                self.disconnect,
                "Drop the connection with a peer.",
            ),
            Command("listpeers", (node_id,), self.listpeers, "Peers and how many channels."),
            Command(
                "fundchannel",
                (
                    Param("id", True, params.node_id),
                    Param("amount", True, params.sat_or_all),
                    Param("feerate", False, params.feerate),
                    Param("announce", False, params.boolean, True),
                    Param("minconf", False, params.u32),
                    Param("push_msat", False, params.msat, Msat(0)),
                    Param("close_to", False, params.string),
                    Param("mindepth", False, params.u32),
                    Param("reserve", False, params.sat),
                    Param("channel_type", False, params.array(params.u32)),
                ),
                self.fundchannel,
                "Open a channel with a peer.",
            ),
            Command(
                "listpeerchannels",
                (
                    node_id,
                    Param("short_channel_id", False, params.short_channel_id),
                    Param("channel_id", False, params.hex_bytes(32)),
                ),
                self.listpeerchannels,
                "Everything about our channels.",
            ),
            Command(
                "close",
                (
                    Param("id", True, params.string),
                    Param("unilateraltimeout", False, params.u32, 172_800),
                    Param("destination", False, params.string),
                ),
                self.close,
                "Close a channel together with its peer.",
            ),
        )

    async def connect(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        peer_id, host, port = self._where(arguments)
        peer = await self._connected(peer_id, host, port)
        direction = "in" if peer_id in self._node.connections.inbound else "out"
        return {
            "id": peer_id.hex(),
            "features": _bits(peer),
            "direction": direction,
            "address": _address(peer.address),
        }

    async def _connected(self, peer_id: bytes, host: str | None, port: int) -> PeerConnection:
        """The peer, to whom we connect unless we are; without `host`, where it was before."""
        node = self._node
        peer = node.connections.peers.get(peer_id)
        if peer is not None:
            return peer
        if host is None:
            known = next((p for p in node.store.load_peers() if p.node_id == peer_id), None)
            if known is None:
                raise RpcMethodError(
                    RpcErrorCode.CONNECT_NO_KNOWN_ADDRESS,
                    "Unable to connect, no address known for peer",
                )
            host, port = known.host, known.port
        try:
            return await node.connections.connect(peer_id, host, port)
        except OdaError as error:
            raise RpcMethodError(
                RpcErrorCode.CONNECT_ALL_ADDRESSES_FAILED, f"All addresses failed: {error}"
            ) from error

    def _where(self, arguments: Arguments) -> tuple[bytes, str | None, int]:
        text, host, port = arguments["id"], arguments["host"], arguments["port"]
        if "@" in text:
            text, _, address = text.partition("@")
            host, _, digits = address.rpartition(":") if ":" in address else (address, "", "")
            if digits:
                port = params.u16("id", digits)
        peer_id = params.node_id("id", text)
        return peer_id, host, port or self._node.params.lightning_port

    async def disconnect(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node, peer_id = self._node, arguments["id"]
        if peer_id not in node.connections.peers:
            if not node.channels_of(peer_id):
                raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, "Unknown peer")
            raise RpcMethodError(RpcErrorCode.LIGHTNINGD, "Peer not connected")
        busy = any(
            c.state.state not in (State.CLOSED, *ON_CHAIN) for c in node.channels_of(peer_id)
        )
        if busy and not arguments["force"]:
            raise RpcMethodError(
                RpcErrorCode.LIGHTNINGD, "Peer has (at least one) channel: use force to disconnect"
            )
        await node.connections.disconnect(peer_id)
        return {}

    async def listpeers(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        ids = {*node.connections.peers, *(c.state.peer_id for c in node.channels.values())}
        wanted = arguments["id"]
        peers = []
        for peer_id in sorted(ids):
            if wanted not in (None, peer_id):
                continue
            peer = node.connections.peers.get(peer_id)
            entry: dict[str, Any] = {
                "id": peer_id.hex(),
                "connected": peer is not None,
                "num_channels": len(node.channels_of(peer_id)),
            }
            if peer is not None:
                entry["features"] = _bits(peer)
                entry["netaddr"] = [peer.address]
            peers.append(entry)
        return {"peers": peers}

    async def fundchannel(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        if arguments["close_to"] is not None:
            raise RpcMethodError(
                RpcErrorCode.INVALID_PARAMS, "close_to: upfront shutdown scripts are not supported"
            )
        feerate = await self._chain.feerate(arguments["feerate"])
        amount = arguments["amount"]
        if amount == ALL:
            script = p2wsh(b"")  # of the funding output's size
            spendable = self._node.wallet.spendable(
                script, feerate, self._node.now(), keep=ANCHOR_RESERVE
            )
            amount = min(spendable, MAX_FUNDING_SATOSHIS)
        if amount > MAX_FUNDING_SATOSHIS:
            raise RpcMethodError(
                RpcErrorCode.FUND_MAX_EXCEEDED,
                f"Amount exceeded {MAX_FUNDING_SATOSHIS} sat, the most without large channels",
            )
        await self._connected(arguments["id"], None, 0)
        call.notify("Asking the peer for a channel")
        try:
            channel, transaction = await self._node.funding.open(
                arguments["id"],
                amount=Sat(amount),
                push_msat=arguments["push_msat"],
                feerate=feerate,
                reserve=arguments["reserve"],
                announce=arguments["announce"],
                channel_type=_wanted_type(arguments["channel_type"]),
            )
        except LocalProtocolError as error:
            raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, str(error)) from error
        except UserError as error:
            raise RpcMethodError(RpcErrorCode.FUND_CANNOT_AFFORD, str(error)) from error
        state = channel.state
        return {
            "tx": transaction.serialize().hex(),
            "txid": transaction.txid_hex,
            "outnum": state.funding_output_index,
            "channel_id": state.channel_id.hex(),
            "channel_type": channel_bits(state.channel_type),
            "mindepth": state.minimum_depth,
        }

    async def listpeerchannels(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        chosen = [
            c
            for c in self._node.channels.values()
            if arguments["id"] in (None, c.state.peer_id)
            and arguments["short_channel_id"] in (None, c.state.short_channel_id)
            and arguments["channel_id"] in (None, c.state.channel_id)
            and c.state.remote is not None
            and c.state.state is not State.CLOSED  # listclosedchannels has those
        ]
        return {"channels": [self._describe(c) for c in chosen]}

    def _describe(self, channel: Channel) -> dict[str, Any]:
        state, peer = channel.state, channel.state.peer
        policy = self._node.policies.of(channel)
        connected = state.peer_id in self._node.connections.peers
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
            "total_msat": msat(state.funding_satoshis),
            "to_us_msat": state.log.local_msat,
            "fee_base_msat": policy.fee_base_msat,
            "fee_proportional_millionths": policy.fee_proportional_millionths,
            "dust_limit_msat": msat(state.local.dust_limit_satoshis),
            "their_max_htlc_value_in_flight_msat": peer.max_htlc_value_in_flight_msat,
            "our_max_htlc_value_in_flight_msat": state.local.max_htlc_value_in_flight_msat,
            # lightningd's words: "their" reserve is what they must keep, so what we asked for.
            "their_reserve_msat": msat(state.local.channel_reserve_satoshis),
            "our_reserve_msat": msat(peer.channel_reserve_satoshis),
            "spendable_msat": spendable_msat(channel),
            "receivable_msat": receivable_msat(channel),
            "minimum_htlc_in_msat": state.local.htlc_minimum_msat,
            "minimum_htlc_out_msat": peer.htlc_minimum_msat,
            "their_to_self_delay": peer.to_self_delay,
            "our_to_self_delay": state.local.to_self_delay,
            "max_accepted_htlcs": state.local.max_accepted_htlcs,
            "funding": self._funding(channel),
            "status": [self._status(channel), *self._node.onchain.status(channel)],
            "htlcs": [
                {
                    "direction": "out" if h.ours else "in",
                    "id": h.id,
                    "amount_msat": h.amount_msat,
                    "expiry": h.cltv_expiry,
                    "payment_hash": h.payment_hash.hex(),
                    "state": h.lightningd_state,
                }
                for h in state.log.htlcs
            ],
        }
        if connected:
            entry["reestablished"] = channel.core.reestablished
        if state.funding_txid is not None:
            entry["channel_id"] = state.channel_id.hex()
            entry["funding_txid"] = state.funding_txid[::-1].hex()
            entry["funding_outnum"] = state.funding_output_index
        if state.short_channel_id is not None:
            entry["short_channel_id"] = str(state.short_channel_id)
            entry["direction"] = int(self._node.node_id > state.peer_id)
        ours, theirs = self._node.gossip.own.updates(channel)
        if ours is not None:
            entry["updates"] = {"local": _terms(ours)}
            if theirs is not None:
                entry["updates"]["remote"] = _terms(theirs)
        if state.closing.closer is not None:
            entry["closer"] = state.closing.closer
        return entry

    def _funding(self, channel: Channel) -> dict[str, Any]:
        state = channel.state
        total = msat(state.funding_satoshis)
        ours, theirs = (total, 0) if state.opener else (0, total)
        return {
            "local_funds_msat": ours,
            "remote_funds_msat": theirs,
            "pushed_msat": state.push_msat,
        }

    def _status(self, channel: Channel) -> str:
        state = channel.state
        text = _STATUS[state.state]
        if state.failure is not None:
            text = f"{text}: {state.failure[1]}"
        return f"{state.state.value}:{text}"

    # --- closing ---------------------------------------------------------------------------------

    async def close(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        channel = self._find(arguments["id"])
        destination = arguments["destination"]
        script = node.wallet.shutdown_script(channel.state.index)
        if destination is not None:
            try:
                script = to_script(address_network(node), destination)
            except OdaError as error:
                raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, str(error)) from error
        # Asked for first: the peer may close, too, while bitcoind answers.
        feerate = await node.tracker.feerate()
        timeout = arguments["unilateraltimeout"]
        if channel.state.state in (
            State.NEGOTIATING,
            State.CLOSING_AGREED,
            State.FAILED,
            *ON_CHAIN,
        ):
            call.notify("The channel is closing already")
        else:
            try:
                node.carry_out(channel, channel.close(script, feerate))
            except LocalProtocolError as error:
                raise RpcMethodError(RpcErrorCode.LIGHTNINGD, str(error)) from error
        if not channel.core.reestablished and channel.state.state is not State.FAILED:
            call.notify("The peer is not connected: the closing begins when it returns")
            if timeout:
                call.notify(f"and without it after {timeout} seconds")
        # 0 means to wait for the peer as long as it takes.
        if not await node.wait_until(lambda: channel.state.state in _CLOSED, timeout or math.inf):
            node.onchain.force(channel)
        return await self._closed(channel)

    async def _closed(self, channel: Channel) -> dict[str, Any]:
        raw, kind = channel.state.closing.transaction, "mutual"
        if raw is None:
            transaction = self._node.onchain.closed_by(channel)
            if transaction is None:
                raise RpcMethodError(
                    RpcErrorCode.LIGHTNINGD,
                    "Our state of this channel is old, so that only the peer may close it",
                )
            raw, kind = transaction.serialize(), "unilateral"
        await self._node.turn.committed()
        txid = Transaction.parse(raw).txid_hex
        return {"type": kind, "txs": [raw.hex()], "txids": [txid]}

    def _find(self, text: str) -> Channel:
        """A channel by the id of its peer, its channel id or its short channel id."""
        closable = [
            c
            for c in self._node.channels.values()
            if c.state.state not in (State.OPENING, State.CLOSED, *ON_CHAIN)
        ]
        matches = [
            c
            for c in closable
            if text in (c.state.peer_id.hex(), c.state.channel_id.hex())
            or text == str(c.state.short_channel_id)
        ]
        if not matches:
            raise RpcMethodError(
                RpcErrorCode.INVALID_PARAMS, f"No open channel is named {text[:80]!r}"
            )
        if len(matches) > 1:
            raise RpcMethodError(
                RpcErrorCode.LIGHTNINGD,
                "Peer has multiple channels: use a channel_id or short_channel_id",
            )
        return matches[0]


def _wanted_type(bits: list[int] | None) -> ChannelType:
    if bits is None:
        return ChannelType.ANCHORS
    for channel_type in ChannelType:
        if set(bits) == channel_type.value:
            return channel_type
    raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, "channel_type: should be [12] or [12, 22]")


def _bits(peer: PeerConnection) -> str:
    return features.encode_bits(peer.their_features).hex()


def _address(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    version = ipaddress.ip_address(host).version
    return {"type": f"ipv{version}", "address": host, "port": int(port)}
