"""RPC methods about this node, its keys and its coins on chain."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from channels.bolt import features, signmessage
from channels.bolt.address import from_script, to_script
from channels.bolt.address_descriptors import read_addresses
from channels.bolt.channel import ON_CHAIN, State
from channels.bolt.messages import NodeAnnouncement
from channels.bolt.transactions import Transaction, TxOut
from channels.errors import OdaError, UserError
from channels.node import rpc_params as params
from channels.node.rpc_params import ALL, Param, RpcErrorCode, RpcMethodError
from channels.node.rpc_server import Arguments, Call, Command
from channels.units import FeeratePerKw, Sat, msat

if TYPE_CHECKING:
    from channels.node.node import Node

VERSION = "oda-0.1.0"

_CLOSING = (State.SHUTTING_DOWN, State.NEGOTIATING, State.CLOSING_AGREED, *ON_CHAIN)


def address_network(node: Node) -> str:
    """The prefix of addresses: signet's look like testnet's (BIP 173)."""
    currency = node.params.invoice_currency
    return "tb" if currency == "tbs" else currency


class ChainMethods:
    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> tuple[Command, ...]:
        feerate = Param("feerate", False, params.feerate)
        return (
            Command("getinfo", (), self.getinfo, "Summary of the node."),
            Command(
                "newaddr",
                (Param("addresstype", False, params.one_of("bech32", "all")),),
                self.newaddr,
                "A fresh address of the on-chain wallet.",
            ),
            Command(
                "listfunds",
                (Param("spent", False, params.boolean, False),),
                self.listfunds,
                "Coins on chain and balances in channels.",
            ),
            Command(
                "withdraw",
                (
                    Param("destination", True, params.string),
                    Param("satoshi", True, params.sat_or_all),
                    feerate,
                ),
                self.withdraw,
                "Send coins to an address.",
            ),
            Command(
                "feerates",
                (Param("style", True, params.one_of("perkw", "perkb")),),
                self.feerates,
                "Feerates that this node uses and accepts.",
            ),
            Command(
                "signmessage",
                (Param("message", True, params.string),),
                self.signmessage,
                "Sign a text with the node's key.",
            ),
            Command(
                "checkmessage",
                (
                    Param("message", True, params.string),
                    Param("zbase", True, params.string),
                    Param("pubkey", False, params.node_id),
                ),
                self.checkmessage,
                "Check a signature of signmessage.",
            ),
        )

    async def getinfo(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        states = [c.state.state for c in node.channels.values()]
        host, port = node.connections.address
        kind = "ipv6" if ":" in host else "ipv4"
        bits = features.encode_bits(features.OUR_INIT).hex()
        answer: dict[str, Any] = {
            "id": node.node_id.hex(),
            "alias": node.alias,
            "color": node.node_id[:3].hex(),
            "num_peers": len(node.connections.peers),
            "num_pending_channels": sum(
                s in (State.OPENING, State.AWAITING_LOCKIN) for s in states
            ),
            "num_active_channels": sum(c.usable for c in node.channels.values()),
            "num_inactive_channels": sum(s in _CLOSING for s in states),
            "address": describe_addresses(node.gossip.graph.announcements.get(node.node_id)),
            "binding": [{"type": kind, "address": host, "port": port}],
            "version": VERSION,
            "blockheight": node.height,
            "network": "bitcoin" if node.params.name == "mainnet" else node.params.name,
            "fees_collected_msat": node.forwards.fees_collected,
            "lightning-dir": str(node.directory),
            "our_features": {
                "init": bits,
                "node": bits,
                "channel": "",
                "invoice": features.encode_bits(features.OUR_INVOICE).hex(),
            },
        }
        if node.tracker.outage is not None:
            answer["warning_bitcoind_sync"] = node.tracker.outage
        elif not node.tracker.synced.is_set():
            answer["warning_lightningd_sync"] = "Still loading latest blocks from bitcoind."
        return answer

    async def newaddr(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        address = self._node.wallet.new_address()
        await self._node.turn.committed()
        return {"bech32": address}

    async def listfunds(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        now = node.now()
        outputs = []
        for row in node.store.list_utxos(spent=arguments["spent"]):
            status = "confirmed" if row.height is not None else "unconfirmed"
            output: dict[str, Any] = {
                "txid": row.txid[::-1].hex(),
                "output": row.vout,
                "amount_msat": msat(row.value),
                "scriptpubkey": row.script.hex(),
                "address": from_script(address_network(node), row.script),
                "status": "spent" if row.spent_by is not None else status,
                "reserved": row.reserved_until is not None and row.reserved_until > now,
            }
            if row.height is not None:
                output["blockheight"] = row.height
            outputs.append(output)
        return {"outputs": outputs, "channels": self._channels()}

    def _channels(self) -> list[dict[str, Any]]:
        node = self._node
        channels = []
        for channel in node.channels.values():
            state = channel.state
            if state.state in (State.OPENING, State.CLOSED):
                continue
            entry: dict[str, Any] = {
                "peer_id": state.peer_id.hex(),
                "our_amount_msat": state.log.local_msat,
                "amount_msat": msat(state.funding_satoshis),
                "funding_txid": state.funding.txid[::-1].hex(),
                "funding_output": state.funding_output_index,
                "connected": state.peer_id in node.connections.peers,
                "state": state.state.value,
                "channel_id": state.channel_id.hex(),
            }
            if state.short_channel_id is not None:
                entry["short_channel_id"] = str(state.short_channel_id)
            channels.append(entry)
        return channels

    async def withdraw(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        try:
            script = to_script(address_network(node), arguments["destination"])
        except OdaError as error:
            # lightningd's code for every address that it can't use.
            raise RpcMethodError(RpcErrorCode.LIGHTNINGD, str(error)) from error
        feerate = await self.feerate(arguments["feerate"])
        keep = node.funding.keep_for_anchors()
        amount = arguments["satoshi"]
        try:
            if amount == ALL:
                transaction = node.wallet.sweep(script, feerate, node.now(), keep=keep)
            else:
                output = TxOut(Sat(amount), script)
                transaction = node.wallet.fund([output], feerate, node.now(), keep=keep)
        except UserError as error:
            code = (
                RpcErrorCode.FUND_OUTPUT_IS_DUST
                if error.reason == "output-is-dust"
                else RpcErrorCode.FUND_CANNOT_AFFORD
            )
            raise RpcMethodError(code, str(error)) from error
        node.broadcast(transaction)
        await node.turn.committed()
        return {
            "tx": transaction.serialize().hex(),
            "txid": transaction.txid_hex,
            "psbt": psbt(transaction, self._spent_by(transaction)),
        }

    def _spent_by(self, transaction: Transaction) -> list[TxOut]:
        coins = [
            self._node.store.utxo(txin.outpoint.txid, txin.outpoint.vout)
            for txin in transaction.inputs
        ]
        return [TxOut(coin.value, coin.script) for coin in coins if coin is not None]

    async def feerate(self, wanted: FeeratePerKw | str | None) -> FeeratePerKw:
        """A feerate argument: a number, or one of lightningd's names for an estimate."""
        if isinstance(wanted, int):
            return wanted
        blocks = {"urgent": 2, "normal": 6, "opening": 6, "slow": 100, "minimum": 1000}
        return await self._node.tracker.feerate(blocks.get(wanted or "normal", 6))

    async def feerates(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node = self._node
        estimates = {blocks: await node.tracker.feerate(blocks) for blocks in (2, 6, 12, 100)}
        style = arguments["style"]
        # 1000 virtual bytes are 4000 weight units.
        scale = 4 if style == "perkb" else 1
        policy = node.params.policy
        rates: dict[str, Any] = {
            "min_acceptable": policy.min_feerate * scale,
            "max_acceptable": policy.max_feerate * scale,
            "floor": policy.min_feerate * scale,
            "estimates": [
                {"blockcount": n, "feerate": r * scale, "smoothed_feerate": r * scale}
                for n, r in estimates.items()
            ],
        }
        for name, blocks in (("opening", 6), ("mutual_close", 6), ("unilateral_close", 6)):
            rates[name] = estimates[blocks] * scale
        return {style: rates}

    # --- messages --------------------------------------------------------------------------------

    async def signmessage(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        message = arguments["message"]
        if len(message.encode()) > 65535:
            raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, "Message must be < 64k")
        signature, zbase = signmessage.sign(self._node.node_secret, message)
        return {"signature": signature[:64].hex(), "recid": f"{signature[64]:02x}", "zbase": zbase}

    async def checkmessage(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        wanted = arguments["pubkey"]
        signer = signmessage.signer(arguments["message"], arguments["zbase"])
        if signer is None:
            if wanted is not None:
                return {"verified": False, "pubkey": wanted.hex()}
            raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, "zbase is not a valid signature")
        return {"verified": wanted is None or wanted == signer, "pubkey": signer.hex()}


def describe_addresses(announced: NodeAnnouncement | None) -> list[dict[str, Any]]:
    if announced is None:
        return []
    return [
        {"type": address.type, "address": address.host, "port": address.port}
        for address in read_addresses(announced.addresses)
    ]


def psbt(transaction: Transaction, spent: Sequence[TxOut]) -> str:
    """The finished transaction as a PSBT (BIP 174): each input with its coin and final witness."""
    stripped = transaction
    for index in range(len(transaction.inputs)):
        stripped = stripped.with_witness(index, ())
    unsigned = stripped.serialize()

    def pair(key: bytes, value: bytes) -> bytes:
        return _compact(len(key)) + key + _compact(len(value)) + value

    parts = [b"psbt\xff", pair(b"\x00", unsigned), b"\x00"]
    for txin, coin in zip(transaction.inputs, spent, strict=True):
        utxo = coin.value.to_bytes(8, "little") + _compact(len(coin.script)) + coin.script
        witness = _compact(len(txin.witness)) + b"".join(
            _compact(len(item)) + item for item in txin.witness
        )
        parts += [pair(b"\x01", utxo), pair(b"\x08", witness), b"\x00"]
    parts += [b"\x00"] * len(transaction.outputs)
    return base64.b64encode(b"".join(parts)).decode()


def _compact(number: int) -> bytes:
    if number < 0xFD:
        return bytes([number])
    return b"\xfd" + number.to_bytes(2, "little")
