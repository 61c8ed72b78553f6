"""BOLT 11 invoices: every tag, both ways."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from channels.bolt import address, bech32, keys
from channels.bolt.features import DEPENDENCIES, Feature, offers
from channels.errors import LocalProtocolError, UserError
from channels.units import Msat, ShortChannelId, UnixTime

DEFAULT_EXPIRY = 3600
DEFAULT_MIN_FINAL_CLTV_EXPIRY = 18
MAX_LENGTH = 7089
"""Characters of an invoice: what the largest QR code holds, and what other nodes accept."""
MAX_EXPIRY = (1 << 53) - 1
"""Seconds: the largest integer that survives every JSON reader."""
MAX_FIELD_BYTES = 639

CURRENCIES = ("bc", "tb", "tbs", "bcrt")

_MAX_AMOUNT_MSAT = 21_000_000 * 10**11
_MAX_GROUPS = 1023
_TIMESTAMP_GROUPS = 7
_SIGNATURE_GROUPS = 104
_HOP_BYTES = 51
# Millisatoshi in one unit of each multiplier; pico is a tenth of one.
_MULTIPLIERS = {"": 10**11, "m": 10**8, "u": 10**5, "n": 10**2}
_FIXED_GROUPS = {"p": 52, "s": 52, "h": 52, "n": 53}
_SINGLE_TAGS = frozenset("pshndmxc9")

# Fallback versions of BOLT 11 that are not witness versions.
PUBKEY_HASH, SCRIPT_HASH = 17, 18

# BOLT 9, context "9". What an invoice may ask for without being unknown to us.
_KNOWN_FEATURES = frozenset(
    {
        Feature.VAR_ONION,
        Feature.PAYMENT_SECRET,
        Feature.BASIC_MPP,
        Feature.ROUTE_BLINDING,
        Feature.ATTRIBUTION_DATA,
        Feature.PAYMENT_METADATA,
    }
)
# An invoice that requires `basic_mpp` is paid in one part like any other.
_PAYABLE_FEATURES = _KNOWN_FEATURES - {Feature.ROUTE_BLINDING, Feature.ATTRIBUTION_DATA}


@dataclass(frozen=True, slots=True)
class RouteHop:
    """One private channel of an `r` field; `pubkey` (33 bytes) is the node at its start."""

    pubkey: bytes
    short_channel_id: ShortChannelId
    fee_base_msat: Msat
    fee_proportional_millionths: int
    cltv_expiry_delta: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """What an invoice says. A field that is absent has the value BOLT 11 gives it.

    `payee` is the 33-byte node id, from the `n` field or else recovered from the signature.
    `fallbacks` are (version, hash or witness program): 17 is P2PKH, 18 is P2SH. `extra` are the
    fields a reader must skip: (tag, data) in bech32 characters.
    """

    currency: str
    amount_msat: Msat | None
    timestamp: UnixTime
    payment_hash: bytes
    payment_secret: bytes | None = field(repr=False)
    description: str | None = None
    description_hash: bytes | None = None
    expiry: int = DEFAULT_EXPIRY
    min_final_cltv_expiry: int = DEFAULT_MIN_FINAL_CLTV_EXPIRY
    payee: bytes = b""
    routes: tuple[tuple[RouteHop, ...], ...] = ()
    fallbacks: tuple[tuple[int, bytes], ...] = ()
    features: frozenset[int] = frozenset()
    payment_metadata: bytes | None = None
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def expires_at(self) -> UnixTime:
        """The last second at which it may be paid."""
        return UnixTime(self.timestamp + self.expiry)

    def fallback_script(self, index: int) -> bytes:
        """The output script of one of `fallbacks`."""
        version, program = self.fallbacks[index]
        if version == PUBKEY_HASH:
            return b"\x76\xa9\x14" + program + b"\x88\xac"
        if version == SCRIPT_HASH:
            return b"\xa9\x14" + program + b"\x87"
        return address.witness_script(version, program)

    def fallback_address(self, index: int) -> str | None:
        """The address of one of `fallbacks`."""
        # BIP 173: signet's addresses look like testnet's.
        network = "tb" if self.currency == "tbs" else self.currency
        return address.from_script(network, self.fallback_script(index))


def check_payable(invoice: Invoice, currency: str, now: int) -> None:
    """Refuse an invoice that must not be paid (BOLT 11, requirements of readers and payers).

    Raises UserError: "wrong-network", "invoice-expired", "invoice-lacks-payment-secret",
    "unsupported-invoice-feature", "invoice-feature-dependency".
    """
    if invoice.currency != currency:
        raise UserError(
            "wrong-network",
            f"The invoice is for 'ln{invoice.currency}' and this node pays 'ln{currency}'; "
            "ask for an invoice of its network.",
        )
    if now > invoice.expires_at:
        raise UserError("invoice-expired", "The invoice has expired; ask the payee for a new one.")
    if invoice.payment_secret is None:
        raise UserError(
            "invoice-lacks-payment-secret",
            "The invoice has no payment secret, so paying it is not safe; ask for a new one.",
        )
    for bit in sorted(invoice.features):
        if not bit & 1 and bit not in _PAYABLE_FEATURES:
            raise UserError(
                "unsupported-invoice-feature",
                f"The invoice requires feature bit {bit}, which this node cannot do; "
                "ask for an invoice without it.",
            )
    # BOLT 11, readers: no payment when a feature lacks one that it depends on (BOLT 9).
    for feature, needed in DEPENDENCIES.items():
        if offers(invoice.features, feature) and not offers(invoice.features, needed):
            raise UserError(
                "invoice-feature-dependency",
                f"The invoice offers feature bit {feature} without {needed}, on which it depends; "
                "ask the payee for a new one.",
            )


# Reading


def decode(text: str) -> Invoice:
    """Read an invoice, with or without "lightning:" before it, and check its signature.

    Raises UserError; the reasons begin with "invoice-" or "bech32-".
    """
    text = text.strip()
    if text[:10].lower() == "lightning:":
        text = text[10:]
    hrp, groups, constant = bech32.decode(text, MAX_LENGTH)
    if constant != bech32.BECH32:
        raise UserError("bech32-checksum", "The invoice has a typing error; copy it again.")
    currency, amount = _read_prefix(hrp)
    if len(groups) < _TIMESTAMP_GROUPS + _SIGNATURE_GROUPS:
        raise UserError("invoice-too-short", "The invoice is cut short; copy all of it.")
    signed, signature = groups[:-_SIGNATURE_GROUPS], groups[-_SIGNATURE_GROUPS:]
    single, routes, fallbacks, extra = _read_fields(signed[_TIMESTAMP_GROUPS:])
    if "p" not in single:
        raise UserError(
            "invoice-lacks-payment-hash", "The invoice has no payment hash; ask for another."
        )
    if ("d" in single) == ("h" in single):
        raise UserError(
            "invoice-description", "The invoice must have one description or description hash."
        )
    return Invoice(
        currency=currency,
        amount_msat=amount,
        timestamp=UnixTime(_number(signed[:_TIMESTAMP_GROUPS])),
        payment_hash=bech32.from_groups(single["p"]),
        payment_secret=_optional_bytes(single.get("s")),
        description=_read_description(single.get("d")),
        description_hash=_optional_bytes(single.get("h")),
        expiry=_read_number("x", single.get("x"), DEFAULT_EXPIRY, MAX_EXPIRY),
        min_final_cltv_expiry=_read_number(
            "c", single.get("c"), DEFAULT_MIN_FINAL_CLTV_EXPIRY, (1 << 32) - 1
        ),
        payee=_payee(hrp, signed, bech32.from_groups(signature), _optional_bytes(single.get("n"))),
        routes=routes,
        fallbacks=fallbacks,
        features=_read_features(single.get("9", b"")),
        payment_metadata=_optional_bytes(single.get("m")),
        extra=extra,
    )


def _read_fields(
    groups: bytes,
) -> tuple[
    dict[str, bytes],
    tuple[tuple[RouteHop, ...], ...],
    tuple[tuple[int, bytes], ...],
    tuple[tuple[str, str], ...],
]:
    """The fields that may come once, the routes, the fallbacks, and those to be skipped."""
    single: dict[str, bytes] = {}
    routes: list[tuple[RouteHop, ...]] = []
    fallbacks: list[tuple[int, bytes]] = []
    extra: list[tuple[str, str]] = []
    for tag, data in _fields(groups):
        # The requirements fail a fixed-size field of another size; their own example "including
        # fields which must be ignored" is valid. Skipped, it still fails when none else is there.
        known_size = len(data) == _FIXED_GROUPS.get(tag, len(data))
        if tag in _SINGLE_TAGS and known_size and tag not in single:
            single[tag] = data
        elif tag == "r":
            routes.append(_read_route(data))
        elif tag == "f" and (fallback := _read_fallback(data)) is not None:
            fallbacks.append(fallback)
        else:
            extra.append((tag, bech32.to_characters(data)))
    return single, tuple(routes), tuple(fallbacks), tuple(extra)


def _read_prefix(hrp: str) -> tuple[str, Msat | None]:
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
    if value > _MAX_AMOUNT_MSAT:
        raise UserError("invoice-amount", "The invoice asks for more bitcoin than there will be.")
    return currency, Msat(value)


def _fields(groups: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(groups):
        start = at + 3
        end = start + (groups[at + 1] << 5 | groups[at + 2]) if start <= len(groups) else start
        if end > len(groups):
            raise UserError("invoice-truncated-field", "A field of the invoice is cut short.")
        yield bech32.ALPHABET[groups[at]], groups[start:end]
        at = end


def _number(groups: bytes) -> int:
    number = 0
    for group in groups:
        number = number << 5 | group
    return number


def _optional_bytes(groups: bytes | None) -> bytes | None:
    return None if groups is None else bech32.from_groups(groups)


def _read_number(tag: str, groups: bytes | None, default: int, maximum: int) -> int:
    if groups is None:
        return default
    _check_minimal(tag, groups)
    # 13 groups hold 64 bits; more are not worth turning into a number.
    if len(groups) > 13 or (number := _number(groups)) > maximum:
        raise UserError("invoice-number", f"The number in field '{tag}' of the invoice is absurd.")
    return number


def _check_minimal(tag: str, groups: bytes) -> None:
    # BOLT 11, readers: c, x and 9 that begin with 0 field elements make the invoice invalid.
    if groups[:1] == b"\0":
        raise UserError(
            "invoice-not-minimal", f"Field '{tag}' of the invoice is longer than it must be."
        )


def _read_features(groups: bytes) -> frozenset[int]:
    _check_minimal("9", groups)
    bits = frozenset(
        5 * place + bit
        for place, group in enumerate(reversed(groups))
        for bit in range(5)
        if group >> bit & 1
    )
    for bit in sorted(bits):
        if not bit & 1 and bit not in _KNOWN_FEATURES:
            # BOLT 11, readers: fail on unknown even bits, and tell the user which.
            raise UserError(
                "invoice-unknown-feature",
                f"The invoice requires feature bit {bit}, which is not known here; "
                "a newer version may be able to pay it.",
            )
    return bits


def _read_description(groups: bytes | None) -> str | None:
    if groups is None:
        return None
    try:
        return bech32.from_groups(groups).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(
            "invoice-description-text", "The description of the invoice is not UTF-8 text."
        ) from None


def _read_route(groups: bytes) -> tuple[RouteHop, ...]:
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


def _read_fallback(groups: bytes) -> tuple[int, bytes] | None:
    if not groups:
        return None
    version, program = groups[0], bech32.from_groups(groups[1:])
    return (version, program) if _is_fallback(version, program) else None


def _is_fallback(version: int, program: bytes) -> bool:
    if version in (PUBKEY_HASH, SCRIPT_HASH):
        return len(program) == 20
    return bech32.is_witness_program(version, program)


def _payee(hrp: str, signed: bytes, signature: bytes, named: bytes | None) -> bytes:
    digest = _digest(hrp, signed)
    if named is not None:
        # BOLT 11, readers: with `n` no recovery, and a high s fails; `verify` refuses both.
        if not keys.verify(named, digest, signature[:64]):
            raise UserError(
                "invoice-signature", "The invoice was not signed by the payee it names."
            )
        return named
    # Without `n` both high and low s are accepted.
    payee = keys.recover(digest, signature)
    if payee is None:
        raise UserError(
            "invoice-signature", "The signature of the invoice is not valid; copy it again."
        )
    return payee


def _digest(hrp: str, signed: bytes) -> bytes:
    # `from_groups` drops the bits of an incomplete byte; here they count, filled up with 0s.
    size = -(-len(signed) * 5 // 8)
    data = bech32.from_groups(signed + b"\0\0")[:size]
    return hashlib.sha256(hrp.encode("ascii") + data).digest()


# Writing


def encode(invoice: Invoice, node_secret: bytes, *, name_payee: bool = False) -> str:
    """Sign and write an invoice. `invoice.payee` may be left empty; `name_payee` adds `n`.

    Raises UserError for what a person chose: "invoice-amount", "invoice-description",
    "invoice-description-text", "invoice-too-long", "invoice-field-too-long". Raises
    LocalProtocolError("invoice-invalid") for the rest.
    """
    payee = keys.public_key(node_secret)
    _check_writable(invoice, payee)
    hrp = f"ln{invoice.currency}{_write_amount(invoice.amount_msat)}"
    signed = bytes(
        invoice.timestamp >> 5 * at & 31 for at in range(_TIMESTAMP_GROUPS - 1, -1, -1)
    ) + b"".join(
        _write_field(tag, groups)
        for tag, groups in _written(invoice, payee if name_payee else None)
    )
    signature = keys.sign_recoverable(node_secret, _digest(hrp, signed))
    text = bech32.encode(hrp, signed + bech32.to_groups(signature))
    if len(text) > MAX_LENGTH:
        raise UserError(
            "invoice-too-long",
            f"The invoice would have {len(text)} characters and at most {MAX_LENGTH} are read; "
            "shorten its description or its routes.",
        )
    return text


def _check_writable(invoice: Invoice, payee: bytes) -> None:
    amount, secret = invoice.amount_msat, invoice.payment_secret
    if amount is not None and not 0 < amount <= _MAX_AMOUNT_MSAT:
        raise UserError(
            "invoice-amount", f"{amount} msat cannot be asked for; ask for more than 0."
        )
    if (invoice.description is None) == (invoice.description_hash is None):
        raise UserError(
            "invoice-description", "Give an invoice a description or its hash, and not both."
        )
    hashes = (invoice.payment_hash, secret, invoice.description_hash or bytes(32))
    if (
        invoice.currency not in CURRENCIES
        # BOLT 11, writers: exactly one `p` and one `s`.
        or any(value is None or len(value) != 32 for value in hashes)
        or not 0 <= invoice.timestamp < 1 << 5 * _TIMESTAMP_GROUPS
        or not 0 <= invoice.expiry <= MAX_EXPIRY
        or not 0 <= invoice.min_final_cltv_expiry < 1 << 32
        or invoice.payee not in (b"", payee)
        or not all(_is_fallback(*fallback) for fallback in invoice.fallbacks)
        or not all(bit & 1 or bit in _KNOWN_FEATURES for bit in invoice.features)
        or not all(hops and all(map(_is_writable_hop, hops)) for hops in invoice.routes)
    ):
        raise LocalProtocolError("invoice-invalid", "A field of the invoice cannot be written.")


def _is_writable_hop(hop: RouteHop) -> bool:
    return (
        keys.is_public_key(hop.pubkey)
        and 0 <= hop.short_channel_id < 1 << 64
        and 0 <= hop.fee_base_msat < 1 << 32
        and 0 <= hop.fee_proportional_millionths < 1 << 32
        and 0 <= hop.cltv_expiry_delta < 1 << 16
    )


def _write_amount(amount: Msat | None) -> str:
    if amount is None:
        return ""
    # BOLT 11, writers: the shortest, so the largest multiplier that loses nothing.
    for multiplier, unit in _MULTIPLIERS.items():
        if amount % unit == 0:
            return f"{amount // unit}{multiplier}"
    return f"{amount * 10}p"


def _written(invoice: Invoice, named: bytes | None) -> Iterable[tuple[str, bytes]]:
    if invoice.payment_secret is not None:
        yield "s", bech32.to_groups(invoice.payment_secret)
    yield "p", bech32.to_groups(invoice.payment_hash)
    if invoice.description is not None:
        yield "d", bech32.to_groups(_description_bytes(invoice.description))
    if invoice.description_hash is not None:
        yield "h", bech32.to_groups(invoice.description_hash)
    if invoice.payment_metadata is not None:
        yield "m", bech32.to_groups(invoice.payment_metadata)
    if named is not None:
        yield "n", bech32.to_groups(named)
    if invoice.expiry != DEFAULT_EXPIRY:
        yield "x", _groups_of(invoice.expiry)
    # BOLT 11, writers: SHOULD include `c`, also when it has the default value.
    yield "c", _groups_of(invoice.min_final_cltv_expiry)
    for version, program in invoice.fallbacks:
        yield "f", bytes([version]) + bech32.to_groups(program)
    for hops in invoice.routes:
        yield "r", bech32.to_groups(b"".join(map(_write_hop, hops)))
    if invoice.features:
        yield "9", _groups_of(sum(1 << bit for bit in invoice.features))
    for tag, data in invoice.extra:
        yield tag, bech32.from_characters(data)


def _description_bytes(description: str) -> bytes:
    try:
        return description.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can carry half of a surrogate pair, which is no text.
        raise UserError(
            "invoice-description-text", "The description cannot be written as UTF-8 text."
        ) from None


def _groups_of(number: int) -> bytes:
    """A number in as few groups as hold it; 0 takes none."""
    size = -(-number.bit_length() // 5)
    return bytes(number >> 5 * at & 31 for at in range(size - 1, -1, -1))


def _write_hop(hop: RouteHop) -> bytes:
    return (
        hop.pubkey
        + hop.short_channel_id.to_bytes(8, "big")
        + hop.fee_base_msat.to_bytes(4, "big")
        + hop.fee_proportional_millionths.to_bytes(4, "big")
        + hop.cltv_expiry_delta.to_bytes(2, "big")
    )


def _write_field(tag: str, groups: bytes) -> bytes:
    if len(groups) > _MAX_GROUPS:
        raise UserError(
            "invoice-field-too-long",
            f"Field '{tag}' of an invoice holds at most {MAX_FIELD_BYTES} bytes; for a longer "
            "description give its hash.",
        )
    return bech32.from_characters(tag) + bytes([len(groups) >> 5, len(groups) & 31]) + groups
