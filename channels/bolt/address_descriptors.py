"""Where a node listens: the `addresses` of a node_announcement (BOLT 7, address descriptors)."""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass

from channels.bolt import wire
from channels.errors import RemoteProtocolError

IPV4, IPV6, TORV2, TORV3, DNS = 1, 2, 3, 4, 5

_NAMES = {IPV4: "ipv4", IPV6: "ipv6", TORV2: "torv2", TORV3: "torv3", DNS: "dns"}
_SIZES = {IPV4: 4, IPV6: 16, TORV2: 10, TORV3: 35}


@dataclass(frozen=True, slots=True)
class Address:
    """`type` is Core Lightning's word: ipv4, ipv6, torv2, torv3 or dns."""

    type: str
    host: str
    port: int


def ip_descriptor(host: str, port: int) -> bytes:
    """The descriptor of an IP address; ValueError when `host` is none."""
    address = ipaddress.ip_address(host)
    return bytes([IPV4 if address.version == 4 else IPV6]) + address.packed + wire.u16(port)


def read_addresses(field: bytes) -> tuple[Address, ...]:
    """The addresses up to the first of an unknown type; those with port 0 are left out.

    Raises RemoteProtocolError: "node-addresses-malformed" when one is cut short, and
    "node-two-hostnames" for a second DNS name, which must not be passed on.
    """
    reader = wire.Reader(field)
    found: list[Address] = []
    hostnames = 0
    while not reader.at_end():
        kind = reader.u8()
        if kind not in _NAMES:
            break
        try:
            raw = reader.take(reader.u8() if kind == DNS else _SIZES[kind])
            port = reader.u16()
        except RemoteProtocolError as error:
            raise RemoteProtocolError(
                "node-addresses-malformed", "An address of a node_announcement is cut short."
            ) from error
        hostnames += kind == DNS
        if hostnames > 1:
            raise RemoteProtocolError(
                "node-two-hostnames", "A node_announcement has more than one DNS hostname."
            )
        if port:
            found.append(Address(_NAMES[kind], _host(kind, raw), port))
    return tuple(found)


def _host(kind: int, raw: bytes) -> str:
    if kind in (IPV4, IPV6):
        return str(ipaddress.ip_address(raw))
    if kind == DNS:
        # A stranger's bytes that somebody will print: ASCII alone, as BOLT 7 says.
        return raw.decode("ascii", "backslashreplace")
    return base64.b32encode(raw).decode().lower().rstrip("=") + ".onion"
