"""The `Payment` HTTP authentication scheme: challenge, credential, receipt, problem. PURE.

Source: draft-httpauth-payment-00. `request` and `opaque` stay base64url strings exactly as they
were on the wire, so that the HMAC and the echo never depend on encoding them again; JSON is
canonical (RFC 8785) where we write it, and need not be where we read it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import rfc8785

from channels.errors import LocalProtocolError, RemoteProtocolError
from channels.units import UnixTime

MAX_HEADER: Final = 64 * 1024
"""Characters of one header that are looked at; the draft asks for at least 4 KB."""

REQUIRED: Final = ("id", "realm", "method", "intent", "request")
OPTIONAL: Final = ("expires", "digest", "description", "opaque")
# Section "Recommended: HMAC-SHA256 Binding": seven slots in this order, absent ones empty.
SLOTS: Final = ("realm", "method", "intent", "request", "expires", "digest", "opaque")

PROBLEM_BASE: Final = "https://paymentauth.org/problems/"

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_EQUALS: Final = re.compile(r"[ \t]*=[ \t]*")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_UNQUOTED: Final = re.compile(r'[^\s,"]*')
_BETWEEN: Final = re.compile(r"[\s,]*")
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*")


class Problem(RemoteProtocolError):
    """A request that is answered with RFC 9457 problem details.

    `reason` is the draft's slug below PROBLEM_BASE, for example `lightning/invalid-preimage`.
    """

    def __init__(self, reason: str, sentence: str, status: int = 402) -> None:
        super().__init__(reason, sentence)
        self.status = status

    def document(self, **members: object) -> dict[str, object]:
        """The body as a value; `members` are RFC 9457 extension members."""
        return {
            "type": PROBLEM_BASE + self.reason,
            "title": self.reason.rpartition("/")[2].replace("-", " ").title(),
            "status": self.status,
            "detail": str(self),
            **members,
        }


def malformed(sentence: str) -> Problem:
    return Problem("lightning/malformed-credential", sentence)


def payment_required() -> Problem:
    return Problem("payment-required", "Pay one of the offers in WWW-Authenticate and ask again.")


# Encodings ---------------------------------------------------------------------------------------


def base64url(data: bytes) -> str:
    """RFC 4648 section 5 without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unbase64url(text: str) -> bytes:
    """Strict: one spelling per value, except that correct padding is accepted."""
    bare = text.rstrip("=")
    padding = len(text) - len(bare)
    if not _BASE64URL.fullmatch(bare) or len(bare) % 4 == 1:
        raise malformed("The token is not base64url; encode it as RFC 4648 section 5 says.")
    if padding and padding != -len(bare) % 4:
        raise malformed("The token's base64url padding is wrong; leave it out.")
    data = base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    if base64url(data) != bare:
        raise malformed("The token's last base64url character has stray bits.")
    return data


def canonical_json(value: object) -> bytes:
    """RFC 8785. Integers beyond 2^53 become doubles, as section 3.2.2.3 has it."""
    return rfc8785.dumps(_doubles(value))


def _doubles(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _doubles(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_doubles(member) for member in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 53:
        return float(value)
    return value


def pack(value: Mapping[str, object]) -> str:
    """A JSON object as a token: canonical, then base64url."""
    return base64url(canonical_json(dict(value)))


def unpack(token: str) -> dict[str, Any]:
    """The JSON object in a token, in whatever order and spacing it was written."""
    if len(token) > MAX_HEADER:
        raise malformed(f"The token is longer than {MAX_HEADER} characters.")
    try:
        value = msgspec.json.decode(unbase64url(token))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise malformed("The token does not hold JSON.") from None
    if not isinstance(value, dict):
        raise malformed("The token does not hold a JSON object.")
    return value


def rfc3339(time: UnixTime) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%M:%SZ}"


def unix_time(text: str) -> UnixTime:
    """An RFC 3339 date-time, rounded down to the second."""
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None:
            raise ValueError("no offset")
        return UnixTime(int(when.timestamp()))
    except (ValueError, OverflowError):
        raise malformed(f"{text[:40]!r} is not an RFC 3339 date-time.") from None


def body_digest(body: bytes) -> str:
    """The `digest` parameter for a request body (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


# Challenge ---------------------------------------------------------------------------------------


def challenge_id(secret: bytes, params: Mapping[str, str | None]) -> str:
    """Section "Recommended: HMAC-SHA256 Binding"."""
    slots = "|".join(params.get(name) or "" for name in SLOTS)
    return base64url(hmac.digest(secret, slots.encode(), hashlib.sha256))


@dataclass(frozen=True, slots=True)
class Challenge:
    """One `WWW-Authenticate: Payment` offer. Field names are those of the draft."""

    id: str
    realm: str
    method: str
    intent: str
    request: str
    expires: str | None = None
    digest: str | None = None
    description: str | None = None
    opaque: str | None = None

    @classmethod
    def create(
        cls,
        secret: bytes,
        *,
        realm: str,
        method: str,
        intent: str,
        request: Mapping[str, object],
        expires: UnixTime | None = None,
        digest: str | None = None,
        description: str | None = None,
        opaque: Mapping[str, str] | None = None,
    ) -> Challenge:
        """Raises LocalProtocolError where a slot has the `|` that separates slots: two different
        challenges would share an id (the draft does not escape it)."""
        params = {
            "realm": realm,
            "method": method,
            "intent": intent,
            "request": pack(request),
            "expires": None if expires is None else rfc3339(expires),
            "digest": digest,
            "opaque": None if opaque is None else pack(opaque),
        }
        if any("|" in value for value in params.values() if value):
            raise LocalProtocolError("pipe-in-challenge", "A challenge parameter has a | in it.")
        return cls(id=challenge_id(secret, params), description=description, **params)  # type: ignore[arg-type]  # a dict's values are of one type for mypy; the required ones are str

    @classmethod
    def from_params(cls, params: Mapping[str, object]) -> Challenge:
        """From an echo or a parsed header; unknown members are ignored. Raises Problem."""
        known = {name: params[name] for name in (*REQUIRED, *OPTIONAL) if name in params}
        if not all(known.get(name) for name in REQUIRED):
            raise malformed("The challenge lacks one of id, realm, method, intent and request.")
        if not all(isinstance(value, str) and _is_text(value) for value in known.values()):
            raise malformed("A challenge parameter is not text.")
        return cls(**known)  # type: ignore[arg-type]  # every value was just seen to be a str

    def is_bound_to(self, secret: bytes) -> bool:
        ours = challenge_id(secret, self.params())
        return hmac.compare_digest(ours.encode(), self.id.encode("utf-8", "replace"))

    def params(self) -> dict[str, str]:
        """What a credential echoes: the parameters that are present."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def to_header(self) -> str:
        ordered = (*REQUIRED, *OPTIONAL)
        params = self.params()
        return "Payment " + ", ".join(f"{n}={_quoted(params[n])}" for n in ordered if n in params)

    def request_object(self) -> dict[str, Any]:
        return unpack(self.request)

    def opaque_object(self) -> dict[str, Any]:
        return {} if self.opaque is None else unpack(self.opaque)

    @property
    def expires_at(self) -> UnixTime | None:
        return None if self.expires is None else unix_time(self.expires)


_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_UNQUOTABLE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def _is_text(value: str) -> bool:
    # A header's stray bytes and JSON's "\ud800" both become lone surrogates, which nobody can
    # encode again for an HMAC or an echo.
    return _SURROGATE.search(value) is None


def _quoted(text: str) -> str:
    """RFC 9110 section 5.6.4; what a quoted-string can't hold is left out."""
    clean = _UNQUOTABLE.sub("", text)
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse_challenges(lines: str | Iterable[str]) -> tuple[Challenge, ...]:
    """The Payment offers among `WWW-Authenticate` header lines, in order.

    Tolerant (RFC 9110 sections 11.6.1 and 5.6.1): several offers and schemes on one line, empty
    list elements, unquoted values, any case of names; the first of a repeated parameter counts;
    an offer that is incomplete is left out. Nothing after a quote that never closes is read.
    """
    found = []
    for line in [lines] if isinstance(lines, str) else lines:
        for scheme, params in auth_params(line):
            if scheme != "payment":
                continue
            try:
                found.append(Challenge.from_params(params))
            except Problem:
                continue  # one bad offer does not spoil the others
    return tuple(found)


def auth_params(line: str) -> list[tuple[str, dict[str, str]]]:
    """(scheme, parameters) for each challenge of a header line; names are in lower case."""
    found: list[tuple[str, dict[str, str]]] = []
    line = line[:MAX_HEADER]
    at = _end(_BETWEEN, line, 0)
    while at < len(line):
        name = _TOKEN.match(line, at)
        if name is None:
            # Not a token: skip to the next list element.
            comma = line.find(",", at)
            at = len(line) if comma < 0 else _end(_BETWEEN, line, comma)
            continue
        equals = _EQUALS.match(line, name.end())
        if equals is None:
            found.append((name[0].lower(), {}))
            at = _end(_BETWEEN, line, name.end())
            continue
        at = equals.end()
        if line.startswith('"', at):
            quoted = _QUOTED.match(line, at)
            if quoted is None:
                if found:
                    found.pop()
                break
            value, at = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL), quoted.end()
        else:
            end = _end(_UNQUOTED, line, at)
            value, at = line[at:end], end
        if found:
            found[-1][1].setdefault(name[0].lower(), value)
        at = _end(_BETWEEN, line, at)
    return found


def _end(pattern: re.Pattern[str], line: str, at: int) -> int:
    match = pattern.match(line, at)
    return at if match is None else match.end()


# Credential --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Credential:
    """`Authorization: Payment …`: the challenge echoed, and the proof that it was paid."""

    challenge: Challenge
    payload: Mapping[str, Any] = field(repr=False)  # holds preimages
    source: str | None = None

    def to_header(self) -> str:
        value: dict[str, object] = {"challenge": self.challenge.params(), "payload": self.payload}
        if self.source is not None:
            value["source"] = self.source
        return "Payment " + pack(value)

    @classmethod
    def parse(cls, header: str) -> Credential:
        """Raises Problem(`lightning/malformed-credential`)."""
        scheme, _, token = header.strip().partition(" ")
        if scheme.lower() != "payment" or not token.strip():
            raise malformed("The Authorization header is not a Payment credential.")
        value = unpack(token.strip())
        challenge, payload, source = (value.get(n) for n in ("challenge", "payload", "source"))
        if not isinstance(challenge, dict) or not isinstance(payload, dict):
            raise malformed("A credential needs a challenge object and a payload object.")
        if source is not None and not isinstance(source, str):
            raise malformed("The credential's source is not text.")
        return cls(Challenge.from_params(challenge), payload, source)


def is_payment(authorization: str) -> bool:
    """Whether a header is meant for this scheme. `Bearer …`, which every OpenAI client sends,
    counts as unpaid and not as malformed."""
    return authorization.strip().partition(" ")[0].lower() == "payment"


# Receipt -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receipt:
    """`Payment-Receipt`. `reference` is a payment hash in hex, never a preimage."""

    method: str
    reference: str
    timestamp: str
    status: str = "success"
    extensions: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, object]:
        return {
            **self.extensions,
            "method": self.method,
            "reference": self.reference,
            "timestamp": self.timestamp,
            "status": self.status,
        }

    def to_header(self) -> str:
        return pack(self.document())

    @classmethod
    def parse(cls, header: str) -> Receipt:
        value = unpack(header.strip())
        core = {n: value.pop(n, None) for n in ("method", "reference", "timestamp", "status")}
        if not all(isinstance(member, str) and member for member in core.values()):
            raise malformed("The receipt lacks one of method, reference, timestamp and status.")
        return cls(**core, extensions=value)
