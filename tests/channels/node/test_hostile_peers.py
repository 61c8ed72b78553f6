"""What a peer may try on the node itself: fundings that are none, messages out of time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from channels.bolt import deadlines, messages
from channels.bolt.channel import Channel, State
from channels.bolt.commitment import ChannelType
from channels.bolt.opening import funding_output_script
from channels.bolt.transactions import OutPoint, Transaction, TxIn, TxOut
from channels.node import funding
from channels.node.chain import Block
from channels.node.connections import Connections
from channels.node.rpc_params import RpcMethodError
from channels.node.tracker import Tracker
from channels.units import BlockHeight, FeeratePerKw, Msat, Sat
from tests.channels.bolt.pair import Pair
from tests.channels.node.closes import CHANNEL, COINS, closing
from tests.conftest import Chain


class Watching:
    """As much of a node as the tracker needs to see one block."""

    def __init__(self, *channels: Channel) -> None:
        self.channels = dict(enumerate(channels))
        self.height = BlockHeight(101)
        self.wallet = SimpleNamespace(connect_block=lambda *_: None)
        self.onchain = SimpleNamespace(connect=lambda *_: None)
        self.gossip = SimpleNamespace(block_connected=lambda *_: None)
        self.invoices = SimpleNamespace(new_height=lambda _: None)
        self.store = SimpleNamespace(forget_onions=lambda _: None)

    def carry_out(self, channel: Channel, effects: list[Any]) -> None:
        pass


def opened(funding: Transaction) -> Channel:
    """A channel that waits for output 0 of this transaction, whatever that is."""
    channel = Pair().bob.machine
    channel.state.funding_txid = funding.txid
    return channel


def paying(script: bytes, value: Sat = Sat(1_000_000)) -> Transaction:
    return Transaction(2, (TxIn(OutPoint(b"\x07" * 32, 0)),), (TxOut(value, script),), 0)


def confirm(transaction: Transaction, *channels: Channel) -> None:
    tracker = Tracker(Watching(*channels))  # type: ignore[arg-type]  # all that it uses is there
    block = Block(BlockHeight(101), b"\x01" * 32, b"\x02" * 32, (transaction.serialize(),))
    tracker._connect(block)


SCRIPT = funding_output_script(Pair().bob.machine.core)


@pytest.mark.parametrize(
    ("script", "value"), [(b"\x00\x14" + bytes(20), Sat(1_000_000)), (SCRIPT, Sat(999_999))]
)
def test_only_the_promised_output_funds_a_channel(script: bytes, value: Sat) -> None:
    transaction = paying(script, value)
    channel = opened(transaction)
    confirm(transaction, channel)
    assert channel.state.state is State.FAILED
    assert channel.state.failure is not None
    assert channel.state.failure[0] == "bad-funding-output"
    assert not channel.state.ready_sent


def test_a_copied_outpoint_does_not_hide_the_channel_that_owns_it() -> None:
    transaction = paying(SCRIPT)
    owner, copy = opened(transaction), opened(transaction)
    # The copy's keys are others, so that the output is not what it was promised.
    local = copy.state.local
    other = copy.state.peer.htlc_basepoint
    copy.state.local = type(local)(
        **{n: getattr(local, n) for n in local.__struct_fields__} | {"funding_pubkey": other}
    )
    confirm(transaction, owner, copy)
    assert owner.state.ready_sent
    assert copy.state.state is State.FAILED


class Peer:
    remote_node_id = b"\x02" * 33

    def __init__(self) -> None:
        self.sent: list[messages.Message] = []

    def send(self, *sent: messages.Message) -> None:
        self.sent += sent


async def test_a_message_is_never_sent_over_a_later_connection() -> None:
    connections = Connections(SimpleNamespace())  # type: ignore[arg-type]  # nothing of it is used
    before, after = Peer(), Peer()
    connections.peers[Peer.remote_node_id] = before  # type: ignore[assignment]  # as above
    send = connections.sender(Peer.remote_node_id)
    send(messages.Ping(1))
    connections.peers[Peer.remote_node_id] = after  # type: ignore[assignment]  # as above
    send(messages.Ping(2))
    assert (len(before.sent), len(after.sent)) == (1, 0)


# --- openings that never end ----------------------------------------------------------------------


async def test_channels_that_are_begun_and_never_funded(
    bitcoind: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "FORGET_UNFUNDED", 3)
    monkeypatch.setattr(funding, "MAX_OPENING", 2)
    async with closing(bitcoind, tmp_path) as close:
        alice, bob = close.parties
        for party in close.parties:
            await party.start()
        for _ in range(3):
            await close.miner.send(alice.node.wallet.new_address(), COINS)
        await close.mine(1)
        await close.connect()
        # What alice signs never gets to the chain.
        monkeypatch.setattr(alice.node, "broadcast", lambda _: None)

        async def begin() -> None:
            await alice.node.funding.open(
                bob.node.node_id,
                amount=CHANNEL,
                push_msat=Msat(0),
                feerate=FeeratePerKw(500),
                reserve=None,
                announce=False,
                channel_type=ChannelType.ANCHORS,
            )

        await begin()
        await begin()
        with pytest.raises(RpcMethodError, match="Finish the channels"):
            await begin()
        assert len(bob.store.load_channels()) == 2
        await close.mine(2)
        assert len(bob.node.channels) == 2
        await close.mine(3)
        assert bob.node.channels == {}
        assert bob.store.load_channels() == []
