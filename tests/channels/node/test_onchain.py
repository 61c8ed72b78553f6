"""Channels that end on chain (BOLT 5), on a real bitcoind, each claim judged by pycoin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channels.bolt.channel_state import Core, decode_state, encode_state
from channels.bolt.commitment import ChannelType
from channels.bolt.onchain import Closer, OutputKind, identify, own_commitment
from channels.bolt.resolution import Spend, resolve
from channels.bolt.transactions import Transaction
from channels.errors import RemoteProtocolError
from channels.node.coin_selection import fee_for
from channels.units import BlockHeight, FeeratePerKw, Msat
from tests.channels.node.closes import COINS, Close, Party, closing, until
from tests.conftest import Chain


@pytest.fixture
async def close(bitcoind: Chain, tmp_path: Path) -> AsyncIterator[Close]:
    async with closing(bitcoind, tmp_path) as close:
        yield close


@pytest.fixture
async def own_close(own_bitcoind: Chain, tmp_path: Path) -> AsyncIterator[Close]:
    """On a chain that the test may reorganize."""
    async with closing(own_bitcoind, tmp_path) as close:
        yield close


TYPES = pytest.mark.parametrize("channel_type", list(ChannelType))


def closer(party: Party) -> Closer:
    found = party.node.onchain.resolution(party.channel)
    assert found is not None
    return found.close.closer


async def in_flight(close: Close) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """HTLCs both ways that will be fulfilled, time out, and are too small for an output."""
    alice, bob = close.parties
    fulfilled = [await close.pay(alice, bob, 50_000_000), await close.pay(bob, alice, 40_000_000)]
    kept = [list(bob.held), list(alice.held)]
    timed_out = [await close.pay(alice, bob, 30_000_000), await close.pay(bob, alice, 20_000_000)]
    dust = [await close.pay(alice, bob, 300_000), await close.pay(bob, alice, 200_000)]
    bob.held, alice.held = kept
    return fulfilled, timed_out, dust


@TYPES
@pytest.mark.parametrize("name", ["alice", "bob"])
async def test_htlcs_in_flight_both_ways_settle_on_chain(
    close: Close, name: str, channel_type: ChannelType
) -> None:
    await close.open(channel_type)
    alice, bob = close.parties
    fulfilled, timed_out, dust = await in_flight(close)
    await close.cut()
    for party in close.parties:
        party.release(settle=True)
    one = alice if name == "alice" else bob
    commitment = await close.force(one)
    for party in close.parties:
        assert closer(party) is (Closer.OURS if party is one else Closer.THEIRS)
        assert party.channel.state.state.value == "ONCHAIN"
    for payer, index in ((alice, 0), (bob, 1)):
        assert payer.status_of(timed_out[index]) == payer.status_of(dust[index]) == "pending"
    await close.until_closed()
    for payer, index in ((alice, 0), (bob, 1)):
        assert payer.status_of(fulfilled[index]) == "complete"
        assert payer.status_of(timed_out[index]) == payer.status_of(dust[index]) == "failed"
    audit = await close.audit()
    audit.conserved(close, commitment.txid)


async def test_the_peer_closes_with_the_commitment_before_our_last_signature(close: Close) -> None:
    """BOLT 5: two commitments of the peer's are valid until it revokes the older one."""
    await close.open()
    alice, bob = close.parties
    fulfilled = await close.pay(alice, bob, 50_000_000)
    # From here bob is deaf: alice signs for an HTLC that bob never hears of.
    bob.node.on_message = lambda *_: None  # type: ignore[method-assign]  # as said
    row, _ = bob.node.invoices.create(
        amount_msat=Msat(60_000_000),
        label="unheard",
        description="",
        expiry=3600,
        now=bob.node.now(),
    )
    close.begin(alice, row.bolt11)
    await until(lambda: alice.channel.state.awaiting_revocation, "alice has signed")
    await close.cut()
    bob.release(settle=True)
    commitment = await close.force(bob)
    assert closer(alice) is Closer.THEIRS_PREVIOUS
    await close.until_closed()
    assert alice.status_of(fulfilled) == "complete"
    assert alice.status_of(row.payment_hash) == "failed"
    (await close.audit()).conserved(close, commitment.txid)


# --- punishment -----------------------------------------------------------------------------------


def remembered(party: Party) -> Core:
    """The party's channel as it is now: what a cheater keeps aside."""
    core = party.channel.core
    return Core(decode_state(encode_state(core.state)), core.secrets, core.policy)


async def revoked(close: Close, channel_type: ChannelType) -> tuple[Core, Transaction]:
    """bob's commitment with HTLCs both ways, which he has revoked since then."""
    await close.open(channel_type)
    alice, bob = close.parties
    await close.pay(alice, bob, 50_000_000)
    await close.pay(bob, alice, 40_000_000)
    old = remembered(bob)
    commitment = own_commitment(old)
    assert commitment is not None
    for party in close.parties:
        party.release(settle=True)
    await close.until_quiet()
    # What bob has gained since then is more than what the old commitment gives him.
    await close.pay(alice, bob, 20_000_000)
    bob.release(settle=True)
    await close.until_quiet()
    await close.cut()
    return old, commitment


@TYPES
async def test_a_revoked_commitment_costs_the_cheater_everything(
    close: Close, channel_type: ChannelType
) -> None:
    _, commitment = await revoked(close, channel_type)
    await close.broadcast(commitment)
    await close.mine(1)
    assert closer(close.alice) is Closer.REVOKED
    await close.until_closed()
    assert close.bob.coins() == COINS
    (await close.audit()).conserved(close, commitment.txid)


@TYPES
async def test_the_second_stage_of_a_cheater_is_taken_too(
    close: Close, channel_type: ChannelType
) -> None:
    """bob is faster: his HTLC transactions are in the block right after his old commitment."""
    old, commitment = await revoked(close, channel_type)
    for htlc in old.state.log.htlcs:
        if not htlc.ours:  # a cheater that waited has the preimage
            row = close.bob.store.invoice_by_hash(htlc.payment_hash)
            assert row is not None
            htlc.payment_preimage = row.preimage
    height = BlockHeight(await close.height())
    expiry = max(htlc.cltv_expiry for htlc in old.state.log.htlcs)
    found = resolve(
        old,
        identify(old, commitment, lambda: ()),
        {old.state.funding: Spend(commitment, height)},
        BlockHeight(expiry),
    )
    stages = [c.signed(c.unsigned()) for c in found.claims if c.output is not None]
    assert len(stages) == 2
    await close.mine(expiry - height)
    await close.mine_block(commitment)
    await close.mine_block(*stages)
    assert closer(close.alice) is Closer.REVOKED
    resolution = close.alice.node.onchain.resolution(close.alice.channel)
    assert resolution is not None
    kinds = [t.output.kind for t in resolution.unresolved]
    assert kinds.count(OutputKind.DELAYED_CHEAT_OUTPUT_TO_THEM) == 3  # and to_local
    await close.until_closed()
    assert close.bob.coins() == COINS
    (await close.audit()).conserved(close, commitment.txid)


# --- fees -----------------------------------------------------------------------------------------


async def test_the_anchor_pays_for_a_commitment_that_pays_too_little(close: Close) -> None:
    await close.open(feerate=FeeratePerKw(253))
    alice, bob = close.parties
    alice.set_feerate(FeeratePerKw(3000))
    await close.pay(alice, bob, 30_000_000)
    await close.cut()
    commitment = alice.commitment()
    alice.node.onchain.force(alice.channel)
    await until(alice.node.onchain.packages, "alice has made a child")
    ((parent, child),) = alice.node.onchain.packages()
    assert parent == commitment
    await close.until_in_mempool(parent.txid, child.txid)
    entry = await close.rpc.call("getmempoolentry", child.txid_hex)
    fee = round(entry["fees"]["ancestor"] * 100_000_000)
    weight = parent.weight + child.weight
    assert fee_for(weight, FeeratePerKw(2970)) <= fee <= fee_for(weight, FeeratePerKw(3030))
    # Nobody mines it: time runs out for the HTLC, and a better child takes its place.
    for _ in range(15):
        await close.mine_block()
    ((_, better),) = alice.node.onchain.packages()
    assert better.txid != child.txid
    await close.until_in_mempool(parent.txid, better.txid)
    assert child.txid not in await close.mempool()
    await close.until_closed()
    (await close.audit()).conserved(close, commitment.txid)


async def test_a_claim_with_a_deadline_pays_more_as_it_comes_near(close: Close) -> None:
    await close.open()
    alice, bob = close.parties
    paid = await close.pay(alice, bob, 50_000_000)
    await close.cut()
    bob.release(settle=True)
    commitment = await close.force(alice)
    await close.until_sent()
    fees = []
    seen: set[bytes] = set()
    for _ in range(14):
        (raw,) = bob.store.transactions_to_broadcast()[-1:]
        claim = Transaction.parse(raw)
        if claim.txid not in seen:
            await close.until_in_mempool(claim.txid)
            seen.add(claim.txid)
            fees.append(sum(output.value for output in claim.outputs))
        await close.mine_block()
    assert len(fees) > 2
    assert fees == sorted(fees, reverse=True), "what is left of a claim shrinks as its fee grows"
    await close.until_closed()
    assert alice.status_of(paid) == "complete"
    (await close.audit()).conserved(close, commitment.txid)


# --- when a channel goes on chain by itself -------------------------------------------------------


async def test_an_htlc_that_is_never_settled_closes_the_channel_in_time(close: Close) -> None:
    await close.open()
    alice, bob = close.parties
    paid = await close.pay(alice, bob, 50_000_000)
    await close.cut()
    (htlc,) = alice.channel.state.log.htlcs
    height = await close.height()
    await close.mine(htlc.cltv_expiry - height + 1)
    assert alice.channel.state.failure is None
    await close.mine(1)
    assert alice.channel.state.failure is not None
    assert alice.channel.state.failure[0] == "htlc-timed-out"
    commitment = alice.commitment()
    await close.until_closed()
    assert alice.status_of(paid) == "failed"
    (await close.audit()).conserved(close, commitment.txid)


async def test_a_preimage_goes_on_chain_while_it_is_worth_something(close: Close) -> None:
    await close.open()
    alice, bob = close.parties
    paid = await close.pay(alice, bob, 50_000_000)
    await close.cut()
    bob.release(settle=True)
    commitment = bob.commitment()
    await close.until_closed()
    assert bob.channel.state.failure is not None
    assert bob.channel.state.failure[0] == "htlc-not-settled"
    assert alice.status_of(paid) == "complete"
    (await close.audit()).conserved(close, commitment.txid)


async def test_a_peer_that_breaks_a_rule_is_left_and_both_broadcast(close: Close) -> None:
    """The error reaches the peer, which closes, too: one commitment wins, and both know it."""
    await close.open()
    alice, bob = close.parties
    await close.pay(bob, alice, 50_000_000)
    error = RemoteProtocolError("bad-preimage", "A rule was broken.")
    alice.node.carry_out(alice.channel, alice.channel.fail(error))
    await until(lambda: bob.channel.state.failure is not None, "bob hears of it")
    await until(lambda: not alice.channel.core.reestablished, "the channel is dead")
    await close.mine_until(
        lambda: all(p.channel.state.spent_height is not None for p in close.parties), "confirmed"
    )
    assert {closer(alice), closer(bob)} == {Closer.OURS, Closer.THEIRS}
    winner = alice if closer(alice) is Closer.OURS else bob
    commitment = winner.commitment()
    await close.until_closed()
    (await close.audit()).conserved(close, commitment.txid)


# --- reorganizations and kill -9 ------------------------------------------------------------------


async def test_a_reorganization_takes_back_what_it_took_away(own_close: Close) -> None:
    """alice's timeout was in a block; in the chain that wins, bob's preimage is."""
    close = own_close
    await close.open()
    alice, bob = close.parties
    paid = await close.pay(alice, bob, 50_000_000)
    await close.cut()
    commitment = await close.force(alice)
    (htlc,) = alice.channel.state.log.htlcs
    await close.mine(htlc.cltv_expiry - await close.height())
    await close.until_sent()
    await close.mine(1)
    await until(lambda: spent_htlc(alice), "alice has the HTLC back")
    assert alice.status_of(paid) == "pending", "one block is not enough"

    await close.undo(1)
    await close.mine_block()
    await close.mine_block()
    assert not spent_htlc(alice)
    # bob learns the preimage in the last moment.
    before = bob.store.transactions_to_broadcast()
    bob.release(settle=True)
    await until(lambda: bob.store.transactions_to_broadcast() != before, "bob claims it")
    raw = bob.store.transactions_to_broadcast()[-1]
    await close.mine_block(Transaction.parse(raw))
    assert alice.status_of(paid) == "complete"
    await close.until_closed()
    assert alice.status_of(paid) == "complete"
    (await close.audit()).conserved(close, commitment.txid)


def spent_htlc(party: Party) -> bool:
    resolution = party.node.onchain.resolution(party.channel)
    assert resolution is not None
    return any(
        t.spend is not None for t in resolution.outputs if t.output.kind is OutputKind.OUR_HTLC
    )


async def test_a_reorganization_of_the_close_itself(own_close: Close) -> None:
    """The peer's commitment confirmed, is undone, and ours wins."""
    close = own_close
    await close.open()
    alice, bob = close.parties
    paid = await close.pay(alice, bob, 50_000_000)
    await close.cut()
    await close.force(bob)
    await close.mine(2)
    assert closer(alice) is Closer.THEIRS
    commitment = alice.commitment()
    await close.undo(3)
    for _ in range(4):
        await close.mine_block()
    assert alice.channel.state.state.value == "FUNDING_SPEND_SEEN"
    await close.mine_block(commitment)
    assert (closer(alice), closer(bob)) == (Closer.OURS, Closer.THEIRS)
    await close.until_closed()
    assert alice.status_of(paid) == "failed"
    (await close.audit()).conserved(close, commitment.txid)


@pytest.mark.parametrize("name", ["alice", "bob"])
async def test_a_node_that_dies_again_and_again_while_it_closes_loses_nothing(
    close: Close, name: str
) -> None:
    """Whatever follows a commit never happens in the process that made it."""
    await close.open()
    alice, bob = close.parties
    fulfilled, timed_out, dust = await in_flight(close)
    await close.cut()
    for party in close.parties:
        party.release(settle=True)
        await party.node.turn.committed()
    victim = alice if name == "alice" else bob
    commitment = victim.commitment()
    victim.die_at(1, "after")
    victim.node.onchain.force(victim.channel)
    await until(victim.dead.is_set, "the victim dies")
    await close.until_closed()
    assert close.deaths > 10
    for payer, index in ((alice, 0), (bob, 1)):
        assert payer.status_of(fulfilled[index]) == "complete"
        assert payer.status_of(timed_out[index]) == payer.status_of(dust[index]) == "failed"
    (await close.audit()).conserved(close, commitment.txid)
