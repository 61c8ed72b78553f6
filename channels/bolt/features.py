"""Feature bits: their names, their encoding, and whether a peer's can be lived with (BOLT 9)."""

from __future__ import annotations

from collections.abc import Container, Iterable
from enum import IntEnum

from channels.errors import RemoteProtocolError


class Feature(IntEnum):
    """The even (required) bit of each feature; the odd (optional) bit is one more."""

    DATA_LOSS_PROTECT = 0
    UPFRONT_SHUTDOWN_SCRIPT = 4
    GOSSIP_QUERIES = 6
    VAR_ONION = 8
    GOSSIP_QUERIES_EX = 10
    STATIC_REMOTEKEY = 12
    PAYMENT_SECRET = 14
    BASIC_MPP = 16
    LARGE_CHANNELS = 18
    ANCHORS = 22
    ROUTE_BLINDING = 24
    SHUTDOWN_ANYSEGWIT = 26
    DUAL_FUND = 28
    QUIESCE = 34
    ATTRIBUTION_DATA = 36
    ONION_MESSAGES = 38
    PROVIDE_STORAGE = 42
    CHANNEL_TYPE = 44
    SCID_ALIAS = 46
    PAYMENT_METADATA = 48
    ZEROCONF = 50
    SIMPLE_CLOSE = 60
    SPLICE = 62


DEPENDENCIES = {
    Feature.BASIC_MPP: Feature.PAYMENT_SECRET,
    Feature.ZEROCONF: Feature.SCID_ALIAS,
    Feature.SIMPLE_CLOSE: Feature.SHUTDOWN_ANYSEGWIT,
}
"""The feature that each of these needs (the table of BOLT 9)."""

OUR_INIT: frozenset[int] = frozenset(
    feature + 1
    for feature in (
        Feature.DATA_LOSS_PROTECT,
        Feature.GOSSIP_QUERIES,
        Feature.VAR_ONION,
        Feature.GOSSIP_QUERIES_EX,
        Feature.STATIC_REMOTEKEY,
        Feature.PAYMENT_SECRET,
        Feature.BASIC_MPP,
        Feature.ANCHORS,
        Feature.SHUTDOWN_ANYSEGWIT,
        Feature.CHANNEL_TYPE,
    )
)
"""What we offer in init: what is built, all of it optional."""

OUR_NODE: frozenset[int] = OUR_INIT
"""What our node_announcement says (BOLT 9, context N): so far nothing else than init."""

OUR_INVOICE: frozenset[int] = frozenset(
    {Feature.VAR_ONION, Feature.PAYMENT_SECRET, Feature.BASIC_MPP + 1}
)
"""What our invoices require, and that they may be paid in parts."""


def encode_bits(bits: Iterable[int]) -> bytes:
    """A features field: bit 0 is the last byte's lowest, no more bytes than needed (BOLT 1)."""
    number = 0
    for bit in bits:
        number |= 1 << bit
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def decode_bits(field: bytes) -> frozenset[int]:
    """The bits that are set in a features field; it may be padded."""
    return frozenset(
        8 * place + bit
        for place, byte in enumerate(reversed(field))
        if byte
        for bit in range(8)
        if byte >> bit & 1
    )


def offers(bits: Container[int], feature: Feature) -> bool:
    """Whether a feature is offered: as required or as optional (BOLT 1)."""
    return feature in bits or feature + 1 in bits


def negotiated(ours: Container[int], theirs: Container[int], feature: Feature) -> bool:
    """Whether both sides may use a feature: both offer it, or we require it (BOLT 1)."""
    return feature in ours or (offers(ours, feature) and offers(theirs, feature))


def check_compatible(their_bits: frozenset[int]) -> None:
    """Refuse an init that we cannot live with.

    Raises RemoteProtocolError: "unknown-required-feature" when an even bit is set of a feature
    that we do not offer, "missing-feature-dependency" when a feature came without the one that
    it needs (BOLT 1, requirements of the receiver of init).
    """
    for bit in sorted(their_bits):
        # BOLT 9: both bits of a pair mean required, so the even bit alone decides.
        if bit % 2 == 0 and bit + 1 not in OUR_INIT:
            raise RemoteProtocolError(
                "unknown-required-feature",
                f"The peer requires feature bit {bit}, which this node does not have.",
            )
    for feature, needed in DEPENDENCIES.items():
        if offers(their_bits, feature) and not offers(their_bits, needed):
            raise RemoteProtocolError(
                "missing-feature-dependency",
                f"The peer offers feature bit {feature} without {needed}, on which it depends.",
            )
