"""What a node says of its own channels and of itself (BOLT 7, the origin node's side)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from channels.bolt import features
from channels.bolt.channel_state import ChannelState
from channels.bolt.gossip import DONT_FORWARD
from channels.bolt.gossip_signatures import digest, signed
from channels.bolt.graph import DISABLE, direction_of
from channels.bolt.keys import ChannelSecrets, public_key, sign, verify
from channels.bolt.messages import (
    AnnouncementSignatures,
    ChannelAnnouncement,
    ChannelUpdate,
    NodeAnnouncement,
)
from channels.bolt.policy import Policy
from channels.errors import RemoteProtocolError
from channels.units import Msat, UnixTime, msat

MUST_BE_ONE = 1
"""Bit 0 of message_flags (BOLT 7)."""

NO_SIGNATURE = bytes(64)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Our node, as one end of its channels. The secrets stay out of repr()."""

    chain_hash: bytes
    node_secret: bytes

    def __repr__(self) -> str:
        return f"Endpoint({self.node_id.hex()})"

    @property
    def node_id(self) -> bytes:
        return public_key(self.node_secret)


def announcement(state: ChannelState, end: Endpoint) -> ChannelAnnouncement:
    """The channel_announcement that both ends sign, its signatures still empty."""
    assert state.short_channel_id is not None, "only a confirmed channel is announced"
    # BOLT 7: node_id_1 is the lesser id, and bitcoin_key_1 is its funding_pubkey.
    (node_1, key_1), (node_2, key_2) = sorted(
        (
            (end.node_id, state.local.funding_pubkey),
            (state.peer_id, state.peer.funding_pubkey),
        )
    )
    return ChannelAnnouncement(
        node_signature_1=NO_SIGNATURE,
        node_signature_2=NO_SIGNATURE,
        bitcoin_signature_1=NO_SIGNATURE,
        bitcoin_signature_2=NO_SIGNATURE,
        features=b"",
        chain_hash=end.chain_hash,
        short_channel_id=state.short_channel_id,
        node_id_1=node_1,
        node_id_2=node_2,
        bitcoin_key_1=key_1,
        bitcoin_key_2=key_2,
    )


def our_signatures(
    state: ChannelState, secrets: ChannelSecrets, end: Endpoint
) -> AnnouncementSignatures:
    """Our half of the announcement, for the peer."""
    unsigned = announcement(state, end)
    message = digest(unsigned)
    return AnnouncementSignatures(
        channel_id=state.channel_id,
        short_channel_id=unsigned.short_channel_id,
        node_signature=sign(end.node_secret, message),
        bitcoin_signature=sign(secrets.funding, message),
    )


def complete(
    state: ChannelState,
    secrets: ChannelSecrets,
    end: Endpoint,
    theirs: AnnouncementSignatures,
) -> ChannelAnnouncement:
    """The announcement with both halves.

    Raises RemoteProtocolError: "announcement-other-channel" when the peer signed for another
    short_channel_id, "announcement-half-invalid" when one of its signatures is wrong.
    """
    if theirs.short_channel_id != state.short_channel_id:
        raise RemoteProtocolError(
            "announcement-other-channel",
            f"The peer announces {theirs.short_channel_id}, but the channel is "
            f"{state.short_channel_id}.",
        )
    unsigned = announcement(state, end)
    message = digest(unsigned)
    for key, signature in (
        (state.peer_id, theirs.node_signature),
        (state.peer.funding_pubkey, theirs.bitcoin_signature),
    ):
        if not verify(key, message, signature):
            raise RemoteProtocolError(
                "announcement-half-invalid",
                f"The peer's announcement_signatures lack a valid signature of {key.hex()}.",
            )
    ours = our_signatures(state, secrets, end)
    first, second = (ours, theirs) if unsigned.node_id_1 == end.node_id else (theirs, ours)
    return replace(
        unsigned,
        node_signature_1=first.node_signature,
        node_signature_2=second.node_signature,
        bitcoin_signature_1=first.bitcoin_signature,
        bitcoin_signature_2=second.bitcoin_signature,
    )


def bounded(state: ChannelState, policy: Policy) -> Policy:
    """A policy as this channel can keep it."""
    # BOLT 7: no more than the capacity, than the peer lets be in flight, and no less than the
    # minimum; the peer accepts nothing below its own minimum.
    most = min(
        policy.htlc_maximum_msat,
        msat(state.funding_satoshis),
        state.peer.max_htlc_value_in_flight_msat,
    )
    least = min(max(policy.htlc_minimum_msat, state.peer.htlc_minimum_msat), most)
    return replace(policy, htlc_minimum_msat=Msat(least), htlc_maximum_msat=Msat(most))


def channel_update(
    state: ChannelState,
    policy: Policy,
    end: Endpoint,
    *,
    public: bool,
    disabled: bool,
    now: UnixTime,
    before: ChannelUpdate | None,
) -> ChannelUpdate | None:
    """Our side's channel_update, signed; None when `before`, the last one, says the same.

    One that is not `public` is for the peer alone.
    """
    assert state.short_channel_id is not None, "only a confirmed channel has updates"
    terms = bounded(state, policy)
    update = ChannelUpdate(
        signature=NO_SIGNATURE,
        chain_hash=end.chain_hash,
        short_channel_id=state.short_channel_id,
        timestamp=now,
        message_flags=MUST_BE_ONE | (0 if public else DONT_FORWARD),
        channel_flags=direction_of(end.node_id, state.peer_id) | (DISABLE if disabled else 0),
        cltv_expiry_delta=policy.cltv_expiry_delta,
        htlc_minimum_msat=terms.htlc_minimum_msat,
        fee_base_msat=policy.fee_base_msat,
        fee_proportional_millionths=policy.fee_proportional_millionths,
        htlc_maximum_msat=terms.htlc_maximum_msat,
    )
    if before is not None:
        if replace(before, signature=NO_SIGNATURE, timestamp=now) == update:
            return None
        # BOLT 7: greater than that of any update before it.
        update = replace(update, timestamp=max(now, before.timestamp + 1))
    return signed(update, end.node_secret)


def node_announcement(
    end: Endpoint,
    *,
    alias: str,
    rgb_color: bytes,
    addresses: bytes,
    now: UnixTime,
    before: NodeAnnouncement | None,
) -> NodeAnnouncement | None:
    """What we say of our node, signed; None when `before`, the last one, says the same."""
    message = NodeAnnouncement(
        signature=NO_SIGNATURE,
        features=features.encode_bits(features.OUR_NODE),
        timestamp=now,
        node_id=end.node_id,
        rgb_color=rgb_color,
        alias=alias_field(alias),
        addresses=addresses,
    )
    if before is not None:
        if replace(before, signature=NO_SIGNATURE, timestamp=now) == message:
            return None
        message = replace(message, timestamp=max(now, before.timestamp + 1))
    return signed(message, end.node_secret)


def alias_field(alias: str) -> bytes:
    """32 bytes of UTF-8 and zeros, no character cut in half."""
    whole = alias.encode()[:32].decode(errors="ignore").encode()
    return whole.ljust(32, b"\0")


def alias_text(field: bytes) -> str:
    """A stranger's alias, fit to be printed: nothing but what has a shape."""
    text = field.rstrip(b"\0").decode(errors="replace")
    return "".join(character if character.isprintable() else "�" for character in text)
