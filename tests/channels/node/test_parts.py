"""Payments in parts, and payments that wait for their preimage, between real nodes."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channels.bolt import invoice as bolt11
from channels.bolt.effects import HtlcFailed, HtlcFulfilled
from channels.bolt.onion import read_error, shared_secrets
from channels.bolt.route import Hop
from channels.lightning import LightningError
from channels.node import held
from channels.node.attempts import ForPayee, offer
from channels.node.rpc_params import RpcErrorCode
from channels.units import Msat, Sat, UnixTime
from tests.channels.node.closes import Close, closing, until
from tests.conftest import Chain
from tests.nodes import LightningNode, Nodes, received, until_settled
from tests.nodes import until as until_true

CHANNEL = Sat(300_000)
PREIMAGE = b"\x21" * 32
HASH = hashlib.sha256(PREIMAGE).hexdigest()


async def test_more_than_one_channel_holds_goes_in_parts(nodes: Nodes) -> None:
    """A diamond: user - (hub, other) - provider, and 400,000 sat over channels of 300,000."""
    user, hub, other, provider = await nodes.start("user", "hub", "other", "provider")
    for middle in (hub, other):
        await nodes.open(user, middle, CHANNEL)
        await nodes.open(middle, provider, CHANNEL)
    await nodes.mine(6)

    async def knows_all() -> bool:
        return len((await user.rpc.call("listchannels"))["channels"]) == 8

    await until_true(knows_all, "the user knows every direction")
    amount = 400_000_000
    text = await provider.new_invoice(amount, "large")
    paid = await user.pay(text)
    assert paid["successful_parts"] >= 2
    assert paid["amount_msat"] == amount
    await until_settled(user, hub, other, provider)
    assert await received(provider) == amount
    (pay,) = (await user.rpc.call("listpays", bolt11=text))["pays"]
    assert pay["number_of_parts"] == paid["successful_parts"]
    attempts = (await user.rpc.call("listsendpays", bolt11=text))["payments"]
    complete = [a for a in attempts if a["status"] == "complete"]
    assert sum(a["amount_msat"] for a in complete) == amount
    assert sum(a["amount_sent_msat"] for a in complete) == paid["amount_sent_msat"]
    # More than everything together: nothing has left.
    with pytest.raises(LightningError) as raised:
        await user.pay(await provider.new_invoice(700_000_000, "too large"))
    assert raised.value.code == RpcErrorCode.PAY_ROUTE_NOT_FOUND


# --- parts, one by one ----------------------------------------------------------------------------


@pytest.fixture
async def close(bitcoind: Chain, tmp_path: Path) -> AsyncIterator[Close]:
    async with closing(bitcoind, tmp_path) as close:
        await close.open()
        yield close


class Sender:
    """alice sends parts as she likes, and notes what becomes of them."""

    def __init__(self, close: Close, amount: int = 10_000_000) -> None:
        self.alice, self.bob = close.alice.node, close.bob.node
        row, self.secret = self.bob.invoices.create(
            amount_msat=Msat(amount),
            label=secrets.token_hex(4),
            description="",
            expiry=3600,
            now=UnixTime(self.bob.now()),
        )
        self.invoice = bolt11.decode(row.bolt11)
        self.keys: dict[int, bytes] = {}
        self.outcomes: dict[int, str] = {}
        self.alice.forwards.resolved = self._resolved  # type: ignore[method-assign]  # to look on

    def send(self, amount: int, total: int, secret: bytes | None = None) -> int:
        (channel,) = self.alice.channels.values()
        scid = channel.state.short_channel_id
        assert scid is not None
        route = [Hop(self.bob.node_id, scid, Msat(amount), 20)]
        payee = ForPayee(self.invoice.payment_hash, secret or self.secret, Msat(total))
        offered = offer(self.alice, route, payee)
        self.keys[offered.htlc_id] = offered.session_key
        return offered.htlc_id

    def _resolved(self, channel: object, effect: HtlcFulfilled | HtlcFailed) -> None:
        if isinstance(effect, HtlcFulfilled):
            self.outcomes[effect.id] = "fulfilled"
            return
        keys = shared_secrets(self.keys[effect.id], [self.bob.node_id])
        read = read_error(keys, effect.reason)
        assert read is not None
        self.outcomes[effect.id] = read[1].name

    async def outcome(self, *ids: int) -> list[str]:
        await until(lambda: all(i in self.outcomes for i in ids), "the parts end")
        return [self.outcomes[i] for i in ids]

    @property
    def waiting(self) -> int:
        found = self.bob.invoices.held._sets.get(self.invoice.payment_hash)
        return 0 if found is None else len(found.parts)


async def test_parts_wait_for_each_other(close: Close) -> None:
    sender = Sender(close)
    first = sender.send(4_000_000, 10_000_000)
    second = sender.send(5_999_999, 10_000_000)
    await until(lambda: sender.waiting == 2, "two parts wait")
    assert sender.outcomes == {}
    # One that does not know the secret is refused, and the others go on waiting.
    stranger = sender.send(1, 10_000_000, bytes(32))
    assert await sender.outcome(stranger) == ["incorrect_or_unknown_payment_details"]
    third = sender.send(1, 10_000_000)
    assert await sender.outcome(first, second, third) == ["fulfilled"] * 3
    row = close.bob.store.invoice_by_hash(sender.invoice.payment_hash)
    assert row is not None
    assert (row.status, row.amount_received_msat) == ("paid", 10_000_000)
    late = sender.send(1, 10_000_000)
    assert await sender.outcome(late) == ["incorrect_or_unknown_payment_details"]


async def test_parts_survive_a_restart_of_the_payee(close: Close) -> None:
    sender = Sender(close)
    first = sender.send(4_000_000, 10_000_000)
    await until(lambda: sender.waiting == 1, "a part waits")
    await close.until_quiet()
    await close.bob.kill()
    await close.bob.start()
    sender.bob = close.bob.node
    await until(lambda: sender.waiting == 1, "it waits again")
    await close.connect()
    await close.until_usable()
    second = sender.send(6_000_000, 10_000_000)
    assert await sender.outcome(first, second) == ["fulfilled"] * 2


async def test_parts_that_stay_alone_are_given_back(
    close: Close, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "MPP_SECONDS", 0.2)
    sender = Sender(close)
    ids = [sender.send(4_000_000, 10_000_000), sender.send(1_000_000, 10_000_000)]
    assert await sender.outcome(*ids) == ["mpp_timeout"] * 2
    assert sender.waiting == 0
    whole = sender.send(10_000_000, 10_000_000)
    assert await sender.outcome(whole) == ["fulfilled"], "and it can be paid still"


async def test_parts_that_disagree_fail_together(close: Close) -> None:
    sender = Sender(close)
    ids = [sender.send(4_000_000, 10_000_000), sender.send(4_000_000, 11_000_000)]
    assert await sender.outcome(*ids) == ["incorrect_or_unknown_payment_details"] * 2
    # Less and more than BOLT 4 lets an invoice be paid with.
    ids = [sender.send(9_000_000, 9_999_999), sender.send(9_000_000, 20_000_001)]
    assert await sender.outcome(*ids) == ["incorrect_or_unknown_payment_details"] * 2


# --- hold invoices --------------------------------------------------------------------------------


async def hold(payee: LightningNode, **options: int) -> str:
    answer = await payee.rpc.call(
        "oda-holdinvoice",
        payment_hash=HASH,
        amount_msat=50_000_000,
        label="hold",
        description="hold",
        **options,
    )
    text: str = answer["bolt11"]
    return text


async def state(payee: LightningNode) -> str:
    (found,) = (await payee.rpc.call("oda-listholdinvoices", payment_hash=HASH))["holdinvoices"]
    answer: str = found["state"]
    return answer


async def until_accepted(payee: LightningNode) -> None:
    async def accepted() -> bool:
        return await state(payee) == "accepted"

    await until_true(accepted, "the payment is accepted")


async def test_a_hold_invoice_is_settled_after_a_kill(nodes: Nodes) -> None:
    payer, payee = await nodes.start("payer", "payee")
    await nodes.open(payer, payee, CHANNEL)
    text = await hold(payee)
    with pytest.raises(LightningError) as raised:
        await payee.rpc.call("oda-holdinvoice-settle", preimage=PREIMAGE.hex())
    assert raised.value.code == RpcErrorCode.INVOICE_STATUS_UNEXPECTED
    paying = asyncio.create_task(payer.pay(text))
    await until_accepted(payee)
    await payee.kill()
    await payee.start()
    await until_accepted(payee)
    await payee.until_usable()
    assert not paying.done()
    answer = await payee.rpc.call("oda-holdinvoice-settle", preimage=PREIMAGE.hex())
    assert (answer["state"], answer["amount_received_msat"]) == ("settled", 50_000_000)
    assert (await paying)["payment_preimage"] == PREIMAGE.hex()
    assert await payee.rpc.call("oda-holdinvoice-settle", preimage=PREIMAGE.hex()) == answer
    with pytest.raises(LightningError):
        await payee.rpc.call("oda-holdinvoice-cancel", payment_hash=HASH)


async def test_a_hold_invoice_is_canceled_and_never_accepts_again(nodes: Nodes) -> None:
    payer, payee = await nodes.start("payer", "payee")
    await nodes.open(payer, payee, CHANNEL)
    text = await hold(payee)
    paying = asyncio.create_task(payer.pay(text))
    await until_accepted(payee)
    await payee.rpc.call("oda-holdinvoice-cancel", payment_hash=HASH)
    for attempt in (paying, payer.pay(text)):
        with pytest.raises(LightningError) as raised:
            await attempt
        assert raised.value.code == RpcErrorCode.PAY_DESTINATION_PERM_FAIL
    with pytest.raises(LightningError):
        await payee.rpc.call("oda-holdinvoice-settle", preimage=PREIMAGE.hex())


async def test_what_is_held_too_long_is_given_back_before_it_expires(nodes: Nodes) -> None:
    payer, payee = await nodes.start("payer", "payee")
    await nodes.open(payer, payee, CHANNEL)
    text = await hold(payee, cltv=20)
    paying = asyncio.create_task(payer.pay(text))
    await until_accepted(payee)
    # 20 blocks and 3 of slack, less 8 for the chain and 2 to be sure.
    await nodes.mine(12)
    assert not paying.done()
    await nodes.mine(1)
    with pytest.raises(LightningError):
        await paying
    assert await state(payee) == "canceled"
    await until_settled(payer, payee)
    assert {c["state"] for c in await payee.channels()} == {"CHANNELD_NORMAL"}
