from __future__ import annotations

import dataclasses
import hashlib
from decimal import Decimal
from typing import Any

import pytest
from pyln.proto.invoice import Invoice as PylnInvoice

from channels.bolt import bech32, keys
from channels.bolt import invoice as bolt11
from channels.bolt.features import Feature
from channels.bolt.invoice import Invoice, RouteHop
from channels.errors import LocalProtocolError, UserError
from channels.units import Msat, ShortChannelId, UnixTime
from tests.vectors import bolt11 as vectors

SECRET = bytes.fromhex(vectors.PRIV_KEY)
PAYEE = bytes.fromhex(vectors.PAYEE)
HASH = bytes.fromhex("0001020304050607080900010203040506070809000102030405060708090102")
LIST = "One piece of chocolate cake, one icecream cone, one pickle, one slice of swiss cheese"
LIST += ", one slice of salami, one lollypop, one piece of cherry pie, one sausage, one cupcake"
LIST += ", and one slice of watermelon"
LIST_HASH = hashlib.sha256(LIST.encode()).digest()
BLOCKSTREAM = (
    "Blockstream Store: 88.85 USD for Blockstream Ledger Nano S x 1, "
    '"Back In My Day" Sticker x 2, "I Got Lightning Working" Sticker x 2 and 1 more items'
)

COMMON = Invoice(
    currency="bc",
    amount_msat=None,
    timestamp=UnixTime(1496314658),
    payment_hash=HASH,
    payment_secret=b"\x11" * 32,
    payee=PAYEE,
    features=frozenset({8, 14}),
)
ADDRESS_ROUTE = (
    RouteHop(
        bytes.fromhex("029e03a901b85534ff1e92c43c74431f7ce72046060fcf7a95c37e148f78c77255"),
        ShortChannelId.parse("66051x263430x1800"),
        Msat(1),
        20,
        3,
    ),
    RouteHop(
        bytes.fromhex("039e03a901b85534ff1e92c43c74431f7ce72046060fcf7a95c37e148f78c77255"),
        ShortChannelId.parse("197637x395016x2314"),
        Msat(2),
        30,
        4,
    ),
)
BLOCKSTREAM_ROUTE = (
    RouteHop(
        bytes.fromhex("03d06758583bb5154774a6eb221b1276c9e82d65bbaceca806d90e20c108f4b1c7"),
        ShortChannelId.parse("589390x3312x1"),
        Msat(1000),
        2500,
        40,
    ),
)
BEANS: dict[str, Any] = {
    "amount_msat": Msat(2_500_000_000),
    "description": "coffee beans",
    "features": frozenset({8, 14, 99}),
}
# What the breakdowns of BOLT 11 say, beyond COMMON.
EXPECTED: dict[str, dict[str, Any]] = {
    "Please make a donation of any amount": {
        "description": "Please consider supporting this project"
    },
    "Please send $3 for a cup of coffee to the same peer, within one minute": {
        "amount_msat": 250_000_000,
        "description": "1 cup coffee",
        "expiry": 60,
    },
    "Please send 0.0025 BTC for a cup of nonsense (ナンセンス 1杯) to the same peer": {
        "amount_msat": 250_000_000,
        "description": "ナンセンス 1杯",
        "expiry": 60,
    },
    "Now send $24 for an entire list of things (hashed)": {
        "amount_msat": 2_000_000_000,
        "description_hash": LIST_HASH,
    },
    "The same, on testnet, with a fallback": {
        "currency": "tb",
        "amount_msat": 2_000_000_000,
        "description_hash": LIST_HASH,
        "fallbacks": ((17, bytes.fromhex("3172b5654f6683c8fb146959d347ce303cae4ca7")),),
    },
    "On mainnet, with fallback": {
        "amount_msat": 2_000_000_000,
        "description_hash": LIST_HASH,
        "fallbacks": ((17, bytes.fromhex("04b61f7dc1ea0dc99424464cc4064dc564d91e89")),),
        "routes": (ADDRESS_ROUTE,),
    },
    "On mainnet, with fallback (P2SH)": {
        "amount_msat": 2_000_000_000,
        "description_hash": LIST_HASH,
        "fallbacks": ((18, bytes.fromhex("8f55563b9a19f321c211e9b9f38cdf686ea07845")),),
    },
    "On mainnet, with fallback (P2WPKH)": {
        "amount_msat": 2_000_000_000,
        "description_hash": LIST_HASH,
        "fallbacks": ((0, bytes.fromhex("751e76e8199196d454941c45d1b3a323f1433bd6")),),
    },
    "On mainnet, with fallback (P2WSH)": {
        "amount_msat": 2_000_000_000,
        "description_hash": LIST_HASH,
        "fallbacks": (
            (
                0,
                bytes.fromhex("1863143c14c5166804bd19203356da136c985678cd4d27a1b8c6329604903262"),
            ),
        ),
    },
    "On mainnet, with fallback (P2TR)": {
        "amount_msat": 2_000_000_000,
        "description_hash": LIST_HASH,
        "fallbacks": (
            (
                1,
                bytes.fromhex("0adac43daa9c8a5a68e09ea10692b82226ee190e572db9b90e17a410484ab405"),
            ),
        ),
    },
    "Please send 0.00967878534 BTC for a list of items within one week, amount in pico-BTC": {
        "amount_msat": 967_878_534,
        "timestamp": 1572468703,
        "payment_hash": bytes.fromhex(
            "462264ede7e14047e9b249da94fefc47f41f7d02ee9b091815a5506bc8abf75f"
        ),
        "description": BLOCKSTREAM,
        "expiry": 604800,
        "min_final_cltv_expiry": 10,
        "routes": (BLOCKSTREAM_ROUTE,),
    },
    "Please send $30 for coffee beans, features 8, 14 and 99": BEANS,
    "Same, but all upper case.": BEANS,
    "Same, but including fields which must be ignored.": BEANS
    | {
        "extra": (
            ("2", "qqq"),
            ("f", "n" + "q" * 32),
            *((tag, "q" * size) for tag in "phs" for size in (51, 53)),
            ("n", "q" * 52),
            ("n", "q" * 54),
        )
    },
    "Please send 0.01 BTC with payment metadata 0x01fafaf0": {
        "amount_msat": 1_000_000_000,
        "description": "payment metadata inside",
        "payment_metadata": bytes.fromhex("01fafaf0"),
        "features": frozenset({8, 14, 48}),
    },
}
FALLBACK_ADDRESSES = {
    "The same, on testnet, with a fallback": "mk2QpYatsKicvFVuTAQLBryyccRXMUaGHP",
    "On mainnet, with fallback": "1RustyRX2oai4EYYDpQGWvEL62BBGqN9T",
    "On mainnet, with fallback (P2SH)": "3EktnHQD7RiAE6uzMj2ZifT9YgRrkSgzQX",
    "On mainnet, with fallback (P2WPKH)": "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
    "On mainnet, with fallback (P2WSH)": (
        "bc1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3qccfmv3"
    ),
    "On mainnet, with fallback (P2TR)": (
        "bc1pptdvg0d2nj99568qn6ssdy4cygnwuxgw2ukmnwgwz7jpqjz2kszse2s3lm"
    ),
}
HIGH_S = "Public-key recovery with high-S signature"
REASONS = {
    "Same, but adding invalid unknown feature 100": "invoice-unknown-feature",
    "Bech32 checksum is invalid.": "bech32-checksum",
    "Malformed bech32 string (no 1)": "bech32-separator",
    "Malformed bech32 string (mixed case)": "bech32-mixed-case",
    "Signature is not recoverable.": "invoice-signature",
    "String is too short.": "invoice-too-short",
    "Invalid multiplier": "invoice-amount",
    "Invalid sub-millisatoshi precision.": "invoice-amount-precision",
    "Non canonical signature (high-S) with 'n' field defined": "invoice-signature",
}
NO_SECRET = "Missing required `s` field."


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        bolt11.decode(text)
    return caught.value.reason


def signed(hrp: str, fields: bytes, secret: bytes = SECRET) -> str:
    """An invoice of any fields whatever, as only a stranger would write it."""
    groups = bytes(7) + fields
    bits = "".join(f"{group:05b}" for group in groups)
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    signature = keys.sign_recoverable(secret, hashlib.sha256(hrp.encode() + data).digest())
    return bech32.encode(hrp, groups + bech32.to_groups(signature))


def tagged(tag: str, groups: bytes) -> bytes:
    return bech32.from_characters(tag) + bytes([len(groups) >> 5, len(groups) & 31]) + groups


MINIMAL = tagged("p", bech32.to_groups(HASH)) + tagged("d", b"")


def test_all_examples_are_here() -> None:
    assert vectors.VALID.keys() == EXPECTED.keys() | {HIGH_S}
    assert vectors.INVALID.keys() == REASONS.keys() | {NO_SECRET}


@pytest.mark.parametrize(("title", "fields"), EXPECTED.items(), ids=list(EXPECTED))
def test_valid_examples(title: str, fields: dict[str, Any]) -> None:
    text = vectors.VALID[title][0]
    expected = dataclasses.replace(COMMON, **fields)
    assert bolt11.decode(text) == expected
    assert bolt11.decode("LIGHTNING:" + text) == expected
    bolt11.check_payable(expected, expected.currency, expected.timestamp)
    # Our order of fields is another; what they say must not be.
    assert bolt11.decode(bolt11.encode(expected, SECRET)) == expected


@pytest.mark.parametrize(
    "title",
    [title for title, (_, digest, _) in vectors.VALID.items() if digest and title != HIGH_S],
)
def test_signatures_of_the_examples(title: str) -> None:
    text, digest, signature = vectors.VALID[title]
    made = keys.sign_recoverable(SECRET, bytes.fromhex(digest))
    assert made.hex() == signature
    assert bech32.decode(text, bolt11.MAX_LENGTH)[1][-104:] == bech32.to_groups(made)


def test_high_s_example_gives_a_key_that_made_the_signature() -> None:
    text, digest, signature = vectors.VALID[HIGH_S]
    invoice = bolt11.decode(text)
    assert invoice.description == "Please consider supporting this project"
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    low_s = order - int(signature[64:128], 16)
    compact = bytes.fromhex(signature[:64]) + low_s.to_bytes(32, "big")
    assert keys.verify(invoice.payee, bytes.fromhex(digest), compact)


@pytest.mark.parametrize(("title", "text"), FALLBACK_ADDRESSES.items())
def test_fallback_addresses_of_the_examples(title: str, text: str) -> None:
    assert bolt11.decode(vectors.VALID[title][0]).fallback_address(0) == text


@pytest.mark.parametrize(("title", "reason"), REASONS.items(), ids=list(REASONS))
def test_invalid_examples(title: str, reason: str) -> None:
    assert refused(vectors.INVALID[title]) == reason


def test_example_without_a_secret_is_read_but_not_paid() -> None:
    invoice = bolt11.decode(vectors.INVALID[NO_SECRET])
    assert invoice.payment_secret is None
    with pytest.raises(UserError) as caught:
        bolt11.check_payable(invoice, "bc", invoice.timestamp)
    assert caught.value.reason == "invoice-lacks-payment-secret"


@pytest.mark.parametrize("title", [*EXPECTED, HIGH_S])
def test_pyln_reads_the_same(title: str) -> None:
    text = vectors.VALID[title][0]
    ours, theirs = bolt11.decode(text), PylnInvoice.decode(text.lower())
    check_against_pyln(ours, theirs)


def check_against_pyln(ours: Invoice, theirs: Any) -> None:
    # `c` with its default, `r`, `f` and what is to be skipped are where pyln is known to be wrong.
    amount = None if ours.amount_msat is None else Decimal(ours.amount_msat) / 10**11
    assert theirs.amount == amount
    assert theirs.currency == ours.currency
    assert theirs.date == ours.timestamp
    assert theirs.pubkey.format() == ours.payee
    bits = theirs.featurebits.uint if ours.features else theirs.featurebits
    assert bits == sum(1 << bit for bit in ours.features)
    if not ours.extra:
        assert theirs.paymenthash == ours.payment_hash
    tags = dict(theirs.tags)
    assert tags.get("d") == ours.description
    assert tags.get("h") == ours.description_hash


@pytest.mark.parametrize(
    ("hrp", "reason"),
    [
        ("bc1", "invoice-prefix"),
        ("lnxy", "invoice-prefix"),
        ("ln", "invoice-prefix"),
        ("lnbcrtx", "invoice-prefix"),
        ("lnbc0", "invoice-amount"),
        ("lnbc01u", "invoice-amount"),
        ("lnbc1u1", "invoice-amount"),
        ("lnbc1mm", "invoice-amount"),
        ("lnbc-1", "invoice-amount"),
        ("lnbc21000001", "invoice-amount"),
        ("lnbc" + "9" * 5000, "invoice-amount"),
        ("lnbc15p", "invoice-amount-precision"),
    ],
)
def test_prefixes_that_are_refused(hrp: str, reason: str) -> None:
    assert refused(signed(hrp, MINIMAL)) == reason


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (1, "10p"),
        (10, "100p"),
        (100, "1n"),
        (100_000, "1u"),
        (100_000_000, "1m"),
        (100_000_000_000, "1"),
        (250_000_000, "2500u"),
        (21_000_000 * 10**11, "21000000"),
    ],
)
def test_amounts_are_written_as_short_as_possible(amount: int, text: str) -> None:
    invoice = dataclasses.replace(COMMON, amount_msat=Msat(amount), description="")
    written = bolt11.encode(invoice, SECRET)
    assert bech32.decode(written, bolt11.MAX_LENGTH)[0] == f"lnbc{text}"
    assert bolt11.decode(written).amount_msat == amount


@pytest.mark.parametrize(
    ("hrp", "amount"),
    [("lnbc1000n", 100_000), ("lnbcrt10p", 1), ("lntbs5m", 500_000_000), ("lntb", None)],
)
def test_any_multiplier_is_read(hrp: str, amount: int | None) -> None:
    assert bolt11.decode(signed(hrp, MINIMAL)).amount_msat == amount


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (b"", "invoice-lacks-payment-hash"),
        (tagged("p", bytes(51)) + tagged("d", b""), "invoice-lacks-payment-hash"),
        (tagged("p", bytes(52)), "invoice-description"),
        (MINIMAL + tagged("h", bytes(52)), "invoice-description"),
        (MINIMAL + b"\x01", "invoice-truncated-field"),
        (MINIMAL + b"\x01\x00", "invoice-truncated-field"),
        (MINIMAL + b"\x01\x00\x01", "invoice-truncated-field"),
        (MINIMAL + tagged("x", b"\x00\x01"), "invoice-not-minimal"),
        (MINIMAL + tagged("c", b"\x00"), "invoice-not-minimal"),
        (MINIMAL + tagged("9", b"\x00\x08"), "invoice-not-minimal"),
        (MINIMAL + tagged("x", b"\x01" * 12), "invoice-number"),
        (MINIMAL + tagged("x", b"\x01" * 1023), "invoice-number"),
        (MINIMAL + tagged("c", b"\x04" + bytes(6)), "invoice-number"),
        (MINIMAL + tagged("9", b"\x01"), "invoice-unknown-feature"),
        (MINIMAL + tagged("9", b"\x01" * 1023), "invoice-unknown-feature"),
        (MINIMAL + tagged("r", b""), "invoice-route"),
        (MINIMAL + tagged("r", bytes(82)), "invoice-route"),
        (MINIMAL + tagged("r", bech32.to_groups(PAYEE + bytes(17))), "invoice-route"),
        (MINIMAL + tagged("n", bytes(53)), "invoice-signature"),
        (
            MINIMAL + tagged("n", bech32.to_groups(keys.public_key(b"\1" * 32))),
            "invoice-signature",
        ),
        (
            tagged("p", bytes(52)) + tagged("d", bech32.to_groups(b"\xff")),
            "invoice-description-text",
        ),
    ],
)
def test_fields_that_are_refused(fields: bytes, reason: str) -> None:
    assert refused(signed("lnbcrt", fields)) == reason


def test_the_first_of_a_field_counts_and_the_rest_is_kept() -> None:
    second = tagged("p", bytes(52)) + tagged("x", b"\x05") + tagged("x", b"\x06")
    invoice = bolt11.decode(signed("lnbcrt", MINIMAL + second))
    assert (invoice.payment_hash, invoice.expiry) == (HASH, 5)
    assert invoice.extra == (("p", "q" * 52), ("x", bech32.to_characters(b"\x06")))


def test_defaults() -> None:
    invoice = bolt11.decode(signed("lnbcrt", MINIMAL))
    assert (invoice.expiry, invoice.min_final_cltv_expiry) == (3600, 18)
    assert (invoice.payment_secret, invoice.payment_metadata) == (None, None)
    assert invoice.expires_at == 3600


def test_fallbacks_that_cannot_be_paid_are_skipped() -> None:
    fields = tagged("f", b"") + tagged("f", b"\x00" + bytes(3)) + tagged("f", b"\x11" + bytes(31))
    invoice = bolt11.decode(signed("lnbcrt", MINIMAL + fields))
    assert invoice.fallbacks == ()
    assert len(invoice.extra) == 3


def test_signet_fallbacks_look_like_those_of_testnet() -> None:
    invoice = dataclasses.replace(
        COMMON, currency="tbs", description="", fallbacks=((0, bytes(20)),)
    )
    fallback = invoice.fallback_address(0)
    assert fallback is not None
    assert fallback.startswith("tb1q")


def test_bech32m_is_not_an_invoice() -> None:
    hrp, groups, _ = bech32.decode(signed("lnbcrt", MINIMAL), bolt11.MAX_LENGTH)
    assert refused(bech32.encode(hrp, groups, bech32.BECH32M)) == "bech32-checksum"


def test_length_is_bounded() -> None:
    assert refused("lnbc1" + "q" * 7100) == "bech32-length"
    hops = BLOCKSTREAM_ROUTE * 10
    with pytest.raises(UserError) as caught:
        bolt11.encode(dataclasses.replace(COMMON, description="", routes=(hops,) * 10), SECRET)
    assert caught.value.reason == "invoice-too-long"


@pytest.mark.parametrize(
    ("changes", "currency", "now", "reason"),
    [
        ({}, "bcrt", 0, "wrong-network"),
        ({}, "bc", 1496314658 + 3601, "invoice-expired"),
        ({"payment_secret": None}, "bc", 0, "invoice-lacks-payment-secret"),
        ({"features": frozenset({8, 14, 24})}, "bc", 0, "unsupported-invoice-feature"),
        ({"features": frozenset({9, 17})}, "bc", 0, "invoice-feature-dependency"),
    ],
)
def test_invoices_not_to_be_paid(
    changes: dict[str, Any], currency: str, now: int, reason: str
) -> None:
    invoice = dataclasses.replace(COMMON, **changes)
    with pytest.raises(UserError) as caught:
        bolt11.check_payable(invoice, currency, now)
    assert caught.value.reason == reason


def test_an_invoice_is_payable_until_its_last_second() -> None:
    invoice = dataclasses.replace(COMMON, features=frozenset({8, 14, 16, 48, 101}))
    bolt11.check_payable(invoice, "bc", invoice.timestamp + 3600)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"amount_msat": Msat(0)}, "invoice-amount"),
        ({"amount_msat": Msat(-1)}, "invoice-amount"),
        ({"amount_msat": Msat(21_000_000 * 10**11 + 1)}, "invoice-amount"),
        ({"description": None}, "invoice-description"),
        ({"description_hash": bytes(32)}, "invoice-description"),
        ({"description": "x" * 640}, "invoice-field-too-long"),
        ({"description": "\ud800"}, "invoice-description-text"),
        ({"payment_metadata": bytes(640)}, "invoice-field-too-long"),
    ],
)
def test_what_a_person_cannot_ask_for(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        bolt11.encode(dataclasses.replace(COMMON, **{"description": "", **changes}), SECRET)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "changes",
    [
        {"currency": "xx"},
        {"timestamp": UnixTime(1 << 35)},
        {"payment_hash": bytes(31)},
        {"payment_secret": None},
        {"payment_secret": bytes(33)},
        {"description": None, "description_hash": bytes(31)},
        {"expiry": -1},
        {"expiry": 1 << 53},
        {"min_final_cltv_expiry": 1 << 32},
        {"payee": keys.public_key(b"\1" * 32)},
        {"fallbacks": ((19, bytes(20)),)},
        {"routes": ((),)},
        {"routes": ((dataclasses.replace(BLOCKSTREAM_ROUTE[0], pubkey=bytes(33)),),)},
        {"features": frozenset({100})},
    ],
)
def test_what_our_side_must_not_write(changes: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        bolt11.encode(dataclasses.replace(COMMON, **{"description": "", **changes}), SECRET)
    assert caught.value.reason == "invoice-invalid"


def test_features_match_bolt_9() -> None:
    for bit in (8, 14, 16, 24, 36, 48):
        assert Feature(bit)
        invoice = dataclasses.replace(COMMON, description="", features=frozenset({bit}))
        assert bolt11.decode(bolt11.encode(invoice, SECRET)).features == {bit}
