"""HTML as a tree, so that what strangers wrote can only ever be text. Pure.

Pages are whole without a script; `live.js` asks for them again when something has happened and
swaps the sections that changed. Nothing is loaded from anywhere else, and the policy says so.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, TypeAlias
from xml.etree.ElementTree import Element, tostring  # it writes; nothing is parsed

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Child: TypeAlias = "Element | str | int | Iterable[Child] | None"


def el(tag: str, /, *children: Child, **attributes: str | int | bool | None) -> Element:
    """An element. `class_` is class, and `data_x` is data-x; None and False leave one out."""
    named: dict[str, str] = {}
    for name, value in attributes.items():
        if value is not None and value is not False:
            named[name.rstrip("_").replace("_", "-")] = "" if value is True else str(value)
    element = Element(tag, named)
    _add(element, children)
    return element


def _add(element: Element, child: Child) -> None:
    if child is None:
        return
    if isinstance(child, Element):
        element.append(child)
    elif isinstance(child, str | int):
        # ElementTree keeps text behind a child as that child's tail.
        if len(element):
            element[-1].tail = (element[-1].tail or "") + str(child)
        else:
            element.text = (element.text or "") + str(child)
    else:
        for each in child:
            _add(element, each)


def said(text: str, most: int = 4096) -> Element:
    """What a stranger wrote: on one line, and unable to turn round the text beside it."""
    shown = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    return el("bdi", shown if len(shown) <= most else shown[:most] + "…")


# --- a page --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Site:
    """What is around every page. about: beside the name. nav: (path, what it says).

    events: where server-sent events tell of changes. every: seconds between looks besides.
    home: where the name leads.
    """

    name: str
    about: str
    nav: tuple[tuple[str, str], ...]
    foot: tuple[tuple[str, str], ...]
    every: int = 0
    events: str | None = None
    search: bool = False
    home: str = "/"


@dataclass(frozen=True, slots=True)
class Page:
    """sections: each with an id, by which it is swapped. here: the path of its entry in nav."""

    title: str
    here: str
    sections: tuple[Element, ...]


def document(site: Site, page: Page, now: int) -> bytes:
    """now: the server's clock, which ages are counted by."""
    brought = (
        el("link", rel="icon", type="image/svg+xml", href="/pages/icon.svg"),
        el("link", rel="stylesheet", href="/pages/style.css"),
        el("script", src="/pages/live.js", defer=True),
    )
    body = _body(site, page, data_events=site.events, data_every=site.every, data_now=now)
    return _html(el("head", *_about(site, page), *brought), body)


def file(site: Site, page: Page, style: str) -> bytes:
    """A page that is a file by itself, with its style inside and no script."""
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'none'; base-uri 'none'"
    # A policy counts for what comes after it.
    brought = (
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("style", style),
    )
    return _html(el("head", *_about(site, page), *brought), _body(site, page))


def _about(site: Site, page: Page) -> tuple[Element, ...]:
    return (
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{page.title} · {site.name}"),
    )


def _body(site: Site, page: Page, **attributes: str | int | None) -> Element:
    return el(
        "body",
        el("a", "Skip to content", class_="skip", href="#main"),
        _top(site, page),
        el("main", page.sections, id="main"),
        el("footer", [el("a", says, href=path) for path, says in site.foot]),
        **attributes,
    )


def _html(head: Element, body: Element) -> bytes:
    return b"<!doctype html>\n" + render(el("html", head, body, lang="en"))


def render(element: Element) -> bytes:
    text: str = tostring(element, encoding="unicode", method="html")
    return text.encode()


def _top(site: Site, page: Page) -> Element:
    links = [
        el("a", says, href=path, aria_current="page" if path == page.here else None)
        for path, says in site.nav
    ]
    name = el("a", el("b", site.name), el("span", site.about), class_="brand", href=site.home)
    live = el("span", class_="live", id="live", role="status", hidden=True)
    search = None
    if site.search:
        field = el(
            "input",
            name="q",
            type="search",
            required=True,
            maxlength=64,
            autocomplete="off",
            spellcheck="false",
            placeholder="Height, hash or key",
            aria_label="Search by height, hash or key",
        )
        search = el("form", field, action="/search", role="search")
    return el("header", name, live, search, el("nav", links) if links else None)


# --- parts of pages ------------------------------------------------------------------------------


def section(name: str, title: Child, *children: Child, note: Child = None) -> Element:
    head = el("div", el("h2", title), el("p", note) if note is not None else None, class_="head")
    return el("section", head, children, id=name)


def heading(title: Child, *beside: Child) -> Element:
    return el("section", el("h1", title), beside, id="heading", class_="heading")


@dataclass(frozen=True, slots=True)
class Row:
    """id: of what it is about, so that a new one is seen to be new."""

    id: str
    cells: tuple[Child, ...]


def table(columns: Iterable[str], rows: Iterable[Row], empty: str) -> Element:
    """Columns whose name starts with # hold numbers, and those with ~ are left out on a phone,
    where a row becomes a card in which each cell says its column."""
    kinds = {"#": "num", "~": "wide"}
    named = [(name.lstrip("#~"), kinds.get(name[:1])) for name in columns]
    body = [
        el(
            "tr",
            [
                el("td", el("div", cell), class_=kind, data_label=name)
                for (name, kind), cell in zip(named, row.cells, strict=True)
            ],
            data_id=row.id,
        )
        for row in rows
    ]
    if not body:
        return el("p", empty, class_="empty")
    head = el("tr", [el("th", name, class_=kind, scope="col") for name, kind in named])
    return el("div", el("table", el("thead", head), el("tbody", body)), class_="table")


def facts(items: Iterable[tuple[str, Child]]) -> Element:
    """Names and values; those without a value are left out."""
    shown = [
        el("div", el("dt", name), el("dd", value)) for name, value in items if value is not None
    ]
    return el("dl", shown, class_="facts")


def figures(items: Iterable[tuple[str, Child, Child]]) -> Element:
    """Big numbers: name, value, and a small line below."""
    shown = [
        el("div", el("dt", name), el("dd", value, None if below is None else el("small", below)))
        for name, value, below in items
    ]
    return el("dl", shown, class_="figures")


def badge(kind: str, says: str | None = None) -> Element:
    return el("span", says or kind, class_=f"badge {kind}")
