"""Pages of people: payees, peers, providers, and one key in all its roles. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sidechain import api
from sidechain.pages.markup import Child, Page, Row, badge, el, facts, heading, said, section, table
from sidechain.pages.models import announcement_table, model_table
from sidechain.pages.values import (
    compact,
    dot,
    key_link,
    number,
    short,
    when,
    whole,
)
from torrent.magnet import Peer


def payees(found: api.Payees, offset: int, limit: int) -> Page:
    rows = [
        Row(
            each.key,
            (
                key_link(each.key),
                said(each.endpoint, 120),
                el("span", short(each.node_id), class_="hash", title=each.node_id),
                number(each.seq),
            ),
        )
        for each in found.payees
    ]
    listed = table(
        ("Key", "Asked for invoices at", "~Lightning node", "#Sequence"),
        rows,
        "Nobody has registered where to be paid yet.",
    )
    links: list[Child] = []
    if offset:
        links.append(el("a", "earlier", href=f"/payees?offset={max(0, offset - limit)}"))
    if offset + limit < found.total:
        links.append(el("a", "more", href=f"/payees?offset={offset + limit}", rel="next"))
    body = section("payees", None, listed, el("p", links, class_="pages"))
    return Page("Payees", "/payees", (heading("Payees"), body))


def key(
    name: str,
    payee: api.Payee | None,
    made: Sequence[api.ModelSummary],
    providers: Sequence[api.Announcement],
    now: int,
) -> Page:
    """made: models whose current version is of this key."""
    known: list[tuple[str, Child]] = [("Key", whole(name))]
    if payee is not None:
        known.append(("Asked for invoices at", said(payee.endpoint)))
        known.append(("Lightning node", whole(payee.node_id)))
        known.append(("Sequence", number(payee.seq)))
    where = facts(known)
    state = badge("sealed", "no payee") if payee is None else badge("confirmed", "registered payee")
    sections = [heading([dot(name), " ", short(name)], state), section("payee", None, where)]
    if made:
        sections.append(section("models", "Trained what is served now", model_table(made)))
    if providers:
        listed = announcement_table(providers, now)
        sections.append(section("providers", "Announces itself as a provider", listed))
    return Page(f"Key {short(name)}", "/payees", tuple(sections))


def peers(found: api.Peers) -> Page:
    rows = [
        Row(
            f"{each.host} {each.port}",
            (
                el("code", str(Peer(each.host, each.port))),
                "in" if each.inbound else "out",
                [said(each.agent, 60), [" ", badge("light", "light")] if each.light else None],
                number(each.height),
                "–" if each.latency is None else f"{compact(each.latency * 1000)} ms",
                number(each.points),
                when(each.connected_since),
            ),
        )
        for each in found.peers
    ]
    columns = ("Address", "Way", "Software", "#Height", "#Latency", "#Misbehaviour", "Since")
    listed = table(columns, rows, "No peer is connected.")
    sections = [heading("Peers"), section("peers", "Connected", listed, note=number(len(rows)))]
    if found.banned:
        bans = [Row(each.host, (el("code", each.host), when(each.until))) for each in found.banned]
        sections.append(section("banned", "Banned", table(("Host", "Until"), bans, "")))
    return Page("Peers", "/peers", tuple(sections))


def providers(found: api.Announcements, now: int) -> Page:
    listed = announcement_table(found.announcements, now)
    note = "they announce themselves; prices are asked of them"
    return Page(
        "Providers",
        "/providers",
        (heading("Providers"), section("providers", "Who sells inference", listed, note=note)),
    )


def trouble(title: str, sentence: str) -> Page:
    told = section("trouble", None, el("p", sentence, class_="empty"))
    return Page(title, "", (heading(title), told))
