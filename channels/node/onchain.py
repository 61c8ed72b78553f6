"""Channels that end on chain without the peer's help: watching, claiming, and telling (BOLT 5).

What the chain did is stored, and everything else follows from it anew with each block: which
outputs are ours, what to broadcast, which payments succeeded. So neither a crash between any two
steps nor a reorganization needs a rule of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from channels.bolt.channel import Channel, State
from channels.bolt.effects import HtlcFailed, HtlcFulfilled
from channels.bolt.fee_bumping import Feerates
from channels.bolt.htlcs import Stage
from channels.bolt.onchain import (
    Close,
    Closer,
    OutputKind,
    PastHtlc,
    identify,
    own_commitment,
)
from channels.bolt.resolution import Resolution, Spend, resolve
from channels.bolt.transactions import OutPoint, Transaction
from channels.errors import LocalProtocolError
from channels.node.claiming import Claiming
from channels.units import BlockHeight

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)

FEE_TARGETS = (2, 6, 12, 100)
"""The numbers of blocks for which bitcoind is asked for an estimate."""


_DYING = (State.FAILED, State.SPEND_SEEN, State.ONCHAIN)


class Onchain:
    """All closes of one node; `Tracker` reports blocks, `Node` reports failures."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._claiming = Claiming(node)
        self._spends: dict[int, dict[OutPoint, Spend]] = {}
        self._closes: dict[int, Close] = {}
        self._resolutions: dict[int, Resolution] = {}
        self._recorded: dict[tuple[int, bool], int] = {}

    def start(self) -> None:
        """Go on with what was under way before a restart."""
        for channel in self._node.channels.values():
            self._spends[channel.state.index] = self._node.store.spends(channel.state.index)
        for channel in list(self._node.channels.values()):
            self.look(channel)

    # --- what the node reports ------------------------------------------------------------------

    def remember(self, channel: Channel) -> None:
        """Before a channel is saved: keep what would punish the peer for the commitments that it
        may revoke (BOLT 5). A dead one may have got a preimage, or have died just now."""
        if channel.state.state in _DYING:
            self._node.turn.after(
                lambda: self._node.tracker.spawn(self._look_again(channel)),
            )
        index, htlcs = channel.state.index, []
        for htlc in channel.state.log.htlcs:
            # What was only proposed may be forgotten by both sides, and its id given out again.
            seen = htlc.id < self._recorded.get((index, htlc.ours), 0)
            if not seen and htlc.added is not Stage.PROPOSED:
                htlcs.append(PastHtlc(htlc.ours, htlc.id, htlc.payment_hash, htlc.cltv_expiry))
        if htlcs:
            self._node.store.add_past_htlcs(index, htlcs)
        for past in htlcs:
            self._recorded[index, past.ours] = past.id + 1

    def failed(self, channel: Channel) -> None:
        """The channel can't go on: our commitment goes on chain once that is saved."""
        if channel.state.failed_height is None:
            channel.state.failed_height = self._node.height

    def force(self, channel: Channel) -> None:
        """The user wants it closed without the peer's consent."""
        why = LocalProtocolError("closed-by-user", "The channel is closed by its owner.")
        self._node.carry_out(channel, channel.fail(why))

    async def refresh(self) -> None:
        """Ask bitcoind what feerates are, if any claim of ours depends on them."""
        if any(c.state.state in _DYING for c in self._node.channels.values()):
            feerate = self._node.tracker.feerate
            rates = [(blocks, await feerate(blocks)) for blocks in FEE_TARGETS]
            self._claiming.feerates = Feerates(rates)

    async def _look_again(self, channel: Channel) -> None:
        await self.refresh()
        self.look(channel)

    def connect(self, height: BlockHeight, transactions: Sequence[Transaction]) -> None:
        """The wallet has seen this block: what does it do to our channels?"""
        watched: dict[OutPoint, list[Channel]] = {}
        for channel in self._node.channels.values():
            # A peer can copy the outpoint of another's channel in its opening.
            for outpoint in self._outpoints(channel):
                watched.setdefault(outpoint, []).append(channel)
        for transaction in transactions:
            for txin in transaction.inputs:
                for channel in watched.get(txin.outpoint, []):
                    self._spent(channel, txin.outpoint, Spend(transaction, height))
                    for outpoint in self._outpoints(channel):
                        affected = watched.setdefault(outpoint, [])
                        if channel not in affected:
                            affected.append(channel)
        for channel in list(self._node.channels.values()):
            self.look(channel)

    def disconnect(self, height: BlockHeight) -> None:
        """The block at `height` left the chain: what it spent is unspent, for now."""
        self._node.store.undo_spends(height)
        for index, spends in self._spends.items():
            for outpoint in [o for o, spend in spends.items() if spend.height >= height]:
                del spends[outpoint]
                channel = self._node.channels.get(index)
                if channel is not None and outpoint == channel.state.funding:
                    self._closes.pop(index, None)
                    self._resolutions.pop(index, None)

    def _outpoints(self, channel: Channel) -> set[OutPoint]:
        state = channel.state
        if state.funding_txid is None or state.state is State.CLOSED:
            return set()
        resolution = self._resolutions.get(state.index)
        outputs = () if resolution is None else resolution.outputs
        return {state.funding, *(tracked.output.outpoint for tracked in outputs)}

    def _spent(self, channel: Channel, outpoint: OutPoint, spend: Spend) -> None:
        node, state = self._node, channel.state
        self._spends.setdefault(state.index, {})[outpoint] = spend
        node.store.add_spend(state.index, outpoint, spend)
        if outpoint == state.funding:
            node.carry_out(channel, channel.funding_spent(spend.height, spend.transaction))
        self._resolve(channel, spend.height)

    # --- what follows from it -------------------------------------------------------------------

    def _resolve(self, channel: Channel, height: BlockHeight) -> Resolution | None:
        index = channel.state.index
        spends = self._spends.get(index, {})
        if channel.state.funding_txid is None or channel.state.funding not in spends:
            return None
        close = self._closes.get(index)
        if close is None:
            transaction = spends[channel.state.funding].transaction
            past = partial(self._node.store.past_htlcs, index)
            close = self._closes[index] = identify(channel.core, transaction, past)
            level = logging.INFO if close.closer is Closer.MUTUAL else logging.WARNING
            if close.closer in (Closer.UNKNOWN, Closer.FUTURE):
                level = logging.ERROR  # BOLT 5: MUST warn the user of potentially lost funds
            name, txid = channel.state.channel_id.hex(), transaction.txid_hex
            log.log(level, "channel %s: %s (%s)", name, close.closer.value, txid)
        resolution = resolve(channel.core, close, spends, height)
        self._resolutions[index] = resolution
        return resolution

    def look(self, channel: Channel) -> None:
        """Do what is due for a channel now. Doing it again changes nothing."""
        node, state = self._node, channel.state
        if state.state in (State.OPENING, State.CLOSED):
            return
        resolution = self._resolve(channel, node.height)
        if resolution is None:
            # After a reorganization bitcoind still has what spent the funding output, or ours
            # takes its place; but not that of a close both agreed to, which we broadcast too.
            undone = state.state is State.SPEND_SEEN and state.closing.transaction is None
            if state.state is State.FAILED or undone:
                self._claiming.publish(channel)
            return
        node.turn.begin()
        self._settle(channel, resolution)
        self._claiming.claim(channel, resolution)
        if _depth(node.height, resolution.resolved) >= node.params.policy.irrevocable_depth:
            node.carry_out(channel, channel.forget())
            node.store.forget_close(state.index)
            for known in (self._spends, self._closes):
                known.pop(state.index, None)

    def _settle(self, channel: Channel, resolution: Resolution) -> None:
        """Tell payments what became of their HTLCs."""
        node, policy = self._node, self._node.params.policy
        for fate in resolution.fates:
            htlc = fate.htlc
            if fate.payment_preimage is not None:
                effect = HtlcFulfilled(htlc.id, htlc.payment_hash, fate.payment_preimage)
                node.carry_out(channel, [effect])
                continue
            # Whoever waits upstream can't wait for ever; who only wants to know can.
            own = node.store.attempt_by_htlc(channel.state.index, htlc.id) is not None
            enough = policy.irrevocable_depth if own else policy.reasonable_depth
            if _depth(node.height, fate.height) >= enough:
                gone = HtlcFailed(htlc.id, htlc.payment_hash, htlc.reason, on_chain=True)
                node.carry_out(channel, [gone])

    # --- for the RPC ----------------------------------------------------------------------------

    def resolution(self, channel: Channel) -> Resolution | None:
        """Where a close stands; before it confirms, as if the next block had our commitment."""
        state = channel.state
        known = self._resolutions.get(state.index)
        if known is not None or state.state is not State.FAILED:
            return known
        transaction = own_commitment(channel.core)
        if transaction is None:
            return None
        spend = Spend(transaction, BlockHeight(self._node.height + 1))
        close = identify(channel.core, transaction, lambda: ())
        return resolve(channel.core, close, {state.funding: spend}, self._node.height)

    def claimable(self, channel: Channel, htlc_id: int) -> bool:
        """Whether a preimage would bring an HTLC that the peer offered, on a dead channel."""
        resolution = self.resolution(channel)
        return resolution is not None and any(
            tracked.spend is None
            and tracked.output.kind is OutputKind.THEIR_HTLC
            and tracked.output.htlc is not None
            and tracked.output.htlc.id == htlc_id
            for tracked in resolution.outputs
        )

    def closed_by(self, channel: Channel) -> Transaction | None:
        """What closes the channel: what spent its funding output, or else our commitment."""
        spend = self._spends.get(channel.state.index, {}).get(channel.state.funding)
        return own_commitment(channel.core) if spend is None else spend.transaction

    def packages(self) -> list[tuple[Transaction, Transaction]]:
        """Commitments that must be broadcast together with the child that pays for them."""
        return list(self._claiming.packages.values())

    def status(self, channel: Channel) -> list[str]:
        """lightningd's status lines of a channel that is on chain."""
        resolution = self._resolutions.get(channel.state.index)
        if resolution is None:
            return []
        depth = self._node.params.policy.irrevocable_depth
        text = resolution.status(self._node.height, depth)
        return [f"ONCHAIN:{resolution.close.closer.value}", f"ONCHAIN:{text}"]

    def needs_coins(self, channel: Channel) -> bool:
        """Whether claims of this channel may still need the wallet's coins for their fees."""
        if channel.state.state not in (State.ONCHAIN, State.SPEND_SEEN):
            return channel.state.state not in (State.OPENING, State.CLOSED)
        resolution = self._resolutions.get(channel.state.index)
        return resolution is not None and bool(resolution.claims)


def _depth(height: BlockHeight, since: BlockHeight | None) -> int:
    """Confirmations; 0 when it has not happened."""
    return 0 if since is None else max(0, height - since + 1)
