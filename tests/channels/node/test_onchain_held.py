"""Hold invoices whose channel dies: a preimage that comes then is used on chain (BOLT 5)."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channels.node.rpc_params import RpcMethodError
from channels.units import Msat
from tests.channels.node.closes import Close, Party, closing, until
from tests.conftest import Chain

PREIMAGE = b"\x07" * 32
HASH = hashlib.sha256(PREIMAGE).digest()
CLTV = 30
AMOUNT = Msat(50_000_000)

LAST = 8 + 2
"""Blocks before its expiry at which a payment that waits is given up, on regtest."""


@pytest.fixture
async def close(bitcoind: Chain, tmp_path: Path) -> AsyncIterator[Close]:
    async with closing(bitcoind, tmp_path) as close:
        await close.open()
        yield close


async def accepted(close: Close, amount: Msat = AMOUNT) -> None:
    """alice has paid a hold invoice of bob's, and they hear of each other no more."""
    bob = close.bob.node
    row, _ = bob.invoices.create(
        amount_msat=amount,
        label="hold",
        description="",
        expiry=3600,
        now=bob.now(),
        hold=HASH,
        cltv=CLTV,
    )
    close.begin(close.alice, row.bolt11)
    await until(lambda: state(close.bob) == "accepted", "bob has accepted it")
    await close.until_quiet()
    await close.cut()


def state(payee: Party) -> str | None:
    row = payee.store.invoice_by_hash(HASH)
    assert row is not None
    return "settled" if row.status == "paid" else row.hold


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("name", ["alice", "bob"])
async def test_settled_after_the_channel_has_died(close: Close, name: str, restarted: bool) -> None:
    alice, bob = close.parties
    await accepted(close)
    commitment = await close.force(alice if name == "alice" else bob)
    if restarted:
        await bob.kill()
        await bob.start()
    assert bob.node.invoices.held.received_msat(HASH) == AMOUNT
    row = bob.node.invoices.settle_hold(PREIMAGE)
    assert (row.status, row.amount_received_msat) == ("paid", AMOUNT)
    await close.until_closed()
    assert alice.status_of(HASH) == "complete"
    paid = alice.store.payment(HASH)
    assert paid is not None
    assert paid.preimage == PREIMAGE
    audit = await close.audit()
    audit.conserved(close, commitment.txid)
    assert PREIMAGE in {w for tx in audit.spent.values() for i in tx.inputs for w in i.witness}


async def test_settled_before_the_commitment_is_in_a_block(close: Close) -> None:
    alice, bob = close.parties
    await accepted(close)
    commitment = bob.commitment()
    bob.node.onchain.force(bob.channel)
    bob.node.invoices.settle_hold(PREIMAGE)
    await bob.kill()
    await bob.start()
    await close.until_in_mempool(commitment.txid)
    await close.until_closed()
    assert alice.status_of(HASH) == "complete"
    (await close.audit()).conserved(close, commitment.txid)


@pytest.mark.parametrize("restarted", [False, True])
async def test_too_late_to_be_settled_is_left_to_the_payer(close: Close, restarted: bool) -> None:
    alice, bob = close.parties
    await accepted(close)
    commitment = await close.force(bob)
    (htlc,) = bob.channel.state.log.htlcs
    await close.mine(htlc.cltv_expiry - LAST - 1 - await close.height())
    if restarted:
        await bob.kill()
        await bob.start()
    assert state(bob) == "accepted"
    await close.mine(1)
    assert state(bob) == "canceled"
    with pytest.raises(RpcMethodError):
        bob.node.invoices.settle_hold(PREIMAGE)
    await close.until_closed()
    assert alice.status_of(HASH) == "failed"
    (await close.audit()).conserved(close, commitment.txid)


async def test_what_has_no_output_can_not_be_settled(close: Close) -> None:
    """A dust HTLC went to the fee of the commitment: its preimage would bring nothing."""
    bob = close.bob
    await accepted(close, Msat(300_000))
    commitment = await close.force(bob)
    assert bob.node.invoices.held.received_msat(HASH) == 0
    with pytest.raises(RpcMethodError):
        bob.node.invoices.settle_hold(PREIMAGE)
    assert state(bob) == "accepted"
    await close.until_closed()
    assert state(bob) == "canceled"
    (await close.audit()).conserved(close, commitment.txid)
