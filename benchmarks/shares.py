"""What shares cost, and that no msat of them is lost: `python -m benchmarks.shares [sessions]`.

Three figures: the tokens/s of a provider that counts shares beside one that doesn't; how many
payments settle 1,000 shares to three payees; and 10,000 sessions of random size through crashes,
reorganizations, payees that can't be reached and payments of which nobody knows, after which
spent = provider + trainer + producers + carried over, to the msat.
"""

from __future__ import annotations

import asyncio
import cProfile
import logging
import random
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from channels.http.session import Provenance
from channels.units import Msat
from provider import shares
from provider.ledger import Ledger
from provider.settlement import Settlement
from provider.share_ledger import ShareLedger
from provider.shares import BatchStatus
from sidechain.fees import Beneficiaries, Terms, split
from tests.provider.buyers import Buyer
from tests.provider.fakes import World
from tests.provider.payees import PayeeWorld, spend
from tests.provider.test_settlement import RULES

TERMS = Terms(50_000, 10_000)
TOKENS = 1500
ROUNDS = 20


async def tokens_per_second(directory: Path, payees: PayeeWorld | None) -> float:
    """One answer over HTTP, paid as it comes, with an engine that costs nothing."""
    world = World(directory)
    world.payees = payees
    await world.start()
    buyer = Buyer(world)
    await buyer.open()
    begun = perf_counter()
    await buyer.read(await buyer.ask(max_tokens=TOKENS))
    seconds = perf_counter() - begun
    await world.stop()
    return TOKENS / seconds


def overhead(directory: Path, rounds: int) -> None:
    """Pairs of runs, one with shares and one without, in changing order, so that what else the
    machine does weighs on both; of their ratios the median."""
    ratios = []
    for number in range(rounds):
        rates = {}
        for counted in (True, False) if number % 2 else (False, True):
            path = directory / f"overhead-{number}-{counted}"
            path.mkdir()
            payees = PayeeWorld("trainer", "last", "accepting") if counted else None
            rates[counted] = asyncio.run(tokens_per_second(path, payees))
        ratios.append(rates[True] / rates[False])
    ratios.sort()
    low, middle, high = (ratios[len(ratios) * part // 4] for part in (1, 2, 3))
    print(
        f"tokens/s with shares beside without, {rounds} pairs: {middle:.3f} "
        f"(half of them from {low:.3f} to {high:.3f})"
    )


def work(directory: Path) -> None:
    """The same without a clock: function calls of one answer, which no other program changes.

    The first run is there for what is done once."""
    calls = {}
    for number, counted in enumerate((True, True, False)):
        path = directory / f"work-{number}"
        path.mkdir()
        profile = cProfile.Profile()
        payees = PayeeWorld("trainer", "last", "accepting") if counted else None
        profile.runcall(asyncio.run, tokens_per_second(path, payees))
        calls[counted] = sum(entry.callcount for entry in profile.getstats())
    print(f"function calls with shares beside without: {calls[True] / calls[False]:.3f}")


class Year:
    """A ledger, three payees, and everything that can happen to them."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.world = PayeeWorld("trainer", "last", "accepting", seed=seed)
        self.draw = random.Random(seed)  # noqa: S311  # repeatable, and no secret
        self.spent: dict[bytes, int] = {}
        self.height = 1
        self._start()

    def _start(self) -> None:
        self.ledger = Ledger(self.path)
        self.shares = ShareLedger(self.ledger)
        self.settlement = Settlement(
            self.shares, self.world, self.world, self.world.ask, RULES, self.world.clock
        )

    def session(self, number: int) -> None:
        draw, people = self.draw, self.world.people
        name = number.to_bytes(32, "big")
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            # A reorganization changes who is owed, for what is spent from then on.
            if draw.random() < 0.1:
                self.height = max(1, self.height + draw.choice((-2, -1, 1, 1, 1)))
            who = Beneficiaries(*(draw.choice(people).key for _ in range(3)))
            block = (self.height << 8 | draw.randrange(4)).to_bytes(32, "big")
            provenance = Provenance(self.height, block, b"\x61" * 32, b"\x71" * 32)
            period = self.shares.begin(name, provenance, who, TERMS)
            for _ in range(draw.randrange(1, 4)):
                amount = draw.choice((1, 17, 250, 12_345, 1_000_000)) * draw.randrange(1, 9)
                spend(self.shares, name, period, Msat(amount))
                self.spent[name] = self.spent.get(name, 0) + amount
        self.ledger.commit()

    async def live(self, sessions: int) -> None:
        draw, world = self.draw, self.world
        for number in range(sessions):
            self.session(number)
            if number % 100 == 0:
                for person in world.people:
                    person.down = draw.random() < 0.3
                world.outcomes = draw.choices(("complete", "failed", "unknown", "arrived"), k=2)
                world.clock.ahead += draw.choice((5, 601, 4000))
                await self.settlement.tick()
            if draw.random() < 0.01:
                self.ledger.close()
                self._start()
        for person in world.people:
            person.down = False
        world.outcomes.clear()
        for _ in range(6):
            world.clock.ahead += 3601
            await self.settlement.tick()

    def check(self) -> str:
        provider = owed = 0
        for name, amount in self.spent.items():
            periods = self.shares.periods(name)
            parts = [split(p.spent, p.beneficiaries, p.terms) for p in periods]
            assert sum(part.total for part in parts) == amount
            provider += sum(part.provider for part in parts)
            owed += sum(shares.owed(periods).values())
        paid = sum(person.received for person in self.world.people)
        carried = sum(sum(each.values()) for each in self.settlement.carried().values())
        spent = sum(self.spent.values())
        assert not self.shares.batches(BatchStatus.OPEN, BatchStatus.INVOICED)
        assert provider + paid + carried == spent
        assert paid + carried == owed
        return (
            f"{len(self.spent)} sessions, {len(self.world.paid)} payments: {spent} msat spent = "
            f"{provider} provider + {paid} trainer and producers + {carried} carried over"
        )


def thousand(path: Path) -> None:
    year = Year(path, 1)
    people = Beneficiaries(*(person.key for person in year.world.people))
    for number in range(1000):
        name = number.to_bytes(32, "big")
        period = year.shares.begin(name, Provenance(1, bytes(32)), people, TERMS)
        spend(year.shares, name, period, Msat(10_000))
    year.ledger.commit()
    year.world.clock.ahead += 601
    begun = perf_counter()
    asyncio.run(year.settlement.tick())
    seconds = perf_counter() - begun
    print(f"1000 shares to three payees: {year.world.attempts} payments, {seconds:.2f} s")
    year.ledger.close()


def main() -> None:
    logging.disable()  # payees that can't be reached are what this is about
    sessions = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        work(directory)
        overhead(directory, ROUNDS)
        thousand(directory / "thousand.sqlite")
        for seed in range(3):
            begun = perf_counter()
            year = Year(directory / f"year-{seed}.sqlite", seed)
            asyncio.run(year.live(sessions))
            print(f"seed {seed}: {year.check()} ({perf_counter() - begun:.0f} s)")
            year.ledger.close()


if __name__ == "__main__":
    main()
