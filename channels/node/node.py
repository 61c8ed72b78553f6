"""The embedded Lightning node: it carries out what the channels' state machines ask for.

One event loop owns everything here. A message or command changes state at once, in memory; what
follows from it (messages to peers, answers to callers, broadcasts) waits for the turn's commit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from channels.bolt.channel import ON_CHAIN, Channel, State
from channels.bolt.channel_state import decode_state, encode_state
from channels.bolt.effects import (
    Broadcast,
    ChannelFailed,
    ChannelReady,
    Effect,
    FundingNeeded,
    HtlcFailed,
    HtlcFulfilled,
    HtlcReceived,
    MutualClose,
    Persist,
    Send,
    Watch,
)
from channels.bolt.keys import ChannelSecrets, public_key
from channels.bolt.messages import ChannelReestablish, Error, Message, OpenChannel, Warning_
from channels.bolt.policy import Policy as ForwardingPolicy
from channels.bolt.transactions import Transaction
from channels.errors import OdaError, RemoteProtocolError
from channels.node.chain import Bitcoind
from channels.node.connections import Connections
from channels.node.forwards import Forwards
from channels.node.funding import Funding
from channels.node.gossip import GOSSIP_MESSAGES, Gossiper
from channels.node.incoming import answer
from channels.node.invoices import Invoices
from channels.node.networks import NetworkParams
from channels.node.onchain import Onchain
from channels.node.payments import Payments
from channels.node.policies import Policies
from channels.node.store import ChannelRow, Store
from channels.node.tracker import Tracker
from channels.node.turn import Turn
from channels.node.wallet import Wallet
from channels.units import BlockHeight, UnixTime

log = logging.getLogger(__name__)

ALL_CHANNELS = bytes(32)
"""BOLT 1: the channel_id of an error that is about the connection, so about every channel."""

_GONE = (State.CLOSED,)
_NEEDS_PEER = (
    State.AWAITING_LOCKIN,
    State.NORMAL,
    State.SHUTTING_DOWN,
    State.NEGOTIATING,
    State.FAILED,
)


class Node:
    """Peers, channels, invoices and payments of one node. Start it with `start()`."""

    def __init__(
        self,
        params: NetworkParams,
        store: Store,
        wallet: Wallet,
        chain: Bitcoind,
        directory: Path,
        alias: str,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.params = params
        self.store = store
        self.wallet = wallet
        self.chain = chain
        self.directory = directory
        self.alias = alias
        self.node_secret = wallet.node_secret
        self.node_id = public_key(self.node_secret)
        self.channels: dict[int, Channel] = {}
        self.turn = Turn(store, self._close_turn, on_failure)
        self.connections = Connections(self)
        self.funding = Funding(self)
        self.invoices = Invoices(self)
        self.payments = Payments(self)
        self.policies = Policies(self)
        self.forwards = Forwards(self)
        self.tracker = Tracker(self)
        self.onchain = Onchain(self)
        self.gossip = Gossiper(self)
        self._dirty: dict[int, Channel] = {}
        self._touched: dict[int, Channel] = {}

    async def start(self, host: str, port: int) -> None:
        """Load what is stored, listen on `host:port` (port 0: any), follow the chain."""
        for row in self.store.load_channels():
            if not row.closed:
                self.add_channel(self.restored(row))
        self.payments.start()
        self.gossip.start()
        self.onchain.start()
        self.tracker.start()
        await self.connections.start(host, port)
        accepted = self.store.accepted_payments()
        for channel in self.channels.values():
            if channel.state.state not in (*ON_CHAIN, State.CLOSED):
                self.carry_out(channel, channel.disconnected())
            # What was committed before the restart and not resolved is resolved now.
            self.carry_out(channel, channel.unresolved(accepted))

    async def stop(self) -> None:
        await self.connections.stop()
        await self.tracker.stop()
        await self.gossip.stop()
        self.invoices.held.stop()
        self.payments.stop()
        await self.turn.committed()

    @staticmethod
    def now() -> UnixTime:
        return UnixTime(int(time.time()))

    @property
    def height(self) -> BlockHeight:
        """The newest block that the wallet has seen."""
        tip = self.wallet.tip()
        return BlockHeight(0) if tip is None else tip[0]

    # --- channels ------------------------------------------------------------------------------

    def secrets_of(self, index: int) -> ChannelSecrets:
        return ChannelSecrets.derive(self.wallet.channel_seed, index)

    def add_channel(self, channel: Channel) -> None:
        self.channels[channel.state.index] = channel

    def forget_channel(self, channel: Channel) -> None:
        """A channel that never got as far as a signature: nothing is lost with it."""
        self.channels.pop(channel.state.index, None)
        self._touched.pop(channel.state.index, None)

    def policy(self, channel: Channel) -> ForwardingPolicy:
        """The terms on which we forward over a channel."""
        return self.policies.of(channel)

    def channels_of(self, peer_id: bytes) -> list[Channel]:
        return [c for c in self.channels.values() if c.state.peer_id == peer_id]

    def peers_to_reach(self) -> set[bytes]:
        """Peers with whom something is still to be settled."""
        return {c.state.peer_id for c in self.channels.values() if c.state.state in _NEEDS_PEER}

    def find_channel(self, peer_id: bytes, channel_id: bytes) -> Channel | None:
        return next(
            (
                c
                for c in self.channels_of(peer_id)
                if channel_id in (c.state.channel_id, c.state.temporary_channel_id)
            ),
            None,
        )

    def restored(self, row: ChannelRow) -> Channel:
        """A channel as it was stored, with its keys."""
        state = decode_state(row.state)
        return Channel(
            state,
            self.secrets_of(state.index),
            self.params.policy,
            self.wallet.shutdown_script(state.index),
        )

    # --- effects -------------------------------------------------------------------------------

    def carry_out(self, channel: Channel, effects: Iterable[Effect]) -> None:
        """Do what a channel asks, in order; whatever leaves the machine waits for the commit."""
        self._touched[channel.state.index] = channel
        self.turn.begin()
        for effect in effects:
            match effect:
                case Persist():
                    self._dirty[channel.state.index] = channel
                case Send(message):
                    send = self.connections.sender(channel.state.peer_id)
                    self.turn.after(partial(send, message))
                case Broadcast(transaction) | MutualClose(transaction):
                    self.broadcast(transaction)
                case FundingNeeded(script, value):
                    self.funding.pay(channel, script, value)
                case HtlcReceived():
                    self.carry_out(channel, answer(self, channel, effect))
                case HtlcFulfilled() | HtlcFailed():
                    self._resolved(channel, effect)
                case ChannelFailed(reason, sentence):
                    self._channel_failed(channel, reason, sentence)
                case ChannelReady():
                    log.info("channel %s is ready", channel.state.short_channel_id)
                    self.gossip.refresh(channel)
                case Watch():
                    # The tracker looks at every channel's funding outpoint by itself; what is new
                    # is that our refund is signed.
                    self.funding.signed(channel)

    def _resolved(self, channel: Channel, effect: HtlcFulfilled | HtlcFailed) -> None:
        """An HTLC that we offered has ended; with BOLT 5 that is told with each block again."""
        attempt = self.store.attempt_by_htlc(channel.state.index, effect.id)
        if attempt is None:
            self.forwards.resolved(channel, effect)
        elif isinstance(effect, HtlcFulfilled):
            self.payments.fulfilled(attempt, effect)
        else:
            self.payments.failed(attempt, effect)

    def broadcast(self, transaction: Transaction) -> None:
        """Keep it for rebroadcasting, then hand it to bitcoind once that is on disk."""
        self.store.add_transaction(transaction.txid, transaction.serialize())
        self.turn.after(partial(self.tracker.broadcast_soon, transaction))

    def _channel_failed(self, channel: Channel, reason: str, sentence: str) -> None:
        log.error("channel with %s failed: %s (%s)", channel.state.peer_id.hex(), sentence, reason)
        self.funding.aborted(channel, sentence)
        if channel.state.state is State.OPENING:
            self.forget_channel(channel)
        else:
            self.onchain.failed(channel)

    def _close_turn(self) -> None:
        touched, self._touched = self._touched, {}
        for channel in touched.values():
            try:
                effects = channel.commit()
            except OdaError as error:
                # One channel that can't be signed must not stop the others, nor the node.
                failure = RemoteProtocolError(error.reason, str(error))
                effects = channel.fail(failure)
            self.carry_out(channel, effects)
        self._touched = {}
        for channel in self._dirty.values():
            state = channel.state
            # A channel in OPENING has no signature of ours out: it is not remembered (BOLT 2).
            if state.state is State.CLOSED and state.spent_height is None:
                # A peer began it and never funded it: there would be no end of those.
                self.forget_channel(channel)
                self.store.forget_channel(state.index)
            elif state.state is not State.OPENING:
                self.onchain.remember(channel)
                self.store.save_channel(
                    ChannelRow(
                        index=state.index,
                        peer_id=state.peer_id,
                        closed=state.state in _GONE,
                        state=encode_state(state),
                    )
                )
        self._dirty = {}

    # --- peers ---------------------------------------------------------------------------------

    def on_connected(self, peer_id: bytes) -> None:
        self.gossip.on_connected(peer_id)
        for channel in self.channels_of(peer_id):
            if channel.state.state not in (State.OPENING, *ON_CHAIN, State.CLOSED):
                self.carry_out(channel, channel.connected())

    def on_disconnected(self, peer_id: bytes) -> None:
        self.gossip.on_disconnected(peer_id)
        for channel in self.channels_of(peer_id):
            if channel.state.state is State.OPENING:
                self.funding.aborted(channel, "The peer disconnected while the channel opened.")
                self.forget_channel(channel)
            else:
                self.carry_out(channel, channel.disconnected())

    def on_message(self, peer_id: bytes, message: Message) -> None:
        """A message about a channel, or one that opens one. Raises nothing."""
        if isinstance(message, Warning_):
            text = message.data.decode("utf-8", "replace")[:500]
            log.warning("peer %s warns: %r", peer_id.hex(), text)
            return
        if isinstance(message, Error) and message.channel_id == ALL_CHANNELS:
            for channel in self.channels_of(peer_id):
                self._receive(channel, message)
            return
        if isinstance(message, OpenChannel):
            self.funding.on_open_channel(peer_id, message)
            return
        if isinstance(message, GOSSIP_MESSAGES):
            self.gossip.on_message(peer_id, message)
            return
        channel_id = getattr(message, "channel_id", None) or getattr(
            message, "temporary_channel_id", None
        )
        if channel_id is None:
            return
        channel_or_none = self.find_channel(peer_id, channel_id)
        if channel_or_none is not None:
            self._receive(channel_or_none, message)
        elif isinstance(message, ChannelReestablish):
            self._unknown_channel(peer_id, channel_id)

    def _receive(self, channel: Channel, message: Message) -> None:
        try:
            effects = channel.receive(message)
        except OdaError as error:
            # Whoever is to blame, this channel can't go on; the peer is told why.
            failure = RemoteProtocolError(error.reason, str(error))
            self.carry_out(channel, channel.fail(failure))
            return
        self.carry_out(channel, effects)
        if isinstance(message, ChannelReestablish):
            self.tracker.check_depth(channel)
            self.gossip.refresh(channel)

    def _unknown_channel(self, peer_id: bytes, channel_id: bytes) -> None:
        sentence = b"This channel is not known here."
        error = Error(channel_id=channel_id, data=sentence)
        self.turn.after(partial(self.connections.sender(peer_id), error))

    async def wait_until(self, condition: Callable[[], bool], within: float) -> bool:
        """Poll a condition on the node's own state; True as soon as it holds."""
        deadline = asyncio.get_running_loop().time() + within
        while not condition():
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True
