"""`make demo`: the main job of ODA, from nothing to coins back on chain, on real parts.

Read it from top to bottom: it is made to be copied. Each step uses what any program can use: the
regtest network, a Lightning node's socket, `client.sdk`, and the `oda provider` program. The second
half is in learning.py, earning.py and handover.py; school.py says who takes part.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.table import Table

from channels.errors import OdaError
from channels.lightning import Lightning
from channels.settings import load_settings
from channels.terminal import progress, report
from channels.units import Msat, Sat
from client import sdk
from client.channel import Opening, close_channels, open_channel, wait_until_usable
from regtest.accounts import Accounts
from regtest.auditing import channel_balance, fee_of, sent, show, transaction
from regtest.bitcoind import find_bitcoind
from regtest.books import Books
from regtest.daemon import free_port
from regtest.digits import read_digits
from regtest.earning import agree, desert, earn, reopen, selling
from regtest.engines import look, places, second_engine
from regtest.handover import hand_over
from regtest.learning import cheating, compete, improvements, publish, side_by_side
from regtest.recorder import save
from regtest.school import (
    Demo,
    Learned,
    School,
    confirmed,
    console,
    note,
    recorder,
    remember_scores,
    sats,
    shown,
    step,
)
from torrent.library import Library

COINS: Final = Sat(1_000_000)
CHANNEL: Final = Sat(200_000)
BITCOIND_MB: Final = 40


@dataclass
class Totals:
    """What the answers add up to."""

    tokens: int = 0
    topups: int = 0
    spent: Msat = Msat(0)
    max_exposure: Msat = Msat(0)
    exposure_limit: Msat = Msat(0)


# --- the story -----------------------------------------------------------------------------------


async def tell(demo: Demo) -> dict[str, object]:
    """The whole demo. Returns what its last line says."""
    began = time.monotonic()
    totals = Totals()
    model = await prepare(demo)
    async with recorder.watching(demo.data / "regtest" / "nodes"):
        await start(demo, model, 1)
        accounts = await pay_as_it_streams(demo, totals, 2)
        table(accounts)
        learned, books = await learn(demo.school, 7)
    return {
        "tokens": totals.tokens,
        "paid_msat": accounts.paid,
        "refunded_msat": accounts.refunded,
        "topups": totals.topups,
        "max_exposure_msat": totals.max_exposure,
        "exposure_limit_msat": totals.exposure_limit,
        "user_before_sat": accounts.user_before,
        "user_after_sat": accounts.user_after,
        "provider_after_sat": accounts.provider_after,
        "onchain_fees_sat": accounts.onchain_fees,
        "conserved": accounts.conserved and learned.shares_conserved and books.conserved,
        **asdict(learned),
        "seconds": round(time.monotonic() - began, 1),
    }


async def start(demo: Demo, model: Path, number: int) -> None:
    step(number, "A network: bitcoind, and a Lightning node each for a user and a provider")
    with progress("Starting") as show:
        recorder.gives("user", COINS)
        await demo.network.up(["user"], COINS, show)
        await demo.network.up(["provider"], Sat(0), show)
        show(0, None, "The provider fetches its model")
        await asyncio.to_thread(demo.start_seeder, model)
        await asyncio.to_thread(demo.start_provider)
    note(f"The user has {COINS:,} sat on chain, the provider nothing. It sells on {demo.url}")
    await fetched(demo)


async def pay_as_it_streams(demo: Demo, totals: Totals, number: int) -> Accounts:
    """One channel from its opening to its close, and three answers in between."""
    async with Lightning(demo.socket("user")) as user, Lightning(demo.socket("provider")) as seller:
        before = await confirmed(user), await confirmed(seller)
        opening = await open_a_channel(demo, user, seller, number)
        await three_answers(demo, totals, number + 1)
        step(number + 4, "The channel closes, and the coins are on chain again")
        return await close_and_count(demo, user, seller, opening, before)


async def three_answers(demo: Demo, totals: Totals, number: int) -> None:
    async with sdk.connect(demo.url, demo.socket("user")) as client:
        step(number, "An answer that streams while it is paid for")
        await ask(client, totals, "How do I define a class?", seed=1, tokens=300)

        step(number + 1, "The provider is killed (-9) in the middle of an answer, and comes back")
        whole = await ask(
            client, totals, "When is an exception raised?", seed=1, tokens=300, disturb=demo
        )

        step(number + 2, "The user leaves an answer half-way and takes the rest back")
        part = await ask(
            client, totals, "When is an exception raised?", seed=1, tokens=300, leave_after=120
        )
        same = "is" if whole.startswith(part) else "IS NOT"
        note(f"As far as it went it {same} what the interrupted answer said: same question,")
        note("same seed, so the kill changed nothing in it and nothing was charged twice.")
        for refund in await client.close():
            note(f"Session closed: {refund.paid_msat} msat paid, {refund.spent_msat} spent,")
            note(f"{refund.received_msat} back over Lightning ({refund.status}).")
            late = refund.spent_msat - totals.spent
            note(f"({late} msat are tokens that were on their way when the user left.)")


async def learn(school: School, number: int) -> tuple[Learned, Books]:
    """From an untrained model to trainers and producers who are paid. number: of the first step."""
    await asyncio.gather(improve(school, number), read_digits(school))
    await side_by_side(school, number + 2)
    await cheating(school, number + 3)
    engine = await look(places())
    also = () if engine is None else engine.flags
    async with selling(school, number + 4, *also) as sale:
        await earn(sale)
        await second_engine(sale, engine)
        await hand_over(sale, number + 5)
    await agree(school, number + 6)
    await desert(school, sale.audit, number + 7)
    step(number + 8, "Every msat is accounted for")
    books = await sale.audit.finish()
    show(books)
    await reopen(school, *also)
    await remember_scores(school, school.model, "the text", "nats/byte", school.bytes_scored)
    state = await school.state()
    school.learned.blocks = improvements(state)
    school.learned.score_after = state.confirmed.score
    return school.learned, books


async def improve(school: School, number: int) -> None:
    await publish(school, number)
    await compete(school, number + 1)


async def prepare(demo: Demo) -> Path:
    """Stop an earlier run, forget its chain, and have bitcoind and a model at hand."""
    if not (demo.cache / "bitcoind").exists() and shutil.which("bitcoind") is None:
        console.print(f"Downloads bitcoind first: about {BITCOIND_MB} MB, once.")
    await demo.down()
    shutil.rmtree(demo.data, ignore_errors=True)
    with progress("Looking for bitcoind") as show:
        await asyncio.to_thread(find_bitcoind, None, demo.cache, show)
    from provider.models import (
        FIRST_TRAINING,
        first_model,
    )  # here, because torch takes its time to import

    with progress("Loading the model") as show:

        def trained(steps: int, nats_per_byte: float, _: float) -> None:
            label = f"Training a model: {nats_per_byte:.2f} nats/byte"
            show(steps, FIRST_TRAINING.steps, label)

        return await asyncio.to_thread(first_model, demo.cache / "models", trained)


async def fetched(demo: Demo) -> None:
    """The provider has got its model from the seeder, which is not needed from now on."""
    (stored,) = Library(demo.data / "regtest" / "torrents", 1 << 40).entries()
    model = await asyncio.to_thread(demo.model)
    note(f"{model['id']} came to it over BitTorrent, {stored.record.total:,} bytes by the name")
    note(f"{model['infohash']}; it seeds them on.")
    await asyncio.to_thread(demo.seeder.kill)


async def open_a_channel(demo: Demo, user: Lightning, seller: Lightning, number: int) -> Opening:
    """What `oda open` does. The provider's reserve is pushed to it, so that it can refund."""
    step(number, "The user opens a payment channel with the provider")
    info = await seller.getinfo()
    address = f"{info.binding[0].address}:{info.binding[0].port}"
    opening = await open_channel(user, info.id, address, CHANNEL)
    note(f"Funding transaction {opening.funding_txid}")
    note(f"{CHANNEL:,} sat in the channel, {opening.push_sat} of them the provider's reserve; ")
    note(f"the miners get {opening.fee_sat} sat.")
    await demo.network.mine(1)
    usable = await wait_until_usable(user, opening)
    note(f"Mined. {usable.spendable_msat // 1000:,} sat can be spent, a few at a time.")
    return opening


async def ask(
    client: sdk.Client,
    totals: Totals,
    question: str,
    *,
    seed: int,
    tokens: int,
    disturb: Demo | None = None,
    leave_after: int | None = None,
) -> str:
    console.print(f"   [bold]{question}[/]")
    text, topups, cost = "", 0, None
    interruption: asyncio.Task[None] | None = None
    answer = shown(recorder.answer(client, question, seed=seed, max_tokens=tokens, temperature=0.7))
    async with aclosing(answer) as events:
        async for event in events:
            match event:
                case sdk.Text(part):
                    text += part
                case sdk.TopUp():
                    topups += 1
                case sdk.Interrupted() if interruption is not None:
                    console.print("[red]·[/]", end="")
                    if interruption.done():
                        await interruption  # it failed, and nobody will come back
                case sdk.Cost():
                    cost = event
                case sdk.Done():
                    cost = event.cost
            if disturb is not None and interruption is None and len(text) > tokens // 3:
                console.print("[red]✗ killed[/]", end="")
                interruption = asyncio.create_task(kill_and_restart(disturb))
            if leave_after is not None and len(text) >= leave_after:
                break
    if interruption is not None:
        await interruption
    if cost is not None:
        count(totals, cost, topups, "over two connections" if disturb else "on one connection")
    return text


def count(totals: Totals, cost: sdk.Cost, topups: int, how: str) -> None:
    totals.tokens += cost.output_tokens
    totals.topups += topups
    totals.spent = Msat(totals.spent + cost.spent_msat)
    totals.max_exposure = max(totals.max_exposure, cost.max_exposure_msat)
    totals.exposure_limit = max(totals.exposure_limit, cost.exposure_limit_msat)
    note(
        f"{cost.input_tokens} tokens in, {cost.output_tokens} out, {cost.spent_msat} msat, "
        f"{topups} top-ups ([yellow]+[/]) {how}"
    )


async def kill_and_restart(demo: Demo) -> None:
    """kill -9 of the provider and of its Lightning node; then both are simply started again."""
    for victim in (demo.provider, demo.network.node("provider").daemon):
        await asyncio.to_thread(victim.kill)
    await demo.network.up(["provider"], Sat(0))
    await asyncio.to_thread(demo.start_provider)


# --- the accounts --------------------------------------------------------------------------------


async def close_and_count(
    demo: Demo,
    user: Lightning,
    seller: Lightning,
    opening: Opening,
    before: tuple[Sat, Sat],
) -> Accounts:
    user_channel = await channel_balance(user)
    provider_channel = await channel_balance(seller)
    (closing,) = await close_channels(user, opening.node_id)
    note(f"Closing transaction {closing.txids[0]}")
    await demo.network.mine(1)
    async with demo.network.miner() as miner:
        funding = await transaction(miner, opening.funding_txid)
        spent = await transaction(miner, closing.txids[0])
        opening_fee = await fee_of(miner, funding)
    return Accounts(
        user_before=before[0],
        provider_before=before[1],
        channel=CHANNEL,
        opening_fee=opening_fee,
        push=Msat(opening.push_sat * 1000),
        paid=await sent(user),
        refunded=await sent(seller),
        user_channel=user_channel,
        provider_channel=provider_channel,
        closing_outputs=Sat(sum(output.value for output in spent.outputs)),
        user_after=await confirmed(user),
        provider_after=await confirmed(seller),
    )


def table(accounts: Accounts) -> None:
    console.print()
    grid = Table(title="Where every sat went", title_justify="left", header_style="bold")
    grid.add_column("what")
    grid.add_column("sat", justify="right")
    grid.add_column("to")
    for what, amount, whom in accounts.rows():
        style = "bold" if not whom else ""
        grid.add_row(what, sats(amount), whom, style=style)
    console.print(grid)
    recorder.account("The first channel, from its opening to its close", accounts.rows())


def left_running(demo: Demo, page: Path) -> None:
    """How to go on by hand."""
    oda = Path(".venv") / "bin" / "oda"
    console.print(
        "\nEverything is left running until [bold]make demo-down[/]. Try:\n"
        f"  export ODA_DATA={demo.data} OPENAI_BASE_URL={demo.url}/v1\n"
        "  curl $OPENAI_BASE_URL/models\n"
        "  curl -i $OPENAI_BASE_URL/chat/completions -H 'Content-Type: application/json' \\\n"
        '    -d \'{"model": "oda-pydoc", "messages": [{"role": "user", "content": "Hi"}]}\'\n'
        f"  {oda} open {demo.url}   (and in another terminal: {oda} regtest mine)\n"
        f"  {oda} chat --provider {demo.url} 'What is a module?'\n"
        f"  {demo.url}/   (the provider)   {demo.url}/metrics   {demo.url}/health\n"
        f"  {demo.school.producer.url}/   (the chain's explorer)\n"
        f"The run as a page with plots: {page}\n  {page.as_uri()}\n",
        soft_wrap=True,
    )


def main() -> int:
    settings = load_settings()
    data = (settings.data / "demo").absolute()
    # From here on, and for the programs that are started, everything of the demo is in one place.
    os.environ["ODA_DATA"] = str(data)
    demo = Demo(data, settings.cache, free_port())
    try:
        if "--down" in sys.argv[1:]:
            asyncio.run(demo.down())
            console.print("Nothing of the demo runs any more.")
            return 0
        result = asyncio.run(tell(demo))
    except OdaError as error:
        if recorder.begun:
            save(recorder.record({}, f"{error} ({error.reason})"), demo.data)
        return int(report(error, False))
    left_running(demo, save(recorder.record(result), demo.data))
    print(json.dumps(result))
    return 0 if result["conserved"] else 1


if __name__ == "__main__":
    sys.exit(main())
