"""L402: a macaroon and an invoice, for clients that know only that. PURE.

Sources: docs.lightning.engineering, "L402 protocol specification"; the macaroon format is version
2 of libmacaroons. Only first-party caveats exist here, and one that is not known is refused,
because it narrows what the token may be used for in a way that nobody would check.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from channels.errors import RemoteProtocolError
from channels.http.method import hex32
from channels.http.scheme import Problem, auth_params, malformed
from channels.units import UnixTime

LOCATION: Final = b"oda"
SERVICE: Final = b"services=oda:0"
VALID_UNTIL: Final = b"valid_until="
MAX_MACAROON: Final = 4096
MAX_CAVEATS: Final = 16

_GENERATOR: Final = b"macaroons-key-generator".ljust(32, b"\0")
_SCHEMES: Final = ("l402", "lsat")

# Field types of a version 2 macaroon.
_EOS, _LOCATION, _IDENTIFIER, _SIGNATURE = 0, 1, 2, 6


@dataclass(frozen=True, slots=True)
class Macaroon:
    identifier: bytes
    caveats: tuple[bytes, ...]
    signature: bytes = field(repr=False)

    @classmethod
    def mint(cls, root: bytes, identifier: bytes, caveats: Iterable[bytes] = ()) -> Macaroon:
        caveats = tuple(caveats)
        return cls(identifier, caveats, _sign(root, identifier, caveats))

    def is_signed_by(self, root: bytes) -> bool:
        return hmac.compare_digest(_sign(root, self.identifier, self.caveats), self.signature)

    def with_caveat(self, caveat: bytes) -> Macaroon:
        """Anybody may narrow a macaroon."""
        signature = hmac.digest(self.signature, caveat, "sha256")
        return Macaroon(self.identifier, (*self.caveats, caveat), signature)

    def encode(self) -> bytes:
        first = _field(_LOCATION, LOCATION) + _field(_IDENTIFIER, self.identifier)
        sections = [first, *(_field(_IDENTIFIER, caveat) for caveat in self.caveats)]
        body = b"".join(section + b"\0" for section in sections)
        return b"\2" + body + b"\0" + _field(_SIGNATURE, self.signature)

    @classmethod
    def decode(cls, data: bytes) -> Macaroon:
        """Raises Problem."""
        if not 1 <= len(data) <= MAX_MACAROON or data[0] != 2:
            raise malformed("The macaroon is not of version 2, or too long.")
        reader = _Reader(data, 1)
        head = reader.section()
        if not head or _IDENTIFIER not in head:
            raise malformed("The macaroon has no identifier.")
        caveats: list[bytes] = []
        while section := reader.section():
            if set(section) != {_IDENTIFIER} or len(caveats) == MAX_CAVEATS:
                raise malformed("The macaroon has caveats that are not understood.")
            caveats.append(section[_IDENTIFIER])
        kind, signature = reader.field()
        if kind != _SIGNATURE or len(signature) != 32 or not reader.at_end:
            raise malformed("The macaroon's signature is not where it should be.")
        return cls(head[_IDENTIFIER], tuple(caveats), signature)


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def _byte(self) -> int:
        if self.at_end:
            raise malformed("The macaroon is cut short.")
        self._at += 1
        return self._data[self._at - 1]

    def field(self) -> tuple[int, bytes]:
        kind = self._byte()
        if kind == _EOS:
            return kind, b""
        size = 0
        for shift in (0, 7):  # two bytes hold more than MAX_MACAROON
            byte = self._byte()
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise malformed("The macaroon is cut short.")
        if self._at + size > len(self._data):
            raise malformed("The macaroon is cut short.")
        self._at += size
        return kind, self._data[self._at - size : self._at]

    def section(self) -> dict[int, bytes]:
        """The fields up to the next end mark, each once and in rising order."""
        found: dict[int, bytes] = {}
        while True:
            kind, value = self.field()
            if kind == _EOS:
                return found
            if found and kind <= max(found):
                raise malformed("The macaroon's fields are out of order.")
            found[kind] = value


def _field(kind: int, data: bytes) -> bytes:
    size, length = len(data), b""
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([kind]) + length + bytes([size]) + data


def _sign(root: bytes, identifier: bytes, caveats: Iterable[bytes]) -> bytes:
    signature = hmac.digest(hmac.digest(_GENERATOR, root, "sha256"), identifier, "sha256")
    for caveat in caveats:
        signature = hmac.digest(signature, caveat, "sha256")
    return signature


# Server ------------------------------------------------------------------------------------------


def token_for(key: bytes, payment_hash: bytes, expires: UnixTime | None = None) -> Macaroon:
    """The token for an invoice. Everything in it follows from `key` and the payment hash, so
    nothing is stored for it."""
    token_id = sha256(b"oda/l402/id" + payment_hash).digest()
    identifier = b"\0\0" + payment_hash + token_id
    caveats = [SERVICE]
    if expires is not None:
        caveats.append(VALID_UNTIL + str(expires).encode())
    return Macaroon.mint(_root(key, identifier), identifier, caveats)


def offer(macaroon: Macaroon, invoice: str) -> str:
    """The `WWW-Authenticate` line. `token` is the specification's newer name for `macaroon`."""
    text = base64.b64encode(macaroon.encode()).decode()
    return f'L402 macaroon="{text}", invoice="{invoice}", version="0", token="{text}"'


@dataclass(frozen=True, slots=True)
class Token:
    """What a client presents: `Authorization: L402 <macaroon>:<preimage>`."""

    macaroon: Macaroon
    preimage: bytes = field(repr=False)

    @classmethod
    def parse(cls, header: str) -> Token:
        """Raises Problem."""
        scheme, _, value = header.strip().partition(" ")
        encoded, _, preimage = value.strip().partition(":")
        if scheme.lower() not in _SCHEMES or len(encoded) > 2 * MAX_MACAROON:
            raise malformed("The Authorization header is not an L402 token.")
        try:
            data = base64.b64decode(encoded.translate(_TO_STANDARD), validate=True)
        except ValueError:
            raise malformed("The L402 token's macaroon is not base64.") from None
        return cls(Macaroon.decode(data), hex32(preimage, "preimage"))


_TO_STANDARD: Final = str.maketrans("-_", "+/")


def is_l402(authorization: str) -> bool:
    return authorization.strip().partition(" ")[0].lower() in _SCHEMES


def verify(key: bytes, token: Token, now: UnixTime) -> bytes:
    """The payment hash that a token is for. Whether that was paid is for the ledger to say.

    Raises Problem.
    """
    macaroon = token.macaroon
    if len(macaroon.identifier) != 66 or not macaroon.is_signed_by(_root(key, macaroon.identifier)):
        raise Problem("verification-failed", "This L402 token was not made here.")
    payment_hash = macaroon.identifier[2:34]
    if not hmac.compare_digest(sha256(token.preimage).digest(), payment_hash):
        raise Problem("lightning/invalid-preimage", "The preimage is not that of the token.")
    for caveat in macaroon.caveats:
        if caveat != SERVICE and not _is_still_valid(caveat, now):
            raise Problem("verification-failed", "A caveat of this L402 token is not met.")
    return payment_hash


def _is_still_valid(caveat: bytes, now: UnixTime) -> bool:
    text = caveat.removeprefix(VALID_UNTIL)
    return text != caveat and text.isdigit() and len(text) < 16 and now < int(text)


def _root(key: bytes, identifier: bytes) -> bytes:
    return hmac.digest(key, b"oda/l402/root" + identifier, "sha256")


# Client ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offered:
    macaroon: str
    invoice: str

    def authorization(self, preimage: bytes) -> str:
        return f"L402 {self.macaroon}:{preimage.hex()}"


def parse_offer(lines: str | Iterable[str]) -> Offered | None:
    """The first L402 offer among `WWW-Authenticate` lines. Its invoice is still to be checked.

    Raises RemoteProtocolError where there is one and it lacks a part.
    """
    for line in [lines] if isinstance(lines, str) else lines:
        for scheme, params in auth_params(line):
            if scheme in _SCHEMES:
                macaroon = params.get("token") or params.get("macaroon")
                if not macaroon or not params.get("invoice") or ":" in macaroon:
                    raise RemoteProtocolError("bad-offer", "The L402 offer lacks a part.")
                return Offered(macaroon, params["invoice"])
    return None
