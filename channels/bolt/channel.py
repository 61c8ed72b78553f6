"""One channel as a state machine: messages and commands in, ordered effects out (BOLT 2).

The rules live in `opening`, `updates`, `reestablish` and `mutual_close`; this file is the table of
which message is legal in which state, and the one door through which the node reaches them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from channels.bolt import deadlines, mutual_close, opening, reestablish, updates
from channels.bolt.channel_state import ChannelState, Core, Opening, Policy, State
from channels.bolt.effects import ChannelFailed, Effect, HtlcReceived, Persist, Send
from channels.bolt.htlcs import Stage
from channels.bolt.keys import ChannelSecrets
from channels.bolt.messages import (
    AcceptChannel,
    ChannelReady,
    ChannelReestablish,
    ClosingSigned,
    CommitmentSigned,
    Error,
    FundingCreated,
    FundingSigned,
    Message,
    RevokeAndAck,
    Shutdown,
    UpdateAddHtlc,
    UpdateFailHtlc,
    UpdateFailMalformedHtlc,
    UpdateFee,
    UpdateFulfillHtlc,
)
from channels.bolt.transactions import OutPoint, Transaction
from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.units import BlockHeight, FeeratePerKw, Msat, ShortChannelId

_UPDATES: tuple[type[Message], ...] = (
    UpdateAddHtlc,
    UpdateFulfillHtlc,
    UpdateFailHtlc,
    UpdateFailMalformedHtlc,
    UpdateFee,
    CommitmentSigned,
    RevokeAndAck,
)

LEGAL: dict[State, tuple[type[Message], ...]] = {
    State.OPENING: (AcceptChannel, FundingCreated, FundingSigned),
    State.AWAITING_LOCKIN: (ChannelReady, Shutdown),
    State.NORMAL: (*_UPDATES, ChannelReady, Shutdown),
    State.SHUTTING_DOWN: (*_UPDATES, ChannelReady, Shutdown, ClosingSigned),
    # channel_ready comes again after a reconnection of a channel that never carried a payment.
    State.NEGOTIATING: (ChannelReady, Shutdown, ClosingSigned),
    # The peer may repeat itself until it sees our last message or the closing transaction.
    State.CLOSING_AGREED: (ChannelReady, Shutdown, ClosingSigned),
    State.FAILED: (),
    State.SPEND_SEEN: (),
    State.ONCHAIN: (),
    State.CLOSED: (),
}
"""Which messages a channel takes in which state; channel_reestablish and error always."""

_HANDLERS: dict[type[Message], Callable[[Core, Any], list[Effect]]] = {
    AcceptChannel: opening.on_accept_channel,
    FundingCreated: opening.on_funding_created,
    FundingSigned: opening.on_funding_signed,
    ChannelReady: opening.on_channel_ready,
    UpdateAddHtlc: updates.on_add,
    UpdateFulfillHtlc: updates.on_fulfill,
    UpdateFailHtlc: updates.on_fail,
    UpdateFailMalformedHtlc: updates.on_fail_malformed,
    UpdateFee: updates.on_fee,
    CommitmentSigned: updates.on_commitment_signed,
    RevokeAndAck: updates.on_revoke_and_ack,
    ClosingSigned: mutual_close.on_closing_signed,
}


ON_CHAIN = (State.SPEND_SEEN, State.ONCHAIN)
"""The funding output is spent."""

_DEAD = (State.FAILED, *ON_CHAIN, State.CLOSED)
"""Whatever the peer says, the chain decides now."""


class Channel:
    """A channel, from open_channel to its last confirmation.

    Methods return effects that must be carried out in order. After RemoteProtocolError the channel
    must be failed with `fail`; after LocalProtocolError nothing has changed.
    """

    def __init__(
        self, state: ChannelState, secrets: ChannelSecrets, policy: Policy, shutdown_script: bytes
    ) -> None:
        self._core = Core(state, secrets, policy)
        self._shutdown_script = shutdown_script

    @classmethod
    def of(cls, core: Core, shutdown_script: bytes) -> Channel:
        """A channel that is just being opened (`opening.open_channel`, `on_open_channel`)."""
        channel = cls(core.state, core.secrets, core.policy, shutdown_script)
        channel._core = core
        return channel

    @property
    def state(self) -> ChannelState:
        return self._core.state

    @property
    def core(self) -> Core:
        return self._core

    @property
    def usable(self) -> bool:
        """Payments may be offered right now."""
        core = self._core
        closing = core.state.closing
        return (
            core.reestablished
            and core.state.state is State.NORMAL
            and closing.local_scriptpubkey is None
        )

    def receive(self, message: Message) -> list[Effect]:
        core = self._core
        if isinstance(message, Error):
            return self._failed_by_peer(message)
        if core.state.state is State.FAILED and isinstance(message, ChannelReestablish):
            return reestablish.retransmit_error(core)
        if core.state.state in _DEAD:
            return []
        if isinstance(message, ChannelReestablish):
            return reestablish.on_channel_reestablish(core, message)
        if type(message) not in LEGAL[core.state.state]:
            name = type(message).__name__
            raise RemoteProtocolError(
                "unexpected-message", f"{name} is not allowed in {core.state.state.value}."
            )
        if not core.reestablished:
            # BOLT 2: no other message for a channel before channel_reestablish.
            raise RemoteProtocolError(
                "message-before-reestablish", "A message came before channel_reestablish."
            )
        return self._handle(message)

    def _handle(self, message: Message) -> list[Effect]:
        core = self._core
        if core.state.state is State.CLOSING_AGREED:
            return mutual_close.repeat(core, message)
        if isinstance(message, Shutdown):
            feerate = core.state.log.fees[0].feerate_per_kw
            return mutual_close.on_shutdown(core, message, self._shutdown_script, feerate)
        if isinstance(message, ClosingSigned) and core.state.state is State.SHUTTING_DOWN:
            raise RemoteProtocolError("unexpected-message", "closing_signed came too early.")
        effects = _HANDLERS[type(message)](core, message)
        return effects + self._continue_closing()

    def _continue_closing(self) -> list[Effect]:
        core = self._core
        return mutual_close.continue_shutdown(core) + mutual_close.negotiate(core)

    def commit(self) -> list[Effect]:
        """Called at the end of a turn: sign what the peer's commitment lacks, if that is due."""
        return updates.commit(self._core) + self._continue_closing()

    def offer_htlc(
        self, amount_msat: Msat, payment_hash: bytes, cltv_expiry: int, onion: bytes
    ) -> tuple[int, list[Effect]]:
        return updates.offer_htlc(self._core, amount_msat, payment_hash, cltv_expiry, onion)

    def fulfill_htlc(self, htlc_id: int, payment_preimage: bytes) -> list[Effect]:
        return self._resolve(updates.fulfill_htlc(self._core, htlc_id, payment_preimage))

    def fail_htlc(self, htlc_id: int, reason: bytes) -> list[Effect]:
        return self._resolve(updates.fail_htlc(self._core, htlc_id, reason))

    def fail_malformed_htlc(self, htlc_id: int, failure_code: int) -> list[Effect]:
        return self._resolve(updates.fail_malformed_htlc(self._core, htlc_id, failure_code))

    def _resolve(self, effects: list[Effect]) -> list[Effect]:
        # Before channel_reestablish nothing may be sent; the update stays PROPOSED and goes out
        # with the others then.
        return effects if self._core.reestablished else [Persist()]

    def propose_fee(self, feerate_per_kw: FeeratePerKw) -> list[Effect]:
        return updates.propose_fee(self._core, feerate_per_kw)

    def funding_created(self, funding: OutPoint) -> list[Effect]:
        return opening.funding_created(self._core, funding)

    def funding_confirmed(
        self, depth: int, height: BlockHeight, scid: ShortChannelId
    ) -> list[Effect]:
        return opening.funding_confirmed(self._core, depth, height, scid)

    def close(self, scriptpubkey: bytes, feerate_per_kw: FeeratePerKw) -> list[Effect]:
        return mutual_close.request(self._core, scriptpubkey, feerate_per_kw)

    def connected(self) -> list[Effect]:
        return reestablish.connected(self._core)

    def disconnected(self) -> list[Effect]:
        return reestablish.disconnected(self._core)

    def unresolved(self, accepted: Collection[bytes] = ()) -> list[HtlcReceived]:
        """Incoming HTLCs that are committed and not resolved: what a restarted node must redo.

        On a channel that is dead only those whose payment hash is `accepted`, which wait for their
        preimage. Any other is left to expire, because the chain may not let us claim it.
        """
        dead = self._core.state.state in _DEAD
        return [
            updates.received(h)
            for h in self._core.state.log.htlcs
            if not h.ours and h.added is Stage.DONE and h.removed is None
            if not dead or h.payment_hash in accepted
        ]

    def funding_spent(self, height: BlockHeight, transaction: Transaction) -> list[Effect]:
        """A transaction in block `height` spends the funding output."""
        state = self._core.state
        if state.closing.transaction is None and mutual_close.is_agreed(self._core, transaction):
            # The peer has broadcast it, and its last closing_signed did not reach us.
            state.closing.transaction = transaction.serialize()
        self._core.reestablished = False
        state.state = State.ONCHAIN
        state.spent_height = height
        return [Persist()]

    def block_undone(self, height: BlockHeight) -> list[Effect]:
        """The block at `height` left the best chain: what it confirmed is unconfirmed again."""
        state = self._core.state
        if state.spent_height == height:
            state.spent_height = None
            if state.state is State.ONCHAIN:
                state.state = State.SPEND_SEEN
        elif state.funding_height == height:
            state.funding_height = None
        else:
            return []
        return [Persist()]

    def new_height(self, height: BlockHeight) -> list[Effect]:
        """The chain has grown to `height`: is an HTLC running out of time? (BOLT 2)"""
        state = self._core.state
        if state.funding_height is None and state.opened_height is None:
            state.opened_height = height
            return [Persist()]
        late = deadlines.overdue(self._core, height)
        if late is not None:
            return self.fail(late)
        return self.forget() if deadlines.never_funded(self._core, height) else []

    def forget(self) -> list[Effect]:
        """Everything is resolved and too deep to be undone, or never was: it is history."""
        self._core.state.state = State.CLOSED
        return [Persist()]

    def fail(self, error: RemoteProtocolError | LocalProtocolError) -> list[Effect]:
        """Tell the peer that the channel can't go on (BOLT 1, `error`) and keep that on disk."""
        state = self._core.state
        if state.state in (*ON_CHAIN, State.CLOSED):
            return []
        sentence = str(error)
        if state.state is not State.OPENING:
            state.state = State.FAILED
            state.failure = (error.reason, sentence)
            self._core.reestablished = False
        return [
            Persist(),
            Send(Error(channel_id=state.channel_id, data=sentence.encode())),
            ChannelFailed(error.reason, sentence),
        ]

    def _failed_by_peer(self, message: Error) -> list[Effect]:
        state = self._core.state
        text = message.data.decode("utf-8", "replace")[:500]
        sentence = f"The peer failed the channel: {text!r}."
        if state.state is State.CLOSING_AGREED or state.state in _DEAD:
            return []
        if state.state is not State.OPENING:
            state.state = State.FAILED
            state.failure = ("failed-by-peer", sentence)
            self._core.reestablished = False
        return [Persist(), ChannelFailed("failed-by-peer", sentence)]


__all__ = ["LEGAL", "ON_CHAIN", "Channel", "Opening", "State"]
