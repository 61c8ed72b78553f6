"""Who signed what in BOLT 7: making and checking the signatures of gossip messages."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TypeVar

from channels.bolt.keys import sign, verify
from channels.bolt.messages import (
    ChannelAnnouncement,
    ChannelUpdate,
    NodeAnnouncement,
    encode,
)
from channels.errors import RemoteProtocolError

_TYPE = 2
_SIGNATURE = 64
_Single = TypeVar("_Single", ChannelUpdate, NodeAnnouncement)


def digest(message: ChannelAnnouncement | ChannelUpdate | NodeAnnouncement) -> bytes:
    """The double SHA-256 of all that follows the message's signatures (BOLT 7)."""
    signatures = 4 if isinstance(message, ChannelAnnouncement) else 1
    signed = encode(message)[_TYPE + signatures * _SIGNATURE :]
    return hashlib.sha256(hashlib.sha256(signed).digest()).digest()


def signed(message: _Single, node_secret: bytes) -> _Single:
    """The message with our node's signature in its place."""
    return replace(message, signature=sign(node_secret, digest(message)))


def check_update(update: ChannelUpdate, node_id: bytes) -> None:
    """Raises RemoteProtocolError("update-signature-invalid") unless `node_id` signed it."""
    if not verify(node_id, digest(update), update.signature):
        raise RemoteProtocolError(
            "update-signature-invalid",
            f"The channel_update of {update.short_channel_id} is not signed by its node.",
        )


def check_node(announcement: NodeAnnouncement) -> None:
    """Raises RemoteProtocolError("node-signature-invalid") unless its node signed it."""
    if not verify(announcement.node_id, digest(announcement), announcement.signature):
        raise RemoteProtocolError(
            "node-signature-invalid",
            f"The node_announcement of {announcement.node_id.hex()} is not signed by that node.",
        )


def check_announcement(announcement: ChannelAnnouncement) -> None:
    """Raises RemoteProtocolError("announcement-signature-invalid") unless all four are right."""
    message = digest(announcement)
    for key, signature in (
        (announcement.node_id_1, announcement.node_signature_1),
        (announcement.node_id_2, announcement.node_signature_2),
        (announcement.bitcoin_key_1, announcement.bitcoin_signature_1),
        (announcement.bitcoin_key_2, announcement.bitcoin_signature_2),
    ):
        if not verify(key, message, signature):
            raise RemoteProtocolError(
                "announcement-signature-invalid",
                f"The channel_announcement of {announcement.short_channel_id} lacks a valid "
                f"signature of {key.hex()}.",
            )
