"""The update log of one channel: which HTLCs and which feerate each commitment contains.

BOLT 2, "Normal Operation": an update is proposed by one side and travels to both commitment
transactions in four steps. The same five stages describe adding an HTLC, removing one and changing
the fee, whoever proposed it, so the whole protocol is one table (`ADVANCES`).
"""

from __future__ import annotations

from enum import Enum, IntEnum

import msgspec

from channels.units import FeeratePerKw, Msat


class Stage(IntEnum):
    """How far an update has travelled, seen from the side that proposed it."""

    PROPOSED = 0  # update_* sent; the receiver forgets it when the connection drops
    SIGNED = 1  # the proposer's commitment_signed put it into the receiver's commitment
    REVOKED = 2  # the receiver's revoke_and_ack made that irrevocable
    ACK_SIGNED = 3  # the receiver's commitment_signed put it into the proposer's commitment
    DONE = 4  # the proposer's revoke_and_ack: irrevocably committed on both sides


class Step(Enum):
    """The four messages that move updates on, from our point of view."""

    SEND_COMMITMENT = "send commitment_signed"
    RECEIVE_REVOCATION = "receive revoke_and_ack"
    RECEIVE_COMMITMENT = "receive commitment_signed"
    SEND_REVOCATION = "send revoke_and_ack"


ADVANCES: dict[tuple[Step, bool], tuple[Stage, Stage]] = {
    # (step, proposed by us): from stage, to stage
    (Step.SEND_COMMITMENT, True): (Stage.PROPOSED, Stage.SIGNED),
    (Step.SEND_COMMITMENT, False): (Stage.REVOKED, Stage.ACK_SIGNED),
    (Step.RECEIVE_REVOCATION, True): (Stage.SIGNED, Stage.REVOKED),
    (Step.RECEIVE_REVOCATION, False): (Stage.ACK_SIGNED, Stage.DONE),
    (Step.RECEIVE_COMMITMENT, True): (Stage.REVOKED, Stage.ACK_SIGNED),
    (Step.RECEIVE_COMMITMENT, False): (Stage.PROPOSED, Stage.SIGNED),
    (Step.SEND_REVOCATION, True): (Stage.ACK_SIGNED, Stage.DONE),
    (Step.SEND_REVOCATION, False): (Stage.SIGNED, Stage.REVOKED),
}


class View(Enum):
    """Whose commitment transaction, and whether proposals count already."""

    LOCAL = "ours"
    NEXT_LOCAL = "ours, with what the peer's next commitment_signed adds"
    REMOTE = "theirs"
    NEXT_REMOTE = "theirs, with what our next commitment_signed adds"
    PREVIOUS_REMOTE = "theirs before our last commitment_signed, while they may still use it"
    PENDING = "either, once everything proposed so far is committed"


def in_view(view: View, ours: bool, stage: Stage) -> bool:
    """Whether an update proposed by us (`ours`) is part of that commitment."""
    if view is View.PENDING:
        return True
    if view is View.NEXT_LOCAL:
        before, _ = ADVANCES[Step.RECEIVE_COMMITMENT, ours]
        return stage >= before
    if view is View.NEXT_REMOTE:
        before, _ = ADVANCES[Step.SEND_COMMITMENT, ours]
        return stage >= before
    if view is View.PREVIOUS_REMOTE:
        # What our last commitment_signed brought in is where that message moves it, or further.
        _, signed = ADVANCES[Step.SEND_COMMITMENT, ours]
        return stage > signed
    receiver_owns = (view is View.REMOTE) == ours
    return stage >= (Stage.SIGNED if receiver_owns else Stage.ACK_SIGNED)


class LiveHtlc(msgspec.Struct, kw_only=True):
    """One HTLC from update_add_htlc until its removal is irrevocable."""

    id: int
    ours: bool  # offered by us
    amount_msat: Msat
    payment_hash: bytes
    cltv_expiry: int
    onion_routing_packet: bytes
    added: Stage = Stage.PROPOSED
    removed: Stage | None = None
    payment_preimage: bytes | None = None
    reason: bytes = b""
    malformed: tuple[int, bytes] | None = None
    reported: bool = False  # the node was told that it may resolve this one

    def in_view(self, view: View) -> bool:
        return in_view(view, self.ours, self.added) and not self.removed_in(view)

    @property
    def lightningd_state(self) -> str:
        """The name that lightningd's listpeerchannels gives to this point of an HTLC's life."""
        ours = self.ours if self.removed is None else not self.ours
        stage = self.added if self.removed is None else self.removed
        mine, theirs = ("SENT", "RCVD") if ours else ("RCVD", "SENT")
        verb = "ADD" if self.removed is None else "REMOVE"
        return {
            Stage.PROPOSED: f"{mine}_{verb}_HTLC",
            Stage.SIGNED: f"{mine}_{verb}_COMMIT",
            Stage.REVOKED: f"{theirs}_{verb}_REVOCATION",
            Stage.ACK_SIGNED: f"{theirs}_{verb}_ACK_COMMIT",
            Stage.DONE: f"{mine}_{verb}_ACK_REVOCATION",
        }[stage]

    def removed_in(self, view: View) -> bool:
        # The side that received the HTLC is the one that proposes its removal.
        return self.removed is not None and in_view(view, not self.ours, self.removed)


class FeeUpdate(msgspec.Struct, kw_only=True):
    feerate_per_kw: FeeratePerKw
    stage: Stage = Stage.PROPOSED


class UpdateLog(msgspec.Struct, kw_only=True):
    """Balances, HTLCs and feerates of one channel.

    `local_msat` and `remote_msat` are what each side has once every HTLC in `htlcs` is failed;
    HTLCs whose removal is DONE are folded into them. Fee updates come from the opener alone; the
    first entry is the feerate in force on both sides. `lowest_msat` and `highest_msat` are what
    `local_msat` has been, None as long as it has not changed.
    """

    opener: bool  # we opened the channel, so we pay the commitment fees (BOLT 2)
    local_msat: Msat
    remote_msat: Msat
    fees: list[FeeUpdate]
    htlcs: list[LiveHtlc] = msgspec.field(default_factory=list)
    next_local_id: int = 0
    next_remote_id: int = 0
    lowest_msat: Msat | None = None
    highest_msat: Msat | None = None

    def feerate(self, view: View) -> FeeratePerKw:
        return next(
            f.feerate_per_kw for f in reversed(self.fees) if in_view(view, self.opener, f.stage)
        )

    def visible(self, view: View) -> list[LiveHtlc]:
        return [h for h in self.htlcs if h.in_view(view)]

    def balances(self, view: View) -> tuple[Msat, Msat]:
        """(ours, theirs) in that commitment, before fees and anchors, outside of HTLCs."""
        local, remote = int(self.local_msat), int(self.remote_msat)
        for htlc in self.htlcs:
            if not in_view(view, htlc.ours, htlc.added):
                continue
            gone = htlc.removed_in(view)
            if gone and htlc.payment_preimage is None:
                continue
            gained = htlc.amount_msat if gone else 0
            if htlc.ours:
                local, remote = local - htlc.amount_msat, remote + gained
            else:
                local, remote = local + gained, remote - htlc.amount_msat
        return Msat(local), Msat(remote)

    @property
    def extremes(self) -> tuple[Msat, Msat]:
        """The least and the most that `local_msat` ever was."""
        low, high = self.lowest_msat, self.highest_msat
        return (
            self.local_msat if low is None else low,
            self.local_msat if high is None else high,
        )

    def find(self, ours: bool, htlc_id: int) -> LiveHtlc | None:
        return next((h for h in self.htlcs if h.ours == ours and h.id == htlc_id), None)

    def owes_commitment(self) -> bool:
        """Something is not yet in the peer's commitment: we should send commitment_signed."""
        return any(
            stage is ADVANCES[Step.SEND_COMMITMENT, ours][0] for ours, stage in self._stages()
        )

    def expects_commitment(self) -> bool:
        """The peer's commitment_signed would add something to our commitment."""
        return any(
            stage is ADVANCES[Step.RECEIVE_COMMITMENT, ours][0] for ours, stage in self._stages()
        )

    def settled(self) -> bool:
        """No HTLCs and no update under way: the precondition of a mutual close (BOLT 2)."""
        return not self.htlcs and all(stage is Stage.DONE for _, stage in self._stages())

    def unsigned_proposals(self) -> bool:
        """Updates of ours that no commitment_signed covers yet."""
        return any(ours and stage is Stage.PROPOSED for ours, stage in self._stages())

    def advance(self, step: Step) -> None:
        for htlc in self.htlcs:
            htlc.added = _advanced(step, htlc.ours, htlc.added)
            if htlc.removed is not None:
                htlc.removed = _advanced(step, not htlc.ours, htlc.removed)
        for fee in self.fees:
            fee.stage = _advanced(step, self.opener, fee.stage)
        done = [i for i, fee in enumerate(self.fees) if fee.stage is Stage.DONE]
        del self.fees[: done[-1]]

    def take_removed(self) -> list[LiveHtlc]:
        """Fold HTLCs whose removal is irrevocable into the balances and return them."""
        gone = [h for h in self.htlcs if h.removed is Stage.DONE]
        for htlc in gone:
            if htlc.payment_preimage is not None:
                low, high = self.extremes
                sign = -1 if htlc.ours else 1
                self.local_msat = Msat(self.local_msat + sign * htlc.amount_msat)
                self.remote_msat = Msat(self.remote_msat - sign * htlc.amount_msat)
                self.lowest_msat = min(low, self.local_msat)
                self.highest_msat = max(high, self.local_msat)
        if gone:
            self.htlcs = [h for h in self.htlcs if h.removed is not Stage.DONE]
        return gone

    def forget_uncommitted(self) -> list[LiveHtlc]:
        """The connection dropped: reverse what the peer proposed and did not sign (BOLT 2).

        Gives the HTLCs that we proposed and did not sign, which are gone too: the peer forgets
        them, and whoever paid should not wait for it. Their ids will be used again.
        """
        kept, gone = [], []
        for htlc in self.htlcs:
            if htlc.ours and htlc.added is Stage.PROPOSED:
                self.next_local_id = min(self.next_local_id, htlc.id)
                gone.append(htlc)
                continue
            if not htlc.ours and htlc.added is Stage.PROPOSED:
                self.next_remote_id = min(self.next_remote_id, htlc.id)
                continue
            if htlc.ours and htlc.removed is Stage.PROPOSED:
                # The preimage stays known to whoever was told of it; the HTLC is live again.
                htlc.removed, htlc.payment_preimage = None, None
                htlc.reason, htlc.malformed = b"", None
            kept.append(htlc)
        self.htlcs = kept
        if not self.opener:
            self.fees = [f for f in self.fees if f.stage is not Stage.PROPOSED]
        return gone

    def _stages(self) -> list[tuple[bool, Stage]]:
        stages = [(h.ours, h.added) for h in self.htlcs]
        stages += [(not h.ours, h.removed) for h in self.htlcs if h.removed is not None]
        return stages + [(self.opener, f.stage) for f in self.fees]


def _advanced(step: Step, ours: bool, stage: Stage) -> Stage:
    before, after = ADVANCES[step, ours]
    return after if stage is before else stage
