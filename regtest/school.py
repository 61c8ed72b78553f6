"""Who takes part in `make demo`, where each has its programs and files, and how it is told.

Everybody has a data directory, and so a key, of his own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.console import Console

from channels.errors import OdaError
from channels.lightning import Lightning
from channels.units import Msat, Sat
from client import sdk
from regtest.daemon import Daemon, free_port
from regtest.network import Network
from regtest.record import Score
from regtest.recorder import Recorder
from sidechain import api
from sidechain.node_client import NodeClient
from sidechain.primitives import x_only
from torrent.library import Library

ODA: Final = Path(sys.executable).parent / "oda"
WITHIN: Final = 180.0
MICRO: Final = 1_000_000

console = Console(highlight=False, soft_wrap=True)
recorder: Final = Recorder()
"""Of the one run that a process tells."""
T = TypeVar("T")


def step(number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}.[/] [bold]{text}[/]")
    recorder.step(number, text)


def note(text: str) -> None:
    console.print(f"   [dim]{text}[/]")


def sats(amount: int) -> str:
    """Of msat, to the msat."""
    sign = "-" if amount < 0 else ""
    return f"{sign}{abs(amount) // 1000:,}.{abs(amount) % 1000:03}"


async def shown(answer: AsyncGenerator[sdk.Event, None]) -> AsyncGenerator[sdk.Event, None]:
    """The same events, and the answer printed as it comes, with a mark for every top-up."""
    console.print("   ", end="")
    try:
        async with aclosing(answer) as events:
            async for event in events:
                match event:
                    case sdk.Text(part):
                        console.print(part.replace("\n", "\n   "), end="", markup=False)
                    case sdk.TopUp():
                        console.print("[yellow]+[/]", end="")
                yield event
    finally:
        console.print()


async def until(holds: Callable[[], Awaitable[T | None]], what: str, within: float = WITHIN) -> T:
    """Ask again until the answer is true, and give it."""
    deadline = time.monotonic() + within
    while not (answer := await holds()):
        if time.monotonic() > deadline:
            raise OdaError("demo-step-failed", f"Waited {within:.0f} s in vain for {what}.")
        await asyncio.sleep(0.3)
    return answer


@dataclass
class Demo:
    """The places and programs of one run. Everything lies below `data` and is made anew."""

    data: Path
    cache: Path
    port: int
    network: Network = field(init=False)
    seeder: Daemon = field(init=False)
    provider: Daemon = field(init=False)
    school: School = field(init=False)
    magnet: str = ""

    def __post_init__(self) -> None:
        self.network = Network(self.data / "regtest", self.cache)
        self.seeder = Daemon("oda seed", self.data / "seeder")
        self.provider = Daemon("oda provider", self.data / "regtest" / "provider")
        self.school = School(self)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def socket(self, name: str) -> Path:
        return self.data / "regtest" / "nodes" / name / "lightning-rpc"

    def start_seeder(self, model: Path) -> None:
        """Somebody else on the network has the model: a program with a data directory of its own.

        What it says first is the magnet link.
        """
        there = f"ODA_DATA={self.seeder.directory}"
        self.seeder.start(["env", there, str(ODA), "seed", str(model), "--json"])
        self.seeder.wait(self._seeds, 60)

    def _seeds(self) -> bool:
        said = [line for line in self.seeder.log.read_text().splitlines() if line[:1] == "{"]
        if said:
            self.magnet = json.loads(said[0])["torrents"][0]["magnet"]
        return bool(said)

    def start_provider(self, *given: str, settings: Mapping[str, str] | None = None) -> None:
        """The provider is a program of its own, so that it can be killed. given: what it serves,
        the seeder's model by default."""
        named = [f"ODA_PROVIDER_{name}={value}" for name, value in (settings or {}).items()]
        served = given or ("--model", self.magnet)
        program = (str(ODA), "provider", *served, "--port", str(self.port))
        self.provider.start(["env", *named, *program])
        self.provider.wait(self._answers, 120)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:  # noqa: S310  # our own http URL on loopback
                return bool(answer.status == 200)
        except OSError:
            return False

    def model(self) -> dict[str, Any]:
        """What the provider says that it serves."""
        with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5) as answer:  # noqa: S310  # as above
            entry: dict[str, Any] = json.load(answer)["data"][0]
        return entry

    async def down(self) -> None:
        await asyncio.to_thread(self.provider.stop)
        await asyncio.to_thread(self.seeder.stop)
        await self.school.down()
        await self.network.down()


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
    """What the second half adds to the demo's last line. Accuracy: per cent of digits that nobody
    has trained on."""

    blocks: int = 0
    score_before: int = 0
    score_after: int = 0
    digits_accuracy_before: int = 0
    digits_accuracy_after: int = 0
    cheats_caught: int = 0
    trainer_msat: Msat = Msat(0)
    producer_msat: Msat = Msat(0)
    receipts_verified: int = 0
    shares_conserved: bool = True
    served_after_seconds: float = 0.0
    forced_close_sat: Sat = Sat(0)


class School:
    """Everybody of the second half."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.producer = Party("producer", demo.data / "producer")
        self.trainers = [Party(name, demo.data / name) for name in ("trainer", "rival")]
        self.pupil = Party("pupil", demo.data / "pupil")
        self.stranger = Party("stranger", demo.data / "stranger")
        self.model = ""
        self.names: dict[str, str] = {}
        """By key: of those who are no party of their own."""
        self.bytes_scored = 1
        self.learned = Learned()

    @property
    def keys(self) -> Path:
        return self.producer.directory / "shards.keys"

    def per_byte(self, score: int) -> float:
        """nats; only for people to read."""
        return score / MICRO / self.bytes_scored

    async def down(self) -> None:
        for party in (self.stranger, self.pupil, *self.trainers, self.producer):
            await asyncio.to_thread(party.daemon.stop)

    async def node(self, path: str, kind: type[T]) -> T:
        async with NodeClient(self.producer.url) as client:
            return await client.get(path, kind)

    def caught(self, who: str, reason: str, sentence: str = "") -> None:
        self.learned.cheats_caught += 1
        recorder.caught(who, reason, sentence)

    async def state(self) -> api.Model:
        return await self.node(f"/models/{self.model}", api.Model)


async def remember_scores(school: School, model: str, name: str, unit: str, units: int) -> None:
    """For the report: every version of a model, who made it, and its score per unit."""
    for past in (await school.node(f"/models/{model}", api.Model)).versions:
        version = past.version
        shown = round(version.score / MICRO / units, 6)
        who = await name_of(school, version.trainer)
        score = (name, version.height, version.score, shown, unit, who, version.trainer)
        recorder.score(Score(*score, past.state))


async def answers(party: Party) -> bool:
    try:
        async with NodeClient(party.url) as client:
            await client.get("/status", dict)
    except OdaError:
        return False
    return True


async def name_of(school: School, key: str) -> str:
    for party in (*school.trainers, school.pupil, school.producer):
        file = party.directory / "regtest" / "sidechain" / "key"
        if file.exists() and x_only(file.read_bytes()).hex() == key:
            return party.name
    return school.names.get(key, key[:16])


def library_path(school: School, infohash: str) -> Path:
    """A version's directory, wherever it was fetched to."""
    for party in (school.producer, *school.trainers):
        library = Library(party.directory / "regtest" / "torrents", 1 << 40)
        if library.is_complete(bytes.fromhex(infohash)):
            return library.entry(bytes.fromhex(infohash)).data
    raise OdaError("demo-step-failed", "Nobody has that version any more.")


async def confirmed(node: Lightning) -> Sat:
    outputs = (await node.listfunds()).outputs
    return Sat(sum(o.amount_msat for o in outputs if o.status == "confirmed") // 1000)
