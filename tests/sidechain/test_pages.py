"""What pages are made of: text that stays text, numbers as people read them, and a plot's marks."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidechain.pages import models, values
from sidechain.pages.markup import HEADERS, Row, el, render, said, table
from sidechain.pages.plot import Axis, Mark, Point, Rule, Series, integers, lines, plot, ticks
from sidechain.pages.transactions import source
from tests.sidechain import api_nodes


class Seen(HTMLParser):
    """Tags, attributes and text as a browser would see them."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str | None] = []
        self.text = ""
        self.feed(html.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [value for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    ["<script>alert(1)</script>", '"><img src=x>', "&lt;", "&#60;", "]]>", "<!--", "</bdi><b>"]
)


@given(anything)
def test_text_is_text_wherever_it_stands(text: str) -> None:
    made = el("div", "a", el("b", text), text, title=text)
    seen = Seen(render(made))
    assert seen.tags == ["div", "b"]
    assert seen.text == "a" + text + text
    assert seen.attributes == [text]


@given(anything)
def test_what_is_said_stays_on_its_line_and_within_its_bounds(text: str) -> None:
    seen = Seen(render(said(text, 10)))
    assert seen.tags == ["bdi"]
    assert seen.text.isprintable() and len(seen.text) <= 11
    assert len(seen.text.removesuffix("…")) == min(10, len(text))


@given(anything)
def test_a_definition_is_shown_whatever_it_is(text: str) -> None:
    assert {"script", "img", "b"}.isdisjoint(Seen(render(source(text))).tags)
    assert Seen(render(models.kind(text))).tags == ["bdi"]


@pytest.mark.parametrize("text", ["[" * 8000, '{"type":' * 1000, "9" * 5000, "null", "[1,2]", ""])
def test_a_definition_that_is_no_definition(text: str) -> None:
    render(source(text))
    assert len(Seen(render(models.kind(text))).text) <= 41


def test_attributes_and_children_are_left_out() -> None:
    made = el("a", None, ["x", (1, None)], href=None, hidden=False, defer=True, aria_label="y")
    assert render(made) == b'<a defer="" aria-label="y">x1</a>'


def test_a_table_says_its_columns_and_what_it_lacks() -> None:
    made = render(table(("#Height", "Who"), [Row("id", (7, "me"))], "none")).decode()
    assert '<td class="num" data-label="Height"><div>7</div></td>' in made
    assert '<tr data-id="id">' in made
    assert render(table(("A",), [], "none")) == b'<p class="empty">none</p>'


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (1_234_567, "1.23 M"),
        (12_345, "12.3 k"),
        (0.5, "0.5"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert values.compact(value) == shown


def test_labels_of_an_axis_differ() -> None:
    assert values.distinct([1_234_100.0, 1_234_200.0]) == ["1.2341 M", "1.2342 M"]


@pytest.mark.parametrize(
    ("msat", "shown"), [(0, "0.000"), (1, "0.001"), (1_234_567, "1,234.567"), (-1500, "−1.500")]
)
def test_amounts_are_exact(msat: int, shown: str) -> None:
    assert values.sats(msat) == shown


def test_lengths_of_time() -> None:
    said = [values.lasting(each) for each in (-1, 9, 61, 3600, 90_061)]
    assert said == ["0 s", "9 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]


@given(st.integers(0, 1 << 63))
def test_every_time_is_shown(time: int) -> None:
    assert Seen(render(values.when(time))).text


@given(st.integers(0, 1 << 62), st.integers(1, 1 << 62))
def test_ticks_are_few_and_inside(low: int, span: int) -> None:
    found = ticks(float(low), float(low + span))
    assert len(found) <= 7
    assert all(low * 0.999999 <= each <= (low + span) * 1.000001 for each in found)


def test_heights_are_whole_numbers() -> None:
    assert ticks(1.0, 3.0, whole=True) == [1.0, 2.0, 3.0]
    assert ticks(5.0, 5.0, whole=True) == [5.0]


def test_a_plot_steps_down_where_a_version_counts() -> None:
    def point(height: int, score: int, state: str) -> Point:
        return Point(height, score, state, "red", "says", "/t")

    points = [
        point(1, 100, "confirmed"),
        point(3, 80, "withdrawn"),
        point(5, 90, "provisional"),
    ]
    made = render(plot(points, 9)).decode()
    assert made.count("<circle") == 6
    assert made.count('class="step confirmed"') == 1
    # Down to the provisional one, and on to the tip.
    assert made.count('class="step provisional"') == 2
    assert 'x1="0.000%" x2="50.000%"' in made and 'x1="50.000%" x2="100.000%"' in made


def test_a_line_breaks_off_where_nothing_is_known() -> None:
    runs = [[(0.0, 0.0), (5.0, 10.0)], [(8.0, 10.0), (10.0, 5.0)]]
    axes = Axis(0.0, 10.0, says=integers), Axis(0.0, 10.0)
    label = "tokens"
    rules, marks = [Rule(5.0, "2", "step 2")], [Mark(10.0, 5.0, "mark", "the end")]
    for is_stepped, path in (
        (False, "M0.0 230.0L500.0 14.0M800.0 14.0L1000.0 122.0"),
        (True, "M0.0 230.0H500.0V14.0M800.0 14.0H1000.0V122.0"),
    ):
        series = [Series("all", "red", runs, stepped=is_stepped)]
        made = render(lines(series, *axes, label, rules=rules, marks=marks)).decode()
        assert f'd="{path}"' in made
    assert 'cx="100.000%" cy="122.0"' in made
    assert 'x1="50.000%" x2="50.000%"' in made and "<title>step 2</title>" in made
    assert 'aria-label="tokens"' in made


@given(st.floats(1e-3, 1e6), st.floats(1.01, 1e9))
def test_an_axis_of_powers(low: float, times: float) -> None:
    axis = Axis(low, low * times, log=True)
    assert axis.part(axis.low) == 0 and axis.part(axis.high) == pytest.approx(1)
    assert all(0 <= axis.part(each) <= 1.000001 for each in axis.ticks())
    if times >= 10:
        assert axis.ticks()


async def test_pages_let_in_nothing_from_elsewhere(tmp_path: Path) -> None:
    async with api_nodes.full(tmp_path) as made:
        for path in ("/", "/pages/style.css", "/pages/live.js", "/pages/icon.svg"):
            response = await made.client.get(path)
            assert response.status == 200
            assert HEADERS.items() <= response.headers.items()
            assert "http" not in (await response.text()).replace("http://www.w3.org/2000/svg", "")


async def test_files_that_did_not_change_are_not_sent_again(tmp_path: Path) -> None:
    async with api_nodes.full(tmp_path) as made:
        first = await made.client.get("/pages/live.js")
        again = {"If-None-Match": first.headers["ETag"]}
        assert (await made.client.get("/pages/live.js", headers=again)).status == 304


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/blocks/77", 404),
        ("/blocks/abcd", 404),
        ("/blocks?at=x", 400),
        ("/models?offset=-1", 400),
        (f"/models/{'ab' * 32}", 404),
        (f"/transactions/{'ab' * 32}", 404),
        (f"/keys/{'ab' * 32}", 200),
        ("/search?q=%3Cscript%3E", 404),
        ("/search", 404),
    ],
)
async def test_what_is_not_there_is_said_on_a_page(tmp_path: Path, path: str, status: int) -> None:
    async with api_nodes.full(tmp_path) as made:
        response = await made.client.get(path)
        assert (response.status, response.content_type) == (status, "text/html")
        assert Seen(await response.read()).tags.count("script") == 1  # live.js
