"""The Payment scheme against aperture's vectors, and against hostile headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from channels.errors import LocalProtocolError
from channels.http import scheme
from channels.http.scheme import Challenge, Credential, Problem, Receipt
from channels.units import UnixTime

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "aperture_mpp.json").read_text()
)
SECRET = bytes.fromhex(VECTORS["hmacSecretHex"])


def vectors(section: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", VECTORS[section], ids=lambda v: v["name"])


@vectors("canonicalization")
def test_canonical_json(vector: dict[str, Any]) -> None:
    if vector.get("error"):
        with pytest.raises(Problem):
            scheme.unpack(scheme.base64url(vector["input"].encode()))
    else:
        canonical = scheme.canonical_json(json.loads(vector["input"]))
        assert canonical == vector["canonical"].encode()


@vectors("base64url")
def test_base64url(vector: dict[str, Any]) -> None:
    if vector.get("error"):
        with pytest.raises(Problem):
            scheme.unbase64url(vector["encoded"])
        return
    data = bytes.fromhex(vector.get("decodedHex", ""))
    assert scheme.unbase64url(vector["encoded"]) == data
    assert (scheme.base64url(data) == vector["encoded"]) is vector["canonical"]


@vectors("challengeHeaders")
def test_challenge_header(vector: dict[str, Any]) -> None:
    challenge = Challenge(**vector["params"])
    assert challenge.to_header() == vector["header"]
    assert [c.params() for c in scheme.parse_challenges(vector["header"])] == [vector["parsed"]]


@vectors("challengeLists")
def test_challenge_list(vector: dict[str, Any]) -> None:
    found = [c.params() for c in scheme.parse_challenges(vector["header"])]
    assert found == vector.get("challenges", [])
    assert bool(found) is not vector.get("error", False)


@vectors("challengeIds")
def test_challenge_id(vector: dict[str, Any]) -> None:
    challenge = Challenge(**vector["params"])
    assert scheme.challenge_id(SECRET, challenge.params()) == challenge.id
    assert challenge.is_bound_to(SECRET)
    assert not challenge.is_bound_to(b"another")


@vectors("credentials")
def test_credential(vector: dict[str, Any]) -> None:
    if vector.get("error"):
        with pytest.raises(Problem) as refused:
            Credential.parse(vector["header"])
        assert refused.value.reason == "lightning/malformed-credential"
        return
    credential = Credential.parse(vector["header"])
    expected = json.loads(vector["credentialJson"])
    assert credential.challenge.params() == expected["challenge"]
    assert credential.payload == expected["payload"]
    assert credential.source == expected.get("source")
    assert Credential.parse(credential.to_header()) == credential


@vectors("receipts")
def test_receipt(vector: dict[str, Any]) -> None:
    expected = json.loads(vector["receiptJson"])
    assert scheme.unpack(vector["header"]) == expected
    if "status" in expected:
        receipt = Receipt.parse(vector["header"])
        assert receipt.document() == expected


def a_challenge(**more: Any) -> Challenge:
    given_: dict[str, Any] = {
        "realm": "oda",
        "method": "lightning",
        "intent": "session",
        "request": {"amount": "1"},
    }
    return Challenge.create(b"secret", **(given_ | more))


def test_a_pipe_would_let_two_challenges_share_an_id() -> None:
    with pytest.raises(LocalProtocolError) as refused:
        a_challenge(realm="a|b")
    assert refused.value.reason == "pipe-in-challenge"


def test_every_bound_parameter_changes_the_id() -> None:
    challenges = [
        a_challenge(),
        a_challenge(realm="x"),
        a_challenge(intent="charge"),
        a_challenge(request={"amount": "2"}),
        a_challenge(expires=UnixTime(1)),
        a_challenge(digest="sha-256=:x:"),
        a_challenge(opaque={"session": "a"}),
    ]
    assert len({c.id for c in challenges}) == len(challenges)
    assert all(c.is_bound_to(b"secret") for c in challenges)


def test_times() -> None:
    assert scheme.rfc3339(UnixTime(0)) == "1970-01-01T00:00:00Z"
    assert scheme.unix_time("2026-03-15T12:05:00Z") == 1773576300
    assert scheme.unix_time("2026-03-15T13:05:00.9+01:00") == 1773576300
    for bad in ("", "soon", "2026-03-15", "2026-03-15T12:05:00", "9" * 50):
        with pytest.raises(Problem):
            scheme.unix_time(bad)


def test_digest_of_rfc_9530() -> None:
    # RFC 9530 appendix D: the content {"hello": "world"} and a line feed.
    digest = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"
    assert scheme.body_digest(b'{"hello": "world"}\n') == digest


def test_bearer_keys_of_openai_clients_are_not_ours() -> None:
    assert not scheme.is_payment("Bearer sk-payment")
    assert not scheme.is_payment("")
    assert scheme.is_payment("pAyMeNt abc")


def test_problem_document() -> None:
    problem = Problem("lightning/session-closed", "It is closed.")
    assert problem.document(challengeId="x") == {
        "type": "https://paymentauth.org/problems/lightning/session-closed",
        "title": "Session Closed",
        "status": 402,
        "detail": "It is closed.",
        "challengeId": "x",
    }


@pytest.mark.parametrize(
    "token",
    [
        scheme.base64url(b"[" * 10_000),
        scheme.base64url(b'{"a":NaN}'),
        scheme.base64url(b'{"a":1e999}'),
        scheme.base64url(b'"\xff"'),
        scheme.base64url("{}".encode("utf-16")),
        scheme.base64url(b"[]"),
        "A" * (scheme.MAX_HEADER + 4),
        "é",
    ],
)
def test_hostile_tokens(token: str) -> None:
    with pytest.raises(Problem):
        scheme.unpack(token)


def test_an_echo_that_cannot_be_encoded_is_malformed() -> None:
    challenge = dict.fromkeys(scheme.REQUIRED, "x")
    for bad in ("\ud800", 1, None, ["x"], ""):
        with pytest.raises(Problem):
            Challenge.from_params(challenge | {"realm": bad})


texts = st.text(max_size=20)
clean = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], include_characters="\t"), min_size=1, max_size=20
)
challenges = st.builds(
    Challenge,
    id=clean,
    realm=clean,
    method=clean,
    intent=clean,
    request=clean,
    expires=st.none() | clean,
    digest=st.none() | clean,
    description=st.none() | clean,
    opaque=st.none() | clean,
)


@given(st.lists(challenges, max_size=4), st.sampled_from([", ", ",", " ,, ", ",\t"]))
def test_header_round_trip(offers: list[Challenge], separator: str) -> None:
    header = separator.join(offer.to_header() for offer in offers)
    assert list(scheme.parse_challenges(header)) == offers
    assert list(scheme.parse_challenges([o.to_header() for o in offers])) == offers


@given(st.text(alphabet='Payment id="\\,=\t abé\udc80;:/+realm', max_size=200))
@example('Payment id="a", realm="r", method="m", intent="i", request="never closed')
@example('Payment id="a\\')
@example("Payment " + "=" * 50)
@example("Payment id=\udc80, realm=a, method=b, intent=c, request=d")
def test_any_header_is_read_without_an_error(header: str) -> None:
    for challenge in scheme.parse_challenges(header):
        assert all(getattr(challenge, name) for name in scheme.REQUIRED)
        assert scheme.parse_challenges(challenge.to_header())


@given(challenges, texts)
def test_what_follows_an_offer_cannot_change_it(offer: Challenge, junk: str) -> None:
    """An on-path element that appends to the line can add offers, not alter ours: the first of
    a repeated parameter counts."""
    found = scheme.parse_challenges(f'{offer.to_header()}, id="evil", request="evil", {junk}')
    assert not found or (found[0].id, found[0].request) == (offer.id, offer.request)


@given(challenges, st.dictionaries(clean, clean | st.integers(0, 2**53 - 1), max_size=4))
def test_credential_round_trip(challenge: Challenge, payload: dict[str, Any]) -> None:
    credential = Credential(challenge, payload)
    assert Credential.parse(credential.to_header()) == credential


@given(st.text(max_size=100) | st.binary(max_size=100).map(scheme.base64url))
def test_any_authorization_is_a_credential_or_a_problem(token: str) -> None:
    try:
        credential = Credential.parse(f"Payment {token}")
    except Problem as problem:
        assert problem.reason == "lightning/malformed-credential"
    else:
        assert credential.challenge.id
