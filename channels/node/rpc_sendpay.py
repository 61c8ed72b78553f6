"""RPC methods that send without an invoice: keysend, and over routes that the caller chose."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import TYPE_CHECKING, Any

from channels.bolt.onion_failures import FailureCode
from channels.bolt.onion_payload import FIRST_CUSTOM_TYPE, KEYSEND_PREIMAGE
from channels.bolt.retrying import Patience
from channels.bolt.route import MAX_HOPS, Hop, directed_channels
from channels.errors import LocalProtocolError
from channels.node import rpc_params as params
from channels.node.attempts import ForPayee, decode_route, read_erroronion
from channels.node.payments import CLTV_SLACK, DEFAULT_RETRY_SECONDS, Goal, Paid, default_maxfee
from channels.node.rpc_forwards import failcodename
from channels.node.rpc_params import Param, RpcErrorCode, RpcMethodError
from channels.node.rpc_payments import describe_attempt
from channels.node.rpc_server import Arguments, Call, Command
from channels.node.store import AttemptRow
from channels.units import Msat

if TYPE_CHECKING:
    from channels.node.node import Node

KEYSEND_FINAL_CLTV = 22
"""Core Lightning's final delay for a payment whose payee could not say what it wants."""

_stored = params.unsigned(63)
"""lightningd's u64, as far as SQLite holds it."""


class SendMethods:
    def __init__(self, node: Node) -> None:
        self._node = node

    def commands(self) -> tuple[Command, ...]:
        spontaneous = (
            Param("destination", True, params.node_id),
            Param("amount_msat", True, params.msat),
            Param("maxfee", False, params.msat),
            Param("retry_for", False, params.u32, DEFAULT_RETRY_SECONDS),
            Param("extratlvs", False, _tlvs, {}),
        )
        payment_hash = Param("payment_hash", True, params.payment_hash)
        return (
            Command("xkeysend", spontaneous, self.xkeysend, "Pay a node without an invoice."),
            Command(
                "keysend", spontaneous, self.keysend, "Pay a node without an invoice. Use xkeysend."
            ),
            Command(
                "sendpay",
                (
                    Param("route", True, params.array(_hop)),
                    payment_hash,
                    Param("amount_msat", False, params.msat),
                    Param("bolt11", False, params.string, ""),
                    Param("payment_secret", False, params.secret),
                    Param("partid", False, _stored, 0),
                    Param("groupid", False, _stored),
                    Param("payment_metadata", False, params.hex_bytes()),
                ),
                self.sendpay,
                "Send one part of a payment over a route.",
            ),
            Command(
                "waitsendpay",
                (
                    payment_hash,
                    Param("timeout", False, params.u32),
                    Param("partid", False, _stored, 0),
                    Param("groupid", False, _stored),
                ),
                self.waitsendpay,
                "Wait until a part that sendpay has sent arrives or fails.",
                abandonable=True,
            ),
            Command(
                "waitblockheight",
                (
                    Param("blockheight", True, params.u32),
                    Param("timeout", False, params.u32, 60),
                ),
                self.waitblockheight,
                "Wait until a block of this height is known.",
                abandonable=True,
            ),
        )

    # --- keysend -------------------------------------------------------------------------------

    async def xkeysend(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        paid = await self._spontaneous(arguments)
        return {
            "payment_preimage": paid.payment_preimage.hex(),
            "amount_msat": paid.amount_msat,
            "amount_sent_msat": paid.amount_sent_msat,
            "failed_parts": paid.failed_parts,
            "successful_parts": paid.successful_parts,
        }

    async def keysend(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        paid = await self._spontaneous(arguments)
        row = self._node.store.payment(hashlib.sha256(paid.payment_preimage).digest())
        assert row is not None, "a payment that succeeded is stored"
        return {
            "payment_preimage": paid.payment_preimage.hex(),
            "payment_hash": row.payment_hash.hex(),
            "destination": row.destination.hex(),
            "created_at": row.created_at,
            "parts": paid.successful_parts,
            "amount_msat": paid.amount_msat,
            "amount_sent_msat": paid.amount_sent_msat,
            "status": "complete",
        }

    async def _spontaneous(self, arguments: Arguments) -> Paid:
        node, destination = self._node, arguments["destination"]
        amount, maxfee = arguments["amount_msat"], arguments["maxfee"]
        if destination == node.node_id:
            raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, "The payee is this very node")
        if not amount:
            raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, "amount_msat: must be positive")
        preimage = secrets.token_bytes(32)
        goal = Goal(
            payee=destination,
            for_payee=ForPayee(
                payment_hash=hashlib.sha256(preimage).digest(),
                payment_secret=None,
                total_msat=amount,
                custom={**arguments["extratlvs"], KEYSEND_PREIMAGE: preimage},
            ),
            bolt11="",
            final_cltv=KEYSEND_FINAL_CLTV + CLTV_SLACK,
            hints=(),
            maxfee=default_maxfee(amount) if maxfee is None else maxfee,
            # Without a payment secret the parts could not be told from a stranger's.
            max_parts=1,
            patience=Patience(asyncio.get_running_loop().time() + arguments["retry_for"]),
        )
        return await node.payments.reach(goal)

    # --- sendpay -------------------------------------------------------------------------------

    async def sendpay(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node, route = self._node, tuple(arguments["route"])
        if not route or len(route) > MAX_HOPS:
            raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, "route: must have 1 to 20 hops")
        if arguments["payment_secret"] is None:
            raise RpcMethodError(
                RpcErrorCode.INVALID_PARAMS, "payment_secret: needed by every payee of BOLT 11"
            )
        payment_hash, partid = arguments["payment_hash"], arguments["partid"]
        amount, total = route[-1].amount_msat, arguments["amount_msat"]
        if total is None if partid else total not in (None, amount):
            raise RpcMethodError(
                RpcErrorCode.INVALID_PARAMS, "amount_msat: the whole amount, needed with partid"
            )
        before = self._find(payment_hash, arguments["groupid"], partid)
        if before is not None and (before.status != "failed" or arguments["groupid"] is not None):
            # Asked again: the same part is never sent twice.
            if (before.amount_msat, _destination(before)) != (amount, route[-1].node_id):
                raise RpcMethodError(
                    RpcErrorCode.PAY_RHASH_ALREADY_USED,
                    "This part has been sent already, with another amount or destination",
                )
            return {**describe_attempt(node, before), "message": "This part has been sent already"}
        self._check_beside(payment_hash, arguments["groupid"], total or amount)
        groups = [a.groupid for a in node.store.attempts(payment_hash)]
        groupid = arguments["groupid"]
        if groupid is None:
            # What is under way goes on; a failed part with this number begins a new group.
            groupid = max(groups, default=0) + (before is not None or not groups)
        for_payee = ForPayee(
            payment_hash=payment_hash,
            payment_secret=arguments["payment_secret"],
            total_msat=total or amount,
            payment_metadata=arguments["payment_metadata"],
        )
        try:
            attempt = node.payments.send(route, for_payee, arguments["bolt11"], groupid, partid)
        except LocalProtocolError as error:
            raise self._refused(error, route) from error
        await node.turn.committed()
        message = "Monitor status with listpays or waitsendpay"
        return {**describe_attempt(node, attempt), "message": message}

    def _check_beside(self, payment_hash: bytes, groupid: int | None, total: Msat) -> None:
        """That a new part fits to those under way: lightningd's rules and codes."""
        store = self._node.store
        payment = store.payment(payment_hash)
        for attempt in store.attempts(payment_hash, "pending"):
            if groupid not in (None, attempt.groupid):
                raise RpcMethodError(
                    RpcErrorCode.PAY_IN_PROGRESS,
                    f"The payment with groupid {attempt.groupid} is still in progress",
                )
            if payment is not None and payment.amount_msat != total:
                raise RpcMethodError(
                    RpcErrorCode.INVALID_PARAMS,
                    f"amount_msat: was {payment.amount_msat} for the parts under way",
                )

    def _refused(self, error: LocalProtocolError, route: tuple[Hop, ...]) -> RpcMethodError:
        """lightningd's code for a part that has not left; the node itself is hop 0."""
        if error.reason == "payment-exists":
            return RpcMethodError(RpcErrorCode.PAY_RHASH_ALREADY_USED, str(error))
        if error.reason == "payment-under-way":
            return RpcMethodError(RpcErrorCode.PAY_IN_PROGRESS, str(error))
        unknown = error.reason == "no-such-channel"
        code = FailureCode.TEMPORARY_CHANNEL_FAILURE
        data: dict[str, Any] = {"erring_index": 0, "erring_node": self._node.node_id.hex()}
        if unknown:
            code = FailureCode.UNKNOWN_NEXT_PEER
        else:
            data |= _erring_channel(self._node.node_id, route, 0)
        data |= {"failcode": int(code), "failcodename": failcodename(code)}
        return RpcMethodError(RpcErrorCode.PAY_TRY_OTHER_ROUTE, str(error), data)

    def _find(self, payment_hash: bytes, groupid: int | None, partid: int) -> AttemptRow | None:
        """The newest attempt of that part."""
        found = [
            attempt
            for attempt in self._node.store.attempts(payment_hash)
            if attempt.partid == partid and groupid in (None, attempt.groupid)
        ]
        return found[-1] if found else None

    async def waitsendpay(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node, loop = self._node, asyncio.get_running_loop()
        timeout = arguments["timeout"]
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            named = (arguments[name] for name in ("payment_hash", "groupid", "partid"))
            attempt = self._find(*named)
            if attempt is None:
                raise RpcMethodError(RpcErrorCode.PAY_NO_SUCH_PAYMENT, "Never attempted payment")
            if attempt.status != "pending":
                await node.turn.committed()
                return self._ended(attempt)
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise RpcMethodError(RpcErrorCode.PAY_IN_PROGRESS, "Timed out while waiting")
            await node.payments.changed(left)

    def _ended(self, attempt: AttemptRow) -> dict[str, Any]:
        if attempt.status == "complete":
            return describe_attempt(self._node, attempt)
        code = RpcErrorCode(attempt.failure_code or RpcErrorCode.PAY_UNSPECIFIED_ERROR)
        raise RpcMethodError(code, attempt.failure_message or "failed", self._failure(attempt))

    def _failure(self, attempt: AttemptRow) -> dict[str, Any]:
        """lightningd's routing failure object, beside what is known of the part."""
        entry = describe_attempt(self._node, attempt)
        if not attempt.erroronion:
            return entry
        read = read_erroronion(attempt, attempt.erroronion)
        if read is None:
            return {**entry, "onionreply": attempt.erroronion.hex()}
        at, failure = read
        route = decode_route(attempt.hops)
        entry |= {
            "erring_index": at + 1,
            "failcode": failure.code,
            "erring_node": route[at].node_id.hex(),
            "raw_message": failure.encode().hex(),
            # The payee is blamed by the channel to it, everybody else by the one behind.
            **_erring_channel(self._node.node_id, route, min(at + 1, len(route) - 1)),
        }
        name = failcodename(failure.code)
        return entry if name is None else {**entry, "failcodename": name}

    async def waitblockheight(self, arguments: Arguments, call: Call) -> dict[str, Any]:
        node, wanted = self._node, arguments["blockheight"]
        if not await node.wait_until(lambda: node.height >= wanted, arguments["timeout"]):
            raise RpcMethodError(RpcErrorCode.WAIT_TIMEOUT, "Timed out.")
        return {"blockheight": node.height}


def _erring_channel(source: bytes, route: tuple[Hop, ...], at: int) -> dict[str, Any]:
    channels = list(directed_channels(source, route))
    return {
        "erring_channel": str(route[at].short_channel_id),
        "erring_direction": channels[at] & 1,
    }


def _destination(attempt: AttemptRow) -> bytes:
    return decode_route(attempt.hops)[-1].node_id


def _hop(name: str, value: Any) -> Hop:
    """A hop as getroute names its fields, or as getroutes does."""
    if not isinstance(value, dict):
        raise params.bad_param(name, "should be an object", value)

    def field(new: str, old: str) -> Any:
        found = value.get(new, value.get(old))
        if found is None:
            raise RpcMethodError(RpcErrorCode.INVALID_PARAMS, f"{name}: {old} is missing")
        return found

    channel = params.string(name, field("short_channel_id_dir", "channel")).partition("/")[0]
    amount: Msat = params.msat(name, field("amount_out_msat", "amount_msat"))
    return Hop(
        params.node_id(name, field("node_id_out", "id")),
        params.short_channel_id(name, channel),
        amount,
        params.u32(name, field("cltv_out", "delay")),
    )


def _tlvs(name: str, value: Any) -> dict[int, bytes]:
    """`{"number": "hex"}`: records of one's own (BOLT 1)."""
    if not isinstance(value, dict):
        raise params.bad_param(name, "should be an object", value)
    records: dict[int, bytes] = {}
    for number, data in value.items():
        tlv_type: int = params.u64(name, number)
        if tlv_type < FIRST_CUSTOM_TYPE or tlv_type == KEYSEND_PREIMAGE:
            raise params.bad_param(name, f"types begin at {FIRST_CUSTOM_TYPE}", number)
        records[tlv_type] = params.hex_bytes()(name, data)
    return records
