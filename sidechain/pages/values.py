"""How values are shown: hashes, keys, times, amounts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from xml.etree.ElementTree import Element  # a type; nothing is parsed

from sidechain.pages.markup import Child, el

SHORT: Final = 8
TONES: Final = (24, 212, 145, 285, 345, 55, 180, 250)
UNITS: Final = ("", "k", "M", "G", "T", "P", "E")


def short(text: str) -> str:
    """The two ends of a long hash."""
    return text if len(text) <= 2 * SHORT + 1 else f"{text[:SHORT]}…{text[-SHORT:]}"


def block_link(block_hash: str) -> Element:
    # The beginning of a block's hash is all zeros where work is worth something.
    return el("a", f"…{block_hash[-12:]}", href=f"/blocks/{block_hash}", class_="hash")


def height_link(height: int) -> Element:
    return el("a", number(height), href=f"/blocks/{height}")


def tx_link(txid: str) -> Element:
    return el("a", short(txid), href=f"/transactions/{txid}", class_="hash", title=txid)


def model_link(model: str) -> Element:
    return el("a", short(model), href=f"/models/{model}", class_="hash", title=model)


def key_link(key: str) -> Element:
    link = el("a", short(key), href=f"/keys/{key}", class_="hash", title=key)
    return el("span", dot(key), link, class_="key")


def whole(text: str) -> Element:
    """All of a hash, broken where the page is narrow."""
    return el("span", text, class_="hash whole")


def dot(key: str) -> Element:
    """A colour for a key, so that the same one is seen again."""
    return swatch(colour(key))


def swatch(fill: str) -> Element:
    circle = el("circle", cx=5, cy=5, r=5, fill=fill)
    return el("svg", circle, class_="dot", width=10, height=10, aria_hidden="true")


def colour(key: str) -> str:
    return f"hsl({int(key[:4], 16) % 360} 62% 52%)"


def tone(index: int) -> str:
    """A colour for the n-th of a few lines, far from its neighbours'."""
    return f"hsl({TONES[index % len(TONES)]} 62% 52%)"


def number(value: int) -> str:
    return f"{value:,}"


def when(time: int) -> Element:
    """The time in UTC; live.js makes an age of it."""
    text = "unknown"
    try:
        at = datetime.fromtimestamp(time, UTC)
    except (OverflowError, ValueError, OSError):
        return el("span", text)
    return el(
        "time",
        f"{at:%Y-%m-%d %H:%M:%S}",
        datetime=f"{at:%Y-%m-%dT%H:%M:%SZ}",
        title=f"{at:%Y-%m-%d %H:%M:%S} UTC",
    )


def lasting(seconds: float) -> str:
    """A length of time, in its largest two units."""
    left = max(0, round(seconds))
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if left >= size:
            return f"{left // size} {unit} {left % size // part} {smaller}"
    return f"{left // 60} min {left % 60} s" if left >= 60 else f"{left} s"


def compact(value: float, digits: int = 3) -> str:
    """1234567 is 1.23 M."""
    step, left = 0, float(value)
    while abs(left) >= 1000 and step < len(UNITS) - 1:
        step, left = step + 1, left / 1000
    whole_digits = len(str(int(abs(left))))
    shown = f"{left:.{max(0, digits - whole_digits)}f}"
    if "." in shown:
        shown = shown.rstrip("0").rstrip(".")
    return f"{shown} {UNITS[step]}".strip()


def distinct(values: Sequence[float]) -> list[str]:
    """compact(), with as many digits as it takes to tell them apart."""
    for digits in range(3, 12):
        shown = [compact(each, digits) for each in values]
        if len(set(shown)) == len(set(values)):
            return shown
    return [f"{each:,.0f}" for each in values]


def size(count: int) -> str:
    return f"{compact(count)}B" if count >= 1000 else f"{count} B"


def sats(msat: int) -> str:
    """Exact: 1234567 msat is 1,234.567."""
    whole_sats, rest = divmod(abs(msat), 1000)
    return f"{'−' if msat < 0 else ''}{whole_sats:,}.{rest:03d}"


def change(new: int, old: int) -> Child:
    """How much lower a score is."""
    if old <= 0:
        return None
    percent = 100 * (new - old) / old
    sign = "−" if percent < 0 else "+"
    return el("span", f"{sign}{abs(percent):.2f} %", class_="good" if percent < 0 else "bad")
