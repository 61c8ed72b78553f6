"""What a provider sees of its business: counts and sums, and nothing that a user wrote."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

from msgspec import Struct

from provider import api
from provider.figures import Day, Figures, LiveSessions, OpenRefunds
from provider.ledger import Ledger
from provider.liquidity import Channels, Liquidity
from provider.metrics import Metrics
from provider.serving import Models
from provider.share_desk import Following, ShareDesk
from provider.shares import BatchStatus
from provider.upstreams import State

WAITING: Final = (BatchStatus.OPEN, BatchStatus.INVOICED)
DAYS: Final = 30
DAYS_FRESH: Final = 60.0
PART: Final = 20
"""Looking may take one part in so many of the time, however large the ledger is."""

Role = Literal["trainer", "producer"]


class Health(Struct, frozen=True, omit_defaults=True):
    """status: "ok"; "degraded" where it sells but the sidechain is not followed or an upstream is
    down; "unavailable" where it can't sell. chain: absent for a provider on no
    sidechain. upstreams: absent where there are none."""

    status: Literal["ok", "degraded", "unavailable"]
    models: tuple[str, ...]
    lightning: bool
    chain: ChainHealth | None = None
    upstreams: tuple[UpstreamHealth, ...] = ()


class UpstreamHealth(Struct, frozen=True):
    """Of an OpenAI-compatible server behind the provider; its address is nobody's business."""

    reachable: bool
    models: int


class ChainHealth(Struct, frozen=True):
    """height: of the block by which shares are counted."""

    followed: bool
    height: int | None


class Work(Struct, frozen=True):
    """Tokens since the start, and a second's over the last minute."""

    answers_running: int
    capacity: int
    input_tokens: int
    output_tokens: int
    tokens_per_second: float


class Earned(Struct, frozen=True):
    """spent = provider + passed on (paid, waiting or carried). credit: unspent, owed to users."""

    spent_msat: int
    provider_msat: int
    shares_msat: int
    refund_msat: int
    credit_msat: int


class Owed(Struct, frozen=True):
    """One key of the sidechain. carried: in no batch yet; waiting: in one that is not paid;
    own: it is the provider's. attempts: of the batch that waits."""

    key: str
    roles: tuple[Role, ...]
    carried_msat: int
    waiting_msat: int
    paid_msat: int
    own_msat: int
    attempts: int


class Dashboard(Struct, frozen=True):
    """The answer of GET /dashboard.json. days: the last 30 with anything in them."""

    time: int
    network: str
    about: dict[str, str]
    health: Health
    trouble: tuple[str, ...]
    work: Work
    earned: Earned
    sessions: LiveSessions
    refunds: OpenRefunds
    shares: tuple[Owed, ...]
    models: tuple[api.Model, ...]
    liquidity: Liquidity
    days: tuple[Day, ...]


class Watch:
    """Looks at the provider's parts for whoever runs it."""

    def __init__(
        self,
        ledger: Ledger,
        models: Models,
        metrics: Metrics,
        channels: Channels,
        capacity: int,
        about: Mapping[str, str],
        entry: Callable[[str], api.Model],
        desk: ShareDesk | None,
        clock: Callable[[], float],
        upstreams: Callable[[], tuple[State, ...]] = tuple,
    ) -> None:
        self._ledger = ledger
        self._figures = Figures(ledger)
        self._models = models
        self._metrics = metrics
        self._channels = channels
        self._capacity = capacity
        self._about = dict(about)
        self._entry = entry
        self._desk = desk
        self._clock = clock
        self._upstreams = upstreams
        self._days: tuple[Day, ...] = ()
        self._roles: dict[bytes, tuple[Role, ...]] = {}
        self._days_until = self._until = float("-inf")
        self._last: Dashboard | None = None

    async def health(self) -> Health:
        liquidity = await self._channels.look()
        return self._health(liquidity, self._following())

    def days(self) -> tuple[Day, ...]:
        """All of them, as of now."""
        return self._figures.days()

    async def look(self) -> Dashboard:
        """As it was at most a moment ago."""
        now = time.monotonic()
        if self._last is None or now >= self._until:
            liquidity = await self._channels.look()
            began = time.monotonic()
            self._last = self._made(liquidity)
            ended = time.monotonic()
            self._until = ended + max(0.5, PART * (ended - began))
        return self._last

    def _made(self, liquidity: Liquidity) -> Dashboard:
        following = self._following()
        troubles = (
            liquidity.trouble,
            None if following is None else following.trouble,
            *(each.trouble for each in self._upstreams()),
        )
        self._look_at_days()
        shares = self._shares()
        totals = self._ledger.totals()
        passed_on = sum(map(_all, shares))
        return Dashboard(
            int(self._clock()),
            self._about["network"],
            self._about,
            self._health(liquidity, following),
            tuple(each for each in troubles if each is not None),
            Work(
                self._metrics.count("oda_answers_running"),
                self._capacity,
                self._metrics.count("oda_input_tokens_total"),
                self._metrics.count("oda_output_tokens_total"),
                self._metrics.pace.per_second(),
            ),
            Earned(
                totals["spent"],
                totals["spent"] - passed_on,
                passed_on,
                totals["refund"],
                totals["rest"],
            ),
            self._figures.sessions(),
            self._figures.refunds(),
            shares,
            tuple(self._entry(name) for name in self._models.current),
            liquidity,
            self._days[-DAYS:],
        )

    def _health(self, liquidity: Liquidity, following: Following | None) -> Health:
        models = tuple(self._models.current)
        reachable = liquidity.trouble is None
        chain = None
        if following is not None:
            chain = ChainHealth(following.trouble is None, following.height)
        status: Literal["ok", "degraded", "unavailable"] = "ok"
        if not reachable or not models:
            status = "unavailable"
        elif chain is not None and not chain.followed:
            status = "degraded"
        upstreams = tuple(
            UpstreamHealth(each.trouble is None, len(each.models)) for each in self._upstreams()
        )
        if status == "ok" and not all(each.reachable for each in upstreams):
            status = "degraded"
        return Health(status, models, reachable, chain, upstreams)

    def _following(self) -> Following | None:
        return None if self._desk is None else self._desk.following()

    def _look_at_days(self) -> None:
        now = time.monotonic()
        if now >= self._days_until:
            self._days = self._figures.days()
            if self._desk is not None:
                self._roles = self._desk.shares.roles()
            took = time.monotonic() - now
            self._days_until = now + max(DAYS_FRESH, PART * took)

    def _shares(self) -> tuple[Owed, ...]:
        """Those to whom the most goes first."""
        if self._desk is None:
            return ()
        carried, batches = self._desk.carried(), self._desk.shares.totals()
        attempts = {each.key: each.attempts for each in self._desk.shares.batches(*WAITING)}
        found = [
            Owed(
                key.hex(),
                self._roles.get(key, ()),
                carried.get(key, 0),
                sum(batches.get(key, {}).get(status, 0) for status in WAITING),
                batches.get(key, {}).get(BatchStatus.PAID, 0),
                batches.get(key, {}).get(BatchStatus.OWN, 0),
                attempts.get(key, 0),
            )
            for key in {*carried, *batches}
        ]
        return tuple(sorted(found, key=lambda each: (-_all(each), each.key)))


def _all(owed: Owed) -> int:
    return owed.carried_msat + owed.waiting_msat + owed.paid_msat + owed.own_msat
