"""Gossip that is rightly signed, by nodes with names, and the outputs that it speaks of."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from channels.bolt.gossip import FundingOutput
from channels.bolt.gossip_signatures import digest, signed
from channels.bolt.keys import sign
from channels.bolt.messages import ChannelAnnouncement, ChannelUpdate, NodeAnnouncement
from channels.bolt.transactions import OutPoint, funding_script, p2wsh
from channels.units import Sat
from tests.channels.bolt.networks import REGTEST_CHAIN, node, scid, secret, update

CAPACITY = Sat(1_000_000)


def bitcoin(name: str, number: int) -> str:
    """The name of a node's funding key in a channel."""
    return f"{name}'s key of {number}"


def announcement(
    one: str, other: str, number: int, *, features: bytes = b""
) -> ChannelAnnouncement:
    first, second = sorted((one, other), key=node)
    unsigned = ChannelAnnouncement(
        node_signature_1=bytes(64),
        node_signature_2=bytes(64),
        bitcoin_signature_1=bytes(64),
        bitcoin_signature_2=bytes(64),
        features=features,
        chain_hash=REGTEST_CHAIN,
        short_channel_id=scid(number),
        node_id_1=node(first),
        node_id_2=node(second),
        bitcoin_key_1=node(bitcoin(first, number)),
        bitcoin_key_2=node(bitcoin(second, number)),
    )
    return resigned(unsigned, first, second, number)


def resigned(
    message: ChannelAnnouncement, first: str, second: str, number: int
) -> ChannelAnnouncement:
    """The same, signed as it stands by those who made it."""
    told = digest(message)
    return replace(
        message,
        node_signature_1=sign(secret(first), told),
        node_signature_2=sign(secret(second), told),
        bitcoin_signature_1=sign(secret(bitcoin(first, number)), told),
        bitcoin_signature_2=sign(secret(bitcoin(second, number)), told),
    )


def outpoint(number: int) -> OutPoint:
    return OutPoint(hashlib.sha256(b"funding %d" % number).digest(), 0)


def output(one: str, other: str, number: int) -> FundingOutput:
    keys = (node(bitcoin(one, number)), node(bitcoin(other, number)))
    return FundingOutput(outpoint(number), p2wsh(funding_script(*keys)), CAPACITY)


def channel_update(
    source: str, target: str, number: int, timestamp: int, **terms: int
) -> ChannelUpdate:
    terms.setdefault("maximum", 1_000_000_000)
    disabled = bool(terms.pop("disabled", 0))
    message = update(source, target, number, timestamp=timestamp, disabled=disabled, **terms)
    return signed(message, secret(source))


def node_announcement(name: str, timestamp: int, *, addresses: bytes = b"") -> NodeAnnouncement:
    message = NodeAnnouncement(
        signature=bytes(64),
        features=b"",
        timestamp=timestamp,
        node_id=node(name),
        rgb_color=b"\x01\x02\x03",
        alias=name.encode().ljust(32, b"\0"),
        addresses=addresses,
    )
    return signed(message, secret(name))
