"""Opening a channel: BOLT 2, Channel Establishment v1, from open_channel to channel_ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from channels.bolt import keys
from channels.bolt.channel_commitments import (
    initial_balances_allowed,
    local_commitment,
    local_point,
    remote_commitment,
)
from channels.bolt.channel_state import ChannelState, Core, Opening, Party, Policy, State
from channels.bolt.commitment import ChannelType, check_signatures, sign_commitment
from channels.bolt.effects import ChannelReady, Effect, FundingNeeded, Persist, Send, Watch
from channels.bolt.htlcs import FeeUpdate, Stage, UpdateLog
from channels.bolt.keys import ChannelSecrets
from channels.bolt.messages import (
    AcceptChannel,
    FundingCreated,
    FundingSigned,
    OpenChannel,
)
from channels.bolt.messages import ChannelReady as ChannelReadyMessage
from channels.bolt.transactions import OutPoint, funding_script, p2wsh
from channels.bolt.updates import checked_point
from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.units import BlockHeight, FeeratePerKw, Msat, Sat, ShortChannelId, msat

MAX_FUNDING_SATOSHIS = Sat(2**24 - 1)
"""BOLT 2: the limit without option_support_large_channel, which we do not offer."""

ANNOUNCE_CHANNEL = 1
"""BOLT 2: the one defined bit of channel_flags."""

_SENTENCES = {
    "opener-cannot-pay-fee": "The opener can't pay the first commitment's fee and anchors.",
    "both-below-reserve": "Neither side would have more than its reserve.",
}


def party(
    secrets: ChannelSecrets, policy: Policy, funding_satoshis: Sat, reserve: Sat | None
) -> Party:
    """Our keys and demands. `reserve` is what the peer must keep: 1 % unless given (BOLT 2)."""
    public = secrets.public()
    wanted = Sat(funding_satoshis // 100) if reserve is None else reserve
    return Party(
        funding_pubkey=public.funding_pubkey,
        revocation_basepoint=public.revocation_basepoint,
        payment_basepoint=public.payment_basepoint,
        delayed_payment_basepoint=public.delayed_payment_basepoint,
        htlc_basepoint=public.htlc_basepoint,
        dust_limit_satoshis=policy.dust_limit_satoshis,
        max_htlc_value_in_flight_msat=msat(funding_satoshis),
        channel_reserve_satoshis=Sat(max(wanted, policy.dust_limit_satoshis)),
        htlc_minimum_msat=policy.htlc_minimum_msat,
        to_self_delay=policy.to_self_delay,
        max_accepted_htlcs=policy.max_accepted_htlcs,
    )


def _log(opener: bool, funding: Sat, push: Msat, feerate: FeeratePerKw) -> UpdateLog:
    rest = Msat(msat(funding) - push)
    return UpdateLog(
        opener=opener,
        local_msat=rest if opener else push,
        remote_msat=push if opener else rest,
        fees=[FeeUpdate(feerate_per_kw=feerate, stage=Stage.DONE)],
    )


def open_channel(
    *,
    index: int,
    peer_id: bytes,
    temporary_channel_id: bytes,
    secrets: ChannelSecrets,
    policy: Policy,
    channel_type: ChannelType,
    funding_satoshis: Sat,
    push_msat: Msat,
    feerate_per_kw: FeeratePerKw,
    reserve: Sat | None = None,
    announce: bool = False,
) -> tuple[Core, list[Effect]]:
    """Our open_channel. Nothing is persisted before there is a signature to lose."""
    if not policy.min_funding_satoshis <= funding_satoshis <= MAX_FUNDING_SATOSHIS:
        raise LocalProtocolError(
            "bad-funding-amount",
            f"A channel holds from {policy.min_funding_satoshis} to {MAX_FUNDING_SATOSHIS} sat.",
        )
    if push_msat > msat(funding_satoshis):
        raise LocalProtocolError("push-too-large", "push_msat is more than the channel holds.")
    local = party(secrets, policy, funding_satoshis, reserve)
    state = ChannelState(
        index=index,
        peer_id=peer_id,
        temporary_channel_id=temporary_channel_id,
        channel_type_bits=channel_type.bits,
        funding_satoshis=funding_satoshis,
        push_msat=push_msat,
        announce=announce,
        local=local,
        log=_log(True, funding_satoshis, push_msat, feerate_per_kw),
        opening=Opening.ACCEPT_CHANNEL,
    )
    core = Core(state, secrets, policy, connected=True, reestablished=True)
    message = OpenChannel(
        chain_hash=policy.chain_hash,
        temporary_channel_id=temporary_channel_id,
        funding_satoshis=funding_satoshis,
        push_msat=push_msat,
        feerate_per_kw=feerate_per_kw,
        channel_flags=ANNOUNCE_CHANNEL if announce else 0,
        first_per_commitment_point=local_point(core, 0),
        channel_type=channel_type.bits,
        **_terms(local),
    )
    return core, [Send(message)]


def _terms(local: Party) -> dict[str, Any]:
    """The fields that open_channel and accept_channel share (our keys and demands)."""
    return {name: getattr(local, name) for name in Party.__struct_fields__}


def on_open_channel(
    message: OpenChannel, *, index: int, peer_id: bytes, secrets: ChannelSecrets, policy: Policy
) -> tuple[Core, list[Effect]]:
    """A peer wants to open a channel to us: check its terms and accept."""
    channel_type = _checked_offer(message, policy)
    remote = _checked_party(message, policy, message.funding_satoshis)
    local = party(secrets, policy, message.funding_satoshis, None)
    # BOLT 2: our reserve demand may not undercut the opener's dust limit, nor ours its reserve.
    reserve = Sat(max(local.channel_reserve_satoshis, remote.dust_limit_satoshis))
    local = msgspec.structs.replace(local, channel_reserve_satoshis=reserve)
    if local.dust_limit_satoshis > remote.channel_reserve_satoshis:
        raise RemoteProtocolError("reserve-below-dust", "The reserve asked of us is below dust.")
    reason = initial_balances_allowed(
        channel_type,
        message.funding_satoshis,
        message.push_msat,
        message.feerate_per_kw,
        opener=remote,
        accepter=local,
    )
    if reason is not None:
        raise RemoteProtocolError(reason, _SENTENCES[reason])
    state = ChannelState(
        index=index,
        peer_id=peer_id,
        temporary_channel_id=message.temporary_channel_id,
        channel_type_bits=channel_type.bits,
        funding_satoshis=message.funding_satoshis,
        push_msat=message.push_msat,
        announce=bool(message.channel_flags & ANNOUNCE_CHANNEL),
        local=local,
        remote=remote,
        log=_log(False, message.funding_satoshis, message.push_msat, message.feerate_per_kw),
        opening=Opening.FUNDING_CREATED,
        minimum_depth=policy.minimum_depth,
        remote_current_point=checked_point(message.first_per_commitment_point),
    )
    core = Core(state, secrets, policy, connected=True, reestablished=True)
    reply = AcceptChannel(
        temporary_channel_id=message.temporary_channel_id,
        minimum_depth=policy.minimum_depth,
        first_per_commitment_point=local_point(core, 0),
        channel_type=message.channel_type,
        **_terms(local),
    )
    return core, [Send(reply)]


def _checked_offer(message: OpenChannel, policy: Policy) -> ChannelType:
    """The rules of BOLT 2 that open_channel alone must keep, and the type of channel it asks."""
    if message.chain_hash != policy.chain_hash:
        raise RemoteProtocolError("unknown-chain", "open_channel is for another chain.")
    if message.channel_type is None:
        raise RemoteProtocolError("no-channel-type", "open_channel has no channel_type.")
    if not policy.min_funding_satoshis <= message.funding_satoshis <= MAX_FUNDING_SATOSHIS:
        raise RemoteProtocolError(
            "bad-funding-amount",
            f"We take channels from {policy.min_funding_satoshis} to {MAX_FUNDING_SATOSHIS} sat.",
        )
    if message.push_msat > msat(message.funding_satoshis):
        raise RemoteProtocolError("push-too-large", "push_msat is more than the channel holds.")
    if not policy.min_feerate <= message.feerate_per_kw <= policy.max_feerate:
        raise RemoteProtocolError(
            "bad-feerate",
            f"feerate_per_kw must be from {policy.min_feerate} to {policy.max_feerate}.",
        )
    return ChannelType.from_bits(message.channel_type)


def _checked_party(
    message: OpenChannel | AcceptChannel, policy: Policy, funding_satoshis: Sat
) -> Party:
    """The rules of BOLT 2 that open_channel and accept_channel share."""
    remote = Party(**{name: getattr(message, name) for name in Party.__struct_fields__})
    points: Sequence[bytes] = (
        remote.funding_pubkey,
        remote.revocation_basepoint,
        remote.payment_basepoint,
        remote.delayed_payment_basepoint,
        remote.htlc_basepoint,
    )
    if not all(keys.is_public_key(point) for point in points):
        raise RemoteProtocolError("bad-point", "A key in the opening is not on the curve.")
    if remote.to_self_delay > policy.max_to_self_delay:
        raise RemoteProtocolError(
            "to-self-delay-too-long", f"We wait for at most {policy.max_to_self_delay} blocks."
        )
    # BOLT 2: max_accepted_htlcs is at most 483, so that a penalty fits a standard transaction.
    if not 0 < remote.max_accepted_htlcs <= 483:
        raise RemoteProtocolError("bad-max-accepted-htlcs", "max_accepted_htlcs is not in 1..483.")
    # BOLT 3: 354 sat is the dust limit of the largest standard segwit output.
    if remote.dust_limit_satoshis < 354:
        raise RemoteProtocolError("dust-limit-too-small", "dust_limit_satoshis is below 354.")
    if remote.dust_limit_satoshis > remote.channel_reserve_satoshis:
        # BOLT 2 asks this of open_channel's own two fields; for accept_channel see its handler.
        raise RemoteProtocolError("dust-above-reserve", "dust_limit_satoshis is above the reserve.")
    if remote.dust_limit_satoshis > 10_000:
        raise RemoteProtocolError("dust-limit-too-large", "dust_limit_satoshis is above 10000.")
    if remote.channel_reserve_satoshis > max(funding_satoshis // 5, 1_000):
        raise RemoteProtocolError("reserve-too-large", "The reserve is above 20 % of the channel.")
    if remote.htlc_minimum_msat > 1_000_000:
        raise RemoteProtocolError("htlc-minimum-too-large", "htlc_minimum_msat is above 1000 sat.")
    return remote


def on_accept_channel(core: Core, message: AcceptChannel) -> list[Effect]:
    state = core.state
    if state.opening is not Opening.ACCEPT_CHANNEL:
        raise RemoteProtocolError("unexpected-message", "accept_channel is not due now.")
    # BOLT 2: channel_type must come back as it was sent.
    if message.channel_type != state.channel_type_bits:
        raise RemoteProtocolError("channel-type-changed", "accept_channel has another type.")
    if message.minimum_depth > 144:
        raise RemoteProtocolError("minimum-depth-too-large", "minimum_depth is above 144.")
    remote = _checked_party(message, core.policy, state.funding_satoshis)
    if remote.channel_reserve_satoshis < state.local.dust_limit_satoshis:
        raise RemoteProtocolError("reserve-below-dust", "The reserve asked of us is below dust.")
    if state.local.channel_reserve_satoshis < remote.dust_limit_satoshis:
        raise RemoteProtocolError(
            "reserve-below-dust", "The peer's dust limit is above the reserve we asked of it."
        )
    feerate = state.log.fees[0].feerate_per_kw
    reason = initial_balances_allowed(
        state.channel_type,
        state.funding_satoshis,
        state.push_msat,
        feerate,
        opener=state.local,
        accepter=remote,
    )
    if reason is not None:
        raise LocalProtocolError(reason, _SENTENCES[reason])
    state.remote = remote
    state.minimum_depth = message.minimum_depth
    state.remote_current_point = checked_point(message.first_per_commitment_point)
    state.opening = Opening.FUNDING_TRANSACTION
    return [FundingNeeded(funding_output_script(core), state.funding_satoshis)]


def funding_output_script(core: Core) -> bytes:
    state = core.state
    return p2wsh(funding_script(state.local.funding_pubkey, state.peer.funding_pubkey))


def funding_created(core: Core, funding: OutPoint) -> list[Effect]:
    """Our wallet built the funding transaction: sign the peer's first commitment."""
    state = core.state
    if state.opening is not Opening.FUNDING_TRANSACTION:
        raise LocalProtocolError("funding-not-due", "No funding transaction is due now.")
    state.funding_txid, state.funding_output_index = funding.txid, funding.vout
    state.opening = Opening.FUNDING_SIGNED
    commitment = remote_commitment(core, state.remote_current_point)
    message = FundingCreated(
        temporary_channel_id=state.temporary_channel_id,
        funding_txid=funding.txid,
        funding_output_index=funding.vout,
        signature=sign_commitment(commitment, core.secrets.funding),
    )
    return [Send(message)]


def on_funding_created(core: Core, message: FundingCreated) -> list[Effect]:
    state = core.state
    if state.opening is not Opening.FUNDING_CREATED:
        raise RemoteProtocolError("unexpected-message", "funding_created is not due now.")
    state.funding_txid = message.funding_txid
    state.funding_output_index = message.funding_output_index
    _keep_first_signature(core, message.signature)
    state.opening = None
    state.state = State.AWAITING_LOCKIN
    commitment = remote_commitment(core, state.remote_current_point)
    reply = FundingSigned(
        channel_id=state.channel_id,
        signature=sign_commitment(commitment, core.secrets.funding),
    )
    return [Persist(), _watch(core), Send(reply)]


def on_funding_signed(core: Core, message: FundingSigned) -> list[Effect]:
    """The refund is safe: from here the funding transaction may be broadcast, by the node."""
    state = core.state
    if state.opening is not Opening.FUNDING_SIGNED:
        raise RemoteProtocolError("unexpected-message", "funding_signed is not due now.")
    _keep_first_signature(core, message.signature)
    state.opening = None
    state.state = State.AWAITING_LOCKIN
    return [Persist(), _watch(core)]


def _keep_first_signature(core: Core, signature: bytes) -> None:
    commitment = local_commitment(core)
    check_signatures(
        commitment,
        core.state.peer.funding_pubkey,
        signature,
        commitment.spec.keys.remote_htlc,
        (),
    )
    core.state.remote_signature = signature


def _watch(core: Core) -> Watch:
    state = core.state
    return Watch(state.funding, funding_output_script(core), state.funding_satoshis)


def funding_confirmed(
    core: Core, depth: int, height: BlockHeight, scid: ShortChannelId
) -> list[Effect]:
    """The funding output is `depth` blocks deep: send channel_ready once that is enough."""
    state = core.state
    changed = state.short_channel_id != scid
    state.short_channel_id, state.funding_height = scid, height
    if state.ready_sent or depth < max(1, state.minimum_depth):
        return [Persist()] if changed else []
    state.ready_sent = True
    effects: list[Effect] = [Persist()]
    if core.reestablished:
        effects.append(Send(ready_message(core)))
    return effects + _ready(core)


def ready_message(core: Core) -> ChannelReadyMessage:
    return ChannelReadyMessage(
        channel_id=core.state.channel_id, second_per_commitment_point=local_point(core, 1)
    )


def on_channel_ready(core: Core, message: ChannelReadyMessage) -> list[Effect]:
    state = core.state
    if state.ready_received:
        # BOLT 2: a redundant channel_ready after a reconnection is ignored.
        return []
    state.remote_next_point = checked_point(message.second_per_commitment_point)
    state.ready_received = True
    return [Persist(), *_ready(core)]


def _ready(core: Core) -> list[Effect]:
    state = core.state
    if state.state is State.AWAITING_LOCKIN and state.ready_sent and state.ready_received:
        state.state = State.NORMAL
        return [ChannelReady()]
    return []
