"""The second half of `make demo`: a model gets better, and those who made it so are paid.

As in demo.py each step uses what any program can use: the `oda` programs, a node's HTTP API, the
client library, a Lightning node's socket. Everybody has a data directory, and so a key, of his own.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rich.console import Console
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
from regtest.cheats import Cheat, cheat, false_provider, memorised, nudged
from regtest.daemon import Daemon, free_port
from sidechain import api, params
from sidechain.follower import Follower, follow
from sidechain.node_client import NodeClient
from sidechain.primitives import Reveal, x_only

if TYPE_CHECKING:
    from regtest.demo import Demo

ODA: Final = Path(sys.executable).parent / "oda"
IMPROVEMENTS: Final = 4
WITHIN: Final = 180.0
TRAIN_SECONDS: Final = 3.0
COINS: Final = Sat(600_000)
CHANNEL: Final = Sat(100_000)
PROMPT: Final = "What is a list?"
MOST_FEES: Final = Sat(5000)
MICRO: Final = 1_000_000

console = Console(highlight=False, soft_wrap=True)
T = TypeVar("T")


@dataclass
class Party:
    """Somebody with a program, a port and a data directory."""

    name: str
    directory: Path
    port: int = field(default_factory=free_port)

    @property
    def daemon(self) -> Daemon:
        return Daemon(f"oda of the {self.name}", self.directory)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def has_node(self, demo: Demo) -> None:
        """Let the party use its Lightning node of the demo's network."""
        nodes = self.directory / "regtest" / "nodes"
        nodes.mkdir(parents=True, exist_ok=True)
        (nodes / self.name).symlink_to(demo.data / "regtest" / "nodes" / self.name)

    def start(self, *arguments: str) -> None:
        self.daemon.start(["env", f"ODA_DATA={self.directory}", str(ODA), *arguments])

    async def oda(self, *arguments: str) -> dict[str, Any]:
        """Run a command of the party to its end; what it says with --json."""
        process = await asyncio.create_subprocess_exec(
            *("env", f"ODA_DATA={self.directory}", str(ODA), *arguments, "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complaint = await process.communicate()
        if process.returncode != 0:
            raise OdaError("demo-step-failed", f"oda {' '.join(arguments)}: {complaint.decode()}")
        document: dict[str, Any] = json.loads(said)
        return document


@dataclass
class Learned:
    """What the second half adds to the demo's last line."""

    blocks: int = 0
    score_before: int = 0
    score_after: int = 0
    cheats_caught: int = 0
    trainer_msat: Msat = Msat(0)
    producer_msat: Msat = Msat(0)
    receipts_verified: int = 0
    shares_conserved: bool = False
    forced_close_sat: Sat = Sat(0)


class School:
    """Everybody of the second half."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.producer = Party("producer", demo.data / "producer")
        self.trainers = [Party(name, demo.data / name) for name in ("trainer", "rival")]
        self.stranger = Party("stranger", demo.data / "stranger")
        self.model = ""
        self.bytes_scored = 1
        self.learned = Learned()

    @property
    def keys(self) -> Path:
        return self.producer.directory / "shards.keys"

    def per_byte(self, score: int) -> float:
        """nats; only for people to read."""
        return score / MICRO / self.bytes_scored

    async def down(self) -> None:
        for party in (self.stranger, *self.trainers, self.producer):
            await asyncio.to_thread(party.daemon.stop)

    async def node(self, path: str, kind: type[T]) -> T:
        async with NodeClient(self.producer.url) as client:
            return await client.get(path, kind)

    async def state(self) -> api.Model:
        return await self.node(f"/models/{self.model}", api.Model)


def step(number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}.[/] [bold]{text}[/]")


def note(text: str) -> None:
    console.print(f"   [dim]{text}[/]")


async def until(holds: Callable[[], Awaitable[T | None]], what: str, within: float = WITHIN) -> T:
    """Ask again until the answer is true, and give it."""
    deadline = time.monotonic() + within
    while not (answer := await holds()):
        if time.monotonic() > deadline:
            raise OdaError("demo-step-failed", f"Waited {within:.0f} s in vain for {what}.")
        await asyncio.sleep(0.3)
    return answer


# --- the story -----------------------------------------------------------------------------------


async def learn(school: School, number: int) -> Learned:
    """From an untrained model to trainers and producers who are paid. number: of the first step."""
    await publish(school, number)
    await compete(school, number + 1)
    await side_by_side(school, number + 2)
    await cheating(school, number + 3)
    await earn(school, number + 4)
    await agree(school, number + 5)
    await desert(school, number + 6)
    await reopen(school)
    return school.learned


async def publish(school: School, number: int) -> None:
    step(number, "A model is published untrained, on a chain that a block producer has begun")
    demo, producer = school.demo, school.producer
    await demo.network.up(["producer", *(t.name for t in school.trainers)], Sat(0))
    for party in (producer, *school.trainers):
        party.has_node(demo)
    mining = ("--mine", "--processes", "1", "--empty-after", "1")
    producer.start("node", *mining, "--port", str(producer.port), "--pay-to", "producer")
    await until(lambda: answers(producer), "the producer's node", 60)
    text = producer.directory / "text"
    from sidechain.model.dataset import python_documentation

    text.write_bytes(python_documentation())
    directory = producer.directory / "model"
    made = await producer.oda(
        *("model", "new", str(directory), "--text", str(text), "--keys", str(school.keys)),
    )
    school.bytes_scored = made["samples"]["public"] * json.loads(made["architecture"])["context"]
    at = ("--url", producer.url)
    added = await producer.oda(
        *("model", "add", str(directory), "--shard-keys", str(school.keys), *at)
    )
    await producer.oda("payee", "register", "--node", "producer", *at)
    school.model = added["model"]
    school.learned.score_before = added["score"]
    note(f"Model {school.model[:16]}…, {made['parameters']:,} parameters at random:")
    before = school.per_byte(added["score"])
    note(f"{before:.2f} nats per byte of Python's documentation. Eight parts of the text are")
    note("sealed: they decide whether an improvement is one.")
    note(f"The explorer is at {producer.url}")


async def answers(party: Party) -> bool:
    try:
        async with NodeClient(party.url) as client:
            await client.get("/status", dict)
    except OdaError:
        return False
    return True


async def compete(school: School, number: int) -> None:
    step(number, "Two trainers compete: who commits better weights first, is in the next block")
    for trainer in school.trainers:
        trainer.start(
            *("train", school.model, "--connect", school.producer.address),
            *("--port", str(trainer.port), "--seconds", str(TRAIN_SECONDS)),
            *("--pay-to", trainer.name, "--json"),
        )
    await asyncio.gather(*(until(lambda t=t: answers(t), t.name, 60) for t in school.trainers))  # type: ignore[misc]  # mypy can't infer a lambda's default
    await asyncio.gather(
        *(t.oda("payee", "register", "--node", t.name, "--url", t.url) for t in school.trainers)
    )
    opening = asyncio.create_task(open_shards(school))
    shown: set[str] = set()

    async def enough() -> bool:
        state = await school.state()
        for past in state.versions[1:]:
            if past.state == "confirmed" and past.version.weights_root not in shown:
                shown.add(past.version.weights_root)
                who = await name_of(school, past.version.trainer)
                now = school.per_byte(past.version.score)
                note(f"block {past.version.height:>3}: {now:.3f} nats/byte by the {who}")
        return len(shown) >= IMPROVEMENTS

    async def quiet() -> bool:
        waiting = await school.node("/mempool", dict[str, Any])
        return (await school.state()).provisional is None and not waiting["transactions"]

    try:
        await until(enough, f"{IMPROVEMENTS} improvements")
        # Whoever trains on now would only make the accounts harder to follow.
        for trainer in school.trainers:
            await pause(trainer, school)
        await until(quiet, "the last improvement to be decided")
    finally:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
    state = await school.state()
    school.learned.blocks = len(shown)
    school.learned.score_after = state.confirmed.score
    plot(
        [
            (p.version.height, school.per_byte(p.version.score))
            for p in state.versions
            if p.state == "confirmed"
        ]
    )


async def pause(trainer: Party, school: School) -> None:
    """The trainer stops training and goes on as a node: it is paid, and seeds its weights."""
    await asyncio.to_thread(trainer.daemon.stop)
    trainer.start(
        *("node", "--connect", school.producer.address, "--port", str(trainer.port)),
        *("--pay-to", trainer.name),
    )
    await until(lambda: answers(trainer), f"the {trainer.name}'s node", 60)


async def name_of(school: School, key: str) -> str:
    for party in (*school.trainers, school.producer):
        file = party.directory / "regtest" / "sidechain" / "key"
        if file.exists() and x_only(file.read_bytes()).hex() == key:
            return party.name
    return key[:16]


async def open_shards(school: School) -> None:
    """The model's owner reveals a sealed part whenever an improvement waits for its proof."""
    while True:
        state = await school.state()
        if state.provisional is not None:
            index = next(i for i, shard in enumerate(state.shards) if not shard.opened)
            await school.producer.oda(
                *("model", "open", school.model, str(index), "--shard-keys", str(school.keys)),
                *("--url", school.producer.url),
            )
        await asyncio.sleep(0.3)


def plot(points: list[tuple[int, float]], rows: int = 8) -> None:
    """Score over height, for a terminal."""
    if len(points) < 2:
        return
    lowest, highest = min(y for _, y in points), max(y for _, y in points)
    span = max(highest - lowest, 1e-9)
    width = 6 * len(points)
    grid = [[" "] * width for _ in range(rows)]
    for index, (_, y) in enumerate(points):
        row = rows - 1 - round((y - lowest) / span * (rows - 1))
        grid[row][6 * index + 2] = "●"
    for row, cells in enumerate(grid):
        value = highest - span * row / (rows - 1)
        console.print(f"   [dim]{value:5.2f} │[/]{''.join(cells)}")
    heights = "".join(f"{height:>5} " for height, _ in points)
    console.print(f"   [dim]nats  └{'─' * width}\n   block  {heights}[/]")


async def side_by_side(school: School, number: int) -> None:
    step(number, "The same question to the first version and to the newest")
    state = await school.state()
    first, newest = state.versions[0].version, state.confirmed
    said = [await asyncio.to_thread(says, school, v.infohash) for v in (first, newest)]
    table = Table("", "as published", f"after {school.learned.blocks} improvements", box=None)
    table.add_row("answer", *(repr(text) for text in said))
    bits = [f"{school.per_byte(v.score) / math.log(2):.2f}" for v in (first, newest)]
    table.add_row("bits per byte", *bits)
    console.print(table)


def says(school: School, infohash: str) -> str:
    from provider.models import load
    from sidechain.model.generate import Generation
    from sidechain.model.prompt import render_chat

    module = load(library_path(school, infohash)).module
    generation = Generation(module, render_chat([PROMPT]), 0.6, 3)
    return bytes(generation.next() for _ in range(60)).decode(errors="replace")


def library_path(school: School, infohash: str) -> Path:
    """A version's directory, wherever it was fetched to."""
    from torrent.library import Library

    for party in (school.producer, *school.trainers):
        library = Library(party.directory / "regtest" / "torrents", 1 << 40)
        if library.is_complete(bytes.fromhex(infohash)):
            return library.entry(bytes.fromhex(infohash)).data
    raise OdaError("demo-step-failed", "Nobody has that version any more.")


async def cheating(school: School, number: int) -> None:
    step(number, "A thief, a liar and one who learns by heart try for the trainer's share")
    state = await school.state()
    newest, path = state.confirmed, library_path(school, state.confirmed.infohash)
    from sidechain.model import directory

    model = await asyncio.to_thread(directory.read, path)
    folder = school.demo.data / "cheat"
    by_heart = asyncio.create_task(asyncio.to_thread(memorised, model))
    async with cheat(b"\x07" * 32, school.producer.url, folder, bytes.fromhex(school.model)) as he:
        lie = replace(model, weights=nudged(model.weights))
        lie_hash = await he.publish("lie", lie)
        stolen = bytes.fromhex(newest.weights_root)
        ripe = max([await he.commit(root) for root in (stolen, lie.weights_root)])
        learnt = await by_heart
        learnt_hash = await he.publish("by heart", learnt)
        ripe = max(ripe, await he.commit(learnt.weights_root))
        await until(lambda: reached(he, ripe), f"height {ripe}")
        await refused(
            school, he, "The thief", he.reveal(stolen, bytes.fromhex(newest.infohash), newest.score)
        )
        half = newest.score // 2
        await refused(school, he, "The liar", he.reveal(lie.weights_root, lie_hash, half))
        score = await asyncio.to_thread(learnt.score)
        note(f"By heart: {school.per_byte(score):.3f} nats/byte on what is scored, and it is true.")
        await he.send(he.reveal(learnt.weights_root, learnt_hash, score))
        opening = asyncio.create_task(open_shards(school))
        try:
            fate = await until(lambda: fate_of(school, learnt.weights_root), "the sealed part")
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        if fate == "withdrawn":
            school.learned.cheats_caught += 1
        note(f"Then a sealed part was opened, and the version was {fate}.")


async def reached(he: Cheat, height: int) -> bool:
    return await he.height() >= height


async def refused(school: School, he: Cheat, who: str, reveal: Reveal) -> None:
    """The node says no at once, or when it has scored the weights."""
    try:
        await he.send(reveal)
        reason = await until(lambda: he.refusal(reveal), f"what becomes of {who}", 60)
    except OdaError as error:
        reason = error.reason
        if reason == "demo-step-failed":
            raise
    school.learned.cheats_caught += 1
    note(f"{who}: {reason}")


async def fate_of(school: School, root: bytes) -> str | None:
    """ "confirmed" or "withdrawn", when it is decided."""
    for past in (await school.state()).versions:
        if past.version.weights_root == root.hex() and past.state != "provisional":
            return past.state
    return None


# --- the money -----------------------------------------------------------------------------------


async def earn(school: School, number: int) -> None:
    step(number, "The provider serves the newest version, and its makers are paid for every answer")
    demo = school.demo
    await asyncio.to_thread(demo.provider.stop)
    await demo.network.up(["provider", "producer"], COINS)
    async with AsyncExitStack() as stack:
        user, seller = [
            await stack.enter_async_context(Lightning(demo.socket(name)))
            for name in ("user", "provider")
        ]
        await channels(school, user, seller)
        copy = library_path(school, (await school.state()).confirmed.infohash)
        demo.start_provider(
            *("--follow", school.model, "--chain", school.producer.address, "--name", "oda-learnt"),
            settings={"SETTLE_SECONDS": "2", "SMALLEST_SHARE_MSAT": "1"},
        )
        follower = await stack.enter_async_context(
            follow(params.REGTEST, [("127.0.0.1", school.producer.port)])
        )
        client = await stack.enter_async_context(
            sdk.connect(
                demo.url,
                demo.socket("user"),
                # With a copy of the weights, some bytes of each answer are computed again.
                settings=ClientSettings(provider=demo.url, models=(copy,)),
                chain=FollowedChain(follower),
            )
        )
        for seed, question in enumerate((PROMPT, "How does a loop end?")):
            console.print(f"   [bold]{question}[/]\n   ", end="")
            answer = client.chat(question, seed=seed, max_tokens=200, temperature=0.6)
            async with aclosing(answer) as events:
                async for event in events:
                    if isinstance(event, sdk.Text):
                        console.print(event.text.replace("\n", "\n   "), end="", markup=False)
            console.print()
        (refund,) = await client.close()
        checked = await until(lambda: settled(client, refund.session), "the shares", 60)
        await told(school, checked)
        await meet_a_cheat(school, seller, follower)


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
                async for _ in client.chat(PROMPT, seed=3, max_tokens=200, temperature=0.7):
                    pass
        except BadAnswer as caught:
            school.learned.cheats_caught += 1
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


async def told(school: School, checked: Checked) -> None:
    """Who got what, by the receipt: each line is proven by an invoice that its payee signed."""
    learned = school.learned
    learned.receipts_verified += 1
    table = Table("to", "msat", box=None)
    table.add_row("provider", f"{checked.provider_msat:,}")
    for key, amount in sorted(checked.paid.items()):
        who = await name_of(school, key)
        table.add_row(who, f"{amount:,}")
        if who == "producer":
            learned.producer_msat = Msat(learned.producer_msat + amount)
        else:
            learned.trainer_msat = Msat(learned.trainer_msat + amount)
    table.add_row("spent", f"{checked.spent_msat:,}")
    console.print(table)
    total = checked.provider_msat + sum(checked.paid.values())
    learned.shares_conserved = total == checked.spent_msat
    same = "is" if learned.shares_conserved else "IS NOT"
    note(f"That {same} all that was spent; the user has checked the receipt against its own")
    note("transcript and the chain.")


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


async def desert(school: School, number: int) -> None:
    step(number, "The provider is gone for good, and the user leaves without it")
    demo = school.demo
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


async def reopen(school: School) -> None:
    """For whoever wants to go on by hand: the provider as it began, now on the sidechain."""
    demo = school.demo
    await demo.network.up(["provider"], Sat(0))
    given = ("--model", demo.magnet, "--chain", school.producer.address)
    await asyncio.to_thread(demo.start_provider, *given)


async def confirmed(node: Lightning) -> Sat:
    outputs = (await node.listfunds()).outputs
    return Sat(sum(o.amount_msat for o in outputs if o.status == "confirmed") // 1000)
