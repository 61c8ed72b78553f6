"""`[client]`: which provider, and how much the user allows to be spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from channels.settings import LightningSettings, Settings, load_section, load_settings
from channels.units import Msat, Sat, UnixTime, msat
from client.budget import Budget

NODE: Final = "user"
"""The embedded node that is the user's."""


class ClientSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All amounts are the most that is allowed, and an offer beyond them is refused unpaid.

    max_request_sat: for one answer; max_session_sat: paid into one session; max_hour_sat,
    max_day_sat: paid in 60 minutes and per day (UTC), less what came back.
    max_exposure_sat: what a provider may owe at any instant (D, and long questions).
    max_input_msat, max_output_msat: the price of a token.
    routing_fee_percent: of a deposit that has to cross other nodes; at least 1 sat is allowed.
    channel_sat: the size of a channel that `oda open` opens.
    providers: more URLs to choose from. chain: "host:port" of nodes of the sidechain, on which
    providers announce themselves and which says who is owed for a model.
    patience_seconds: that a provider may be away in the middle of an answer before it is left.
    stall_seconds: without a token after which an answer is left.
    models: directories of registered models, whose answers are then spot-checked.
    min_trainer_ppm, min_producers_ppm: the least that a provider must pass on to those who made the
    model, in millionths of what is spent; an offer of less is refused.
    share_grace_seconds: after the end of a session, until a provider that has not paid those who
    are owed is blamed for it; a settlement may take ten minutes.
    """

    provider: str = "http://127.0.0.1:8402"
    max_request_sat: Sat = Sat(10_000)
    max_session_sat: Sat = Sat(10_000)
    max_hour_sat: Sat = Sat(50_000)
    max_day_sat: Sat = Sat(50_000)
    max_exposure_sat: Sat = Sat(1_000)
    max_input_msat: Msat = Msat(10_000)
    max_output_msat: Msat = Msat(10_000)
    routing_fee_percent: int = 5
    channel_sat: Sat = Sat(100_000)
    providers: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    patience_seconds: int = 120
    stall_seconds: int = 30
    models: tuple[Path, ...] = ()
    min_trainer_ppm: int = 0
    min_producers_ppm: int = 0
    share_grace_seconds: Annotated[int, Meta(ge=1)] = 1200

    def budget(self, max_total: Msat | None = None, started: UnixTime = UnixTime(0)) -> Budget:
        return Budget(
            max_request=msat(self.max_request_sat),
            max_hour=msat(self.max_hour_sat),
            max_day=msat(self.max_day_sat),
            max_total=max_total,
            started=started,
        )


def load_client_settings(flags: dict[str, object] | None = None) -> ClientSettings:
    """Raises UserError as `load_section` does."""
    return load_section("client", ClientSettings, flags)


def lightning_rpc_file(settings: Settings | None = None) -> Path:
    """The socket of `lightning.rpc_file`, else that of the user's embedded node."""
    settings = settings or load_settings()
    named = load_section("lightning", LightningSettings).rpc_file
    return named or settings.node_dir(NODE) / "lightning-rpc"


def store_file(settings: Settings) -> Path:
    return settings.client_dir / "client.sqlite"
