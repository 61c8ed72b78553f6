"""Going on after a reconnection or restart: BOLT 2, Message Retransmission."""

from __future__ import annotations

from channels.bolt import keys, mutual_close
from channels.bolt.channel_commitments import local_point, local_secret
from channels.bolt.channel_state import Core, State
from channels.bolt.effects import ChannelFailed, Effect, HtlcFailed, Persist, Send
from channels.bolt.messages import ChannelReestablish, Error, Message, decode
from channels.bolt.opening import ready_message
from channels.bolt.updates import proposals, revocation
from channels.errors import RemoteProtocolError


def disconnected(core: Core) -> list[Effect]:
    """The connection is gone: reverse what either side proposed and never signed."""
    core.connected = core.reestablished = False
    return _forget_uncommitted(core)


def _forget_uncommitted(core: Core) -> list[Effect]:
    gone = core.state.log.forget_uncommitted()
    return [Persist(), *(HtlcFailed(h.id, h.payment_hash, b"", unsent=True) for h in gone)]


def connected(core: Core) -> list[Effect]:
    """A new connection: say where we are, and wait for the peer to say the same."""
    core.connected, core.reestablished = True, False
    state = core.state
    # After a crash nobody has called `disconnected`.
    effects = _forget_uncommitted(core)
    if state.failure is not None:
        return effects  # `retransmit_error` when the peer speaks of it
    secret = bytes(32)
    if state.remote_revoked > 0:
        revoked = keys.RevokedSecrets.from_list(state.revoked_secrets)
        secret = revoked.secret(keys.FIRST_INDEX - (state.remote_revoked - 1)) or secret
    return [
        *effects,
        Send(
            ChannelReestablish(
                channel_id=state.channel_id,
                next_commitment_number=state.local_number + 1,
                next_revocation_number=state.remote_revoked,
                your_last_per_commitment_secret=secret,
                my_current_per_commitment_point=local_point(core, state.local_number),
            )
        ),
    ]


def retransmit_error(core: Core) -> list[Effect]:
    """BOLT 2: a channel in an error state retransmits the error, and ignores everything else.

    Only to a peer that does not know yet, so that still wants to go on with the channel: Electrum
    closes the connection whenever an error comes, and with it those of our channels that are well.
    """
    state = core.state
    if state.failure is None:
        return []
    return [Send(Error(channel_id=state.channel_id, data=state.failure[1].encode()))]


def on_channel_reestablish(core: Core, message: ChannelReestablish) -> list[Effect]:
    state = core.state
    behind = _we_fell_behind(core, message)
    if behind is not None:
        return behind
    resend_revocation = _check_revocation_number(core, message)
    resend_commitment = _check_commitment_number(core, message)
    core.reestablished = True
    effects: list[Effect] = []
    # BOLT 2: next_commitment_number 1 on both sides means that no update was ever signed.
    if message.next_commitment_number == 1 and state.local_number == 0 and state.ready_sent:
        effects.append(Send(ready_message(core)))
    again: list[Message] = [decode_own(raw) for raw in state.unacked] if resend_commitment else []
    if resend_revocation:
        # BOLT 2: in the same relative order as initially transmitted.
        again = [*again, revocation(core)] if state.revoked_last else [revocation(core), *again]
    effects += [Send(m) for m in again]
    # Updates that no commitment_signed covered were forgotten by the peer (BOLT 2, disconnection).
    effects += [Send(m) for m in proposals(core)]
    if state.closing.shutdown_sent:
        effects.append(Send(mutual_close.shutdown_message(core)))
    effects += mutual_close.restart_negotiation(core)
    return effects


def decode_own(raw: bytes) -> Message:
    message = decode(raw)
    assert isinstance(message, Message), "what we stored was encoded by us"
    return message


def _we_fell_behind(core: Core, message: ChannelReestablish) -> list[Effect] | None:
    """BOLT 2: the peer proves that it holds a newer state than ours (an old backup of ours)."""
    state = core.state
    number = message.next_revocation_number
    if number <= state.local_number:
        return None
    if number > 2**48 or message.your_last_per_commitment_secret != local_secret(core, number - 1):
        raise RemoteProtocolError(
            "bad-revocation-number", "channel_reestablish names a revocation that never was."
        )
    sentence = "Our state of this channel is old: please close it from your side."
    state.state = State.FAILED
    state.failure = ("fell-behind", sentence)
    return [
        Persist(),
        Send(Error(channel_id=state.channel_id, data=sentence.encode())),
        ChannelFailed("fell-behind", sentence),
    ]


def _check_revocation_number(core: Core, message: ChannelReestablish) -> bool:
    """Whether our last revoke_and_ack was lost."""
    state = core.state
    number = message.next_revocation_number
    if number not in (state.local_number, state.local_number - 1):
        raise RemoteProtocolError(
            "bad-revocation-number", "channel_reestablish asks for a revocation long acknowledged."
        )
    expected = local_secret(core, number - 1) if number > 0 else bytes(32)
    if message.your_last_per_commitment_secret != expected:
        raise RemoteProtocolError(
            "bad-last-secret", "channel_reestablish has a secret that we never gave."
        )
    return number == state.local_number - 1


def _check_commitment_number(core: Core, message: ChannelReestablish) -> bool:
    """Whether our last commitment_signed was lost."""
    state = core.state
    number = message.next_commitment_number
    if number == state.remote_number + 1:
        return False
    if number == state.remote_number and state.awaiting_revocation:
        return True
    raise RemoteProtocolError(
        "bad-commitment-number", "channel_reestablish expects a commitment that is not the next."
    )
