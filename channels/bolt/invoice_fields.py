"""The parts of a BOLT 11 invoice: its prefix, and the values of its tagged fields as groups.

A group is a number of 5 bits, as in channels.bolt.bech32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from channels.bolt import bech32, keys
from channels.bolt.features import Feature
from channels.errors import UserError
from channels.units import Msat, ShortChannelId

CURRENCIES = ("bc", "tb", "tbs", "bcrt")
MAX_FIELD_BYTES = 639
MAX_AMOUNT_MSAT = 21_000_000 * 10**11

_MAX_GROUPS = 1023
_HOP_BYTES = 51
# Millisatoshi in one unit of each multiplier; pico is a tenth of one.
_MULTIPLIERS = {"": 10**11, "m": 10**8, "u": 10**5, "n": 10**2}

# Fallback versions of BOLT 11 that are not witness versions.
PUBKEY_HASH, SCRIPT_HASH = 17, 18

# BOLT 9, context "9". What an invoice may ask for without being unknown to us.
KNOWN_FEATURES = frozenset(
    {
        Feature.VAR_ONION,
        Feature.PAYMENT_SECRET,
        Feature.BASIC_MPP,
        Feature.ROUTE_BLINDING,
        Feature.ATTRIBUTION_DATA,
        Feature.PAYMENT_METADATA,
    }
)


@dataclass(frozen=True, slots=True)
class RouteHop:
    """One private channel of an `r` field; `pubkey` (33 bytes) is the node at its start."""

    pubkey: bytes
    short_channel_id: ShortChannelId
    fee_base_msat: Msat
    fee_proportional_millionths: int
    cltv_expiry_delta: int


def split_fields(groups: bytes) -> Iterator[tuple[str, bytes]]:
    """Tag and data of each field. Raises UserError("invoice-truncated-field")."""
    at = 0
    while at < len(groups):
        start = at + 3
        end = start + (groups[at + 1] << 5 | groups[at + 2]) if start <= len(groups) else start
        if end > len(groups):
            raise UserError("invoice-truncated-field", "A field of the invoice is cut short.")
        yield bech32.ALPHABET[groups[at]], groups[start:end]
        at = end


def write_field(tag: str, groups: bytes) -> bytes:
    """A field. Raises UserError("invoice-field-too-long")."""
    if len(groups) > _MAX_GROUPS:
        raise UserError(
            "invoice-field-too-long",
            f"Field '{tag}' of an invoice holds at most {MAX_FIELD_BYTES} bytes; for a longer "
            "description give its hash.",
        )
    return bech32.from_characters(tag) + bytes([len(groups) >> 5, len(groups) & 31]) + groups


def groups_number(groups: bytes) -> int:
    """The number that groups spell, the first the most significant."""
    number = 0
    for group in groups:
        number = number << 5 | group
    return number


def number_groups(number: int) -> bytes:
    """A number in as few groups as hold it; 0 takes none."""
    size = -(-number.bit_length() // 5)
    return bytes(number >> 5 * at & 31 for at in range(size - 1, -1, -1))


def check_minimal(tag: str, groups: bytes) -> None:
    """Raises UserError("invoice-not-minimal")."""
    # BOLT 11, readers: c, x and 9 that begin with 0 field elements make the invoice invalid.
    if groups[:1] == b"\0":
        raise UserError(
            "invoice-not-minimal", f"Field '{tag}' of the invoice is longer than it must be."
        )


def read_number(tag: str, groups: bytes | None, default: int, maximum: int) -> int:
    """An `x` or `c` field. Raises UserError("invoice-not-minimal" or "invoice-number")."""
    if groups is None:
        return default
    check_minimal(tag, groups)
    # 13 groups hold every number of 64 bits; more are not worth turning into a number.
    if len(groups) > 13 or (number := groups_number(groups)) > maximum:
        raise UserError("invoice-number", f"The number in field '{tag}' of the invoice is absurd.")
    return number


def read_prefix(hrp: str) -> tuple[str, Msat | None]:
    """Currency and amount. Raises UserError("invoice-prefix", "invoice-amount…")."""
    prefix = re.fullmatch(r"ln([a-z]+)(.*)", hrp)
    if prefix is None or prefix[1] not in CURRENCIES:
        raise UserError(
            "invoice-prefix", f"'{hrp[:20]}' is not the beginning of a Lightning invoice."
        )
    currency, amount = prefix[1], prefix[2]
    if not amount:
        return currency, None
    # No leading 0: BOLT 11 asks it of writers, and an amount of 0 is no amount. 20 digits hold
    # all bitcoin there will be in pico-bitcoin.
    parts = re.fullmatch(r"([1-9][0-9]{0,19})([munp]?)", amount)
    if parts is None:
        raise UserError("invoice-amount", f"'{amount[:30]}' is not an amount of an invoice.")
    number, multiplier = int(parts[1]), parts[2]
    if multiplier == "p":
        if number % 10:
            raise UserError(
                "invoice-amount-precision",
                "The invoice asks for a fraction of a millisatoshi, which cannot be paid.",
            )
        value = number // 10
    else:
        value = number * _MULTIPLIERS[multiplier]
    if value > MAX_AMOUNT_MSAT:
        raise UserError("invoice-amount", "The invoice asks for more bitcoin than there will be.")
    return currency, Msat(value)


def write_amount(amount: Msat | None) -> str:
    """The amount as it stands behind the currency."""
    if amount is None:
        return ""
    # BOLT 11, writers: the shortest, so the largest multiplier that loses nothing.
    for multiplier, unit in _MULTIPLIERS.items():
        if amount % unit == 0:
            return f"{amount // unit}{multiplier}"
    return f"{amount * 10}p"


def read_description(groups: bytes | None) -> str | None:
    """A `d` field. Raises UserError("invoice-description-text")."""
    if groups is None:
        return None
    try:
        return bech32.from_groups(groups).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(
            "invoice-description-text", "The description of the invoice is not UTF-8 text."
        ) from None


def description_bytes(description: str) -> bytes:
    """Its UTF-8. Raises UserError("invoice-description-text")."""
    try:
        return description.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can carry half of a surrogate pair, which is no text.
        raise UserError(
            "invoice-description-text", "The description cannot be written as UTF-8 text."
        ) from None


def read_features(groups: bytes) -> frozenset[int]:
    """The bits of a `9` field. Raises UserError("invoice-unknown-feature") and for length."""
    check_minimal("9", groups)
    bits = frozenset(
        5 * place + bit
        for place, group in enumerate(reversed(groups))
        for bit in range(5)
        if group >> bit & 1
    )
    for bit in sorted(bits):
        if not bit & 1 and bit not in KNOWN_FEATURES:
            # BOLT 11, readers: fail on unknown even bits, and tell the user which.
            raise UserError(
                "invoice-unknown-feature",
                f"The invoice requires feature bit {bit}, which is not known here; "
                "a newer version may be able to pay it.",
            )
    return bits


def read_fallback(groups: bytes) -> tuple[int, bytes] | None:
    """An `f` field; None for one that a reader must skip."""
    if not groups:
        return None
    version, program = groups[0], bech32.from_groups(groups[1:])
    return (version, program) if is_fallback(version, program) else None


def is_fallback(version: int, program: bytes) -> bool:
    """Whether an `f` field may say this."""
    if version in (PUBKEY_HASH, SCRIPT_HASH):
        return len(program) == 20
    return bech32.is_witness_program(version, program)


def read_route(groups: bytes) -> tuple[RouteHop, ...]:
    """An `r` field. Raises UserError("invoice-route")."""
    data = bech32.from_groups(groups)
    hops = tuple(
        RouteHop(
            pubkey=data[at : at + 33],
            short_channel_id=ShortChannelId.from_bytes(data[at + 33 : at + 41], "big"),
            fee_base_msat=Msat(int.from_bytes(data[at + 41 : at + 45], "big")),
            fee_proportional_millionths=int.from_bytes(data[at + 45 : at + 49], "big"),
            cltv_expiry_delta=int.from_bytes(data[at + 49 : at + 51], "big"),
        )
        for at in range(0, len(data), _HOP_BYTES)
    )
    if (
        not hops
        or len(data) % _HOP_BYTES
        or not all(keys.is_public_key(hop.pubkey) for hop in hops)
    ):
        raise UserError("invoice-route", "A private route in the invoice makes no sense.")
    return hops


def is_writable_hop(hop: RouteHop) -> bool:
    """Whether every part fits its place in an `r` field."""
    return (
        keys.is_public_key(hop.pubkey)
        and 0 <= hop.short_channel_id < 1 << 64
        and 0 <= hop.fee_base_msat < 1 << 32
        and 0 <= hop.fee_proportional_millionths < 1 << 32
        and 0 <= hop.cltv_expiry_delta < 1 << 16
    )


def write_hop(hop: RouteHop) -> bytes:
    """The 51 bytes of one hop."""
    return (
        hop.pubkey
        + hop.short_channel_id.to_bytes(8, "big")
        + hop.fee_base_msat.to_bytes(4, "big")
        + hop.fee_proportional_millionths.to_bytes(4, "big")
        + hop.cltv_expiry_delta.to_bytes(2, "big")
    )
