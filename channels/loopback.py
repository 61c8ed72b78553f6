"""Who is on this machine, and who only looks like it. PURE."""

from __future__ import annotations

import ipaddress
from collections.abc import Container
from typing import Final

FORWARDED: Final = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
"""A proxy on this machine sends these: who asks is not here, though the connection is."""


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_local(remote: str | None, host: str | None, headers: Container[str]) -> bool:
    """Whether an HTTP request comes from a program on this machine that means this machine.

    remote: the address of the connection. host: of the `Host` header: a web page that rebinds its
    name to this machine still sends that name.
    """
    return (
        is_loopback(remote or "")
        and is_loopback(host or "")
        and not any(name in headers for name in FORWARDED)
    )
