"""The dashboard as a page. Pure: what it shows is dashboard.Dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element  # a type; nothing is parsed

from provider import api
from provider.dashboard import Dashboard, Owed
from provider.figures import Day, LiveSessions, OpenRefunds
from provider.liquidity import Liquidity
from sidechain.pages.markup import (
    Child,
    Page,
    Row,
    Site,
    badge,
    el,
    facts,
    figures,
    heading,
    said,
    section,
    table,
)
from sidechain.pages.values import compact, dot, number, sats, short, when

EVERY: Final = 2
"""Seconds between two looks."""
FOOT: Final = (
    ("/earnings.csv", "Earnings (CSV)"),
    ("/dashboard.json", "JSON"),
    ("/metrics", "Metrics"),
    ("/health", "Health"),
    ("/v1/models", "Models"),
)
TONES: Final = {"ok": "confirmed", "degraded": "provisional", "unavailable": "invalid"}
PLOT: Final = 180
BELOW: Final = 24


def site(found: Dashboard) -> Site:
    return Site("ODA provider", found.network, (), FOOT, EVERY)


def page(found: Dashboard) -> Page:
    health = found.health
    title = "Earnings"
    sections = [heading(title, badge(TONES[health.status], health.status)), *_troubles(found)]
    sections.append(section("now", None, _now(found)))
    if found.days:
        link = el("a", "all days as CSV", href="/earnings.csv")
        sections.append(section("days", "Sats by day", _bars(found.days), note=link))
    sections.append(section("sessions", "Live sessions", *_sessions(found.sessions)))
    if found.shares or health.chain is not None:
        note = "trainers and block producers, as the challenges promised"
        sections.append(section("shares", "Shares", _shares(found.shares), note=note))
    sections.append(section("models", "Models", _models(found.models)))
    sections.append(section("liquidity", "Liquidity", *_liquidity(found.liquidity)))
    sections.append(section("refunds", "Refunds under way", _refunds(found.refunds)))
    sections.append(section("provider", "This provider", _about(found)))
    return Page(title, "/", tuple(sections))


def _troubles(found: Dashboard) -> list[Element]:
    if not found.trouble:
        return []
    lines = [el("p", said(each), class_="trouble") for each in found.trouble]
    return [section("trouble", None, lines)]


def _now(found: Dashboard) -> Element:
    work, earned, sessions = found.work, found.earned, found.sessions
    per_second = f"{work.tokens_per_second:.1f}"
    answers = f"{work.answers_running} of {work.capacity} places busy"
    rows: list[tuple[str, Child, Child]] = [
        ("Earned", [sats(earned.provider_msat), _unit()], "what is yours of all that was spent"),
        ("Spent by users", [sats(earned.spent_msat), _unit()], "in all"),
        ("Passed on", [sats(earned.shares_msat), _unit()], "paid or owed to trainers, producers"),
        ("Tokens a second", per_second, f"last minute; {answers}"),
        ("Live sessions", number(sessions.count), f"{sats(sessions.rest_msat)} sat unspent"),
        ("Tokens sold", compact(work.output_tokens), f"and {compact(work.input_tokens)} read"),
    ]
    return figures(rows)


def _unit() -> Element:
    return el("span", " sat", class_="unit")


# --- days ----------------------------------------------------------------------------------------


def _bars(days: Sequence[Day]) -> Element:
    """A bar a day: what is the provider's, and above it what was passed on."""
    most = max(1, *(each.spent_msat for each in days))
    width = 100 / max(7, len(days))
    bars, labels = [], []
    for index, day in enumerate(days):
        x, wide = f"{(index + 0.15) * width:.3f}%", f"{0.7 * width:.3f}%"
        whole = (PLOT - BELOW - 18) * day.spent_msat / most
        own = (PLOT - BELOW - 18) * max(0, day.provider_msat) / most
        bottom = PLOT - BELOW
        says = (
            f"{day.day}: {sats(day.spent_msat)} sat, of which {sats(day.provider_msat)} yours, "
            f"{sats(day.trainer_msat)} to trainers, {sats(day.producers_msat)} to producers; "
            f"refunds {sats(day.refunds_msat)}"
        )
        common: dict[str, str] = {"x": x, "width": wide}
        bars.append(
            el(
                "g",
                el("title", says),
                el("rect", y=0, height=bottom, class_="touch", **common),
                _bar(bottom - whole, whole - own, "bar shared", common),
                _bar(bottom - own, own, "bar", common),
            )
        )
        if index % max(1, -(-len(days) // 6)) == 0:
            middle = f"{(index + 0.5) * width:.3f}%"
            text = el("text", day.day[5:], x=middle, y=PLOT - 7, text_anchor="middle")
            labels.append(text)
    bottom_line = el("line", x1="0%", x2="100%", y1=PLOT - BELOW, y2=PLOT - BELOW, class_="grid")
    peak = el("text", f"{sats(most)} sat", x="0%", y=12)
    drawn = el(
        "svg",
        [bottom_line, peak, bars, labels],
        class_="plot",
        height=PLOT,
        role="img",
        aria_label="Sats that users spent, by day",
    )
    return el("div", drawn, class_="plotted bars")


def _bar(y: float, height: float, kind: str, common: dict[str, str]) -> Element:
    return el("rect", y=f"{y:.2f}", height=f"{max(0.0, height):.2f}", class_=kind, **common)


# --- tables --------------------------------------------------------------------------------------


def _sessions(found: LiveSessions) -> tuple[Element, ...]:
    rows = [
        Row(
            each.id,
            (
                el("code", each.id),
                said(each.model, 60),
                each.phase,
                sats(each.credited_msat),
                sats(each.spent_msat),
                sats(each.held_msat),
                sats(each.rest_msat),
                when(each.last_active),
            ),
        )
        for each in found.newest
    ]
    columns = ("Session", "Model", "Phase", "#Paid in", "#Spent", "#Held", "#Rest", "Last used")
    listed = table(columns, rows, "Nobody has a session open.")
    more = found.count - len(rows)
    return listed, *([el("p", f"and {number(more)} more", class_="legend")] if more else [])


def _shares(found: Sequence[Owed]) -> Element:
    rows = [
        Row(
            each.key,
            (
                el("span", dot(each.key), el("span", short(each.key), class_="hash"), class_="key"),
                ", ".join(each.roles) or "–",
                sats(each.carried_msat),
                [
                    sats(each.waiting_msat),
                    el("small", f" tried {each.attempts}×") if each.attempts else None,
                ],
                sats(each.paid_msat),
                sats(each.own_msat),
            ),
        )
        for each in found
    ]
    columns = ("Payee", "As", "#Owed", "#Being paid", "#Paid", "#Own")
    return table(columns, rows, "Nothing has been owed to anybody yet.")


def _models(found: Sequence[api.Model]) -> Element:
    rows = []
    for each in found:
        standing = each.sidechain
        score = None if standing is None else standing.score
        trainer = None if standing is None else standing.trainer
        rows.append(
            Row(
                each.id,
                (
                    said(each.id, 60),
                    f"{sats(each.input_msat_per_token)} / {sats(each.output_msat_per_token)}",
                    number(each.context_length),
                    _standing(each),
                    "–" if score is None else number(score),
                    "–" if trainer is None else [dot(trainer), _hash(trainer)],
                    "–" if each.infohash is None else _hash(each.infohash),
                ),
            )
        )
    columns = (
        "Model",
        "#Sat per token in / out",
        "#Context",
        "On the sidechain",
        "#Score",
        "Trainer",
        "~Infohash",
    )
    return table(columns, rows, "No model is loaded.")


def _standing(entry: api.Model) -> Child:
    if entry.sidechain is None:
        return badge("light", "not registered")
    if entry.sidechain.height is None:
        return badge("provisional", "not the newest version")
    return [badge("confirmed", "newest"), f" since {number(entry.sidechain.height)}"]


def _hash(text: str) -> Element:
    return el("span", short(text), class_="hash", title=text)


def _liquidity(found: Liquidity) -> tuple[Element, ...]:
    sums = figures(
        [
            ("Can send", [sats(found.spendable_msat), _unit()], "for refunds and shares"),
            ("Can receive", [sats(found.receivable_msat), _unit()], "for deposits"),
            ("Channels", number(len(found.channels)), None),
        ]
    )
    rows = [
        Row(
            f"{each.peer_id}{each.short_channel_id}",
            (
                _hash(each.peer_id),
                each.short_channel_id or "–",
                [
                    el("code", each.state),
                    None if each.connected else [" ", badge("withdrawn", "offline")],
                ],
                sats(each.spendable_msat),
                sats(each.receivable_msat),
            ),
        )
        for each in found.channels[:50]
    ]
    columns = ("Peer", "Channel", "State", "#Can send", "#Can receive")
    return sums, table(columns, rows, "There is no channel.")


def _refunds(found: OpenRefunds) -> Element:
    rows = [
        Row(
            each.id,
            (
                el("code", each.id),
                badge(each.status),
                sats(each.amount_msat),
                number(each.attempts),
                when(each.next) if each.next else "–",
            ),
        )
        for each in found.list
    ]
    columns = ("Session", "Status", "#Sat", "#Attempts", "Not before")
    return table(columns, rows, "Everybody got back what was theirs.")


def _about(found: Dashboard) -> Element:
    chain = found.health.chain
    height = None if chain is None or chain.height is None else number(chain.height)
    node, address = found.about.get("node_id"), found.about.get("address")
    return facts(
        [
            ("Lightning node", None if node is None else el("span", node, class_="hash whole")),
            ("Peers connect to", None if address is None else el("code", address)),
            ("Sidechain", "not followed" if chain is None else ["at block ", height or "–"]),
            ("Credit of users", [sats(found.earned.credit_msat), " sat unspent"]),
            ("Refunded or set aside", [sats(found.earned.refund_msat), " sat"]),
        ]
    )
