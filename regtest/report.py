"""A run of the demo as one page, a file by itself: plots, and tables beside them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element  # a type; nothing is parsed

from channels.units import Msat
from regtest.answers_report import answers
from regtest.record import Account, Record, Score
from regtest.sats_report import colour, sats_over_time
from sidechain.pages.markup import (
    Child,
    Page,
    Row,
    Site,
    badge,
    el,
    facts,
    figures,
    file,
    heading,
    said,
    section,
    table,
)
from sidechain.pages.plot import Point, plot
from sidechain.pages.values import change, lasting, number, sats, swatch, when

NAV: Final = (
    ("#steps", "Steps"),
    ("#sats", "Sats"),
    ("#score", "Score"),
    ("#latency", "Latency"),
    ("#shares", "Shares"),
    ("#accounts", "Every sat"),
    ("#cheats", "Cheats"),
)
FOOT: Final = (("record.json", "All of it as data (record.json)"),)
TITLE: Final = "A run of the demo"


def report(record: Record, style: str) -> bytes:
    """-> HTML. style: the CSS of the pages."""
    sections = [
        heading(*_headline(record)),
        section("summary", None, _told(record), figures(_figures(record))),
        section("steps", "Steps", _steps(record)),
        section(
            "sats", "Sats over time", *sats_over_time(record), note="beyond what the miners gave"
        ),
        section("score", "Score over height", *_scores(record), note="lower is better"),
        section("latency", "Latency", *answers(record)),
        section("shares", "Who was paid for the answers", _shares(record)),
        section("accounts", "Where every sat went", *_accounts(record)),
        section("cheats", "Cheats, and what caught each", _cheats(record)),
        section("result", "What the run says at its end", facts(_result(record))),
    ]
    site = Site("ODA", "demo", NAV, FOOT, home="#main")
    return file(site, Page(TITLE, "", tuple(sections)), style)


# --- in words ------------------------------------------------------------------------------------


def _headline(record: Record) -> tuple[Child, ...]:
    if record.failure is not None:
        return "The run ended early", badge("failed")
    conserved = record.result.get("conserved")
    if conserved is True:
        return "Every msat is accounted for", badge("confirmed", "conserved")
    if conserved is False:
        return "The accounts do not add up", badge("failed", "not conserved")
    return TITLE, badge("unknown")


def _told(record: Record) -> Element:
    sentences: list[Child] = []
    if record.failure is not None:
        sentences += [said(record.failure), " "]
    if record.answers:
        tokens = sum(each.output_tokens for each in record.answers)
        spent = sum(each.spent_msat for each in record.answers)
        topups = sum(len(each.topups) for each in record.answers)
        sentences.append(
            f"{_count(len(record.answers), 'answer')} brought {number(tokens)} tokens for "
            f"{sats(spent)} sat, paid while they came, in {_count(topups, 'top-up')}. "
        )
    counted = [each for each in record.scores if each.state == "confirmed"]
    for model in dict.fromkeys(each.model for each in counted):
        first, *_, last = [each for each in counted if each.model == model] * 2
        sentences += [said(model, 60), f" went from {first.shown:.3f} to {last.shown:.3f} "]
        sentences.append([said(first.unit, 40), ". "])
    by_role = {role: _sum(record, role) for role in ("trainer", "producer")}
    if any(by_role.values()):
        sentences.append(
            f"Trainers got {sats(by_role['trainer'])} sat of what was spent and block producers "
            f"{sats(by_role['producer'])}. "
        )
    if record.caught:
        sentences.append(f"{_count(len(record.caught), 'cheat')} caught. ")
    sentences += [f"It took {lasting(record.seconds)}, from ", when(record.began), " UTC on."]
    return el("p", sentences, class_="told")


def _count(count: int, what: str) -> str:
    return f"{number(count)} {what}{'' if count == 1 else 's'}"


def _sum(record: Record, role: str) -> Msat:
    return Msat(sum(each.msat for each in record.shares if each.role == role))


def _figures(record: Record) -> list[tuple[str, Child, Child]]:
    spent = sum(each.spent_msat for each in record.answers)
    unit = el("span", " sat", class_="unit")
    return [
        ("Answers", number(len(record.answers)), "bought token by token"),
        ("Spent on them", [sats(spent), unit], "by the user"),
        ("Trainers got", [sats(_sum(record, "trainer")), unit], "by the receipts"),
        ("Producers got", [sats(_sum(record, "producer")), unit], "by the receipts"),
        ("Versions", number(len(record.scores)), "of models, on the sidechain"),
        ("Cheats caught", number(len(record.caught)), None),
    ]


def _steps(record: Record) -> Element:
    ends = [*(each.at for each in record.steps[1:]), record.seconds]
    rows = [
        Row(
            str(each.number),
            (
                number(each.number),
                said(each.text),
                _second(each.at),
                _second(end - each.at),
                _span(each.at, end, record.seconds),
            ),
        )
        for each, end in zip(record.steps, ends, strict=False)
    ]
    columns = ("#Step", "What happens", "#Begins", "#Takes", "~When")
    return table(columns, rows, "The run had not begun.")


def _span(begins: float, ends: float, whole: float) -> Element:
    part = 100 / max(whole, 1e-9)
    wide = f"{max(0.5, part * (ends - begins)):.2f}%"
    bar = el("rect", x=f"{part * begins:.2f}%", width=wide, height=12, rx=2)
    return el("svg", bar, class_="span", aria_hidden="true")


def _second(at: float) -> str:
    return f"{at:.1f} s"


# --- score ---------------------------------------------------------------------------------------


def _scores(record: Record) -> list[Element]:
    if not record.scores:
        return [el("p", "No model was published.", class_="empty")]
    by_model: dict[tuple[str, str], list[Score]] = {}
    for each in sorted(record.scores, key=lambda each: each.height):
        by_model.setdefault((each.model, each.unit), []).append(each)
    longest = sorted(by_model.items(), key=lambda each: -len(each[1]))
    return [part for (model, unit), found in longest for part in _model(record, model, unit, found)]


def _model(record: Record, model: str, unit: str, found: Sequence[Score]) -> list[Element]:
    makers = dict.fromkeys((each.who, _maker(record, each)) for each in found)
    is_hollow = any(each.state == "withdrawn" for each in found)
    legend = el(
        "p",
        "Made by ",
        [el("span", swatch(fill), said(who, 40)) for who, fill in makers],
        el("span", "Hollow: withdrawn, when sealed data was opened.") if is_hollow else None,
        class_="legend",
    )
    drawn = plot([_point(record, each) for each in found], found[-1].height)
    title = el("h3", said(model, 60), ", ", said(unit, 40))
    return [title, drawn, legend, _versions(record, found)]


def _maker(record: Record, score: Score) -> str:
    return colour(record, score.who)


def _point(record: Record, each: Score) -> Point:
    says = f"{each.shown:.3f} {each.unit} at height {each.height}, {each.state}, by {each.who}"
    return Point(each.height, each.shown, each.state, _maker(record, each), says, "#score")


def _versions(record: Record, versions: Sequence[Score]) -> Element:
    rows: list[Row] = []
    counted: Score | None = None
    for each in versions:
        gained = None if counted is None else change(each.score, counted.score)
        who = [swatch(_maker(record, each)), said(each.who, 40)]
        cells = (
            number(each.height),
            f"{each.shown:.3f}",
            "–" if gained is None else gained,
            badge(each.state),
            who,
        )
        rows.append(Row(str(len(rows)), cells))
        if each.state != "withdrawn":
            counted = each
    columns = ("#Height", "#Score", "#Change", "State", "Made by")
    return table(columns, rows, "")


# --- money ---------------------------------------------------------------------------------------


def _shares(record: Record) -> Element:
    rows: list[Row] = []
    for each in record.shares:
        whole = sum(other.msat for other in record.shares if other.session == each.session)
        cells = (
            number(each.session),
            said(each.to, 80),
            said(each.role, 40),
            sats(each.msat),
            f"{100 * each.msat / max(1, whole):.2f} %",
        )
        rows.append(Row(str(len(rows)), cells))
    columns = ("#Session", "To", "As", "#Sat", "#Part")
    return table(columns, rows, "No receipt was checked.")


def _accounts(record: Record) -> list[Element]:
    if not record.accounts:
        return [el("p", "Nothing was added up.", class_="empty")]
    return [part for each in record.accounts for part in _account(each)]


def _account(account: Account) -> tuple[Element, Element]:
    rows = [
        Row(
            str(index),
            (
                said(line.what, 200) if line.to else el("b", said(line.what, 200)),
                sats(line.msat),
                said(line.to, 80),
            ),
        )
        for index, line in enumerate(account.lines)
    ]
    return el("h3", said(account.title, 200)), table(("What", "#Sat", "To"), rows, "Nothing.")


def _cheats(record: Record) -> Element:
    rows = [
        Row(
            str(index),
            (
                _second(each.at),
                said(each.who, 80),
                el("code", said(each.reason, 80)),
                said(each.sentence, 400),
            ),
        )
        for index, each in enumerate(record.caught)
    ]
    return table(("#When", "Who", "Caught by", "~In words"), rows, "Nobody cheated.")


def _result(record: Record) -> list[tuple[str, Child]]:
    shown: list[tuple[str, Child]] = []
    for name, value in record.result.items():
        plain = number(value) if type(value) is int else str(value)
        shown.append((name, said(plain, 200)))
    return shown or [("result", "–")]
