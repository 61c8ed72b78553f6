"""Normal operation of a channel: add, remove, commit, revoke (BOLT 2, Normal Operation)."""

from __future__ import annotations

import hashlib

from channels.bolt import keys
from channels.bolt.channel_commitments import (
    dust_exposure,
    local_point,
    local_secret,
    next_local_commitment,
    offering_view,
    opener_cost,
    remote_commitment,
    spendable,
)
from channels.bolt.channel_state import Core, State
from channels.bolt.commitment import Htlc, check_signatures, sign_commitment, sign_htlcs
from channels.bolt.effects import Effect, HtlcFailed, HtlcFulfilled, HtlcReceived, Persist, Send
from channels.bolt.htlcs import FeeUpdate, LiveHtlc, Stage, Step, View
from channels.bolt.messages import (
    CommitmentSigned,
    Message,
    RevokeAndAck,
    UpdateAddHtlc,
    UpdateFailHtlc,
    UpdateFailMalformedHtlc,
    UpdateFee,
    UpdateFulfillHtlc,
    encode,
)
from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.units import FeeratePerKw, Msat, msat

MAX_CLTV_EXPIRY = 500_000_000
"""BOLT 2: above this nLockTime would mean a time, not a height."""

BADONION = 0x8000
"""BOLT 4: the bit that update_fail_malformed_htlc's failure_code must have."""


# --- our side ------------------------------------------------------------------------------------


def offer_htlc(
    core: Core,
    amount_msat: Msat,
    payment_hash: bytes,
    cltv_expiry: int,
    onion_routing_packet: bytes,
) -> tuple[int, list[Effect]]:
    """Propose an HTLC; returns its id. Raises LocalProtocolError when the rules forbid it now."""
    state = core.state
    _require_usable(core)
    reason = _why_not_offer(core, amount_msat)
    if reason is not None:
        raise LocalProtocolError(reason, _OFFER_SENTENCES[reason])
    htlc = LiveHtlc(
        id=state.log.next_local_id,
        ours=True,
        amount_msat=amount_msat,
        payment_hash=payment_hash,
        cltv_expiry=cltv_expiry,
        onion_routing_packet=onion_routing_packet,
    )
    state.log.next_local_id += 1
    state.log.htlcs.append(htlc)
    return htlc.id, _proposed(add_message(core, htlc))


_OFFER_SENTENCES = {
    "insufficient-balance": "The channel's balance, less its reserve and fees, can't carry this.",
    "opener-cannot-pay-fee": "The peer could not pay the commitment fee with this HTLC in it.",
    "amount-below-minimum": "The amount is below the smallest HTLC that the peer accepts.",
    "too-many-htlcs": "The peer accepts no more HTLCs at once; wait until one is settled.",
    "too-much-in-flight": "The peer accepts no more value in flight; wait until some is settled.",
    "dust-exposure": "Too much would be in flight as dust; wait until some is settled.",
}


def _why_not_offer(core: Core, amount_msat: Msat) -> str | None:
    state = core.state
    peer = state.peer
    in_flight = [h for h in state.log.visible(offering_view(True)) if h.ours]
    # Offering nothing is forbidden, whatever htlc_minimum_msat says (BOLT 2, adding an HTLC).
    if amount_msat < max(1, peer.htlc_minimum_msat):
        return "amount-below-minimum"
    if len(in_flight) >= peer.max_accepted_htlcs:
        return "too-many-htlcs"
    if sum(h.amount_msat for h in in_flight) + amount_msat > peer.max_htlc_value_in_flight_msat:
        return "too-much-in-flight"
    extra = Htlc(offered=True, amount_msat=amount_msat, payment_hash=bytes(32), cltv_expiry=0, id=0)
    if dust_exposure(state, extra) > core.policy.max_dust_htlc_exposure_msat:
        return "dust-exposure"
    return spendable(core, True, amount_msat, buffered=True)


def fulfill_htlc(core: Core, htlc_id: int, payment_preimage: bytes) -> list[Effect]:
    """Claim an incoming HTLC that is irrevocably committed."""
    htlc = _removable(core, htlc_id)
    if hashlib.sha256(payment_preimage).digest() != htlc.payment_hash:
        raise LocalProtocolError(
            "wrong-preimage", "The preimage does not hash to the HTLC's payment hash."
        )
    htlc.payment_preimage = payment_preimage
    htlc.removed = Stage.PROPOSED
    return _proposed(remove_message(core, htlc))


def fail_htlc(core: Core, htlc_id: int, reason: bytes) -> list[Effect]:
    """Give an incoming HTLC back with an onion-encrypted reason (BOLT 4)."""
    htlc = _removable(core, htlc_id)
    htlc.reason = reason
    htlc.removed = Stage.PROPOSED
    return _proposed(remove_message(core, htlc))


def fail_malformed_htlc(core: Core, htlc_id: int, failure_code: int) -> list[Effect]:
    """Give back an incoming HTLC whose onion could not be peeled."""
    htlc = _removable(core, htlc_id)
    htlc.malformed = (failure_code, hashlib.sha256(htlc.onion_routing_packet).digest())
    htlc.removed = Stage.PROPOSED
    return _proposed(remove_message(core, htlc))


def _proposed(message: Message) -> list[Effect]:
    # Stored though it is not signed yet: the node notes in the same turn what an HTLC is for or
    # that an invoice is paid, and neither may be on disk without the other.
    return [Persist(), Send(message)]


def _removable(core: Core, htlc_id: int) -> LiveHtlc:
    htlc = core.state.log.find(False, htlc_id)
    # BOLT 2: no removal before the HTLC is irrevocably committed in both commitments.
    if htlc is None or htlc.added is not Stage.DONE or htlc.removed is not None:
        raise LocalProtocolError("no-such-htlc", f"HTLC {htlc_id} is not there to be resolved.")
    return htlc


def propose_fee(core: Core, feerate_per_kw: FeeratePerKw) -> list[Effect]:
    """Send update_fee. Only the opener may (BOLT 2, Updating Fees)."""
    state = core.state
    _require_usable(core)
    if not state.opener:
        raise LocalProtocolError("not-opener", "Only the opener of a channel sets its feerate.")
    local, _ = state.log.balances(View.PENDING)
    if local - opener_cost(state, feerate_per_kw) < msat(state.peer.channel_reserve_satoshis):
        raise LocalProtocolError("insufficient-balance", "We can't pay that feerate.")
    state.log.fees.append(FeeUpdate(feerate_per_kw=feerate_per_kw))
    return _proposed(UpdateFee(channel_id=state.channel_id, feerate_per_kw=feerate_per_kw))


def commit(core: Core) -> list[Effect]:
    """Sign everything that the peer's commitment still lacks; nothing if that must wait."""
    state = core.state
    if not _may_commit(core):
        return []
    covered = [encode(m) for m in proposals(core)]
    state.log.advance(Step.SEND_COMMITMENT)
    state.remote_number += 1
    message = signed_commitment(core, state.remote_next_point)
    state.unacked = [*covered, encode(message)]
    state.revoked_last = False
    return [Persist(), Send(message)]


def _may_commit(core: Core) -> bool:
    state = core.state
    return (
        core.reestablished
        and state.state in (State.NORMAL, State.SHUTTING_DOWN)
        and not state.awaiting_revocation
        and state.log.owes_commitment()
    )


def signed_commitment(core: Core, point: bytes) -> CommitmentSigned:
    """Our signatures on the peer's commitment number `remote_number`."""
    commitment = remote_commitment(core, point)
    htlc_secret = keys.derive_privkey(core.secrets.htlc_basepoint, point)
    return CommitmentSigned(
        channel_id=core.state.channel_id,
        signature=sign_commitment(commitment, core.secrets.funding),
        htlc_signature=sign_htlcs(commitment, htlc_secret),
    )


def proposals(core: Core) -> list[Message]:
    """The messages of our updates that no commitment_signed covers yet, in a valid order."""
    state = core.state
    messages: list[Message] = []
    messages += [
        UpdateFee(channel_id=state.channel_id, feerate_per_kw=f.feerate_per_kw)
        for f in state.log.fees
        if state.opener and f.stage is Stage.PROPOSED
    ]
    messages += [
        remove_message(core, h)
        for h in state.log.htlcs
        if not h.ours and h.removed is Stage.PROPOSED
    ]
    messages += [
        add_message(core, h) for h in state.log.htlcs if h.ours and h.added is Stage.PROPOSED
    ]
    return messages


def add_message(core: Core, htlc: LiveHtlc) -> UpdateAddHtlc:
    return UpdateAddHtlc(
        channel_id=core.state.channel_id,
        id=htlc.id,
        amount_msat=htlc.amount_msat,
        payment_hash=htlc.payment_hash,
        cltv_expiry=htlc.cltv_expiry,
        onion_routing_packet=htlc.onion_routing_packet,
    )


def remove_message(core: Core, htlc: LiveHtlc) -> Message:
    channel_id = core.state.channel_id
    if htlc.payment_preimage is not None:
        return UpdateFulfillHtlc(
            channel_id=channel_id, id=htlc.id, payment_preimage=htlc.payment_preimage
        )
    if htlc.malformed is not None:
        failure_code, sha256_of_onion = htlc.malformed
        return UpdateFailMalformedHtlc(
            channel_id=channel_id,
            id=htlc.id,
            sha256_of_onion=sha256_of_onion,
            failure_code=failure_code,
        )
    return UpdateFailHtlc(channel_id=channel_id, id=htlc.id, reason=htlc.reason)


def _require_usable(core: Core) -> None:
    if core.state.state is not State.NORMAL or core.state.closing.local_scriptpubkey is not None:
        # BOLT 2: no update_add_htlc after shutdown.
        raise LocalProtocolError("channel-not-usable", "The channel is not open for payments.")
    if not core.reestablished:
        raise LocalProtocolError("peer-not-connected", "The channel's peer is not connected.")


# --- the peer's side -----------------------------------------------------------------------------


def on_add(core: Core, message: UpdateAddHtlc) -> list[Effect]:
    state = core.state
    log = state.log
    if state.closing.remote_scriptpubkey is not None:
        raise RemoteProtocolError("add-after-shutdown", "An HTLC was added after shutdown.")
    if message.id != log.next_remote_id:
        raise RemoteProtocolError("bad-htlc-id", "An HTLC's id did not follow the one before it.")
    if message.cltv_expiry >= MAX_CLTV_EXPIRY:
        raise RemoteProtocolError("bad-cltv-expiry", "An HTLC's expiry is a time, not a height.")
    reason = _why_not_accept(core, message.amount_msat)
    if reason is not None:
        raise RemoteProtocolError(*reason)
    log.next_remote_id += 1
    log.htlcs.append(
        LiveHtlc(
            id=message.id,
            ours=False,
            amount_msat=message.amount_msat,
            payment_hash=message.payment_hash,
            cltv_expiry=message.cltv_expiry,
            onion_routing_packet=message.onion_routing_packet,
        )
    )
    return []


def _why_not_accept(core: Core, amount_msat: Msat) -> tuple[str, str] | None:
    state = core.state
    ours = state.local
    in_flight = [h for h in state.log.visible(offering_view(False)) if not h.ours]
    if amount_msat < max(1, ours.htlc_minimum_msat):
        return "htlc-below-minimum", "An HTLC is below our htlc_minimum_msat."
    if len(in_flight) >= ours.max_accepted_htlcs:
        return "over-max-accepted-htlcs", "The peer added more HTLCs than max_accepted_htlcs."
    if sum(h.amount_msat for h in in_flight) + amount_msat > ours.max_htlc_value_in_flight_msat:
        return "over-max-in-flight", "The peer exceeded our max_htlc_value_in_flight_msat."
    if spendable(core, False, amount_msat, buffered=False) is not None:
        return "unaffordable-htlc", "The peer added an HTLC that it can't afford."
    return None


def on_fulfill(core: Core, message: UpdateFulfillHtlc) -> list[Effect]:
    htlc = _removed_by_peer(core, message.id)
    if hashlib.sha256(message.payment_preimage).digest() != htlc.payment_hash:
        raise RemoteProtocolError(
            "bad-preimage", "update_fulfill_htlc has a preimage of another hash."
        )
    htlc.payment_preimage = message.payment_preimage
    htlc.removed = Stage.PROPOSED
    # The preimage proves the payment from this moment; what the peer signs later can't undo it.
    return [Persist(), HtlcFulfilled(htlc.id, htlc.payment_hash, message.payment_preimage)]


def on_fail(core: Core, message: UpdateFailHtlc) -> list[Effect]:
    htlc = _removed_by_peer(core, message.id)
    htlc.reason = message.reason
    htlc.removed = Stage.PROPOSED
    return []


def on_fail_malformed(core: Core, message: UpdateFailMalformedHtlc) -> list[Effect]:
    htlc = _removed_by_peer(core, message.id)
    if not message.failure_code & BADONION:
        raise RemoteProtocolError(
            "malformed-without-badonion", "update_fail_malformed_htlc lacks the BADONION bit."
        )
    htlc.malformed = (message.failure_code, message.sha256_of_onion)
    htlc.removed = Stage.PROPOSED
    return []


def _removed_by_peer(core: Core, htlc_id: int) -> LiveHtlc:
    htlc = core.state.log.find(True, htlc_id)
    if htlc is None or htlc.added is not Stage.DONE or htlc.removed is not None:
        raise RemoteProtocolError(
            "unknown-htlc", "The peer resolved an HTLC that is not committed on both sides."
        )
    return htlc


def on_fee(core: Core, message: UpdateFee) -> list[Effect]:
    state = core.state
    if state.opener:
        raise RemoteProtocolError("fee-from-accepter", "Only the opener may send update_fee.")
    if not core.policy.min_feerate <= message.feerate_per_kw <= core.policy.max_feerate:
        raise RemoteProtocolError("bad-feerate", "update_fee is outside of what we accept.")
    _, remote = state.log.balances(View.PENDING)
    if remote - opener_cost(state, message.feerate_per_kw) < msat(
        state.local.channel_reserve_satoshis
    ):
        raise RemoteProtocolError("unaffordable-fee", "The opener can't pay the feerate it asks.")
    state.log.fees.append(FeeUpdate(feerate_per_kw=message.feerate_per_kw))
    return []


def on_commitment_signed(core: Core, message: CommitmentSigned) -> list[Effect]:
    """Check the peer's signatures on our next commitment, then revoke the one before."""
    state = core.state
    if not state.log.expects_commitment():
        raise RemoteProtocolError("empty-commitment", "commitment_signed covers no update.")
    # Checked before anything changes: what we hold must stay broadcastable if this is wrong.
    commitment = next_local_commitment(core)
    check_signatures(
        commitment,
        state.peer.funding_pubkey,
        message.signature,
        commitment.spec.keys.remote_htlc,
        message.htlc_signature,
    )
    state.log.advance(Step.RECEIVE_COMMITMENT)
    state.local_number += 1
    state.remote_signature = message.signature
    state.remote_htlc_signatures = message.htlc_signature
    effects: list[Effect] = [Persist(), Send(revocation(core))]
    state.log.advance(Step.SEND_REVOCATION)
    state.revoked_last = True
    return effects + _settle(core)


def revocation(core: Core) -> RevokeAndAck:
    """The revoke_and_ack for our commitment number `local_number - 1`."""
    number = core.state.local_number
    return RevokeAndAck(
        channel_id=core.state.channel_id,
        per_commitment_secret=local_secret(core, number - 1),
        next_per_commitment_point=local_point(core, number + 1),
    )


def on_revoke_and_ack(core: Core, message: RevokeAndAck) -> list[Effect]:
    state = core.state
    if not state.awaiting_revocation:
        raise RemoteProtocolError("unexpected-revocation", "revoke_and_ack revokes nothing.")
    # BOLT 2: the secret must be that of the commitment we had a signature out for before.
    if not _is_secret_of(message.per_commitment_secret, state.remote_current_point):
        raise RemoteProtocolError(
            "bad-per-commitment-secret", "revoke_and_ack's secret is not that of its point."
        )
    secrets = keys.RevokedSecrets.from_list(state.revoked_secrets)
    secrets.insert(keys.FIRST_INDEX - state.remote_revoked, message.per_commitment_secret)
    state.revoked_secrets = secrets.to_list()
    state.remote_revoked += 1
    state.remote_current_point = state.remote_next_point
    state.remote_next_point = checked_point(message.next_per_commitment_point)
    state.unacked = []
    state.log.advance(Step.RECEIVE_REVOCATION)
    return [Persist(), *_settle(core)]


def _is_secret_of(secret: bytes, point: bytes) -> bool:
    try:
        return keys.public_key(secret) == point
    except RemoteProtocolError:
        return False


def checked_point(point: bytes) -> bytes:
    if not keys.is_public_key(point):
        raise RemoteProtocolError("bad-point", "A per-commitment point is not on the curve.")
    return point


def _settle(core: Core) -> list[Effect]:
    """Report what became irrevocable with the last step."""
    effects: list[Effect] = [
        HtlcFailed(h.id, h.payment_hash, h.reason, h.malformed)
        for h in core.state.log.take_removed()
        if h.ours and h.payment_preimage is None
    ]
    for htlc in core.state.log.htlcs:
        if not htlc.ours and htlc.added is Stage.DONE and not htlc.reported:
            htlc.reported = True
            effects.append(received(htlc))
    return effects


def received(htlc: LiveHtlc) -> HtlcReceived:
    return HtlcReceived(
        htlc.id,
        htlc.amount_msat,
        htlc.payment_hash,
        htlc.cltv_expiry,
        htlc.onion_routing_packet,
    )
