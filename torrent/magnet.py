"""Magnet links of BitTorrent v2 (BEP 9, BEP 52): an infohash, and where its bytes may be. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

from channels.errors import UserError

PREFIX: Final = "urn:btmh:1220"
"""A multihash: 0x12 is SHA-256, 0x20 its 32 bytes."""

MAX_LENGTH: Final = 8192
MAX_HINTS: Final = 32
"""Peers, trackers and web seeds that one link may name, of each."""


class Peer(NamedTuple):
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Read "host:port" or "[::1]:port"; raises UserError "bad-peer"."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        known = re.fullmatch(r"[0-9A-Za-z._-]{1,253}", host) or _is_ipv6(host)
        if not known or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
            raise UserError("bad-peer", f"{text[:100]!r} is no peer; write HOST:PORT.")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Magnet:
    infohash: bytes
    peers: tuple[Peer, ...] = ()
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()

    def __str__(self) -> str:
        hints = [f"xt={PREFIX}{self.infohash.hex()}"]
        hints += [f"x.pe={quote(str(peer), safe=':[]')}" for peer in self.peers]
        hints += [f"tr={quote(url, safe='')}" for url in self.trackers]
        hints += [f"ws={quote(url, safe='')}" for url in self.web_seeds]
        return "magnet:?" + "&".join(hints)

    @classmethod
    def parse(cls, text: str) -> Magnet:
        """A magnet link, or an infohash of 64 hex digits alone.

        Raises UserError "bad-infohash", "bad-magnet" or "bad-peer".
        """
        if not text.lower().startswith("magnet:"):
            return cls(parse_infohash(text))
        if len(text) > MAX_LENGTH:
            raise UserError("bad-magnet", "The magnet link is too long; copy it again.")
        fields = parse_qsl(text.partition("?")[2])

        def named(key: str) -> list[str]:
            return [value for name, value in fields if name == key or name.startswith(f"{key}.")]

        topics = [value for value in named("xt") if value.lower().startswith(PREFIX)]
        if len(topics) != 1:
            raise UserError(
                "bad-magnet",
                f"The magnet link has no BitTorrent v2 infohash (xt={PREFIX}…); "
                "ask for one that has.",
            )
        peers = [Peer.parse(value) for name, value in fields if name == "x.pe"]
        magnet = cls(
            parse_infohash(topics[0][len(PREFIX) :]),
            tuple(dict.fromkeys(peers)),
            tuple(dict.fromkeys(named("tr"))),
            tuple(dict.fromkeys(named("ws"))),
        )
        for urls, schemes in (
            (magnet.trackers, ("http", "https", "udp")),
            (magnet.web_seeds, ("http", "https")),
        ):
            for url in urls:
                check_url(url, schemes)
        if max(len(magnet.peers), len(magnet.trackers), len(magnet.web_seeds)) > MAX_HINTS:
            raise UserError("bad-magnet", f"The magnet link names more than {MAX_HINTS} of a kind.")
        return magnet


def parse_infohash(text: str) -> bytes:
    """64 hex digits; raises UserError "bad-infohash"."""
    if not re.fullmatch("[0-9A-Fa-f]{64}", text):
        raise UserError(
            "bad-infohash", f"{text[:80]!r} is no infohash; it has 64 hexadecimal digits."
        )
    return bytes.fromhex(text)


def check_url(url: str, schemes: tuple[str, ...] = ("http", "https")) -> None:
    """Raises UserError "bad-url"."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in schemes and parts.hostname is not None and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isprintable() or " " in url:
        raise UserError("bad-url", f"{url[:100]!r} is not one of {', '.join(schemes)} URLs.")
