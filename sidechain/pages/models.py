"""Pages of models: what they are, who made their versions, and how their score fell. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element  # a type; nothing is parsed

import msgspec

from sidechain import api
from sidechain.pages.markup import Child, Page, Row, badge, el, facts, heading, said, section, table
from sidechain.pages.plot import Point, plot
from sidechain.pages.transactions import magnet, source
from sidechain.pages.values import (
    change,
    colour,
    compact,
    height_link,
    key_link,
    lasting,
    model_link,
    number,
    short,
    tx_link,
    whole,
)


class _Typed(msgspec.Struct):
    type: str


def kind(text: str) -> Element:
    """The `type` of an architecture or objective, or how its text begins."""
    try:
        return said(msgspec.json.decode(text, type=_Typed).type, 40)
    except (msgspec.DecodeError, RecursionError):
        return said(text, 40)


def models(found: api.Models, offset: int, limit: int) -> Page:
    links: list[Child] = []
    if offset:
        links.append(el("a", "earlier", href=f"/models?offset={max(0, offset - limit)}"))
    if offset + limit < found.total:
        links.append(el("a", "more", href=f"/models?offset={offset + limit}", rel="next"))
    listed = section("models", None, model_table(found.models), el("p", links, class_="pages"))
    return Page("Models", "/models", (heading("Models"), listed))


def model_table(found: Sequence[api.ModelSummary]) -> Element:
    rows = []
    for each in found:
        state = badge("provisional") if each.provisional else badge("confirmed")
        opened = f"{each.opened} of {each.shards}" if each.shards else "none"
        rows.append(
            Row(
                each.model,
                (
                    model_link(each.model),
                    [kind(each.architecture), ", ", kind(each.objective)],
                    number(each.current.score),
                    state,
                    number(each.versions),
                    key_link(each.current.trainer),
                    height_link(each.current.height),
                    opened,
                ),
            )
        )
    columns = ("Model", "What", "#Score", "State", "#Versions", "Trainer", "#Since", "#Shards open")
    return table(columns, rows, "Nobody has registered a model yet.")


def model(
    found: api.Model,
    status: api.Status,
    owed: api.Beneficiaries,
    served_by: Sequence[api.Announcement],
) -> Page:
    """owed: for serving the current weights."""
    current = found.provisional or found.confirmed
    state = badge("provisional") if found.provisional else badge("confirmed")
    title: list[Child] = [kind(found.architecture), " on ", kind(found.objective)]
    sections = [
        heading(title, state),
        section("score", "Score over height", _plot(found, status.height), _legend(found)),
        section("summary", "Now", _summary(found, current, owed)),
        section("versions", "Versions", _versions(found), note="the newest first"),
    ]
    if found.shards:
        opened = sum(1 for each in found.shards if each.opened is not None)
        note = f"{opened} of {len(found.shards)} opened"
        sections.append(section("shards", "Sealed shards", _shards(found.shards), note=note))
    sections.append(section("providers", "Served by", announcement_table(served_by, status.time)))
    sections.append(section("definition", "Definition", _definition(found)))
    return Page(f"Model {short(found.model)}", "/models", tuple(sections))


def _plot(found: api.Model, tip: int) -> Element:
    points = [
        Point(
            each.version.height,
            each.version.score,
            each.state,
            colour(each.version.trainer),
            f"{number(each.version.score)} at height {number(each.version.height)}, {each.state}, "
            f"by {short(each.version.trainer)}",
            f"/transactions/{each.txid}",
        )
        for each in found.versions
    ]
    return plot(points, tip)


def _legend(found: api.Model) -> Element:
    trainers = list(dict.fromkeys(each.version.trainer for each in found.versions))[:8]
    return el(
        "p",
        "Lower is better. Made by ",
        [el("span", key_link(each), " ") for each in trainers],
        class_="legend",
    )


def _summary(found: api.Model, current: api.Version, owed: api.Beneficiaries) -> Element:
    first = found.versions[0].version.score
    gained = change(current.score, first) if len(found.versions) > 1 else None
    score = [
        number(current.score),
        None if gained is None else [" (", gained, " since the first shown)"],
    ]
    roles = (
        ("Trainer who is owed", owed.trainer),
        ("Last block's producer", owed.last_producer),
        ("Producer who accepted it", owed.accepting_producer),
    )
    gain = number(found.required_gain)
    return facts(
        [
            ("Score", score),
            ("Must gain now", [gain, f" (never less than {number(found.min_gain)})"]),
            ("Since height", height_link(current.height)),
            ("Weights", whole(current.weights_root)),
            ("Bytes", magnet(current.infohash)),
            *[(name, None if key is None else key_link(key)) for name, key in roles],
        ]
    )


def _versions(found: api.Model) -> Element:
    rows = []
    counted: api.Version | None = None
    for each in found.versions:
        version = each.version
        gained = None if counted is None else change(version.score, counted.score)
        rows.append(
            Row(
                each.txid,
                (
                    height_link(version.height),
                    number(version.score),
                    "–" if gained is None else gained,
                    badge(each.state),
                    key_link(version.trainer),
                    key_link(version.producer),
                    tx_link(each.txid),
                ),
            )
        )
        if each.state != "withdrawn":
            counted = version
    columns = ("#Height", "#Score", "#Change", "State", "Trainer", "~Producer", "Transaction")
    return table(columns, rows[::-1], "")


def _shards(shards: Sequence[api.Shard]) -> Element:
    rows = [
        Row(
            str(each.index),
            (
                number(each.index),
                badge("sealed") if each.opened is None else badge("opened"),
                "–" if each.opened is None else height_link(each.opened),
                el("span", short(each.key_hash), class_="hash", title=each.key_hash),
            ),
        )
        for each in shards
    ]
    return table(("#Shard", "State", "#Opened at", "~Hash of its key"), rows, "")


def _definition(found: api.Model) -> Element:
    return facts(
        [
            ("Model", whole(found.model)),
            ("Architecture", source(found.architecture)),
            ("Objective", source(found.objective)),
            ("Dataset root", whole(found.dataset_root)),
            ("First bytes", magnet(found.infohash)),
            ("Score cost", f"{compact(found.score_cost)} operations"),
            ("Openers", [el("div", key_link(each)) for each in found.openers] or None),
        ]
    )


def announcement_table(found: Sequence[api.Announcement], now: int) -> Element:
    """URLs of strangers are text, not links."""
    rows = [
        Row(
            each.key,
            (
                said(each.url, 120),
                key_link(each.key),
                el("span", short(each.node_id), class_="hash", title=each.node_id),
                [el("div", model_link(model)) for model in each.models] or "–",
                f"in {lasting(each.expires - now)}",
            ),
        )
        for each in found
    ]
    columns = ("Provider", "Key", "~Lightning node", "Models", "Expires")
    return table(columns, rows, "No provider has announced itself.")


def proven_model(found: api.ProvenModel) -> Page:
    """What a light node knows."""
    shown = [("Current", found.provisional or found.confirmed)]
    if found.provisional is not None:
        shown.append(("Last confirmed", found.confirmed))
    parts = [
        section(
            name.lower().replace(" ", "-"),
            name,
            facts(
                [
                    ("Score", number(each.score)),
                    ("Since height", height_link(each.height)),
                    ("Trainer", key_link(each.trainer)),
                    ("Producer", key_link(each.producer)),
                    ("Weights", whole(each.weights_root)),
                    ("Bytes", magnet(each.infohash)),
                ]
            ),
        )
        for name, each in shown
    ]
    title = f"Model {short(found.model)}"
    return Page(title, "/models", (heading(title, badge("confirmed", "proven")), *parts))
