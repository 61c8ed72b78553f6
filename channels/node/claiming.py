"""Broadcasting our commitment and our claims, and paying more for them while time runs out."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from channels.bolt.channel import Channel
from channels.bolt.channel_commitments import local_commitment
from channels.bolt.claims import Claim, anchor_claim, at_stake
from channels.bolt.fee_bumping import Feerates, wanted, worth_replacing
from channels.bolt.onchain import Close, Closer, OutputKind, own_commitment
from channels.bolt.resolution import Resolution
from channels.bolt.transactions import OutPoint, Transaction
from channels.errors import UserError
from channels.node.coin_selection import CHANGE_WEIGHT, INPUT_WEIGHT
from channels.node.store import ClaimRow
from channels.units import FeeratePerKw, Sat

if TYPE_CHECKING:
    from channels.node.node import Node

log = logging.getLogger(__name__)


class Claiming:
    """What is broadcast for channels that are closed, or are to be."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.feerates = Feerates([(1, node.params.default_feerate)])
        self.packages: dict[int, tuple[Transaction, Transaction]] = {}

    # --- our commitment -------------------------------------------------------------------------

    def publish(self, channel: Channel) -> None:
        """Broadcast our commitment, and a child that pays for it when it pays too little itself."""
        node, index = self._node, channel.state.index
        commitment = own_commitment(channel.core)
        if commitment is None:
            return
        child = self._child(channel, commitment)
        if child is not None:
            # A parent that pays less than nodes relay now gets in only together with its child.
            node.store.add_transaction(commitment.txid, commitment.serialize())
            self.packages[index] = (commitment, child)
            node.turn.after(partial(node.tracker.broadcast_package, commitment, child))
        elif not node.store.is_wanted(commitment.txid):
            node.broadcast(commitment)

    def _child(self, channel: Channel, commitment: Transaction) -> Transaction | None:
        """BOLT 5: spend our anchor so that the commitment gets into a block; None if it is fine."""
        node, core = self._node, channel.core
        begin = channel.state.failed_height or node.height
        claim = anchor_claim(core, begin)
        if claim is None:
            return None
        fee = local_commitment(core).fee
        stake = at_stake(core) // 2 * 1000 // (commitment.weight + claim.weighed())
        rate = wanted(
            self.feerates,
            begin=begin,
            height=node.height,
            deadline=claim.deadline,
            highest=min(node.params.policy.max_feerate, FeeratePerKw(stake)),
        )
        if rate * commitment.weight <= fee * 1000:
            return None
        return self._ensure(channel, claim, rate, (commitment.weight, fee))

    # --- claims ---------------------------------------------------------------------------------

    def claim(self, channel: Channel, resolution: Resolution) -> None:
        """Spend what is ours and not spent yet, and stop trying where somebody was faster."""
        node = self._node
        self._stop_rivals(channel, resolution)
        for tracked in resolution.outputs:
            claim = tracked.claim
            if tracked.spend is not None:
                self._drop(channel, tracked.output.outpoint, tracked.spend.transaction.txid)
            elif claim is not None and node.height >= claim.from_height:
                rate = self._feerate(channel, claim, tracked.output.kind, resolution.close)
                if rate is not None:
                    self._ensure(channel, claim, rate)

    def _stop_rivals(self, channel: Channel, resolution: Resolution) -> None:
        """What the transaction that spent the funding output has made impossible."""
        node, index = self._node, channel.state.index
        self.packages.pop(index, None)
        if not resolution.close.owner_is_us:
            ours = local_commitment(channel.core).tx.txid
            if node.store.is_wanted(ours):
                node.store.stop_broadcast(ours)
        # Claims of another close, before a reorganization, and of our anchor.
        there = {tracked.output.outpoint for tracked in resolution.outputs}
        for row in node.store.claims(index):
            if row.outpoint not in there:
                self._drop(channel, row.outpoint, resolution.close.transaction.txid)

    def _drop(self, channel: Channel, outpoint: OutPoint, spent_by: bytes) -> None:
        """Our claim of this output can't confirm, unless it is `spent_by`: its coins are free."""
        node, index = self._node, channel.state.index
        row = node.store.claim(index, outpoint)
        if row is None or row.claim_txid == spent_by:
            return
        raw = node.store.transaction(row.claim_txid)
        if raw is not None:
            node.wallet.unreserve(Transaction.parse(raw))
        node.store.stop_broadcast(row.claim_txid)
        node.store.forget_claim(index, outpoint)

    def _destination(self, channel: Channel) -> bytes:
        """Where a claim pays: what `close` was told, else the wallet."""
        chosen = channel.state.closing.local_scriptpubkey
        return chosen or self._node.wallet.shutdown_script(channel.state.index)

    def _feerate(
        self, channel: Channel, claim: Claim, kind: OutputKind, close: Close
    ) -> FeeratePerKw | None:
        """What a claim should pay now; None when it is not worth its fee."""
        policy = self._node.params.policy
        floor = policy.min_feerate
        if claim.fixed:
            return floor
        if claim.output is not None:
            # Up to half of what it brings, with the weight of a coin and its change.
            weight = claim.weighed() + INPUT_WEIGHT + CHANGE_WEIGHT
            highest = FeeratePerKw(claim.value // 2 * 1000 // weight)
        else:
            highest = claim.highest_feerate(self._destination(channel))
            if close.closer is not Closer.REVOKED and claim.deadline is not None:
                highest = max(min(floor, highest), FeeratePerKw(highest // 2))
        if highest < floor:
            if kind is not OutputKind.OUR_HTLC:
                return None
            # Until it is ours again, the payment may succeed: that is worth a few satoshis.
            highest = floor
        return wanted(
            self.feerates,
            begin=claim.from_height,
            height=self._node.height,
            deadline=claim.deadline,
            highest=min(policy.max_feerate, highest),
        )

    def _ensure(
        self,
        channel: Channel,
        claim: Claim,
        rate: FeeratePerKw,
        paid_for: tuple[int, Sat] = (0, Sat(0)),
    ) -> Transaction | None:
        """A transaction for the claim is being broadcast and pays what it should; which one."""
        node, index = self._node, channel.state.index
        row = node.store.claim(index, claim.outpoint)
        old = None
        if row is not None:
            raw = node.store.transaction(row.claim_txid)
            alive = raw is not None and node.store.is_wanted(row.claim_txid)
            old = Transaction.parse(raw) if raw is not None and alive else None
            if old is not None and (claim.fixed or not worth_replacing(row.feerate, rate)):
                return old
        new = self._build(channel, claim, rate, paid_for, old)
        if new is None:
            return old
        log.info("%s of %s is claimed by %s", claim.name, claim.outpoint, new.txid_hex)
        if old is not None:
            node.store.stop_broadcast(old.txid)
        node.store.save_claim(index, ClaimRow(claim.outpoint, new.txid, rate))
        if paid_for[0]:
            node.store.add_transaction(new.txid, new.serialize())  # sent with its parent
        else:
            node.broadcast(new)
        return new

    def _build(
        self,
        channel: Channel,
        claim: Claim,
        rate: FeeratePerKw,
        paid_for: tuple[int, Sat],
        replacing: Transaction | None,
    ) -> Transaction | None:
        node = self._node
        if claim.fixed:
            return claim.signed(claim.unsigned())
        script = self._destination(channel)
        parent, _ = paid_for
        if claim.output is None and not parent and claim.highest_feerate(script) >= rate:
            return claim.sweep(script, rate)
        try:
            unsigned = node.wallet.attach(
                claim.unsigned(),
                value=claim.value,
                weight=claim.weighed(),
                feerate=rate,
                change=node.wallet.shutdown_script(channel.state.index),
                now=node.now(),
                paid_for=paid_for,
                replacing=replacing,
            )
        except UserError as error:
            log.warning("%s of %s waits for coins: %s", claim.name, claim.outpoint, error)
            return None
        return claim.signed(unsigned)
