"""A made-up run of the demo, with everything in it that a report has to show."""

from __future__ import annotations

from channels.units import Msat, UnixTime
from regtest.record import (
    COMPLETE,
    LEFT,
    VERSION,
    Account,
    Answer,
    Balance,
    Caught,
    Gift,
    Line,
    Paid,
    Record,
    Score,
    Share,
    State,
    Step,
)

EMPTY = Record(VERSION, UnixTime(1_800_000_000), 0.0)
TRAINER, RIVAL, CHEAT = "31" * 32, "a7" * 32, "70" * 32


def answer(at: float, ended: str = COMPLETE, tokens: int = 120, pause: float = 0.0) -> Answer:
    arrived = []
    for index in range(tokens):
        late = pause if index > tokens // 3 else 0.0
        arrived.append((0.05 + 0.01 * index + late + 0.004 * (index % 7 == 0), index + 1))
    topups = (Paid(0.2, Msat(12_500)), Paid(0.9 + pause, Msat(12_500)))
    broken = (0.5,) if pause else ()
    spent = Msat(250 * tokens + 800)
    seconds = arrived[-1][0] + 0.1
    model = ("oda-pydoc", "ab" * 20)
    question = "When is an exception raised?"
    return Answer(
        at, question, *model, tuple(arrived), topups, broken, seconds, 16, tokens, spent, ended
    )


def run() -> Record:
    return Record(
        VERSION,
        UnixTime(1_800_000_000),
        150.0,
        steps=tuple(
            Step(at, number, text)
            for number, at, text in (
                (1, 0.0, "A network: bitcoind, and a Lightning node each for user and provider"),
                (2, 10.0, "The user opens a payment channel with the provider"),
                (3, 12.0, "An answer that streams while it is paid for"),
                (4, 13.5, "The provider is killed (-9) in the middle of an answer"),
                (5, 30.0, "The channel closes, and the coins are on chain again"),
                (6, 40.0, "Two trainers compete"),
                (7, 110.0, "The provider serves the newest version"),
            )
        ),
        balances=BALANCES,
        gifts=(Gift(4.0, "user", Msat(10**9)), Gift(108.0, "provider", Msat(600_000_000))),
        scores=SCORES,
        answers=(answer(12.1), answer(13.6, pause=6.5), answer(25.0, LEFT, 40)),
        caught=(
            Caught(70.0, "The thief", "root-known", "Somebody else made these weights."),
            Caught(80.0, "The liar", "bad-score", ""),
        ),
        shares=(
            Share(130.0, 4, "provider", "provider", Msat(94_000)),
            Share(130.0, 4, "rival", "trainer", Msat(5_000)),
            Share(130.0, 4, "producer", "producer", Msat(1_000)),
        ),
        accounts=(
            Account(
                "The first channel",
                (
                    Line("user's coins before", 10**9, ""),
                    Line("opening transaction", -154_000, "miners"),
                    Line("user's coins after", 999_000_123, ""),
                ),
            ),
        ),
        result={"tokens": 280, "paid_msat": 70_123, "conserved": True, "seconds": 150.0},
    )


BALANCES = tuple(
    Balance(at, party, None if amount is None else Msat(amount))
    for at, party, amount in (
        (4.5, "user", 0),
        (5.0, "user", 10**9),
        (5.0, "provider", 0),
        (10.5, "user", 10**9 - 154_000 - 546_000),
        (10.6, "provider", 546_000),
        (12.5, "user", 10**9 - 154_000 - 576_000),
        (12.5, "provider", 576_000),
        (14.0, "provider", None),
        (20.0, "provider", 577_000),
        (20.0, "user", 10**9 - 154_000 - 577_000),
        (45.0, "trainer", 0),
        (45.0, "rival", 0),
        (45.0, "producer", 0),
        (109.0, "provider", 600_577_000),
        (112.0, "provider", 600_423_000),
        (131.0, "rival", 5_000),
        (131.0, "producer", 1_006),
        (131.0, "provider", 600_416_994),
    )
)


def version(height: int, score: int, who: str, key: str, state: State = "confirmed") -> Score:
    return Score("oda-learnt", height, score, score / 10**8, "nats/byte", who, key, state)


SCORES = (
    version(3, 554_000_000, "producer", "55" * 32),
    version(9, 420_000_000, "trainer", TRAINER),
    version(14, 391_000_000, "rival", RIVAL),
    version(20, 120_000_000, CHEAT[:16], CHEAT, "withdrawn"),
    version(26, 350_123_456, "rival", RIVAL),
)
