"""The demo's report: text stays text, what is unknown is not drawn, figures are the record's."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.lightning_answers import Close, CloseOutput, Funds, FundsChannel, FundsOutput
from channels.units import BlockHeight, Msat
from regtest.record import Balance, Gift, Record, Score, Step, gains, held, parties
from regtest.report import report
from sidechain.pages import assets
from tests.regtest.runs import EMPTY, run
from tests.sidechain.test_pages import Seen, anything

STYLE = assets.read("style.css").decode()


def seen(record: Record) -> Seen:
    return Seen(report(record, STYLE))


def balances(*told: tuple[float, int | None]) -> Record:
    made = tuple(Balance(at, "user", None if msat is None else Msat(msat)) for at, msat in told)
    return msgspec.structs.replace(EMPTY, balances=made, seconds=99.0)


# --- what is data --------------------------------------------------------------------------------


def test_a_record_is_written_and_read() -> None:
    record = run()
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record


def test_what_is_unknown_is_a_gap_and_never_zero() -> None:
    found = gains(balances((1.0, 50), (2.0, None), (5.0, 70), (6.0, 60), (8.0, None)), "user")
    assert found == [[(1.0, 50), (2.0, 50)], [(5.0, 70), (6.0, 60), (8.0, 60)]]
    assert gains(balances((1.0, None)), "user") == []
    assert gains(EMPTY, "user") == []


def test_a_gift_counts_from_when_it_is_there() -> None:
    record = balances((1.0, 7), (3.0, 8), (4.0, 1_000_003), (5.0, 1_000_009))
    record = msgspec.structs.replace(record, gifts=(Gift(2.0, "user", Msat(1_000_000)),))
    values = [msat for _, msat in gains(record, "user")[0]]
    assert values == [7, 8, 3, 9, 9]


@given(st.lists(st.none() | st.integers(0, 1000), max_size=8), st.integers(10_000, 99_999))
def test_gains_and_gifts_come_to_what_is_held(amounts: list[int | None], gift: int) -> None:
    before = balances(*((float(at), amount) for at, amount in enumerate(amounts)))
    later = (Balance(50.0, "user", Msat(500 + gift)), Balance(60.0, "user", Msat(300 + gift)))
    record = msgspec.structs.replace(
        before, balances=before.balances + later, gifts=(Gift(49.0, "user", Msat(gift)),)
    )
    *_, last = gains(record, "user")
    assert last[-1] == (99.0, 300)
    assert parties(record) == ["user"]


def coin(amount: int, status: str = "confirmed", txid: str = "aa", output: int = 0) -> FundsOutput:
    told = {"txid": txid, "output": output, "amount_msat": amount, "scriptpubkey": ""}
    return msgspec.convert({**told, "status": status, "reserved": False}, FundsOutput)


def channel(amount: int, state: str) -> FundsChannel:
    return FundsChannel("02", Msat(amount), Msat(10**6), "bb", 0, True, state)


def test_all_that_a_node_holds() -> None:
    outputs = [coin(1000), coin(200, "spent"), coin(30, "unconfirmed"), coin(5, txid="cc")]
    channels = [channel(7000, "CHANNELD_NORMAL"), channel(9_999, "ONCHAIN")]
    coming = [
        CloseOutput("cc", 0, "to-remote", Msat(5), "claiming"),  # it is among the coins already
        CloseOutput("dd", 1, "to-local", Msat(400), "waiting"),
        CloseOutput("dd", 2, "to-remote", Msat(800), "theirs"),
    ]
    close = Close("02", "ee", "ONCHAIN", "local", "dd", True, BlockHeight(9), coming)
    assert held(Funds(outputs, channels), [close]) == 1000 + 30 + 5 + 7000 + 400
    unconfirmed = msgspec.structs.replace(close, confirmed=False)
    assert held(Funds(outputs, channels), [unconfirmed]) == 1000 + 30 + 5 + 7000


# --- what is shown -------------------------------------------------------------------------------


def test_everything_of_a_run_is_there() -> None:
    text = seen(run()).text
    assert "Every msat is accounted for" in text
    for step in run().steps:
        assert step.text in text
    # What the parties hold, what the shares were, and what is left for the miners.
    for figure in ("999,269.000", "+416.994", "+5.000", "+1.006", "+308.000", "94.000", "−154.000"):
        assert figure in text
    for reason in ("root-known", "bad-score", "withdrawn", "left by the user"):
        assert reason in text
    assert "5.540" in text and "3.501" in text and "−24.19 %" in text
    assert "54 ms" in text


@pytest.mark.parametrize(
    ("record", "headline"),
    [
        (EMPTY, "A run of the demo"),
        (msgspec.structs.replace(EMPTY, result={"conserved": False}), "do not add up"),
        (msgspec.structs.replace(run(), failure="The node died."), "The run ended early"),
    ],
)
def test_a_run_that_did_not_go_well_says_so(record: Record, headline: str) -> None:
    text = seen(record).text
    assert headline in text
    assert "Every msat is accounted for" not in text
    assert (record.failure or "") in text


def test_who_is_not_known_to_hold_anything_is_not_said_to_hold_nothing() -> None:
    record = run()
    lost = (*record.balances, Balance(140.0, "rival", None))
    html = report(msgspec.structs.replace(record, balances=lost), "").decode()
    assert html.count(">unknown<") == 3  # what the rival has and gained, and what the miners got


def test_the_page_is_whole_by_itself() -> None:
    html = report(run(), STYLE).decode()
    policy = re.search(r"style-src 'sha256-([^']+)'", html)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert policy is not None and style is not None
    assert policy[1] == b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert {"script", "link", "img", "iframe"}.isdisjoint(Seen(html.encode()).tags)
    assert not re.search(r"\b(src|style|on\w+)=", html)
    linked = set(re.findall(r'href="([^"]*)"', html))
    assert {each for each in linked if not each.startswith("#")} == {"record.json"}
    for each in linked - {"record.json"}:
        assert f'id="{each[1:]}"' in html


def hostile(value: object, text: str) -> object:
    """The same, with every string another, but for those of which there are three."""
    if isinstance(value, str):
        return text
    if isinstance(value, dict):
        return {
            name: each if name == "state" else hostile(each, text) for name, each in value.items()
        }
    return [hostile(each, text) for each in value] if isinstance(value, list | tuple) else value


@settings(max_examples=25)
@given(anything)
def test_no_string_of_a_record_is_more_than_text(text: str) -> None:
    record = run()
    lie = msgspec.convert(hostile(msgspec.to_builtins(record), text), Record)
    assert {step.text for step in lie.steps} == {text}
    tags = set(seen(lie).tags)
    assert tags <= set(seen(record).tags) | {"p"}
    assert "script" not in tags


amounts = st.none() | st.integers(0, 21 * 10**14).map(Msat)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.sampled_from("ab"), amounts), max_size=6),
    st.lists(st.floats(0, 1e6), max_size=4),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 1 << 62)), max_size=4),
    st.floats(0, 1e6),
)
def test_whatever_was_recorded_is_drawn(
    held: list[tuple[float, str, Msat | None]],
    steps: list[float],
    scores: list[tuple[int, int]],
    seconds: float,
) -> None:
    record = msgspec.structs.replace(
        EMPTY,
        seconds=seconds,
        balances=tuple(Balance(*each) for each in sorted(held, key=lambda each: each[0])),
        steps=tuple(Step(at, number, "x") for number, at in enumerate(sorted(steps))),
        scores=tuple(
            Score("m", height, score, score / 1e6, "nats", "w", "00" * 32, "withdrawn")
            for height, score in scores
        ),
    )
    html = report(record, "")
    assert b"nan" not in html and b"inf%" not in html
