"""Closing a channel together: shutdown and closing_signed (BOLT 2, Channel Close)."""

from __future__ import annotations

from channels.bolt import keys
from channels.bolt.channel_commitments import opener_cost
from channels.bolt.channel_state import Core, State
from channels.bolt.closing import closing_transaction
from channels.bolt.effects import Effect, MutualClose, Persist, Send
from channels.bolt.htlcs import View
from channels.bolt.messages import ClosingSigned, FeeRange, Message, Shutdown
from channels.bolt.transactions import (
    Transaction,
    funding_script,
    is_valid_shutdown_script,
)
from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.units import FeeratePerKw, Sat, sat_floor

_CLOSABLE = (State.AWAITING_LOCKIN, State.NORMAL, State.SHUTTING_DOWN)


def request(core: Core, scriptpubkey: bytes, feerate_per_kw: FeeratePerKw) -> list[Effect]:
    """Start closing; shutdown goes out as soon as BOLT 2 allows it."""
    state = core.state
    if state.state not in _CLOSABLE:
        raise LocalProtocolError("channel-not-closable", "The channel is not open any more.")
    if state.closing.local_scriptpubkey is None:
        state.closing.local_scriptpubkey = scriptpubkey
    state.closing.feerate_per_kw = feerate_per_kw
    return [Persist(), *continue_shutdown(core)]


def continue_shutdown(core: Core) -> list[Effect]:
    """Send a shutdown that is due. BOLT 2: not while the peer's commitment lacks an update."""
    state = core.state
    closing = state.closing
    due = closing.local_scriptpubkey is not None and not closing.shutdown_sent
    if not due or not core.reestablished or state.log.unsigned_proposals():
        return []
    if state.awaiting_revocation:
        return []
    closing.shutdown_sent = True
    closing.closer = closing.closer or "local"
    return [Persist(), Send(shutdown_message(core)), *_advance(core)]


def shutdown_message(core: Core) -> Shutdown:
    script = core.state.closing.local_scriptpubkey
    assert script is not None, "shutdown is only sent once a script is chosen"
    return Shutdown(channel_id=core.state.channel_id, scriptpubkey=script)


def on_shutdown(
    core: Core, message: Shutdown, our_script: bytes, feerate_per_kw: FeeratePerKw
) -> list[Effect]:
    """Answer the peer's shutdown with ours, to `our_script` unless one was chosen before."""
    state = core.state
    # We offer option_shutdown_anysegwit, so the peer may use it.
    if not is_valid_shutdown_script(message.scriptpubkey, True):
        raise RemoteProtocolError("bad-shutdown-script", "shutdown pays to a form we don't accept.")
    closing = state.closing
    if closing.remote_scriptpubkey not in (None, message.scriptpubkey):
        raise RemoteProtocolError("shutdown-script-changed", "shutdown came with another script.")
    closing.remote_scriptpubkey = message.scriptpubkey
    closing.closer = closing.closer or "remote"
    if closing.local_scriptpubkey is None:
        closing.local_scriptpubkey = our_script
    if closing.feerate_per_kw is None:
        closing.feerate_per_kw = feerate_per_kw
    return [Persist(), *continue_shutdown(core), *_advance(core)]


def _advance(core: Core) -> list[Effect]:
    """SHUTTING_DOWN once either side said shutdown; negotiate once both did and all is settled."""
    state = core.state
    if state.state in (State.AWAITING_LOCKIN, State.NORMAL):
        state.state = State.SHUTTING_DOWN
    return negotiate(core)


def negotiate(core: Core) -> list[Effect]:
    """Begin with closing_signed when the channel is empty (BOLT 2: the funder begins)."""
    state = core.state
    closing = state.closing
    both = closing.shutdown_sent and closing.remote_scriptpubkey is not None
    quiet = state.log.settled() and not state.awaiting_revocation
    if not core.reestablished:
        return []  # BOLT 2: nothing before the peer's channel_reestablish
    if state.state is not State.SHUTTING_DOWN or not both or not quiet:
        return []
    state.state = State.NEGOTIATING
    if not state.opener:
        return [Persist()]
    return [Persist(), *_offer(core, _ideal_fee(core))]


def restart_negotiation(core: Core) -> list[Effect]:
    """BOLT 2: negotiation restarts on reconnection."""
    state = core.state
    state.closing.sent_fee_satoshis = None
    state.closing.received_fee_satoshis = None
    closing_fee = state.closing.agreed_fee_satoshis
    if state.opener and closing_fee is not None:
        # The peer may not have our last closing_signed.
        return _offer(core, closing_fee)
    if state.opener and state.state is State.NEGOTIATING:
        return _offer(core, _ideal_fee(core))
    return negotiate(core)


def repeat(core: Core, message: Message) -> list[Effect]:
    """We agreed; a peer that asks for it after a reconnection gets our closing_signed again."""
    closing = core.state.closing
    due = isinstance(message, ClosingSigned) and closing.sent_fee_satoshis is None
    if due and closing.agreed_fee_satoshis is not None:
        return _offer(core, closing.agreed_fee_satoshis)
    return []


def is_agreed(core: Core, transaction: Transaction) -> bool:
    """Whether a transaction that spends the funding output is a mutual close that we signed.

    Only a mutual close pays to nothing but the scripts of both shutdowns.
    """
    closing = core.state.closing
    scripts = {closing.local_scriptpubkey, closing.remote_scriptpubkey}
    return None not in scripts and {out.script for out in transaction.outputs} <= scripts


def _offer(core: Core, fee: Sat) -> list[Effect]:
    state = core.state
    state.closing.sent_fee_satoshis = fee
    transaction = _unsigned(core, fee)
    low, high = _fee_range(core)
    return [
        Persist(),
        Send(
            ClosingSigned(
                channel_id=state.channel_id,
                fee_satoshis=fee,
                signature=keys.sign(core.secrets.funding, _digest(core, transaction)),
                fee_range=FeeRange(min_fee_satoshis=low, max_fee_satoshis=high),
            )
        ),
    ]


def on_closing_signed(core: Core, message: ClosingSigned) -> list[Effect]:
    state = core.state
    closing = state.closing
    transaction = _unsigned(core, message.fee_satoshis)
    if not keys.verify(state.peer.funding_pubkey, _digest(core, transaction), message.signature):
        raise RemoteProtocolError(
            "bad-closing-signature", "closing_signed does not sign the closing transaction."
        )
    low, high = _fee_range(core)
    fee = message.fee_satoshis
    if fee == closing.sent_fee_satoshis:
        return _agree(core, fee, transaction, message.signature)
    if low <= fee <= high:
        # In our range: BOLT 2 says to reply with the same value, which ends the negotiation.
        reply = _offer(core, fee)
        return [*reply, *_agree(core, fee, transaction, message.signature)]
    return _counter(core, message, low, high)


def _counter(core: Core, message: ClosingSigned, low: Sat, high: Sat) -> list[Effect]:
    """The fee is not one we want: move towards it, or give up."""
    closing = core.state.closing
    theirs = message.fee_range
    if theirs is not None:
        overlap = (max(low, theirs.min_fee_satoshis), min(high, theirs.max_fee_satoshis))
        # BOLT 2: a second proposal outside of the overlap fails the channel.
        if overlap[0] > overlap[1] or closing.sent_fee_satoshis is not None:
            raise RemoteProtocolError(
                "no-common-closing-fee", "The peer's closing fee is outside of our range."
            )
        closing.received_fee_satoshis = message.fee_satoshis
        return _offer(core, Sat(overlap[0]))
    sent = closing.sent_fee_satoshis
    if sent is None:
        closing.received_fee_satoshis = message.fee_satoshis
        return _offer(core, _ideal_fee(core))
    between = Sat((sent + message.fee_satoshis) // 2)
    last = closing.received_fee_satoshis
    if last is not None and not min(sent, last) < message.fee_satoshis < max(sent, last):
        raise RemoteProtocolError(
            "closing-fee-not-between", "closing_signed did not move towards our fee."
        )
    if not low <= between <= high or between == sent:
        raise RemoteProtocolError(
            "no-common-closing-fee", "The peer's closing fee is outside of our range."
        )
    closing.received_fee_satoshis = message.fee_satoshis
    return _offer(core, between)


def _agree(core: Core, fee: Sat, unsigned: Transaction, their_signature: bytes) -> list[Effect]:
    state = core.state
    ours = keys.sign(core.secrets.funding, _digest(core, unsigned))
    transaction = unsigned.with_witness(0, _funding_witness(core, ours, their_signature))
    state.closing.transaction = transaction.serialize()
    state.closing.agreed_fee_satoshis = fee
    state.state = State.CLOSING_AGREED
    return [Persist(), MutualClose(transaction)]


def _funding_witness(core: Core, ours: bytes, theirs: bytes) -> tuple[bytes, ...]:
    """BOLT 3, Funding Transaction Output: signatures in the order of the sorted keys."""
    local, remote = core.state.local.funding_pubkey, core.state.peer.funding_pubkey
    mine, other = keys.der(ours) + b"\x01", keys.der(theirs) + b"\x01"
    first, second = (mine, other) if local < remote else (other, mine)
    return (b"", first, second, funding_script(local, remote))


def _unsigned(core: Core, fee: Sat) -> Transaction:
    state = core.state
    closing = state.closing
    assert closing.local_scriptpubkey is not None, "both scripts are known in negotiation"
    assert closing.remote_scriptpubkey is not None, "both scripts are known in negotiation"
    local, remote = sat_floor(state.log.local_msat), sat_floor(state.log.remote_msat)
    if fee > _opener_balance(core):
        raise RemoteProtocolError("closing-fee-too-large", "The opener can't pay that closing fee.")
    try:
        return closing_transaction(
            funding=state.funding,
            local_script=closing.local_scriptpubkey,
            remote_script=closing.remote_scriptpubkey,
            local_satoshis=Sat(local - fee if state.opener else local),
            remote_satoshis=Sat(remote if state.opener else remote - fee),
        )
    except LocalProtocolError as error:
        raise RemoteProtocolError(error.reason, str(error)) from error


def _digest(core: Core, transaction: Transaction) -> bytes:
    state = core.state
    script = funding_script(state.local.funding_pubkey, state.peer.funding_pubkey)
    return transaction.segwit_digest(0, script, state.funding_satoshis)


def _ideal_fee(core: Core) -> Sat:
    feerate = core.state.closing.feerate_per_kw or core.policy.min_feerate
    # The opener can't offer more than it has, however high feerates have risen since.
    return min(Sat(_closing_weight(core) * feerate // 1000 + 1), _opener_balance(core))


def _opener_balance(core: Core) -> Sat:
    log = core.state.log
    return sat_floor(log.local_msat if core.state.opener else log.remote_msat)


def _fee_range(core: Core) -> tuple[Sat, Sat]:
    """What we agree to. The accepter does not pay, so any relayable fee suits it.

    The opener pays up to what closing alone would cost it: the fee and anchors of its commitment.
    A peer that estimates feerates higher than we do still finds its fee in there.
    """
    state = core.state
    lowest = Sat(_closing_weight(core) * core.policy.min_feerate // 1000)
    if state.opener:
        ideal = _ideal_fee(core)
        alone = sat_floor(opener_cost(state, state.log.feerate(View.PENDING)))
        return min(lowest, ideal), min(Sat(max(2 * ideal, alone)), _opener_balance(core))
    return lowest, _opener_balance(core)


def _closing_weight(core: Core) -> int:
    """The most that the signed closing transaction can weigh."""
    state = core.state
    script = funding_script(state.local.funding_pubkey, state.peer.funding_pubkey)
    signature = bytes(72)  # DER of a low-s signature is at most 71 bytes, and one of hash type
    return _unsigned(core, Sat(0)).with_witness(0, (b"", signature, signature, script)).weight
