"""Part of `make demo`: every answer pays those who made the model, and the user needs nobody.

As in demo.py each step uses what any program can use: the client library, a Lightning node's
socket, the `oda` programs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.table import Table

from channels.errors import OdaError
from channels.lightning import Lightning
from channels.units import Msat, Sat
from client import sdk
from client.chain import FollowedChain
from client.channel import USABLE, close_channels, open_channel, wait_until_usable
from client.judging import BadAnswer
from client.receipts import Checked
from client.settings import ClientSettings
from regtest.auditing import Audit
from regtest.cheats import false_provider
from regtest.learning import PROMPT, resume
from regtest.school import (
    Party,
    School,
    confirmed,
    console,
    library_path,
    name_of,
    note,
    recorder,
    shown,
    step,
    until,
)
from sidechain import api, params
from sidechain.follower import Follower, follow
from sidechain.node_client import NodeClient

COINS: Final = Sat(600_000)
CHANNEL: Final = Sat(100_000)
MOST_FEES: Final = Sat(5000)
CHANCES: Final = 6
"""Answers by weights that learned little since; each is looked at in 16 places."""


@dataclass
class Sale:
    """The provider of the second half, and who deals with it. audit: of what that moves."""

    school: School
    user: Lightning
    seller: Lightning
    follower: Follower
    audit: Audit

    def client(self, *copies: Path) -> AbstractAsyncContextManager[sdk.Client]:
        """With copies of the weights some bytes of each answer are computed again."""
        demo = self.school.demo
        return sdk.connect(
            demo.url,
            demo.socket("user"),
            settings=ClientSettings(provider=demo.url, models=copies),
            chain=FollowedChain(self.follower),
        )


@asynccontextmanager
async def selling(school: School, number: int, *also: str) -> AsyncIterator[Sale]:
    """The provider follows the chain and has the channels that it needs. Meanwhile somebody tries
    to become the next trainer. also: more flags of `oda provider`."""
    step(number, "The provider serves the newest version, and its makers are paid for every answer")
    demo, node = school.demo, ("127.0.0.1", school.producer.port)
    await asyncio.to_thread(demo.provider.stop)
    for rich in ("provider", "producer"):
        recorder.gives(rich, COINS)
    await demo.network.up(["provider", "producer"], COINS)
    audit = Audit(demo, ["user", "provider", "producer", *(t.name for t in school.trainers)])
    await audit.begin()
    async with AsyncExitStack() as stack:
        user, seller = [
            await stack.enter_async_context(Lightning(demo.socket(name)))
            for name in ("user", "provider")
        ]
        await channels(school, user, seller)
        await resume(await challenger(school), school)
        await asyncio.to_thread(
            demo.start_provider,
            *("--follow", school.model, "--chain", school.producer.address, "--name", "oda-learnt"),
            *also,
            settings={"SETTLE_SECONDS": "2", "SMALLEST_SHARE_MSAT": "1"},
        )
        follower = await stack.enter_async_context(follow(params.REGTEST, [node]))
        yield Sale(school, user, seller, follower, audit)


async def challenger(school: School) -> Party:
    """A trainer who is not paid for the version that is served."""
    paid = await name_of(school, (await school.state()).confirmed.trainer)
    return next(trainer for trainer in school.trainers if trainer.name != paid)


async def earn(sale: Sale) -> None:
    school = sale.school
    copy = library_path(school, (await school.state()).confirmed.infohash)
    async with sale.client(copy) as client:
        for seed, question in enumerate((PROMPT, "How does a loop end?")):
            await ask(client, question, seed)
        await told(school, await receipt(client))
        same = "is" if school.learned.shares_conserved else "IS NOT"
        note(f"That {same} all that was spent; the user has checked the receipt against its own")
        note("transcript and the chain.")
    await meet_a_cheat(school, sale.seller, sale.follower)


async def ask(
    client: sdk.Client, question: str, seed: int, *, model: str | None = None, tokens: int = 200
) -> None:
    console.print(f"   [bold]{question}[/]")
    given = {"seed": seed, "model": model, "max_tokens": tokens, "temperature": 0.8}
    answer = recorder.answer(client, question, **given)
    async with aclosing(shown(answer)) as events:
        async for _ in events:
            pass


async def receipt(client: sdk.Client) -> Checked:
    """Close the session; -> what its receipt proves when nothing is owed any more."""
    (refund,) = await client.close()
    return await until(lambda: settled(client, refund.session), "the shares", 60)


async def meet_a_cheat(school: School, seller: Lightning, follower: Follower) -> None:
    """Another provider names the same weights, asks for a fifth, and serves older ones."""
    state = await school.state()
    _, older, *_ = (
        past.version
        for past in state.versions
        if past.state == "confirmed" and past.version != state.confirmed
    )
    newest, served = (library_path(school, v.infohash) for v in (state.confirmed, older))
    folder, model = school.demo.data / "false provider", bytes.fromhex(school.model)
    async with false_provider(seller, follower, model, newest, served, folder) as url:
        settings = ClientSettings(provider=url, models=(newest,))
        socket = school.demo.socket("user")
        chain = FollowedChain(follower)
        try:
            async with sdk.connect(url, socket, settings=settings, chain=chain) as client:
                given = {"max_tokens": 200, "temperature": 0.7}
                for seed in range(CHANCES):
                    async for _ in recorder.answer(client, PROMPT, seed=seed, **given):
                        pass
        except BadAnswer as caught:
            school.caught("A provider of older weights", caught.reason, str(caught))
            note(f"A cheaper provider of the same weights: {caught.reason}. {caught}")


async def channels(school: School, user: Lightning, seller: Lightning) -> None:
    """The user's to the provider, the provider's to the producer, and the producer's to the
    trainers: what trainers get crosses a node that is paid for it."""
    demo = school.demo
    openings = []
    async with AsyncExitStack() as stack:
        hub, *ends = [
            await stack.enter_async_context(Lightning(demo.socket(name)))
            for name in ("producer", *(t.name for t in school.trainers))
        ]
        for opener, other in ((user, seller), (seller, hub), *((hub, end) for end in ends)):
            info = await other.getinfo()
            address = f"{info.binding[0].address}:{info.binding[0].port}"
            openings.append((opener, await open_channel(opener, info.id, address, CHANNEL)))
            await demo.network.mine(1)
        for opener, opening in openings:
            await wait_until_usable(opener, opening)
    note("The user has a channel to the provider, the provider one to the producer, and that one")
    note("one to each trainer: a trainer's share crosses two channels.")


async def settled(client: sdk.Client, session: int) -> Checked | None:
    """The receipt, when nothing is owed any more."""
    checked = await client.check_receipt(session)
    return None if checked.carried else checked


async def told(school: School, *receipts: Checked, heads: Sequence[str] = ("msat",)) -> None:
    """Who got what, by receipts: each line is proven by an invoice that its payee signed."""
    learned = school.learned
    rows: dict[str, list[int]] = {"provider": [each.provider_msat for each in receipts]}
    for index, checked in enumerate(receipts):
        learned.receipts_verified += 1
        recorder.share(checked.session, "provider", "provider", checked.provider_msat)
        for key, amount in checked.paid.items():
            who = await name_of(school, key)
            rows.setdefault(who, [0] * len(receipts))[index] += amount
            role = "producer" if who == "producer" else "trainer"
            recorder.share(checked.session, who, role, amount)
            if role == "producer":
                learned.producer_msat = Msat(learned.producer_msat + amount)
            else:
                learned.trainer_msat = Msat(learned.trainer_msat + amount)
        whole = checked.provider_msat + sum(checked.paid.values())
        learned.shares_conserved &= whole == checked.spent_msat
    rows["spent"] = [each.spent_msat for each in receipts]
    table = Table("to", box=None)
    for head in heads:
        table.add_column(head, justify="right")
    for who, amounts in rows.items():
        table.add_row(who, *(f"{amount:,}" for amount in amounts))
    console.print(table)


async def agree(school: School, number: int) -> None:
    step(number, "A stranger joins late, with headers and proofs alone, and agrees")
    stranger = school.stranger
    stranger.start(
        *("node", "--light", "--connect", school.producer.address),
        *("--port", str(stranger.port)),
    )

    async def same() -> str:
        try:
            async with NodeClient(stranger.url) as client:
                mine = await client.get("/status", api.Status)
        except OdaError:
            return ""
        theirs = await school.node("/status", api.Status)
        return mine.tip if mine.tip == theirs.tip else ""

    tip = await until(same, "the stranger", 60)
    note(f"Its tip is {tip[:32]}…, as everybody's.")


async def desert(school: School, audit: Audit, number: int) -> None:
    step(number, "The provider is gone for good, and the user leaves without it")
    demo = school.demo
    await audit.settle()
    for victim in (demo.provider, demo.network.node("provider").daemon):
        await asyncio.to_thread(victim.kill)
    async with Lightning(demo.socket("user")) as user:
        before = await confirmed(user)
        (channel,) = [c for c in await user.listpeerchannels() if c.state == USABLE]
        assert channel.peer_id is not None and channel.to_us_msat is not None, "it is open"
        ours = channel.to_us_msat // 1000
        for closing in await close_channels(user, channel.peer_id, force=True):
            note(f"Closed alone ({closing.type}): transaction {closing.txids[0]}")

        async def swept() -> Sat | None:
            await demo.network.mine(2)
            gained = Sat(await confirmed(user) - before)
            return gained if gained > ours - MOST_FEES else None

        gained = await until(swept, "the coins of the closed channel", 90)
    school.learned.forced_close_sat = gained
    note(f"Of the user's {ours:,} sat in the channel, {gained:,} are on chain again; the miners")
    note(f"got {ours - gained:,}.")


async def reopen(school: School, *also: str) -> None:
    """For whoever wants to go on by hand: the provider as it began, now on the sidechain."""
    demo = school.demo
    await demo.network.up(["provider"], Sat(0))
    given = ("--model", demo.magnet, "--chain", school.producer.address, *also)
    await asyncio.to_thread(demo.start_provider, *given)
