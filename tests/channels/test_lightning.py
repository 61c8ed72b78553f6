"""The asynchronous door, against a scripted node behind a real socket."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from channels.lightning import (
    Lightning,
    LightningError,
    LightningUnreachable,
    PaymentComplete,
    PaymentFailed,
    PaymentPending,
    PaymentUnknown,
)
from channels.node import rpc_params as params
from channels.node.rpc_server import (
    Arguments,
    Call,
    Command,
    Param,
    RpcErrorCode,
    RpcMethodError,
    RpcServer,
)
from channels.units import Msat

PREIMAGE = "11" * 32
HASH = "22" * 32
INVOICE = {
    "label": "a",
    "payment_hash": HASH,
    "status": "unpaid",
    "expires_at": 9,
    "created_index": 1,
}


def pay(status: str) -> dict[str, Any]:
    proof = {"preimage": PREIMAGE, "amount_sent_msat": 1001} if status == "complete" else {}
    row = {"payment_hash": HASH, "status": status, "created_at": 1, "created_index": 1}
    return row | {"amount_sent_msat": 1001} | proof


PAID = {
    "payment_preimage": PREIMAGE,
    "amount_msat": 1000,
    "amount_sent_msat": 1001,
    "failed_parts": 0,
    "successful_parts": 1,
}


class Node:
    """Answers `listpays` and `xpay` from a script and counts what was paid."""

    def __init__(self) -> None:
        self.pays: list[dict[str, Any]] = []
        self.after: list[dict[str, Any]] | RpcMethodError = []
        self.xpay: Mapping[str, Any] | RpcMethodError = PAID
        self.asked: list[Arguments] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.entered = asyncio.Event()

    def commands(self) -> tuple[Command, ...]:
        return (
            Command("listpays", (Param("bolt11", False, params.string),), self._listpays, ""),
            Command(
                "xpay",
                (
                    Param("invstring", True, params.string),
                    Param("amount_msat", False, params.msat),
                    Param("maxfee", True, params.msat),
                    Param("retry_for", False, params.u32),
                ),
                self._xpay,
                "",
            ),
            Command("newaddr", (Param("addresstype", True, params.string),), self._newaddr, ""),
            Command("getinfo", (), self._getinfo, ""),
            Command("stop", (), self._stop, ""),
            Command("waitinvoice", (Param("label", True, params.label),), self._wait, ""),
            Command(
                "waitanyinvoice",
                (Param("lastpay_index", False, params.u64), Param("timeout", False, params.u64)),
                self._waitany,
                "",
                abandonable=True,
            ),
        )

    async def _listpays(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        pays = self.after if self.asked else self.pays
        if isinstance(pays, RpcMethodError):
            raise pays
        return {"pays": pays}

    async def _xpay(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        self.asked.append(arguments)
        self.entered.set()
        await self.hold.wait()
        if isinstance(self.xpay, RpcMethodError):
            raise self.xpay
        return self.xpay

    async def _newaddr(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        return {arguments["addresstype"]: "bcrt1qx"}

    async def _getinfo(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        return {"id": "02"}

    async def _stop(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        return {"result": "Shutdown complete"}

    async def _wait(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        self.entered.set()
        await self.hold.wait()
        return INVOICE | {"label": arguments["label"], "status": "paid", "pay_index": 1}

    async def _waitany(self, arguments: Arguments, call: Call) -> Mapping[str, Any]:
        if arguments["timeout"] == 0:
            raise RpcMethodError(RpcErrorCode.INVOICE_WAIT_TIMED_OUT, "Timed out")
        await asyncio.Event().wait()
        return {}


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def lightning(tmp_path: Path, node: Node) -> AsyncIterator[Lightning]:
    server = RpcServer(tmp_path / "lightning-rpc", node.commands())
    await server.start()
    async with Lightning(server.path) as lightning:
        yield lightning
    await server.close()


async def test_a_payment(lightning: Lightning, node: Node) -> None:
    outcome = await lightning.pay_once("lnbc1", maxfee=Msat(0), amount_msat=Msat(5), retry_for=7)
    assert outcome == PaymentComplete(PREIMAGE, Msat(1001))
    assert node.asked == [{"invstring": "lnbc1", "amount_msat": 5, "maxfee": 0, "retry_for": 7}]


@pytest.mark.parametrize(
    ("pays", "outcome"),
    [
        ([pay("complete")], PaymentComplete(PREIMAGE, Msat(1001))),
        ([pay("failed"), pay("pending")], PaymentPending()),
        ([pay("pending"), pay("complete")], PaymentComplete(PREIMAGE, Msat(1001))),
    ],
)
async def test_never_paid_twice(
    lightning: Lightning, node: Node, pays: list[dict[str, Any]], outcome: object
) -> None:
    node.pays = pays
    assert await lightning.pay_once("lnbc1", maxfee=Msat(0)) == outcome
    assert node.asked == []


async def test_a_failed_payment_may_be_tried_again(lightning: Lightning, node: Node) -> None:
    node.pays = [pay("failed")]
    assert isinstance(await lightning.pay_once("lnbc1", maxfee=Msat(0)), PaymentComplete)


@pytest.mark.parametrize(
    ("after", "outcome"),
    [
        ([], PaymentFailed("no route", 205)),
        ([pay("failed")], PaymentFailed("no route", 205)),
        ([pay("pending")], PaymentPending()),
        ([pay("complete")], PaymentComplete(PREIMAGE, Msat(1001))),
        (RpcMethodError(RpcErrorCode.SHUTDOWN, "going"), PaymentUnknown("going")),
        (RpcMethodError(RpcErrorCode.INVALID_PARAMS, "what?"), PaymentFailed("no route", 205)),
    ],
)
async def test_a_refusal_is_believed_only_after_listpays(
    lightning: Lightning, node: Node, after: Any, outcome: object
) -> None:
    node.xpay = RpcMethodError(RpcErrorCode.PAY_ROUTE_NOT_FOUND, "no route")
    node.after = after
    assert await lightning.pay_once("lnbc1", maxfee=Msat(0)) == outcome


@pytest.mark.parametrize("after", [[], [pay("failed")]])
async def test_a_timeout_is_unknown(
    lightning: Lightning, node: Node, after: list[dict[str, Any]]
) -> None:
    node.hold.clear()
    node.after = after
    lightning.timeout = 0.05
    outcome = await lightning.pay_once("lnbc1", maxfee=Msat(0), retry_for=0)
    assert isinstance(outcome, PaymentUnknown)

    lightning.timeout = 30
    node.after = [pay("complete")]
    assert await lightning.payment_outcome("lnbc1") == PaymentComplete(PREIMAGE, Msat(1001))
    assert len(node.asked) == 1


async def test_two_at_once_pay_once(lightning: Lightning, node: Node) -> None:
    node.hold.clear()
    first = asyncio.create_task(lightning.pay_once("lnbc1", maxfee=Msat(0)))
    await node.entered.wait()
    assert await lightning.pay_once("LNBC1", maxfee=Msat(0)) == PaymentPending()
    node.hold.set()
    assert isinstance(await first, PaymentComplete)
    assert len(node.asked) == 1


async def test_an_answer_that_makes_no_sense_is_unknown(lightning: Lightning, node: Node) -> None:
    node.xpay = {"payment_preimage": 5}
    assert isinstance(await lightning.pay_once("lnbc1", maxfee=Msat(0)), PaymentUnknown)


async def test_no_trace_is_unknown(lightning: Lightning, node: Node) -> None:
    assert isinstance(await lightning.payment_outcome("lnbc1"), PaymentUnknown)


async def test_nobody_there(tmp_path: Path) -> None:
    async with Lightning(tmp_path / "nothing") as lightning:
        with pytest.raises(LightningUnreachable) as refused:
            await lightning.getinfo()
        assert refused.value.reason == "lightning-unreachable"
        assert isinstance(await lightning.pay_once("lnbc1", maxfee=Msat(0)), PaymentUnknown)


async def test_a_node_that_hangs_up(tmp_path: Path) -> None:
    def hang_up() -> None:
        connection, _ = listener.accept()
        connection.recv(1)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(65536)
        connection.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "rpc"))
        listener.listen()
        thread = threading.Thread(target=hang_up)
        thread.start()
        async with Lightning(tmp_path / "rpc") as lightning:
            with pytest.raises(LightningUnreachable) as refused:
                await lightning.call("xpay", invstring="x")
        thread.join()
    assert refused.value.reason == "lightning-connection-lost"


async def test_thin_methods(lightning: Lightning) -> None:
    assert await lightning.newaddr() == "bcrt1qx"
    assert (await lightning.waitinvoice("x")).pay_index == 1
    assert await lightning.waitanyinvoice(0, timeout=0) is None
    await lightning.stop()
    with pytest.raises(LightningUnreachable) as refused:
        await lightning.getinfo()
    assert refused.value.reason == "lightning-bad-answer"
    with pytest.raises(LightningError) as unknown:
        await lightning.decode("x")
    assert unknown.value.code == RpcErrorCode.METHOD_NOT_FOUND


async def test_many_waits_do_not_keep_a_call_waiting(lightning: Lightning) -> None:
    waits = [asyncio.create_task(lightning.waitanyinvoice(0)) for _ in range(100)]
    assert await lightning.newaddr() == "bcrt1qx"
    for wait in waits:
        wait.cancel()
    ended = await asyncio.gather(*waits, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended)


async def test_closing_abandons_waits(lightning: Lightning, node: Node) -> None:
    node.hold.clear()
    wait = asyncio.create_task(lightning.waitinvoice("x"))
    await node.entered.wait()
    await lightning.aclose()
    with pytest.raises(LightningUnreachable):
        await wait
    node.hold.set()
