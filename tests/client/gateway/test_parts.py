"""The gateway's parts by themselves: errors, the catalogue that is kept, figures, what is shown."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import closing

import pytest
from rich.console import Console

from channels.errors import LocalProtocolError, OdaError, RemoteProtocolError, UserError
from channels.lightning import LightningError, LightningUnreachable
from channels.units import Msat
from client.answer import Cost
from client.budget import CAPS
from client.discovery import Seller, Silent, Survey
from client.gateway.display import Display, status, summary
from client.gateway.errors import api_error, may_retry
from client.gateway.figures import Figures, Record
from client.gateway.pool import Pool
from client.gateway.sellers import AGAIN, FRESH, STALE, Sellers, catalogue
from client.gateway.serving import one_at_a_time
from client.judge import Fault, FaultKind
from client.judging import BadAnswer
from client.provider import ProviderRefused, ProviderUnreachable
from provider.api import ApiError
from tests.client.test_market import seller

# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [*sorted(CAPS), "too-expensive", "payment-failed"])
def test_what_can_not_be_paid_is_a_used_up_quota(reason: str) -> None:
    for kind in (OdaError, UserError, LocalProtocolError, RemoteProtocolError):
        error = kind(reason, "No more.")
        shown = api_error(error)
        assert (shown.status, shown.type, shown.reason) == (
            429,
            "insufficient_quota",
            "insufficient-quota",
        )
        assert not may_retry(error, was_paid=False)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ApiError("not-json", "x", status=415), 415, "not-json"),
        (UserError("bad-question", "x"), 400, "bad-question"),
        (UserError("body-too-large", "x"), 413, "body-too-large"),
        (UserError("no-provider", "x"), 503, "no-provider"),
        (ProviderRefused("invalid-request", "x", 400), 400, "invalid-request"),
        (ProviderRefused("model-not-found", "x", 404), 404, "model-not-found"),
        (ProviderRefused("at-capacity", "x", 503), 503, "at-capacity"),
        (ProviderRefused("too-many-offers", "x", 429), 503, "too-many-offers"),
        # What a provider says of payment is never the program's business.
        (ProviderRefused("payment-required", "x", 402), 502, "payment-required"),
        (ProviderRefused("unauthorized", "x", 401), 502, "unauthorized"),
        (ProviderRefused("engine-failed", "x", 200), 502, "engine-failed"),
        (ProviderUnreachable("provider-unreachable", "x"), 503, "provider-unreachable"),
        (LightningUnreachable("lightning-unreachable", "x"), 503, "lightning-unreachable"),
        (LightningError(-1, "x"), 503, "lightning-error"),
        (OdaError("payment-unknown", "x"), 503, "payment-unknown"),
        (OdaError("topup-timeout", "x"), 503, "topup-timeout"),
        (RemoteProtocolError("overcharged", "x"), 502, "overcharged"),
        (BadAnswer(Fault(FaultKind.STALL, "x")), 502, "answer-stall"),
        (OdaError("strange", "x"), 500, "strange"),
    ],
    ids=lambda value: value.reason if isinstance(value, OdaError) else str(value),
)
def test_statuses(error: OdaError, status: int, code: str) -> None:
    shown = api_error(error)
    assert (shown.status, shown.reason) == (status, code)
    assert shown.status != 402


def test_who_may_ask_again_by_itself() -> None:
    away = ProviderUnreachable("provider-unreachable", "x")
    assert may_retry(away, was_paid=False)
    assert not may_retry(away, was_paid=True)
    assert not may_retry(OdaError("payment-unknown", "x"), was_paid=False)


# The catalogue -----------------------------------------------------------------------------------


class Town:
    """Providers that are asked, and a clock."""

    def __init__(self, *names: str) -> None:
        self.now = 1000.0
        self.asked = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.found = tuple(seller(name) for name in names)
        self.sellers = Sellers(self._survey, lambda: self.now)

    async def _survey(self) -> Survey:
        self.asked += 1
        await self.hold.wait()
        silent = () if self.found else (Silent("http://p", "gone", "It does not answer."),)
        return Survey(self.found, silent)

    async def names(self) -> list[str]:
        return [each.url for each in (await self.sellers.all()).sellers]


async def test_providers_are_asked_once_for_many_requests() -> None:
    town = Town("a", "b")
    await asyncio.gather(*(town.sellers.of("letters") for _ in range(5)))
    assert town.asked == 1
    # A little old: used, and looked at again meanwhile.
    town.now += FRESH
    town.hold.clear()
    assert await town.names() == ["a", "b"]
    town.found = (seller("c"),)
    town.hold.set()
    await town.sellers.close()
    town.now += STALE
    assert await town.names() == ["c"]


async def test_a_failure_makes_what_is_known_old() -> None:
    town = Town("a")
    await town.names()
    town.sellers.expire()
    assert await town.names() == ["a"]
    await town.sellers.close()
    assert town.asked <= 2


async def test_a_model_that_nobody_has() -> None:
    town = Town("a")
    for _ in range(3):
        with pytest.raises(ApiError) as unknown:
            await town.sellers.of("gpt")
        assert unknown.value.status == 404
    assert town.asked == 1
    town.now += AGAIN
    with pytest.raises(ApiError):
        await town.sellers.of("gpt")
    assert town.asked == 2


async def test_nobody_answers() -> None:
    town = Town()
    with pytest.raises(UserError) as nobody:
        await town.sellers.of("letters")
    assert nobody.value.reason == "no-provider"
    assert "does not answer" in str(nobody.value)


def test_each_model_stands_once_in_the_catalogue() -> None:
    both = catalogue(Survey((seller("a", 90), seller("b", 100)), ()))
    assert both.count(b'"object":"model"') == 1
    assert both.index(b'"url":"a"') < both.index(b'"url":"b"')


async def test_one_channel_is_opened_for_many_requests() -> None:
    opened: list[str] = []

    async def open_channel(which: Seller) -> bool:
        opened.append(which.url)
        await asyncio.sleep(0)
        return len(opened) > 1

    opening = one_at_a_time(open_channel)
    told = await asyncio.gather(*(opening(seller("a")) for _ in range(4)))
    # The first try failed, the second one did not, and nobody tries after that.
    assert (told, opened) == ([False, True, True, True], ["a", "a"])


# Figures -----------------------------------------------------------------------------------------


def cost(output: int, spent: int) -> Cost:
    none = Msat(0)
    return Cost(3, output, Msat(spent), none, none, none, none, 0)


def test_figures_add_up_over_providers_and_requests() -> None:
    now = 0.0
    records: list[Record] = []
    figures = Figures(records.append, lambda: now)
    with figures.request("/v1/completions") as record:
        first, second = cost(10, 100), cost(30, 300)
        figures.cost(record, None, first)
        figures.cost(record, first, second)
        now = 4.0
        figures.cost(record, None, cost(20, 200))  # another provider began anew
        assert figures.tokens_per_second == 5.0
        assert figures.running == 1
        record.reason = "answer-stall"
    assert (record.input_tokens, record.output_tokens, record.spent_msat) == (6, 50, 500)
    assert (figures.requests, figures.running, figures.failed, figures.spent) == (1, 0, 1, 500)
    assert records == [record] and record.seconds == 4.0
    now = 100.0
    assert figures.tokens_per_second == 0.0
    shown = "1 requests, 0 running, 1 failed · 0.0 tokens/s · 0.500 sat spent · 1.234 sat at risk"
    assert status(figures, 1234) == shown
    assert "6 + 50 tokens · 0.500 sat · 4.0 s · answer-stall" in summary(record)


def test_a_line_that_lives_below_those_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=120)
    monkeypatch.setattr("client.gateway.display.stderr", lambda: console)
    pool = Pool(lambda seller: pytest.fail("nothing is bought"), 60)
    with closing(Display(as_json=False)) as display:
        display.started("http://127.0.0.1:8404/v1", "/home/user/gateway-token", pool)
        with display.figures.request("/v1/completions") as record:
            display.figures.cost(record, None, cost(10, 2650))
    shown = terminal.getvalue()
    assert "export OPENAI_BASE_URL=http://127.0.0.1:8404/v1" in shown
    assert 'export OPENAI_API_KEY="$(cat /home/user/gateway-token)"' in shown
    assert "200 /v1/completions" in shown
    last = shown.rpartition("1 requests, 0 running")[2]
    assert "2.650 sat spent · 0.000 sat at risk" in last


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(Display(as_json=True)) as display:
        display.started("http://127.0.0.1:1/v1", None, Pool(lambda seller: pytest.fail("no"), 60))
        for _ in range(2):
            with display.figures.request("/v1/completions"):
                pass
    first, *records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first == {"url": "http://127.0.0.1:1/v1", "token_file": None}
    assert [record["request"] for record in records] == [1, 2]


def test_a_model_s_name_can_not_move_the_cursor() -> None:
    record = Record(request=1, time=0, path="/v1/completions", model="\x1b[2Jgpt")  # type: ignore[arg-type]  # any time
    assert "\x1b" not in summary(record)
