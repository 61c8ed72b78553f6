"""What has become of a closed channel's outputs, and what is to be done about them (BOLT 5).

Everything follows from what is in the chain: which transaction spent which output, in which
block. A reorganization that takes a spend away takes away all that followed from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from channels.bolt.channel_state import Core
from channels.bolt.claims import Claim, claim_of
from channels.bolt.htlcs import LiveHtlc
from channels.bolt.onchain import Close, CloseOutput, Closer, OutputKind
from channels.bolt.transactions import OutPoint, Transaction, p2wpkh, p2wsh
from channels.units import BlockHeight

_P2WPKH = p2wpkh(bytes(33))
"""A script of the size to which claims pay."""


@dataclass(frozen=True, slots=True)
class Spend:
    """A transaction in block `height` that spends an output."""

    transaction: Transaction
    height: BlockHeight


Spends = Mapping[OutPoint, Spend]


@dataclass(frozen=True, slots=True)
class Tracked:
    """An output of the commitment, or of a second stage transaction, in block `height`.

    `claim` is how we spend it, as long as nobody has. `resolved` is the height from which nothing
    is left to do for it, as long as the chain stays as it is.
    """

    output: CloseOutput
    height: BlockHeight
    claim: Claim | None = None
    spend: Spend | None = None
    resolved: BlockHeight | None = None


@dataclass(frozen=True, slots=True)
class Fate:
    """What the chain decided about an HTLC that we offered.

    With a preimage it is fulfilled, for good. Without, it has been ours again since `height`.
    """

    htlc: LiveHtlc
    height: BlockHeight
    payment_preimage: bytes | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """`closed` is the height of the transaction that spent the funding output."""

    close: Close
    closed: BlockHeight
    outputs: tuple[Tracked, ...]
    fates: tuple[Fate, ...]

    @property
    def resolved(self) -> BlockHeight | None:
        """The height at which the last output was resolved, or None."""
        heights = [tracked.resolved for tracked in self.outputs]
        known = [height for height in heights if height is not None]
        return max([self.closed, *known]) if len(known) == len(heights) else None

    @property
    def unresolved(self) -> list[Tracked]:
        return [tracked for tracked in self.outputs if tracked.resolved is None]

    @property
    def claims(self) -> list[Claim]:
        return [tracked.claim for tracked in self.outputs if tracked.claim is not None]

    def status(self, height: BlockHeight, irrevocable_depth: int) -> str:
        """As lightningd puts it in listpeerchannels."""
        waiting, resolved = self.unresolved, self.resolved
        if resolved is not None:
            left = max(0, resolved + irrevocable_depth - 1 - height)
            return f"All outputs resolved: waiting {left} more blocks before forgetting channel"
        text = f"{len(waiting)} outputs unresolved"
        ours = [tracked for tracked in waiting if tracked.claim is not None]
        if not ours:
            return f"{text}: waiting for the peer, or for an HTLC to expire"
        first = min(ours, key=lambda tracked: tracked.claim.from_height if tracked.claim else 0)
        assert first.claim is not None, "it was chosen for having one"
        what = f"{first.output.kind.value} ({first.output.outpoint}) using {first.claim.name}"
        left = first.claim.from_height - height
        if left > 0:
            return f"{text}: in {left} blocks will spend {what}"
        return f"{text}: waiting confirmation that we spent {what}"


def resolve(core: Core, close: Close, spends: Spends, height: BlockHeight) -> Resolution:
    """Where everything stands with the chain at `height`; `spends` has the funding output's."""
    closed = spends[core.state.funding].height
    tracked: list[Tracked] = []
    waiting = [(output, closed) for output in close.outputs]
    while waiting:
        output, since = waiting.pop(0)
        spend = spends.get(output.outpoint)
        if spend is None:
            tracked.append(_unspent(core, close, output, since, height))
            continue
        resolved = max(spend.height, since)
        tracked.append(Tracked(output, since, spend=spend, resolved=resolved))
        stage = _second_stage_output(close, output, spend)
        if stage is not None:
            waiting.append((stage, spend.height))
    return Resolution(close, closed, tuple(tracked), tuple(_fates(core, close, closed, tracked)))


def _unspent(
    core: Core, close: Close, output: CloseOutput, since: BlockHeight, height: BlockHeight
) -> Tracked:
    claim = claim_of(core, close, output, since, _preimage(core, close, output))
    if claim is not None and claim.output is None:
        # What no feerate that is relayed would leave anything of is not worth a transaction. An
        # HTLC of ours must be taken back nevertheless: until then the payment may succeed.
        too_small = claim.highest_feerate(_P2WPKH) < core.policy.min_feerate
        if too_small and output.kind is not OutputKind.OUR_HTLC:
            claim = None
    if claim is not None:
        return Tracked(output, since, claim)
    if output.htlc is None:
        # BOLT 5: what is theirs, and what is too small, is resolved by the commitment itself.
        return Tracked(output, since, resolved=since)
    # BOLT 5: an HTLC that they offered, and that we can't claim, is resolved when it expires.
    expired = height >= output.htlc.cltv_expiry
    expiry = BlockHeight(max(since, output.htlc.cltv_expiry))
    return Tracked(output, since, resolved=expiry if expired else None)


def _preimage(core: Core, close: Close, output: CloseOutput) -> bytes | None:
    """The preimage of an HTLC that they offered and that we have decided to fulfill."""
    if output.kind is not OutputKind.THEIR_HTLC or output.htlc is None:
        return None
    live = core.state.log.find(False, output.htlc.id)
    return None if live is None else live.payment_preimage


def _second_stage_output(close: Close, output: CloseOutput, spend: Spend) -> CloseOutput | None:
    """The output of an HTLC transaction that its commitment's owner has made, if this is one."""
    kinds = {
        Closer.OURS: OutputKind.DELAYED_OUTPUT_TO_US,
        Closer.REVOKED: OutputKind.DELAYED_CHEAT_OUTPUT_TO_THEM,
    }
    if output.htlc is None or close.closer not in kinds:
        return None
    transaction = spend.transaction
    index = next(i for i, txin in enumerate(transaction.inputs) if txin.outpoint == output.outpoint)
    # BOLT 5: SIGHASH_SINGLE ties the input to the output of the same index.
    paid = transaction.outputs[index : index + 1]
    if not paid or paid[0].script != p2wsh(close.to_local_script):
        return None
    outpoint = OutPoint(transaction.txid, index)
    return CloseOutput(outpoint, paid[0].value, kinds[close.closer], close.to_local_script)


def _fates(core: Core, close: Close, closed: BlockHeight, outputs: list[Tracked]) -> list[Fate]:
    """What is known by now about the HTLCs that we offered."""
    if close.closer in (Closer.FUTURE, Closer.UNKNOWN):
        return []  # BOLT 5: which HTLCs such a transaction pays can't be seen
    offered = [htlc for htlc in core.state.log.htlcs if htlc.ours]
    ours = [tracked for tracked in outputs if tracked.output.kind is OutputKind.OUR_HTLC]
    fates = []
    for htlc in offered:
        preimage = _shown(htlc.payment_hash, ours)
        mine = [t for t in ours if t.output.htlc is not None and t.output.htlc.id == htlc.id]
        if preimage is not None:
            fates.append(Fate(htlc, closed, preimage))
        elif not mine:
            # BOLT 5: trimmed, not yet committed to or gone already. It is failed once the
            # commitment is deep enough to keep another one, which has it, from replacing it.
            fates.append(Fate(htlc, closed, htlc.payment_preimage))
        elif mine[0].spend is not None:
            fates.append(Fate(htlc, mine[0].spend.height))
    return fates


def _shown(payment_hash: bytes, outputs: list[Tracked]) -> bytes | None:
    """The preimage that the spender of an HTLC had to show (BOLT 5: extract it)."""
    for tracked in outputs:
        if tracked.spend is None:
            continue
        for txin in tracked.spend.transaction.inputs:
            if txin.outpoint != tracked.output.outpoint:
                continue
            for item in txin.witness:
                if len(item) == 32 and hashlib.sha256(item).digest() == payment_hash:
                    return item
    return None
