"""Two channel state machines joined by queues: a Lightning channel without sockets or clocks.

Effects are recorded in the order in which the machines ask for them; messages travel only when a
test says so, so that a test can cut the connection between any two of them.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from channels.bolt import messages
from channels.bolt.channel import Channel, State
from channels.bolt.channel_state import Policy, decode_state, encode_state
from channels.bolt.commitment import ChannelType
from channels.bolt.effects import (
    ChannelFailed,
    Effect,
    FundingNeeded,
    HtlcFailed,
    HtlcFulfilled,
    HtlcReceived,
    MutualClose,
    Persist,
    Send,
)
from channels.bolt.keys import ChannelSecrets, public_key
from channels.bolt.messages import Message
from channels.bolt.opening import on_open_channel, open_channel
from channels.bolt.transactions import OutPoint, Transaction, p2wpkh
from channels.units import BlockHeight, FeeratePerKw, Msat, Sat, ShortChannelId

POLICY = Policy(chain_hash=bytes(range(32)), minimum_depth=1, to_self_delay=6)
FUNDING_TXID = hashlib.sha256(b"funding").digest()
SCID = ShortChannelId.of(101, 1, 0)


def secret(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def preimage_of(number: int) -> bytes:
    return hashlib.sha256(b"preimage %d" % number).digest()


def hash_of(number: int) -> bytes:
    return hashlib.sha256(preimage_of(number)).digest()


@dataclass
class Side:
    """One end: its machine, what is on its disk, and what it was told."""

    name: str
    channel: Channel | None = None
    disk: bytes = b""
    outbox: deque[bytes] = field(default_factory=deque)
    received: dict[int, HtlcReceived] = field(default_factory=dict)
    fulfilled: dict[int, bytes] = field(default_factory=dict)
    failed: dict[int, HtlcFailed] = field(default_factory=dict)
    closing: Transaction | None = None
    failures: list[ChannelFailed] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    funding_needed: FundingNeeded | None = None

    @property
    def machine(self) -> Channel:
        assert self.channel is not None
        return self.channel

    def carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            self.effects.append(effect)
            match effect:
                case Persist():
                    self.disk = encode_state(self.machine.state)
                case Send(message):
                    self.outbox.append(messages.encode(message))
                case HtlcReceived():
                    self.received[effect.id] = effect
                case HtlcFulfilled(htlc_id, _, preimage):
                    self.fulfilled[htlc_id] = preimage
                case HtlcFailed():
                    if effect.unsent:
                        assert effect.id not in self.fulfilled, "it never left"
                        continue  # its id will be that of another
                    self.failed[effect.id] = effect
                case MutualClose(transaction):
                    self.closing = transaction
                case ChannelFailed():
                    self.failures.append(effect)
                case FundingNeeded():
                    self.funding_needed = effect
                case _:
                    pass

    def commit(self) -> None:
        self.carry_out(self.machine.commit())


class Pair:
    """`alice` opened the channel to `bob`."""

    def __init__(
        self,
        channel_type: ChannelType = ChannelType.ANCHORS,
        funding: Sat = Sat(1_000_000),
        push: Msat = Msat(300_000_000),
        feerate: FeeratePerKw = FeeratePerKw(1000),
        reserve: Sat | None = None,
    ) -> None:
        self.alice, self.bob = Side("alice"), Side("bob")
        core, effects = open_channel(
            index=0,
            peer_id=public_key(secret("bob")),
            temporary_channel_id=secret("temporary"),
            secrets=ChannelSecrets.derive(secret("alice seed"), 0),
            policy=POLICY,
            channel_type=channel_type,
            funding_satoshis=funding,
            push_msat=push,
            feerate_per_kw=feerate,
            reserve=reserve,
        )
        self.alice.channel = Channel.of(core, self.script("alice"))
        self.alice.carry_out(effects)
        opening = messages.decode(self.alice.outbox.popleft())
        assert isinstance(opening, messages.OpenChannel)
        core, effects = on_open_channel(
            opening,
            index=0,
            peer_id=public_key(secret("alice")),
            secrets=ChannelSecrets.derive(secret("bob seed"), 0),
            policy=POLICY,
        )
        self.bob.channel = Channel.of(core, self.script("bob"))
        self.bob.carry_out(effects)
        self.deliver(self.bob)
        self.alice.carry_out(self.alice.machine.funding_created(OutPoint(FUNDING_TXID, 0)))
        self.exchange()

    @staticmethod
    def script(name: str) -> bytes:
        return p2wpkh(public_key(secret(name + " shutdown")))

    def confirm(self) -> Pair:
        for side in (self.alice, self.bob):
            side.carry_out(side.machine.funding_confirmed(1, BlockHeight(101), SCID))
        self.exchange()
        assert self.alice.machine.state.state is State.NORMAL
        assert self.bob.machine.state.state is State.NORMAL
        return self

    def other(self, side: Side) -> Side:
        return self.bob if side is self.alice else self.alice

    def deliver(self, sender: Side) -> Message:
        """Move one message from `sender` to the other side."""
        raw = sender.outbox.popleft()
        message = messages.decode(raw)
        assert isinstance(message, Message)
        receiver = self.other(sender)
        receiver.carry_out(receiver.machine.receive(message))
        return message

    def exchange(self) -> None:
        """Let messages and commitments flow until both sides are quiet."""
        while True:
            self.alice.commit()
            self.bob.commit()
            if self.alice.outbox:
                self.deliver(self.alice)
            elif self.bob.outbox:
                self.deliver(self.bob)
            else:
                return

    def restart(self, side: Side) -> None:
        """kill -9: what is not on disk is gone."""
        machine = side.machine
        state = decode_state(side.disk)
        side.channel = Channel(state, machine.core.secrets, POLICY, self.script(side.name))
        side.carry_out(side.channel.unresolved())

    def reconnect(self, *, restart: tuple[Side, ...] = ()) -> None:
        """Cut the connection, losing what is on the wire; `restart` those sides; connect again."""
        for side in (self.alice, self.bob):
            side.outbox.clear()
            if side in restart:
                self.restart(side)  # nobody tells it that it was disconnected
            else:
                side.carry_out(side.machine.disconnected())
        for side in (self.alice, self.bob):
            side.carry_out(side.machine.connected())

    def offer(self, side: Side, number: int, amount: Msat, cltv_expiry: int = 500) -> int:
        htlc_id, effects = side.machine.offer_htlc(
            amount, hash_of(number), cltv_expiry, bytes([number % 256]) * 1366
        )
        side.carry_out(effects)
        return htlc_id

    def pay(self, side: Side, number: int, amount: Msat) -> None:
        """Offer, commit, fulfill, settle."""
        htlc_id = self.offer(side, number, amount)
        self.exchange()
        other = self.other(side)
        other.carry_out(other.machine.fulfill_htlc(htlc_id, preimage_of(number)))
        self.exchange()

    def balances(self) -> tuple[int, int]:
        """(alice, bob) in msat, as both sides agree."""
        a, b = self.alice.machine.state.log, self.bob.machine.state.log
        assert (a.local_msat, a.remote_msat) == (b.remote_msat, b.local_msat)
        return a.local_msat, a.remote_msat
