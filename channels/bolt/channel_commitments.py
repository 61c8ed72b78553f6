"""A channel's two commitment transactions, and what each side can afford on them (BOLT 2, 3)."""

from __future__ import annotations

from channels.bolt import keys
from channels.bolt.channel_state import ChannelState, Core, Party
from channels.bolt.commitment import (
    ChannelType,
    Commitment,
    CommitmentKeys,
    CommitmentSpec,
    Htlc,
    build,
    commitment_fee,
    is_trimmed,
)
from channels.bolt.htlcs import View
from channels.units import FeeratePerKw, Msat, Sat, msat

ANCHORS_MSAT = Msat(2 * 330_000)
"""BOLT 3: two anchors of 330 sat, paid by the opener."""

_THEIRS = (View.REMOTE, View.NEXT_REMOTE, View.PREVIOUS_REMOTE)


def local_point(core: Core, number: int) -> bytes:
    return keys.public_key(local_secret(core, number))


def local_secret(core: Core, number: int) -> bytes:
    return keys.per_commitment_secret(core.secrets.shachain_seed, keys.FIRST_INDEX - number)


def local_commitment(core: Core) -> Commitment:
    """Our commitment transaction number `local_number`, as the update log has it now."""
    number = core.state.local_number
    return build(_spec(core, View.LOCAL, number, local_point(core, number)))


def next_local_commitment(core: Core) -> Commitment:
    """The commitment that the peer's next commitment_signed must sign."""
    number = core.state.local_number + 1
    return build(_spec(core, View.NEXT_LOCAL, number, local_point(core, number)))


def remote_commitment(core: Core, point: bytes) -> Commitment:
    """The peer's commitment transaction number `remote_number`, for its per-commitment point."""
    return build(_spec(core, View.REMOTE, core.state.remote_number, point))


def previous_remote_commitment(core: Core) -> Commitment | None:
    """The peer's commitment that our last commitment_signed replaces, until that is revoked."""
    state = core.state
    if not state.awaiting_revocation:
        return None
    number, point = state.remote_number - 1, state.remote_current_point
    return build(_spec(core, View.PREVIOUS_REMOTE, number, point))


def newest_remote_commitment(core: Core) -> Commitment:
    """The peer's newest commitment, whichever of its two points that has."""
    state = core.state
    point = state.remote_next_point if state.awaiting_revocation else state.remote_current_point
    return remote_commitment(core, point)


def _spec(core: Core, view: View, number: int, point: bytes) -> CommitmentSpec:
    state = core.state
    ours = view not in _THEIRS
    owner, other = (state.local, state.peer) if ours else (state.peer, state.local)
    opener, accepter = (state.local, state.peer) if state.opener else (state.peer, state.local)
    local_msat, remote_msat = state.log.balances(view)
    return CommitmentSpec(
        channel_type=state.channel_type,
        funding=state.funding,
        funding_satoshis=state.funding_satoshis,
        commitment_number=number,
        opener_payment_basepoint=opener.payment_basepoint,
        accepter_payment_basepoint=accepter.payment_basepoint,
        owner_is_opener=ours == state.opener,
        keys=CommitmentKeys.derive(owner.basepoints, other.basepoints, point),
        # BOLT 2: to_self_delay is what a party imposes on the other's outputs.
        to_self_delay=other.to_self_delay,
        dust_limit=owner.dust_limit_satoshis,
        feerate=state.log.feerate(view),
        to_owner_msat=local_msat if ours else remote_msat,
        to_other_msat=remote_msat if ours else local_msat,
        htlcs=tuple(_htlcs(state, view)),
    )


def _htlcs(state: ChannelState, view: View, owner_is_us: bool | None = None) -> list[Htlc]:
    """The HTLCs of a view as BOLT 3 sees them: offered or received by the commitment's owner."""
    ours = view not in _THEIRS if owner_is_us is None else owner_is_us
    return [
        Htlc(
            offered=h.ours == ours,
            amount_msat=h.amount_msat,
            payment_hash=h.payment_hash,
            cltv_expiry=h.cltv_expiry,
            id=h.id,
        )
        for h in state.log.visible(view)
    ]


def opener_cost(
    state: ChannelState,
    feerate: FeeratePerKw,
    extra: Htlc | None = None,
    view: View = View.PENDING,
) -> Msat:
    """Fee and anchors of the dearer commitment with the HTLCs of `view`.

    `extra` is an HTLC about to be added, as the side that offers it sees it.
    """
    fees = []
    channel_type = state.channel_type
    for owner_is_us in (True, False):
        dust = (state.local if owner_is_us else state.peer).dust_limit_satoshis
        htlcs = _htlcs(state, view, owner_is_us)
        if extra is not None:
            htlcs.append(extra)
        counted = sum(not is_trimmed(h, dust, feerate, channel_type) for h in htlcs)
        fees.append(commitment_fee(channel_type, feerate, counted))
    anchors = ANCHORS_MSAT if channel_type is ChannelType.ANCHORS else Msat(0)
    return Msat(msat(max(fees)) + anchors)


def offering_view(ours: bool) -> View:
    """The commitment that an HTLC offered now goes into: the receiver's next one."""
    return View.NEXT_REMOTE if ours else View.NEXT_LOCAL


def spendable(core: Core, ours: bool, amount: Msat, *, buffered: bool) -> str | None:
    """Why one side can't offer an HTLC of `amount` now, or None when it can (BOLT 2, adding).

    `buffered` applies the fee spike buffer, which a sender should keep and a receiver must not
    insist on.
    """
    state = core.state
    # What the other side proposed to remove and has not committed to may never be removed: it is
    # not there to be spent again before it is in the commitment that the new HTLC goes into.
    view = offering_view(ours)
    local, remote = state.log.balances(view)
    offerer, receiver = (local, remote) if ours else (remote, local)
    party = state.peer if ours else state.local
    feerate = state.log.feerate(View.PENDING)
    extra = Htlc(offered=True, amount_msat=amount, payment_hash=bytes(32), cltv_expiry=0, id=0)
    opener_offers = ours == state.opener
    if buffered and opener_offers:
        feerate = FeeratePerKw(2 * feerate)
    cost = opener_cost(state, feerate, extra, view)
    reserve = msat(party.channel_reserve_satoshis)
    if offerer - amount - (cost if opener_offers else 0) < reserve:
        return "insufficient-balance"
    # An HTLC may cost the opener a larger fee. BOLT 2: a sender that is not responsible for the
    # fee should not push the opener below its reserve; a receiver only minds its own affairs.
    if not opener_offers and buffered and receiver - cost < 0:
        return "opener-cannot-pay-fee"
    return None


def dust_exposure(state: ChannelState, extra: Htlc | None = None) -> Msat:
    """BOLT 2, "Bounding exposure to trimmed in-flight HTLCs": the larger of both commitments."""
    feerate = state.log.feerate(View.PENDING)
    channel_type = state.channel_type
    totals = []
    for owner_is_us in (True, False):
        dust = (state.local if owner_is_us else state.peer).dust_limit_satoshis
        htlcs = _htlcs(state, View.PENDING, owner_is_us)
        if extra is not None:
            htlcs.append(extra)
        totals.append(
            sum(h.amount_msat for h in htlcs if is_trimmed(h, dust, feerate, channel_type))
        )
    return Msat(max(totals))


def initial_balances_allowed(
    channel_type: ChannelType,
    funding_satoshis: Sat,
    push_msat: Msat,
    feerate: FeeratePerKw,
    opener: Party,
    accepter: Party,
) -> str | None:
    """Why an opening's first commitment breaks BOLT 2, or None."""
    opener_msat = msat(funding_satoshis) - push_msat
    cost = msat(commitment_fee(channel_type, feerate, 0))
    if channel_type is ChannelType.ANCHORS:
        cost = Msat(cost + ANCHORS_MSAT)
    if opener_msat < cost:
        return "opener-cannot-pay-fee"
    opener_left = opener_msat - cost
    if opener_left <= msat(accepter.channel_reserve_satoshis) and push_msat <= msat(
        opener.channel_reserve_satoshis
    ):
        return "both-below-reserve"
    return None
