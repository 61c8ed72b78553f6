"""Three nodes in a line with public channels: who pays, who forwards, who is paid."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyln.client import LightningRpc, RpcError

from channels.lightning import LightningError, LightningUnreachable
from channels.units import Msat, Sat
from tests.nodes import LightningNode, Nodes, balances, received, sent, until, until_settled

FIRST, SECOND = Sat(900_000), Sat(600_000)
PUSHED = Msat(250_000_000)
BASE, PPM, DELTA = 1, 10, 6
"""A hub's terms on regtest, of both kinds."""

Kinds = tuple[str, str, str]
LABELS = itertools.count()


def fee(amount: int) -> int:
    return BASE + amount * PPM // 1_000_000


@dataclass
class Line:
    """payer - hub - payee; `first` and `second` are the channels' short ids."""

    nodes: Nodes
    payer: LightningNode
    hub: LightningNode
    payee: LightningNode
    first: str = ""
    second: str = ""

    @property
    def all(self) -> tuple[LightningNode, LightningNode, LightningNode]:
        return self.payer, self.hub, self.payee


async def new_line(nodes: Nodes, kinds: Kinds) -> Line:
    """Open both channels, and wait until gossip has told everybody of them."""
    made = [
        nodes.make(name) if kind == "oda" else nodes.make_lightningd(name)
        for kind, name in zip(kinds, ("payer", "hub", "payee"), strict=True)
    ]
    payer, hub, payee = made
    line = Line(nodes, payer, hub, payee)
    await asyncio.gather(*(node.start() for node in made))
    await nodes.give(Sat(3_000_000), line.payer, line.hub)
    await nodes.open(line.payer, line.hub, FIRST, push_msat=PUSHED)
    await nodes.open(line.hub, line.payee, SECOND, push_msat=PUSHED)
    await nodes.mine(6)
    for node in made:
        await until_known(node, 4)
    line.first = (await line.payer.channels())[0]["short_channel_id"]
    line.second = (await line.payee.channels())[0]["short_channel_id"]
    return line


async def until_known(node: LightningNode, directions: int) -> None:
    async def known() -> bool:
        channels = (await node.rpc.call("listchannels"))["channels"]
        return len([c for c in channels if c["active"]]) == directions

    await until(known, f"{node.process.name} knows {directions} directions", within=60)


async def invoice(payee: LightningNode, amount: int) -> str:
    return await payee.new_invoice(amount, f"invoice {next(LABELS)}")


async def pay(payer: LightningNode, payee: LightningNode, amounts: Sequence[int]) -> list[bool]:
    """Pay all at once; whether the payer was told of each that it was paid."""
    texts = [await invoice(payee, amount) for amount in amounts]

    async def paid(text: str) -> bool:
        try:
            await payer.pay(text)
        except (LightningError, LightningUnreachable):
            return False
        return True

    return list(await asyncio.gather(*(paid(text) for text in texts)))


async def route(payer: LightningNode, payee: LightningNode, amount: int) -> list[dict[str, Any]]:
    """The only one there is, as getroutes finds it in the gossip."""
    found = await payer.rpc.call(
        "getroutes",
        source=payer.id,
        destination=payee.id,
        amount_msat=amount,
        layers=["auto.sourcefree"],
        maxfee_msat=amount,
        final_cltv=40,
    )
    path: list[dict[str, Any]] = found["routes"][0]["path"]
    return path


async def failure(payer: LightningNode, hops: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """The error of waitsendpay for an invoice over a route that must fail."""
    decoded = await payer.rpc.decode(text)
    await payer.rpc.call(
        "sendpay",
        route=hops,
        payment_hash=decoded.payment_hash,
        payment_secret=decoded.payment_secret,
        bolt11=text,
    )

    def wait() -> dict[str, Any]:
        rpc = LightningRpc(str(payer.process.rpc_file))
        try:
            raise AssertionError(f"it was paid: {rpc.waitsendpay(decoded.payment_hash, 50)}")
        except RpcError as error:
            refused: dict[str, Any] = error.error
            return refused

    return await asyncio.to_thread(wait)


async def check_conserved(line: Line, before: Sequence[int]) -> None:
    """Nothing is under way, and what one has sent is what others have got; `before`: balances."""
    await until_settled(*line.all)
    now = await balances(*line.all)
    assert sum(now) == sum(before) == 1000 * (FIRST + SECOND)
    ends = (line.payer, line.payee)
    out = [await sent(node) for node in ends]
    into = [await received(node) for node in ends]
    assert now[0] == before[0] - out[0] + into[0]
    assert now[2] == before[2] - out[1] + into[1]
    earned = now[1] - before[1]
    assert earned == sum(out) - sum(into)
    assert (await line.hub.rpc.getinfo()).fees_collected_msat == earned


def start_balances() -> list[int]:
    """What each had before anybody paid."""
    opened, pushed = 1000 * FIRST, PUSHED
    return [opened - pushed, pushed + 1000 * SECOND - pushed, pushed]
