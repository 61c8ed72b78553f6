"""RPC methods about peers and channels."""

from __future__ import annotations

import ipaddress
import math
from typing import TYPE_CHECKING, Any

from channels.bolt import features
from channels.bolt.address import to_script
from channels.bolt.channel import ON_CHAIN, Channel, State
from channels.bolt.commitment import ChannelType
from channels.bolt.opening import MAX_FUNDING_SATOSHIS
from channels.bolt.transactions import Transaction, p2wsh
from channels.errors import LocalProtocolError, OdaError, UserError
from channels.node import rpc_params as params
from channels.node.channel_listing import channel_bits, described
from channels.node.rpc_chain import ChainMethods, address_network
from channels.node.rpc_params import ALL, Param, RpcErrorCode, RpcMethodError
from channels.node.rpc_server import Arguments, Call, Command
from channels.node.wallet import ANCHOR_RESERVE
from channels.units import Msat, Sat

if TYPE_CHECKING:
    from channels.node.node import Node
    from channels.node.peer import PeerConnection

_CLOSED = (State.CLOSING_AGREED, State.FAILED, *ON_CHAIN, State.CLOSED)
"""How a channel is closed is decided."""


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
        return {"channels": [described(self._node, c) for c in chosen]}

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
                # lightningd's code for every address that it can't use.
                raise RpcMethodError(RpcErrorCode.LIGHTNINGD, str(error)) from error
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
            if c.state.state not in (State.OPENING, State.FAILED, State.CLOSED, *ON_CHAIN)
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
