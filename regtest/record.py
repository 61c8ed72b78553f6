"""What happened in a run of the demo, as data that anybody can plot again: record.json. Pure.

Times are seconds since the run began, amounts whole msat, scores whole micro-units as the sidechain
counts them. A field may be added to `version` 1; what is there stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal, TypeAlias

import msgspec

from channels.lightning_answers import Close, Funds
from channels.units import Msat, UnixTime

VERSION: Final = 1

UNDER_WAY: Final = ("waiting", "claiming")
"""Outputs of a closed channel that are a node's own and not yet among its coins."""
GONE: Final = ("ONCHAIN", "CLOSED")
"""lightningd goes on listing channels in these states; their coins are elsewhere."""
State: TypeAlias = Literal["confirmed", "provisional", "withdrawn"]
COMPLETE, LEFT = "complete", "left"


class Step(msgspec.Struct, frozen=True):
    at: float
    number: int
    text: str


class Balance(msgspec.Struct, frozen=True):
    """What a party holds from `at` on, by its own Lightning node; None while that does not answer.

    Coins, its side of every channel, and what a close has still to bring.
    """

    at: float
    party: str
    msat: Msat | None


class Gift(msgspec.Struct, frozen=True):
    """Coins that the miners give, which arrive after `at`."""

    at: float
    party: str
    msat: Msat


class Score(msgspec.Struct, frozen=True):
    """A version of a model. shown: the score per unit, for people to read. key: of who made it;
    who: the name, where it is known."""

    model: str
    height: int
    score: int
    shown: float
    unit: str
    who: str
    key: str
    state: State


class Paid(msgspec.Struct, frozen=True):
    """A deposit that was paid while the answer went on; `after` so many seconds of it."""

    after: float
    msat: Msat


class Answer(msgspec.Struct, frozen=True):
    """arrived: (seconds after the question, tokens so far) whenever text came. interrupted: when
    the connection was found broken. model, weights: what the provider says that it serves.
    ended: "complete", "left" by the user, or the reason of an error."""

    at: float
    question: str
    model: str
    weights: str | None
    arrived: tuple[tuple[float, int], ...]
    topups: tuple[Paid, ...]
    interrupted: tuple[float, ...]
    seconds: float
    input_tokens: int
    output_tokens: int
    spent_msat: Msat
    ended: str

    @property
    def first(self) -> float | None:
        """Seconds to the first token."""
        return self.arrived[0][0] if self.arrived else None

    @property
    def gaps(self) -> list[float]:
        """Seconds from each piece of text to the next."""
        times = [after for after, _ in self.arrived]
        return [later - sooner for sooner, later in pairwise(times)]


class Caught(msgspec.Struct, frozen=True):
    """reason: a stable slug, by which programs know what was wrong."""

    at: float
    who: str
    reason: str
    sentence: str


class Share(msgspec.Struct, frozen=True):
    """What a receipt proves that somebody got of a session. role: provider, trainer, producer."""

    at: float
    session: int
    to: str
    role: str
    msat: Msat


class Line(msgspec.Struct, frozen=True):
    """to: where it went; empty for a sum."""

    what: str
    msat: int
    to: str


class Account(msgspec.Struct, frozen=True):
    title: str
    lines: tuple[Line, ...]


class Record(msgspec.Struct, frozen=True):
    """began: when, by the clock on the wall. failure: why the run ended early.

    balances: by time; a party's holds until its next. result: what the demo's last line says.
    """

    version: int
    began: UnixTime
    seconds: float
    steps: tuple[Step, ...] = ()
    balances: tuple[Balance, ...] = ()
    gifts: tuple[Gift, ...] = ()
    scores: tuple[Score, ...] = ()
    answers: tuple[Answer, ...] = ()
    caught: tuple[Caught, ...] = ()
    shares: tuple[Share, ...] = ()
    accounts: tuple[Account, ...] = ()
    result: Mapping[str, int | float | bool | str] = {}
    failure: str | None = None


def held(funds: Funds, closes: Sequence[Close]) -> Msat:
    """All that is a node's own: coins, channels, and what its closes have still to bring."""
    coins = sum(coin.amount_msat for coin in funds.outputs if coin.status != "spent")
    channels = sum(each.our_amount_msat for each in funds.channels if each.state not in GONE)
    seen = {(coin.txid, coin.output) for coin in funds.outputs}
    coming = sum(
        output.amount_msat
        for close in closes
        if close.confirmed
        for output in close.outputs
        if output.status in UNDER_WAY and (output.txid, output.outnum) not in seen
    )
    return Msat(coins + channels + coming)


Run = list[tuple[float, Msat]]


def gains(record: Record, party: str) -> list[Run]:
    """What a party has more, or less, than it was given: the pieces of time in which that is known.

    A gift counts from the first balance that grew by most of it: some may be spent already.
    Each piece ends where its last balance does.
    """
    due = [gift for gift in record.gifts if gift.party == party]
    runs: list[Run] = []
    run: Run | None = None
    given, last = 0, 0
    for balance in (each for each in record.balances if each.party == party):
        if balance.msat is None:
            if run:
                run.append((balance.at, run[-1][1]))
            run = None
            continue
        while due and due[0].at <= balance.at and 2 * (balance.msat - last) >= due[0].msat:
            given += due.pop(0).msat
            last = balance.msat
        last = balance.msat
        if run is None:
            runs.append(run := [])
        run.append((balance.at, Msat(balance.msat - given)))
    if run:
        run.append((max(record.seconds, run[-1][0]), run[-1][1]))
    return runs


def parties(record: Record) -> list[str]:
    """In the order in which they were first seen."""
    return list(dict.fromkeys(balance.party for balance in record.balances))
