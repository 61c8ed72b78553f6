"""Opening channels from our wallet, accepting channels, and closing them together."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from channels.bolt import opening
from channels.bolt.channel import Channel, State
from channels.bolt.commitment import ChannelType
from channels.bolt.messages import Error, OpenChannel
from channels.bolt.transactions import OutPoint, Transaction, TxOut
from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError
from channels.node.rpc_params import RpcErrorCode, RpcMethodError
from channels.node.wallet import ANCHOR_RESERVE
from channels.units import FeeratePerKw, Msat, Sat

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

OPEN_TIMEOUT = 60.0
"""Seconds that the peer may take for the whole of Channel Establishment."""

MAX_OPENING_PER_PEER = 8
"""Channels that a peer may have begun without funds on chain: each costs memory and disk."""

MAX_OPENING = 5_000
"""The same of all peers together: a stranger may have any number of node ids."""


@dataclass(slots=True)
class _Pending:
    """A channel of ours between open_channel and its broadcast."""

    opened: asyncio.Future[Transaction]
    feerate: FeeratePerKw
    transaction: Transaction | None = None


class Funding:
    """Channels that are being opened, in either direction."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pending: dict[int, _Pending] = {}

    async def open(
        self,
        peer_id: bytes,
        *,
        amount: Sat,
        push_msat: Msat,
        feerate: FeeratePerKw,
        reserve: Sat | None,
        announce: bool,
        channel_type: ChannelType,
    ) -> tuple[Channel, Transaction]:
        """fundchannel: returns once the funding transaction is handed to bitcoind."""
        node = self._node
        if peer_id not in node.connections.peers:
            raise RpcMethodError(
                RpcErrorCode.FUNDING_PEER_NOT_CONNECTED, "Peer not connected: connect to it first"
            )
        cap = node.params.channel_cap
        if cap is not None and amount > cap:
            raise RpcMethodError(
                RpcErrorCode.FUND_MAX_EXCEEDED,
                f"The embedded node opens channels of at most {cap} sat on {node.params.name}",
            )
        index = node.store.next_channel_index()
        core, effects = opening.open_channel(
            index=index,
            peer_id=peer_id,
            temporary_channel_id=secrets.token_bytes(32),
            secrets=node.secrets_of(index),
            policy=node.params.policy,
            channel_type=channel_type,
            funding_satoshis=amount,
            push_msat=push_msat,
            feerate_per_kw=feerate,
            reserve=reserve,
            announce=announce,
        )
        channel = Channel.of(core, node.wallet.shutdown_script(index))
        pending = _Pending(asyncio.get_running_loop().create_future(), feerate)
        self._pending[index] = pending
        node.add_channel(channel)
        node.carry_out(channel, effects)
        try:
            transaction = await asyncio.wait_for(pending.opened, OPEN_TIMEOUT)
        except TimeoutError:
            if pending.transaction is not None and channel.state.state is not State.OPENING:
                return channel, pending.transaction  # it was signed in this very moment
            self.aborted(channel, "")
            node.forget_channel(channel)
            raise RpcMethodError(
                RpcErrorCode.LIGHTNINGD, "The peer did not finish opening the channel in time"
            ) from None
        finally:
            self._pending.pop(index, None)
        return channel, transaction

    def pay(self, channel: Channel, script: bytes, value: Sat) -> None:
        """accept_channel came: build the funding transaction and offer its first commitment."""
        node = self._node
        pending = self._pending.get(channel.state.index)
        if pending is None:
            return  # nobody waits any more
        try:
            # An anchor channel needs coins beside it, to pay for a forced close.
            anchors = channel.state.channel_type is ChannelType.ANCHORS
            keep = ANCHOR_RESERVE if anchors else self.keep_for_anchors()
            transaction = node.wallet.fund(
                [TxOut(value, script)], pending.feerate, node.now(), keep=keep
            )
        except OdaError as error:
            self._refuse(channel, error)
            return
        pending.transaction = transaction
        vout = next(i for i, out in enumerate(transaction.outputs) if out.script == script)
        node.carry_out(channel, channel.funding_created(OutPoint(transaction.txid, vout)))

    def _refuse(self, channel: Channel, error: OdaError) -> None:
        """Our own wallet can't: tell the peer, forget the channel, tell the caller."""
        pending = self._pending.get(channel.state.index)
        if pending is not None and not pending.opened.done():
            pending.opened.set_exception(error)
        self._node.carry_out(
            channel, channel.fail(LocalProtocolError(error.reason, "The opener gave up."))
        )

    def signed(self, channel: Channel) -> None:
        """funding_signed came and is checked: our refund is safe, so the money may move."""
        pending = self._pending.get(channel.state.index)
        if pending is None or pending.transaction is None:
            return
        transaction = pending.transaction
        self._node.broadcast(transaction)
        self._node.turn.after(partial(_answer, pending.opened, transaction))

    def aborted(self, channel: Channel, sentence: str) -> None:
        """The opening ended without a channel: the coins are free again."""
        pending = self._pending.get(channel.state.index)
        if pending is None or channel.state.state is not State.OPENING:
            return
        if pending.transaction is not None:
            self._node.wallet.unreserve(pending.transaction)
            pending.transaction = None
        if not pending.opened.done():
            pending.opened.set_exception(RpcMethodError(RpcErrorCode.LIGHTNINGD, sentence))

    def on_open_channel(self, peer_id: bytes, message: OpenChannel) -> None:
        """A peer opens a channel to us."""
        node = self._node
        half_open = [c.state.peer_id for c in node.channels.values() if _is_half_open(c)]
        try:
            if half_open.count(peer_id) >= MAX_OPENING_PER_PEER or len(half_open) >= MAX_OPENING:
                raise RemoteProtocolError(
                    "too-many-openings", "Finish the channels you began to open first."
                )
            cap = node.params.channel_cap
            if cap is not None and message.funding_satoshis > cap:
                raise RemoteProtocolError("bad-funding-amount", f"We take at most {cap} sat.")
            index = node.store.next_channel_index()
            core, effects = opening.on_open_channel(
                message,
                index=index,
                peer_id=peer_id,
                secrets=node.secrets_of(index),
                policy=node.params.policy,
            )
        except OdaError as error:
            log.info("refused a channel of %s: %s", peer_id.hex(), error)
            refusal = Error(channel_id=message.temporary_channel_id, data=str(error).encode())
            node.turn.after(partial(node.connections.sender(peer_id), refusal))
            return
        channel = Channel.of(core, node.wallet.shutdown_script(index))
        node.add_channel(channel)
        node.carry_out(channel, effects)

    def keep_for_anchors(self) -> Sat:
        """What a withdrawal must leave on chain."""
        anchors = any(
            c.state.channel_type is ChannelType.ANCHORS and self._node.onchain.needs_coins(c)
            for c in self._node.channels.values()
        )
        return ANCHOR_RESERVE if anchors else Sat(0)


def _answer(opened: asyncio.Future[Transaction], transaction: Transaction) -> None:
    if not opened.done():
        opened.set_result(transaction)


def _is_half_open(channel: Channel) -> bool:
    """The peer began it, and there is nothing on chain yet that it cost the peer."""
    state = channel.state
    waiting = state.state in (State.OPENING, State.AWAITING_LOCKIN)
    return waiting and not state.opener and state.funding_height is None
