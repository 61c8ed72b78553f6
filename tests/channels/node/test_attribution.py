"""A hop that fails an HTLC in every way BOLT 4 knows: who is blamed, and what is tried next.

alice pays through bob, who follows a script, to a payee that only route hints know.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from channels.bolt import invoice as bolt11
from channels.bolt.announcing import NO_SIGNATURE
from channels.bolt.channel import Channel
from channels.bolt.effects import Effect, HtlcReceived
from channels.bolt.features import OUR_INVOICE
from channels.bolt.gossip_signatures import signed
from channels.bolt.graph import direction_of
from channels.bolt.invoice_fields import RouteHop
from channels.bolt.keys import public_key
from channels.bolt.messages import ChannelUpdate, encode
from channels.bolt.onion import Failure, FailureCode, Peeled, create_error, peel, wrap_error
from channels.node.rpc_params import RpcErrorCode, RpcMethodError
from channels.units import Msat, ShortChannelId, UnixTime
from tests.channels.node.closes import Close, closing, until
from tests.conftest import Chain

PAYEE_SECRET = b"\x42" * 32
PAYEE = public_key(PAYEE_SECRET)
PREIMAGE = b"\x17" * 32
HASH = hashlib.sha256(PREIMAGE).digest()
AMOUNT = Msat(10_000_000)
# The first is cheaper, so it is tried first.
HINTED = (ShortChannelId.of(7, 1, 0), ShortChannelId.of(7, 2, 0))
FEES = (1_000, 2_000)

Script = Callable[[Channel, HtlcReceived, Peeled], list[Effect]]


@pytest.fixture
async def close(bitcoind: Chain, tmp_path: Path) -> AsyncIterator[Close]:
    async with closing(bitcoind, tmp_path) as close:
        await close.open()
        yield close


def scripted(close: Close, *scripts: Script) -> list[HtlcReceived]:
    """bob does this with the HTLCs that come; the list is what came."""
    seen: list[HtlcReceived] = []

    def receive(channel: Channel, htlc: HtlcReceived, peeled: Peeled) -> list[Effect]:
        seen.append(htlc)
        return scripts[len(seen) - 1](channel, htlc, peeled)

    close.bob.node.forwards.receive = receive  # type: ignore[method-assign]  # the script
    return seen


def fulfill(channel: Channel, htlc: HtlcReceived, peeled: Peeled) -> list[Effect]:
    return channel.fulfill_htlc(htlc.id, PREIMAGE)


def fail(failure: Failure) -> Script:
    """bob says so himself."""
    return lambda channel, htlc, peeled: channel.fail_htlc(
        htlc.id, create_error(peeled.shared_secret, failure)
    )


def fail_at_payee(failure: Failure) -> Script:
    """The payee says so, and bob wraps it."""

    def script(channel: Channel, htlc: HtlcReceived, peeled: Peeled) -> list[Effect]:
        assert peeled.next_packet is not None
        last = peel(peeled.next_packet, PAYEE_SECRET, htlc.payment_hash)
        error = create_error(last.shared_secret, failure)
        return channel.fail_htlc(htlc.id, wrap_error(peeled.shared_secret, error))

    return script


def garble(channel: Channel, htlc: HtlcReceived, peeled: Peeled) -> list[Effect]:
    return channel.fail_htlc(htlc.id, b"\x99" * 292)


def malformed(channel: Channel, htlc: HtlcReceived, peeled: Peeled) -> list[Effect]:
    return channel.fail_malformed_htlc(htlc.id, FailureCode.INVALID_ONION_HMAC)


async def pay(close: Close, *, maxfee: int = 10_000, hints: int = 2, retry_for: int = 60) -> int:
    """What alice has sent. Raises RpcMethodError."""
    alice, bob = close.alice.node, close.bob.node
    invoice = bolt11.Invoice(
        currency="bcrt",
        amount_msat=AMOUNT,
        timestamp=UnixTime(alice.now()),
        payment_hash=HASH,
        payment_secret=b"\x11" * 32,
        description="",
        routes=tuple(
            (RouteHop(bob.node_id, scid, Msat(fee), 0, 6),)
            for scid, fee in list(zip(HINTED, FEES, strict=True))[:hints]
        ),
        features=OUR_INVOICE,
    )
    text = bolt11.encode(invoice, PAYEE_SECRET)
    paid = await alice.payments.pay(
        text, bolt11.decode(text), AMOUNT, maxfee=Msat(maxfee), retry_for=retry_for
    )
    assert paid.payment_preimage == PREIMAGE
    return paid.amount_sent_msat


def of(code: FailureCode, **fields: int | bytes) -> Failure:
    return Failure.of(code, **fields)


EMPTY = {"channel_update": b""}
CHANNEL_FAILURES = [
    of(FailureCode.TEMPORARY_CHANNEL_FAILURE, **EMPTY),
    of(FailureCode.PERMANENT_CHANNEL_FAILURE),
    of(FailureCode.REQUIRED_CHANNEL_FEATURE_MISSING),
    of(FailureCode.UNKNOWN_NEXT_PEER),
    of(FailureCode.AMOUNT_BELOW_MINIMUM, htlc_msat=1, **EMPTY),
    of(FailureCode.FEE_INSUFFICIENT, htlc_msat=1, **EMPTY),
    of(FailureCode.INCORRECT_CLTV_EXPIRY, cltv_expiry=1, **EMPTY),
    of(FailureCode.EXPIRY_TOO_SOON, **EMPTY),
    of(FailureCode.CHANNEL_DISABLED, disabled_flags=0, **EMPTY),
    # What the next node could not read is told by the one before it.
    of(FailureCode.INVALID_ONION_VERSION, sha256_of_onion=bytes(32)),
    of(FailureCode.INVALID_ONION_HMAC, sha256_of_onion=bytes(32)),
    of(FailureCode.INVALID_ONION_KEY, sha256_of_onion=bytes(32)),
    Failure(0x0FFF, b"nobody knows this one"),
    Failure(0),
]


async def test_a_channel_that_fails_is_left_alone_and_the_other_tried(close: Close) -> None:
    for failure in CHANNEL_FAILURES:
        close.alice.node.payments.learned = type(close.alice.node.payments.learned)()
        seen = scripted(close, fail(failure), fail_at_payee(PERMANENT))
        with pytest.raises(RpcMethodError) as raised:
            await pay(close)
        assert raised.value.code == RpcErrorCode.PAY_DESTINATION_PERM_FAIL, failure
        amounts = [htlc.amount_msat - AMOUNT for htlc in seen]
        assert amounts == list(FEES), f"{failure.name}: first one channel, then the other"
    seen = scripted(close, fulfill)
    close.alice.node.payments.learned = type(close.alice.node.payments.learned)()
    assert await pay(close) == AMOUNT + FEES[0]


PERMANENT = of(FailureCode.INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, htlc_msat=AMOUNT, height=100)


@pytest.mark.parametrize(
    "failure",
    [
        of(FailureCode.PERMANENT_NODE_FAILURE),
        of(FailureCode.REQUIRED_NODE_FEATURE_MISSING),
        of(FailureCode.EXPIRY_TOO_FAR),
        of(FailureCode.INVALID_ONION_PAYLOAD, type=2, offset=0),
    ],
    ids=lambda failure: failure.name,
)
async def test_a_node_that_fails_is_left_alone_altogether(close: Close, failure: Failure) -> None:
    seen = scripted(close, fail(failure))
    with pytest.raises(RpcMethodError) as raised:
        await pay(close)
    assert raised.value.code == RpcErrorCode.PAY_ROUTE_NOT_FOUND
    assert f"Hop 1, {close.bob.node.node_id.hex()}, said {failure.name}" in str(raised.value)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (PERMANENT, RpcErrorCode.PAY_DESTINATION_PERM_FAIL),
        (
            of(FailureCode.FINAL_INCORRECT_CLTV_EXPIRY, cltv_expiry=1),
            RpcErrorCode.PAY_TRY_OTHER_ROUTE,
        ),
        (
            of(FailureCode.FINAL_INCORRECT_HTLC_AMOUNT, incoming_htlc_amt=1),
            RpcErrorCode.PAY_TRY_OTHER_ROUTE,
        ),
    ],
    ids=["unknown", "cltv", "amount"],
)
async def test_the_payee_is_asked_once(close: Close, failure: Failure, code: RpcErrorCode) -> None:
    seen = scripted(close, fail_at_payee(failure))
    with pytest.raises(RpcMethodError) as raised:
        await pay(close)
    assert (raised.value.code, str(raised.value)) == (code, f"Destination said {failure.name}")
    assert len(seen) == 1
    # Nothing is left of it: the same invoice can be paid now.
    scripted(close, fulfill)
    assert await pay(close) == AMOUNT + FEES[0]


async def test_an_error_that_nobody_can_read(close: Close) -> None:
    """Anybody may have garbled it: both channels are tried, then none is left."""
    seen = scripted(close, garble, garble)
    with pytest.raises(RpcMethodError) as raised:
        await pay(close)
    assert raised.value.code == RpcErrorCode.PAY_ROUTE_NOT_FOUND
    assert "Malformed error reply" in str(raised.value)
    assert len(seen) == 2


async def test_a_peer_that_cannot_read_our_onion(close: Close) -> None:
    seen = scripted(close, malformed)
    with pytest.raises(RpcMethodError) as raised:
        await pay(close)
    assert "could not read our onion" in str(raised.value)
    assert len(seen) == 1


async def test_terms_in_a_failure_are_believed_once_and_only_within_maxfee(close: Close) -> None:
    bob = close.bob.node
    update = ChannelUpdate(
        signature=NO_SIGNATURE,
        chain_hash=bob.params.policy.chain_hash,
        short_channel_id=HINTED[0],
        timestamp=bob.now(),
        message_flags=1,
        channel_flags=direction_of(bob.node_id, PAYEE),
        cltv_expiry_delta=6,
        htlc_minimum_msat=Msat(1),
        fee_base_msat=5_000,
        fee_proportional_millionths=0,
        htlc_maximum_msat=Msat(10**12),
    )

    def dearer(fee: int) -> Failure:
        said = encode(signed(replace(update, fee_base_msat=fee), bob.node_secret))
        return of(FailureCode.FEE_INSUFFICIENT, htlc_msat=AMOUNT, channel_update=said)

    # Said twice, it is a lie; and what it asks the second time is too much.
    seen = scripted(close, fail(dearer(5_000)), fail(dearer(5_000)))
    with pytest.raises(RpcMethodError):
        await pay(close, hints=1)
    assert [htlc.amount_msat - AMOUNT for htlc in seen] == [FEES[0], 5_000]
    close.alice.node.payments.learned = type(close.alice.node.payments.learned)()
    seen = scripted(close, fail(dearer(10_001)))
    with pytest.raises(RpcMethodError) as raised:
        await pay(close, hints=1)
    assert raised.value.code == RpcErrorCode.PAY_ROUTE_TOO_EXPENSIVE
    close.alice.node.payments.learned = type(close.alice.node.payments.learned)()
    seen = scripted(close, fail(dearer(10_000)), fulfill)
    assert await pay(close, hints=1) == AMOUNT + 10_000
    assert len(seen) == 2


# --- what may pass --------------------------------------------------------------------------------

PASSING = [
    of(FailureCode.TEMPORARY_CHANNEL_FAILURE, **EMPTY),
    of(FailureCode.TEMPORARY_NODE_FAILURE),
    of(FailureCode.UNKNOWN_NEXT_PEER),
]


@pytest.mark.parametrize("failure", PASSING, ids=lambda failure: failure.name)
async def test_the_only_way_is_tried_again_after_a_while(close: Close, failure: Failure) -> None:
    seen = scripted(close, fail(failure), fail(failure), fulfill)
    # Never more than was allowed, however often it is tried.
    assert await pay(close, hints=1, maxfee=FEES[0]) == AMOUNT + FEES[0]
    assert len(seen) == 3
    row = close.alice.store.payment(HASH)
    assert row is not None
    assert (row.status, row.amount_sent_msat) == ("complete", AMOUNT + FEES[0])
    statuses = [attempt.status for attempt in close.alice.store.attempts(HASH)]
    assert statuses == ["failed", "failed", "complete"]


@pytest.mark.parametrize("failure", PASSING, ids=lambda failure: failure.name)
async def test_it_is_waited_for_until_the_time_is_over(close: Close, failure: Failure) -> None:
    seen = scripted(close, *[fail(failure)] * 5)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(RpcMethodError) as raised:
        await pay(close, hints=1, retry_for=1)
    assert raised.value.code == RpcErrorCode.PAY_TRY_OTHER_ROUTE
    assert f"Hop 1, {close.bob.node.node_id.hex()}, said {failure.name}" in str(raised.value)
    assert loop.time() - begin >= 1
    # At once, after half a second, and when the time was over; a slow machine has no third.
    assert len(seen) in (2, 3)
    row = close.alice.store.payment(HASH)
    assert row is not None
    assert row.status == "failed"
    # Who pays it again does not pay twice, and may begin at once.
    close.alice.node.payments.learned = type(close.alice.node.payments.learned)()
    scripted(close, fulfill)
    assert await pay(close, hints=1) == AMOUNT + FEES[0]


async def test_a_payment_that_waits_is_pending_and_ends_with_its_node(close: Close) -> None:
    alice = close.alice
    seen = scripted(close, *[fail(PASSING[0])] * 9)
    paying = asyncio.create_task(pay(close, hints=1))

    def waits() -> bool:
        return bool(seen) and not alice.store.attempts(HASH, "pending")

    await until(waits, "the first attempt has failed")
    row = alice.store.payment(HASH)
    assert row is not None
    assert row.status == "pending"
    await close.until_quiet()
    await alice.kill()
    paying.cancel()
    await alice.start()
    row = alice.store.payment(HASH)
    assert row is not None
    assert (row.status, row.failure_code) == ("failed", RpcErrorCode.PAY_STOPPED_RETRYING)


async def test_the_payees_word_ends_the_wait(close: Close) -> None:
    seen = scripted(close, fail(PASSING[0]), fail_at_payee(PERMANENT))
    with pytest.raises(RpcMethodError) as raised:
        await pay(close, hints=1)
    assert raised.value.code == RpcErrorCode.PAY_DESTINATION_PERM_FAIL
    assert len(seen) == 2
