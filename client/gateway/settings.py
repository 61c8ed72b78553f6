"""`[gateway]`: where programs ask, and how much they may spend."""

from __future__ import annotations

from typing import Final

import msgspec

from channels.errors import UserError
from channels.loopback import is_loopback
from channels.settings import load_section
from channels.units import Sat

PORT: Final = 8404


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """host, port: where it listens. expose: whether that may be more than this machine; it needs
    `token`: programs then send the token of the gateway's file as their API key.
    max_total_sat: paid since the gateway started, less what came back; None: no such cap, only
    those of `[client]`.
    idle_seconds: after which an unused session is closed, and its rest comes back.
    capacity: answers at once; further requests wait.
    open_channels: whether a channel is opened to a provider that can't be paid otherwise, of
    `client.channel_sat`.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    expose: bool = False
    token: bool = False
    max_total_sat: Sat | None = None
    idle_seconds: int = 300
    capacity: int = 8
    open_channels: bool = False

    def check(self) -> None:
        """Raises UserError `not-loopback`, `bad-setting`."""
        if not is_loopback(self.host) and not (self.expose and self.token):
            raise UserError(
                "not-loopback",
                f"Whoever reaches {self.host} could spend your sats: serve on 127.0.0.1, or say "
                "--expose and --token.",
            )
        if self.capacity < 1 or self.idle_seconds < 0 or not 0 <= self.port <= 65535:
            raise UserError(
                "bad-setting", "gateway: capacity is at least 1, idle_seconds 0, and port a port."
            )


def load_gateway_settings(flags: dict[str, object] | None = None) -> GatewaySettings:
    """Raises UserError as `load_section` does."""
    settings = load_section("gateway", GatewaySettings, flags)
    settings.check()
    return settings
