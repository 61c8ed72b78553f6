"""BOLT 11: every invoice survives the round trip, and nothing a stranger writes does harm."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyln.proto.invoice import Invoice as PylnInvoice

from channels.bolt import bech32, keys
from channels.bolt import invoice as bolt11
from channels.bolt.invoice import Invoice, RouteHop
from channels.errors import UserError
from channels.units import Msat, ShortChannelId, UnixTime
from tests.channels.bolt.test_invoice import MINIMAL, PAYEE, check_against_pyln, signed
from tests.vectors import bolt11 as vectors

POINTS = [keys.public_key(bytes([number]) * 32) for number in range(1, 6)]
route_hops = st.builds(
    RouteHop,
    pubkey=st.sampled_from(POINTS),
    short_channel_id=st.integers(0, (1 << 64) - 1).map(ShortChannelId),
    fee_base_msat=st.integers(0, (1 << 32) - 1).map(Msat),
    fee_proportional_millionths=st.integers(0, (1 << 32) - 1),
    cltv_expiry_delta=st.integers(0, (1 << 16) - 1),
)
programs = st.one_of(
    st.tuples(st.sampled_from([0, 17, 18]), st.binary(min_size=20, max_size=20)),
    st.tuples(st.just(0), st.binary(min_size=32, max_size=32)),
    st.tuples(st.integers(1, 16), st.binary(min_size=2, max_size=40)),
)
known_features = st.sampled_from([8, 14, 16, 24, 36, 48])
hashes = st.binary(min_size=32, max_size=32)
descriptions = st.one_of(st.tuples(st.text(max_size=150), st.none()), st.tuples(st.none(), hashes))


@st.composite
def invoices(draw: st.DrawFn) -> tuple[Invoice, bytes]:
    secret = draw(st.integers(1, 1 << 255)).to_bytes(32, "big")
    description, description_hash = draw(descriptions)
    invoice = Invoice(
        currency=draw(st.sampled_from(bolt11.CURRENCIES)),
        amount_msat=draw(st.none() | st.integers(1, 21_000_000 * 10**11).map(Msat)),
        timestamp=UnixTime(draw(st.integers(0, (1 << 35) - 1))),
        payment_hash=draw(hashes),
        payment_secret=draw(hashes),
        description=description,
        description_hash=description_hash,
        expiry=draw(st.integers(0, bolt11.MAX_EXPIRY)),
        min_final_cltv_expiry=draw(st.integers(0, (1 << 32) - 1)),
        payee=keys.public_key(secret),
        routes=tuple(
            map(tuple, draw(st.lists(st.lists(route_hops, min_size=1, max_size=4), max_size=3)))
        ),
        fallbacks=tuple(draw(st.lists(programs, max_size=3))),
        features=draw(
            st.frozensets(known_features | st.integers(0, 500).map(lambda bit: 2 * bit + 1))
        ),
        payment_metadata=draw(st.none() | st.binary(max_size=100)),
        extra=tuple(
            draw(
                st.lists(
                    st.tuples(
                        st.sampled_from("z2v4g"), st.text(alphabet=bech32.ALPHABET, max_size=80)
                    ),
                    max_size=3,
                )
            )
        ),
    )
    return invoice, secret


@settings(max_examples=150)
@given(made=invoices(), name_payee=st.booleans())
def test_round_trip_of_every_tag(made: tuple[Invoice, bytes], name_payee: bool) -> None:
    invoice, secret = made
    text = bolt11.encode(invoice, secret, name_payee=name_payee)
    assert bolt11.decode(text) == invoice
    assert bolt11.decode(text.upper()) == invoice


@settings(max_examples=50)
@given(made=invoices())
def test_pyln_reads_what_we_write(made: tuple[Invoice, bytes]) -> None:
    invoice, secret = made
    # pyln reads these otherwise than BOLT 11, and fails on numbers of no groups.
    invoice = dataclasses.replace(
        invoice,
        routes=(),
        fallbacks=(),
        extra=(),
        expiry=max(1, invoice.expiry),
        min_final_cltv_expiry=max(1, invoice.min_final_cltv_expiry),
    )
    check_against_pyln(invoice, PylnInvoice.decode(bolt11.encode(invoice, secret)))


@settings(max_examples=300)
@given(
    title=st.sampled_from(list(vectors.VALID)),
    at=st.integers(7, 10_000),
    character=st.sampled_from(bech32.ALPHABET),
)
def test_damaged_invoices_with_a_right_checksum(title: str, at: int, character: str) -> None:
    """The checksum finds typing errors; here it is mended, so that the rest has to hold."""
    text = vectors.VALID[title][0].lower()
    hrp, groups, _ = bech32.decode(text, bolt11.MAX_LENGTH)
    at %= len(groups)
    damaged = groups[:at] + bech32.from_characters(character) + groups[at + 1 :]
    try:
        invoice = bolt11.decode(bech32.encode(hrp, damaged))
    except UserError as error:
        assert error.reason.startswith("invoice-")
    else:
        # The signature still recovers some key, but never the payee's from other contents.
        assert damaged == groups or invoice.payee != bolt11.decode(text).payee


@settings(max_examples=300)
@given(hrp=st.sampled_from(["lnbc", "lnbcrt1u", "lntbs10p"]), groups=st.binary(max_size=300))
def test_signed_garbage_is_read_or_a_user_error(hrp: str, groups: bytes) -> None:
    fields = bytes(group & 31 for group in groups)
    for text in (signed(hrp, fields), signed(hrp, MINIMAL + fields)):
        try:
            invoice = bolt11.decode(text)
        except UserError as error:
            assert error.reason.startswith("invoice-")
        else:
            assert invoice.payee == PAYEE


@given(text=st.text(max_size=300))
def test_any_text_is_an_invoice_or_a_user_error(text: str) -> None:
    with pytest.raises(UserError):
        bolt11.decode(text)
