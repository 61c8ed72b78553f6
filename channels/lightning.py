"""The one door to Lightning for everything outside channels/node/.

pyln-client's `LightningRpc`, made asynchronous, against any socket that speaks lightningd's
JSON-RPC: the embedded node or a real lightningd. Amounts are plain integers of millisatoshi;
hashes, keys and transactions are hexadecimal, as on the socket.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import msgspec
from pyln.client import LightningRpc, RpcError

from channels import lightning_answers as answers
from channels.errors import OdaError
from channels.node.rpc_params import RpcErrorCode
from channels.units import FeeratePerKw, Msat, Sat

CALL_THREADS = 8
WAIT_THREADS = 256

Answer = TypeVar("Answer")


class LightningUnreachable(OdaError):
    """The node did not answer, or not like one. What it did with the request is unknown."""


class LightningError(OdaError):
    """The node's own refusal: lightningd's error `code` and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__("lightning-error", message)
        self.code = code


@dataclass(frozen=True, slots=True)
class PaymentComplete:
    """Paid: the preimage (hex) proves it; `sent_msat` includes routing fees."""

    preimage: str
    sent_msat: Msat


@dataclass(frozen=True, slots=True)
class PaymentFailed:
    """Not paid, and no part of it can be any more: it is safe to try again."""

    reason: str
    code: int


@dataclass(frozen=True, slots=True)
class PaymentPending:
    """Parts are on their way; `payment_outcome` will tell."""


@dataclass(frozen=True, slots=True)
class PaymentUnknown:
    """Nobody can say now. Never treat it as failed; ask `payment_outcome` until it is known."""

    reason: str


PaymentOutcome = PaymentComplete | PaymentFailed | PaymentPending | PaymentUnknown


class _Request(LightningRpc):  # type: ignore[misc]  # pyln-client ships no types
    """One call with a deadline; its socket can be cut from another thread.

    pyln-client has no time limits and opens a socket per call inside `call()`, so the limit is
    set where it hands that socket to its read and write methods.
    """

    def __init__(self, rpc_file: Path, timeout: float | None) -> None:
        # A logger of its own: pyln-client logs whole payloads, preimages included.
        super().__init__(str(rpc_file), logger=logging.Logger("pyln", logging.CRITICAL))
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._cut = False

    def _writeobj(self, sock: Any, obj: Any) -> None:
        self._socket = sock.sock
        sock.sock.settimeout(self._timeout)
        if self._cut:
            raise ConnectionAbortedError("the call was abandoned")
        super()._writeobj(sock, obj)

    def cut(self) -> None:
        """Make the thread that runs this call return soon."""
        self._cut = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # not connected any more, which is what was wanted


class Lightning:
    """Asynchronous calls to the node behind `rpc_file`.

    `timeout` is in seconds, for an answer that the node has no reason to delay. All methods raise
    `LightningUnreachable` or `LightningError`. Close it, or use it with `async with`.
    """

    def __init__(self, rpc_file: Path, timeout: float = 30.0) -> None:
        self.rpc_file = rpc_file
        self.timeout = timeout
        self._calls = ThreadPoolExecutor(CALL_THREADS, "lightning-call")
        # Waiting calls have threads of their own, so that they cannot keep the others waiting.
        self._waits = ThreadPoolExecutor(WAIT_THREADS, "lightning-wait")
        self._requests: set[_Request] = set()
        self._paying: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Abandon what still waits; the node goes on with it."""
        for request in self._requests:
            request.cut()
        for pool in (self._calls, self._waits):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Any RPC method by its name on the socket; parameters that are None are left out."""
        return await self._run(self._calls, self.timeout, method, params)

    async def _wait(self, method: str, extra: float | None, **params: Any) -> dict[str, Any]:
        """A call that the node may hold back for `extra` seconds (None: for ever)."""
        limit = None if extra is None else self.timeout + extra
        return await self._run(self._waits, limit, method, params)

    async def _run(
        self, pool: ThreadPoolExecutor, limit: float | None, method: str, params: dict[str, Any]
    ) -> dict[str, Any]:
        request = _Request(self.rpc_file, limit)
        self._requests.add(request)
        try:
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(pool, request.call, method, params)
        except asyncio.CancelledError:
            request.cut()
            raise
        except RpcError as error:
            _raise_refusal(method, error.error)
        except TimeoutError as error:
            raise LightningUnreachable(
                "lightning-timeout", f"The Lightning node took too long to answer {method}."
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise LightningUnreachable(
                "lightning-unreachable",
                f"No Lightning node answers on {self.rpc_file}: is it running?",
            ) from error
        finally:
            self._requests.discard(request)
        if not isinstance(result, dict):
            raise _not_lightning(method)
        return result

    async def getinfo(self) -> answers.NodeInfo:
        return _read(await self.call("getinfo"), "getinfo", answers.NodeInfo)

    async def newaddr(self) -> str:
        """A fresh bech32 address of the node's wallet."""
        answer = await self.call("newaddr", addresstype="bech32")
        return _read(answer, "newaddr", answers.NewAddress).bech32

    async def listfunds(self, spent: bool | None = None) -> answers.Funds:
        """Coins and channels; `spent` ones, too, if that is asked for."""
        return _read(await self.call("listfunds", spent=spent), "listfunds", answers.Funds)

    async def connect(
        self, node_id: str, host: str | None = None, port: int | None = None
    ) -> answers.Connected:
        answer = await self._wait("connect", 60.0, id=node_id, host=host, port=port)
        return _read(answer, "connect", answers.Connected)

    async def fundchannel(
        self,
        node_id: str,
        amount: Sat | str,
        *,
        feerate: FeeratePerKw | None = None,
        announce: bool | None = None,
        push_msat: Msat | None = None,
        reserve: Sat | None = None,
        mindepth: int | None = None,
        minconf: int | None = None,
    ) -> answers.FundedChannel:
        """Open a channel; `amount` may be "all". None means the node's own default."""
        answer = await self._wait(
            "fundchannel",
            120.0,
            id=node_id,
            amount=amount,
            feerate=None if feerate is None else f"{feerate}perkw",
            announce=announce,
            push_msat=push_msat,
            reserve=reserve,
            mindepth=mindepth,
            minconf=minconf,
        )
        return _read(answer, "fundchannel", answers.FundedChannel)

    async def listpeerchannels(self, node_id: str | None = None) -> list[answers.PeerChannel]:
        answer = await self.call("listpeerchannels", id=node_id)
        return _read(answer, "listpeerchannels", answers.PeerChannels).channels

    async def close(
        self, channel: str, unilateraltimeout: int = 60, destination: str | None = None
    ) -> answers.Closed:
        """Close a channel (its id, short id, or peer), alone after `unilateraltimeout` seconds."""
        answer = await self._wait(
            "close",
            unilateraltimeout,
            id=channel,
            unilateraltimeout=unilateraltimeout,
            destination=destination,
        )
        return _read(answer, "close", answers.Closed)

    async def listcloses(self, node_id: str | None = None) -> list[answers.Close]:
        """Channels that close on chain, output by output. lightningd does not tell: none."""
        try:
            answer = await self.call("oda-listcloses", id=node_id)
        except LightningError as refused:
            if refused.code == RpcErrorCode.METHOD_NOT_FOUND:
                return []
            raise
        return _read(answer, "oda-listcloses", answers.Closes).closes

    async def invoice(
        self,
        amount_msat: Msat | None,
        label: str,
        description: str,
        *,
        expiry: int | None = None,
        preimage: str | None = None,
        cltv: int | None = None,
        exposeprivatechannels: bool | None = None,
        deschashonly: bool | None = None,
    ) -> answers.NewInvoice:
        """Create an invoice; None msat lets the payer choose the amount."""
        answer = await self.call(
            "invoice",
            amount_msat="any" if amount_msat is None else amount_msat,
            label=label,
            description=description,
            expiry=expiry,
            preimage=preimage,
            cltv=cltv,
            exposeprivatechannels=exposeprivatechannels,
            deschashonly=deschashonly,
        )
        return _read(answer, "invoice", answers.NewInvoice)

    async def delinvoice(self, label: str, status: str) -> answers.Invoice:
        """Delete an invoice that has this status now (else error 906: it was just paid, say)."""
        answer = await self.call("delinvoice", label=label, status=status)
        return _read(answer, "delinvoice", answers.Invoice)

    async def listinvoices(
        self, *, label: str | None = None, payment_hash: str | None = None
    ) -> list[answers.Invoice]:
        answer = await self.call("listinvoices", label=label, payment_hash=payment_hash)
        return _read(answer, "listinvoices", answers.Invoices).invoices

    async def waitinvoice(self, label: str) -> answers.Invoice:
        """Return when the invoice is paid; error 903 when it expires."""
        return _read(
            await self._wait("waitinvoice", None, label=label), "waitinvoice", answers.Invoice
        )

    async def waitanyinvoice(
        self,
        lastpay_index: int,
        timeout: int | None = None,  # noqa: ASYNC109  # lightningd's own parameter, kept by it
    ) -> answers.Invoice | None:
        """The first invoice paid after `lastpay_index`, or None after `timeout` seconds."""
        try:
            answer = await self._wait(
                "waitanyinvoice", timeout, lastpay_index=lastpay_index, timeout=timeout
            )
        except LightningError as error:
            if error.code == RpcErrorCode.INVOICE_WAIT_TIMED_OUT:
                return None
            raise
        return _read(answer, "waitanyinvoice", answers.Invoice)

    async def decode(self, text: str) -> answers.Decoded:
        """Read a BOLT 11 invoice; check `valid` before believing the rest."""
        return _read(await self.call("decode", string=text), "decode", answers.Decoded)

    async def signmessage(self, message: str) -> str:
        """The node's signature over a text, in z-base-32 (channels.bolt.signmessage)."""
        answer = await self.call("signmessage", message=message)
        return _read(answer, "signmessage", answers.SignedMessage).zbase

    async def listpays(
        self, *, bolt11: str | None = None, payment_hash: str | None = None
    ) -> list[answers.Pay]:
        answer = await self.call("listpays", bolt11=bolt11, payment_hash=payment_hash)
        return _read(answer, "listpays", answers.Pays).pays

    async def stop(self) -> None:
        await self.call("stop")

    async def pay_once(
        self,
        bolt11: str,
        *,
        maxfee: Msat,
        amount_msat: Msat | None = None,
        retry_for: int = 30,
    ) -> PaymentOutcome:
        """Pay an invoice unless it is paid or being paid already; raises no OdaError.

        `amount_msat` is for an invoice without an amount. A node gives up looking for routes after
        `retry_for` seconds; parts under way may take longer, which makes the outcome unknown.
        """
        key = bolt11.lower()
        if key in self._paying:
            return PaymentPending()
        self._paying.add(key)
        try:
            before = await self._listed(bolt11)
            if isinstance(before, PaymentComplete | PaymentPending | PaymentUnknown):
                return before
            return await self._xpay(bolt11, maxfee, amount_msat, retry_for)
        finally:
            self._paying.discard(key)

    async def payment_outcome(self, bolt11: str) -> PaymentOutcome:
        """What became of an earlier payment, from `listpays`.

        A node without a trace of it gives `PaymentUnknown`: the request may still be on its way.
        `pay_once` with the same invoice is then the safe way on.
        """
        outcome = await self._listed(bolt11)
        return outcome or PaymentUnknown("The node has no trace of this payment.")

    async def _xpay(
        self, bolt11: str, maxfee: Msat, amount_msat: Msat | None, retry_for: int
    ) -> PaymentOutcome:
        try:
            answer = await self._wait(
                "xpay",
                retry_for,
                invstring=bolt11,
                amount_msat=amount_msat,
                maxfee=maxfee,
                retry_for=retry_for,
            )
            paid = _read(answer, "xpay", answers.Paid)
        except LightningUnreachable as lost:
            listed = await self._listed(bolt11)
            if isinstance(listed, PaymentComplete | PaymentPending):
                return listed
            # A listed failure may be of an earlier attempt, so it says nothing about this one.
            return PaymentUnknown(str(lost))
        except LightningError as refused:
            # xpay answers at the first final error, while other parts may still be under way.
            listed = await self._listed(bolt11)
            if listed is None or isinstance(listed, PaymentFailed):
                return PaymentFailed(str(refused), refused.code)
            return listed
        return PaymentComplete(paid.payment_preimage, paid.amount_sent_msat)

    async def _listed(self, bolt11: str) -> PaymentOutcome | None:
        """What `listpays` says about an invoice; None when it has no entry."""
        try:
            pays = await self.listpays(bolt11=bolt11)
        except LightningUnreachable as lost:
            return PaymentUnknown(str(lost))
        except LightningError as refused:
            # What cannot even be read as an invoice was never paid; other refusals tell nothing.
            if refused.code == RpcErrorCode.INVALID_PARAMS:
                return PaymentFailed(str(refused), refused.code)
            return PaymentUnknown(str(refused))
        for pay in pays:
            if pay.status == "complete" and pay.preimage and pay.amount_sent_msat is not None:
                return PaymentComplete(pay.preimage, pay.amount_sent_msat)
        if any(pay.status != "failed" for pay in pays):
            return PaymentPending()
        if pays:
            return PaymentFailed("Every attempt failed.", RpcErrorCode.PAY_UNSPECIFIED_ERROR)
        return None


def _read(answer: dict[str, Any], method: str, shape: type[Answer]) -> Answer:
    try:
        return msgspec.convert(answer, shape)
    except msgspec.ValidationError as error:
        raise _not_lightning(method) from error


def _not_lightning(method: str) -> LightningUnreachable:
    return LightningUnreachable(
        "lightning-bad-answer", f"The answer to {method} is not what lightningd would say."
    )


def _raise_refusal(method: str, error: Any) -> NoReturn:
    """pyln-client puts `{code, message}` into an RpcError, or a plain string of its own."""
    if isinstance(error, dict) and type(error.get("code")) is int:
        raise LightningError(error["code"], str(error.get("message", "")))
    raise LightningUnreachable(
        "lightning-connection-lost", f"The Lightning node hung up during {method}."
    )
