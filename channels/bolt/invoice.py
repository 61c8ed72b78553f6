"""BOLT 11 invoices: every tag, both ways."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from channels.bolt import address, bech32, keys
from channels.bolt.features import DEPENDENCIES, Feature, offers
from channels.bolt.invoice_fields import (
    CURRENCIES,
    KNOWN_FEATURES,
    MAX_AMOUNT_MSAT,
    PUBKEY_HASH,
    SCRIPT_HASH,
    RouteHop,
    description_bytes,
    groups_number,
    is_fallback,
    is_writable_hop,
    number_groups,
    read_description,
    read_fallback,
    read_features,
    read_number,
    read_prefix,
    read_route,
    split_fields,
    write_amount,
    write_field,
    write_hop,
)
from channels.errors import LocalProtocolError, UserError
from channels.units import Msat, UnixTime

__all__ = [
    "CURRENCIES",
    "DEFAULT_EXPIRY",
    "DEFAULT_MIN_FINAL_CLTV_EXPIRY",
    "MAX_EXPIRY",
    "MAX_LENGTH",
    "Invoice",
    "RouteHop",
    "check_payable",
    "decode",
    "encode",
]

DEFAULT_EXPIRY = 3600
DEFAULT_MIN_FINAL_CLTV_EXPIRY = 18
MAX_LENGTH = 7089
"""Characters of an invoice: what the largest QR code holds, and what other nodes accept."""
MAX_EXPIRY = (1 << 53) - 1
"""Seconds: the largest integer that survives every JSON reader."""

_TIMESTAMP_GROUPS = 7
_SIGNATURE_GROUPS = 104
_FIXED_GROUPS = {"p": 52, "s": 52, "h": 52, "n": 53}
_SINGLE_TAGS = frozenset("pshndmxc9")

# An invoice that requires `basic_mpp` is paid in one part like any other.
_PAYABLE_FEATURES = KNOWN_FEATURES - {Feature.ROUTE_BLINDING, Feature.ATTRIBUTION_DATA}


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
    currency, amount = read_prefix(hrp)
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
        timestamp=UnixTime(groups_number(signed[:_TIMESTAMP_GROUPS])),
        payment_hash=bech32.from_groups(single["p"]),
        payment_secret=_optional_bytes(single.get("s")),
        description=read_description(single.get("d")),
        description_hash=_optional_bytes(single.get("h")),
        expiry=read_number("x", single.get("x"), DEFAULT_EXPIRY, MAX_EXPIRY),
        min_final_cltv_expiry=read_number(
            "c", single.get("c"), DEFAULT_MIN_FINAL_CLTV_EXPIRY, (1 << 32) - 1
        ),
        payee=_payee(hrp, signed, bech32.from_groups(signature), _optional_bytes(single.get("n"))),
        routes=routes,
        fallbacks=fallbacks,
        features=read_features(single.get("9", b"")),
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
    for tag, data in split_fields(groups):
        # The requirements fail a fixed-size field of another size; their own example "including
        # fields which must be ignored" is valid. Skipped, it still fails when none else is there.
        known_size = len(data) == _FIXED_GROUPS.get(tag, len(data))
        if tag in _SINGLE_TAGS and known_size and tag not in single:
            single[tag] = data
        elif tag == "r":
            routes.append(read_route(data))
        elif tag == "f" and (fallback := read_fallback(data)) is not None:
            fallbacks.append(fallback)
        else:
            extra.append((tag, bech32.to_characters(data)))
    return single, tuple(routes), tuple(fallbacks), tuple(extra)


def _optional_bytes(groups: bytes | None) -> bytes | None:
    return None if groups is None else bech32.from_groups(groups)


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
    hrp = f"ln{invoice.currency}{write_amount(invoice.amount_msat)}"
    signed = bytes(
        invoice.timestamp >> 5 * at & 31 for at in range(_TIMESTAMP_GROUPS - 1, -1, -1)
    ) + b"".join(
        write_field(tag, groups) for tag, groups in _written(invoice, payee if name_payee else None)
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
    if amount is not None and not 0 < amount <= MAX_AMOUNT_MSAT:
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
        or not all(is_fallback(*fallback) for fallback in invoice.fallbacks)
        or not all(bit & 1 or bit in KNOWN_FEATURES for bit in invoice.features)
        or not all(hops and all(map(is_writable_hop, hops)) for hops in invoice.routes)
    ):
        raise LocalProtocolError("invoice-invalid", "A field of the invoice cannot be written.")


def _written(invoice: Invoice, named: bytes | None) -> Iterable[tuple[str, bytes]]:
    if invoice.payment_secret is not None:
        yield "s", bech32.to_groups(invoice.payment_secret)
    yield "p", bech32.to_groups(invoice.payment_hash)
    if invoice.description is not None:
        yield "d", bech32.to_groups(description_bytes(invoice.description))
    if invoice.description_hash is not None:
        yield "h", bech32.to_groups(invoice.description_hash)
    if invoice.payment_metadata is not None:
        yield "m", bech32.to_groups(invoice.payment_metadata)
    if named is not None:
        yield "n", bech32.to_groups(named)
    if invoice.expiry != DEFAULT_EXPIRY:
        yield "x", number_groups(invoice.expiry)
    # BOLT 11, writers: SHOULD include `c`, also when it has the default value.
    yield "c", number_groups(invoice.min_final_cltv_expiry)
    for version, program in invoice.fallbacks:
        yield "f", bytes([version]) + bech32.to_groups(program)
    for hops in invoice.routes:
        yield "r", bech32.to_groups(b"".join(map(write_hop, hops)))
    if invoice.features:
        yield "9", number_groups(sum(1 << bit for bit in invoice.features))
    for tag, data in invoice.extra:
        yield tag, bech32.from_characters(data)
