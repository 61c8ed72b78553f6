"""Channels that end on chain (BOLT 5), on a real bitcoind, each claim judged by pycoin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from channels.bolt.commitment import ChannelType
from channels.bolt.onchain import Closer
from tests.channels.node.closes import Close, closing
from tests.conftest import Chain


@pytest.fixture
async def close(bitcoind: Chain, tmp_path: Path) -> AsyncIterator[Close]:
    async with closing(bitcoind, tmp_path) as close:
        yield close


TYPES = pytest.mark.parametrize("channel_type", list(ChannelType))


@TYPES
@pytest.mark.parametrize("closer", ["alice", "bob"])
async def test_htlcs_in_flight_both_ways_settle_on_chain(
    close: Close, closer: str, channel_type: ChannelType
) -> None:
    """One of each kind each way: fulfilled, timed out, and too small for an output."""
    await close.open(channel_type)
    alice, bob = close.parties
    fulfilled = [await close.pay(alice, bob, 50_000_000), await close.pay(bob, alice, 40_000_000)]
    kept = [list(bob.held), list(alice.held)]
    timed_out = [await close.pay(alice, bob, 30_000_000), await close.pay(bob, alice, 20_000_000)]
    dust = [await close.pay(alice, bob, 300_000), await close.pay(bob, alice, 200_000)]
    bob.held, alice.held = kept
    await close.cut()
    for party in close.parties:
        party.release(settle=True)
    one = alice if closer == "alice" else bob
    commitment = one.commitment()
    one.node.onchain.force(one.channel)
    await close.until_in_mempool(commitment.txid)
    await close.mine(1)
    for party in close.parties:
        found = party.node.onchain.resolution(party.channel)
        assert found is not None
        assert found.close.closer is (Closer.OURS if party is one else Closer.THEIRS)
        assert party.channel.state.state.value == "ONCHAIN"
    await close.until_closed()
    for payer, index in ((alice, 0), (bob, 1)):
        assert payer.status_of(fulfilled[index]) == "complete"
        assert payer.status_of(timed_out[index]) == payer.status_of(dust[index]) == "failed"
    audit = await close.audit()
    audit.conserved(close, commitment.txid)
