"""L402 tokens: what we mint we accept, and nothing else."""

from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.errors import RemoteProtocolError
from channels.http import l402
from channels.http.l402 import Macaroon, Token
from channels.http.scheme import Problem
from channels.units import UnixTime

NOW = UnixTime(1_800_000_000)
PREIMAGE = b"\x55" * 32
PAYMENT_HASH = sha256(PREIMAGE).digest()
KEY = b"key"


def refusal(token: Token, key: bytes = KEY, now: UnixTime = NOW) -> str:
    with pytest.raises(Problem) as refused:
        l402.verify(key, token, now)
    return refused.value.reason


def test_the_known_signature_of_libmacaroons() -> None:
    # github.com/rescrv/libmacaroons, README: the same key, identifier and caveats.
    macaroon = Macaroon.mint(
        b"this is our super secret key; only we should know it", b"we used our secret key"
    )
    assert (
        macaroon.signature.hex()
        == "e3d9e02908526c4c0039ae15114115d97fdd68bf2ba379b342aaf0f617d0552f"
    )
    narrowed = macaroon.with_caveat(b"account = 3735928559")
    assert (
        narrowed.signature.hex()
        == "1efe4763f290dbce0c1d08477367e11f4eee456a64933cf662d79772dbb82128"
    )


def test_offer_and_token() -> None:
    macaroon = l402.token_for(KEY, PAYMENT_HASH, UnixTime(NOW + 60))
    header = l402.offer(macaroon, "lnbcrt1x")
    assert header.startswith('L402 macaroon="')
    assert 'invoice="lnbcrt1x", version="0", token="' in header
    offered = l402.parse_offer([header, 'Payment id="x"'])
    assert offered is not None
    assert offered.invoice == "lnbcrt1x"
    authorization = offered.authorization(PREIMAGE)
    assert l402.is_l402(authorization)
    token = Token.parse(authorization)
    assert l402.verify(KEY, token, NOW) == PAYMENT_HASH
    assert refusal(token, now=UnixTime(NOW + 60)) == "verification-failed"
    assert refusal(token, key=b"other") == "verification-failed"
    assert PREIMAGE.hex() not in repr(token)


def test_the_older_name_and_alphabet() -> None:
    macaroon = l402.token_for(KEY, PAYMENT_HASH)
    url_safe = base64.urlsafe_b64encode(macaroon.encode()).decode()
    assert Token.parse(f"LSAT {url_safe}:{PREIMAGE.hex()}").macaroon == macaroon
    offered = l402.parse_offer(f'LSAT macaroon="{url_safe}", invoice="lnbcrt1x"')
    assert offered is not None
    assert offered.macaroon == url_safe


def test_refused_tokens() -> None:
    good = l402.token_for(KEY, PAYMENT_HASH)
    assert refusal(Token(good, bytes(32))) == "lightning/invalid-preimage"
    narrowed = good.with_caveat(b"valid_until=%d" % (NOW + 1))
    assert l402.verify(KEY, Token(narrowed, PREIMAGE), NOW) == PAYMENT_HASH
    for caveat in (b"user = bob", b"valid_until=", b"valid_until=-1", b"valid_until=" + b"9" * 99):
        assert refusal(Token(good.with_caveat(caveat), PREIMAGE)) == "verification-failed"
    forged = Macaroon(good.identifier, (), good.signature)
    assert refusal(Token(forged, PREIMAGE)) == "verification-failed"
    assert refusal(Token(Macaroon.mint(b"", b"short"), PREIMAGE)) == "verification-failed"


@pytest.mark.parametrize(
    "header",
    [
        "L402 ",
        "L402 !!!:" + "00" * 32,
        "L402 AgE=:" + "00" * 32,
        "L402 " + base64.b64encode(l402.token_for(KEY, PAYMENT_HASH).encode()).decode(),
        "L402 " + "A" * 20_000,
        "Payment abc",
    ],
)
def test_malformed_tokens(header: str) -> None:
    with pytest.raises(Problem) as refused:
        Token.parse(header)
    assert refused.value.reason == "lightning/malformed-credential"


def test_offers_that_lack_a_part() -> None:
    assert l402.parse_offer('Payment id="x"') is None
    for header in (
        "L402",
        'L402 macaroon="x"',
        'L402 invoice="x"',
        'L402 token="a:b", invoice="x"',
    ):
        with pytest.raises(RemoteProtocolError):
            l402.parse_offer(header)


@given(st.binary(min_size=1, max_size=300), st.lists(st.binary(max_size=200), max_size=5))
def test_macaroon_round_trip(identifier: bytes, caveats: list[bytes]) -> None:
    macaroon = Macaroon.mint(b"root", identifier, caveats)
    assert Macaroon.decode(macaroon.encode()) == macaroon
    assert macaroon.is_signed_by(b"root")


@given(st.binary(max_size=100).map(lambda data: b"\2" + data) | st.binary(max_size=100))
def test_any_bytes_are_a_macaroon_or_a_problem(data: bytes) -> None:
    try:
        macaroon = Macaroon.decode(data)
    except Problem as problem:
        assert problem.reason == "lightning/malformed-credential"
    else:
        assert not macaroon.is_signed_by(b"root")


@given(st.data())
def test_every_flipped_bit_is_noticed(data: st.DataObject) -> None:
    encoded = bytearray(l402.token_for(KEY, PAYMENT_HASH).encode())
    location = slice(1, 6)  # a hint for people, which no signature covers
    at = data.draw(st.integers(0, len(encoded) - 1).filter(lambda i: i not in range(1, 6)))
    encoded[at] ^= 1 << data.draw(st.integers(0, 7))
    assert encoded[location] == l402.token_for(KEY, PAYMENT_HASH).encode()[location]
    with pytest.raises(Problem):
        l402.verify(KEY, Token(Macaroon.decode(bytes(encoded)), PREIMAGE), NOW)
