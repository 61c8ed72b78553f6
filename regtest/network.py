"""A whole Lightning network on this machine: one bitcoind and named nodes.

What runs is known from the directories alone (each daemon's lock), so any process can take the
network down, also after a crash in the middle of `up`. `network.json` keeps what must stay the
same from one run to the next: ports, and who was given coins.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from channels.errors import UserError
from channels.lightning import Lightning, LightningUnreachable
from channels.node.chain import BitcoindUnreachable
from channels.terminal import Progress, no_progress
from channels.units import Sat
from regtest.bitcoind import Miner, RegtestBitcoind, find_bitcoind
from regtest.daemon import Daemon, free_port, port_is_free
from regtest.lightningd import LightningdNode, find_lightningd
from regtest.nodes import NODE, RegtestNode

NAMES: Final = ("user", "provider")
COINS: Final = Sat(1_000_000)
PATIENCE: Final = 60
STATUS_PATIENCE: Final = 5


Kind = Literal["embedded", "lightningd"]


class NodeRecord(msgspec.Struct):
    """kind: the program that made the node's directory, and alone can read it."""

    port: int
    funded: bool = False
    kind: Kind = "embedded"


class State(msgspec.Struct):
    """`network.json`."""

    bitcoind_port: int | None = None
    nodes: dict[str, NodeRecord] = {}


class BitcoindStatus(msgspec.Struct, frozen=True):
    pid: int | None
    url: str | None
    cookie: Path
    height: int | None


class NodeStatus(msgspec.Struct, frozen=True):
    """id is None while the node does not answer; address is for peers."""

    name: str
    kind: Kind
    pid: int | None
    id: str | None
    address: str
    rpc_file: Path


class Status(msgspec.Struct, frozen=True):
    """A pid of None: it does not run."""

    directory: Path
    bitcoind: BitcoindStatus
    nodes: tuple[NodeStatus, ...]


class Network:
    """The regtest network of one directory; networks in different directories are independent.

    bitcoind and cache are where `find_bitcoind` looks; node is the command that runs a node.
    """

    def __init__(
        self,
        directory: Path,
        cache: Path,
        bitcoind: Path | None = None,
        node: Sequence[str] = NODE,
    ) -> None:
        self.directory = directory.absolute()
        self.bitcoind = RegtestBitcoind(self.directory / "bitcoind")
        self._cache = cache
        self._program = bitcoind
        self._node = node

    async def up(
        self,
        names: Sequence[str] = NAMES,
        coins: Sat = COINS,
        progress: Progress = no_progress,
        kind: Kind = "embedded",
    ) -> Status:
        """Start what does not run yet; give `coins` to every node that never got any.

        Nodes that are new are of this `kind`, the others stay what they are. What this call has
        started is stopped again if it fails or is interrupted. Raises UserError, among others:
        `other-kind` (lightningd is asked for, and an embedded node has the name).
        """
        async with self._alone():
            state = self._load()
            started: list[RegtestNode | RegtestBitcoind] = []
            try:
                self._name(state, names, kind)
                port = await self._start_bitcoind(state, started, progress)
                await self._start_nodes(state, names, port, started, progress)
                poor = [name for name in names if not state.nodes[name].funded]
                if poor and coins:
                    progress(0, None, "Funding " + ", ".join(poor))
                    await self._fund(state, poor, coins)
            except BaseException:
                for each in reversed(started):
                    each.daemon.stop()
                raise
        return await self.status()

    async def status(self) -> Status:
        """What runs and where to reach it. Changes nothing."""
        state = self._load()
        port, height = state.bitcoind_port, None
        pid = self.bitcoind.daemon.pid()
        if pid is not None and port is not None:
            async with self.bitcoind.rpc(port) as rpc:
                with suppress(BitcoindUnreachable):  # it is starting: that is the answer
                    height = await rpc.call("getblockcount")
        nodes = [
            await self._node_status(self._of(state, name), record.kind)
            for name, record in state.nodes.items()
        ]
        url = None if port is None else f"http://127.0.0.1:{port}"
        return Status(
            self.directory,
            BitcoindStatus(pid, url, self.bitcoind.cookie, height),
            tuple(nodes),
        )

    async def fund(self, name: str, amount: Sat) -> str:
        """Pay a node on chain, confirm it, and give the txid when the node has seen it."""
        async with self._alone():
            state = self._running()
            return (await self._fund(state, [name], amount))[0]

    async def mine(self, blocks: int) -> list[str]:
        """Mine blocks, wait until every running node has seen them, and give their hashes."""
        async with self._alone():
            state = self._running()
            async with self._miner(state) as miner:
                hashes = await miner.mine(blocks)
                height = await miner.rpc.call("getblockcount")
            for name in state.nodes:
                node = self._of(state, name)
                if node.daemon.pid() is not None:
                    await _until_seen(node, height)
        return hashes

    async def down(self) -> list[str]:
        """Stop whatever runs, nodes first, and give the names of what did run."""
        async with self._alone():
            directories = sorted((self.directory / "nodes").glob("*/"))
            nodes = [Daemon(f"node {path.name}", path) for path in directories]
            stopped = await asyncio.gather(*(asyncio.to_thread(node.stop) for node in nodes))
            names = [path.name for path, ran in zip(directories, stopped, strict=True) if ran]
            if await self.bitcoind.stop():
                names.append("bitcoind")
        return names

    def node(self, name: str) -> RegtestNode:
        """A node that `up` has made. Raises UserError `not-found`."""
        return self._of(self._load(), name)

    @asynccontextmanager
    async def miner(self) -> AsyncIterator[Miner]:
        """For what `mine` and `fund` do not do. Raises UserError `not-running`."""
        async with self._miner(self._running()) as miner:
            yield miner

    async def _start_bitcoind(
        self,
        state: State,
        started: list[RegtestNode | RegtestBitcoind],
        progress: Progress,
    ) -> int:
        if self.bitcoind.daemon.pid() is None or state.bitcoind_port is None:
            program = await asyncio.to_thread(find_bitcoind, self._program, self._cache, progress)
            progress(0, None, "Starting bitcoind")
            port = state.bitcoind_port
            if port is not None and not port_is_free(port) and not self._any_node_runs(state):
                port = None  # nobody depends on the port that another program has now
            # Before it is saved, only we know the port; who finds bitcoind without it restarts it.
            await self.bitcoind.stop()
            state.bitcoind_port = await self.bitcoind.start(program, port)
            started.append(self.bitcoind)
            self._save(state)
        async with self._miner(state) as miner:
            progress(0, None, "Mining the first blocks")
            await miner.prepare()
        return state.bitcoind_port

    def _name(self, state: State, names: Sequence[str], kind: Kind) -> None:
        """Make a record of every node that is new."""
        for name in names:
            if name not in state.nodes:
                taken = {record.port for record in state.nodes.values()}
                state.nodes[name] = NodeRecord(free_port(taken), kind=kind)
            elif kind == "lightningd" != state.nodes[name].kind:
                raise UserError(
                    "other-kind",
                    f"The node {name!r} is an embedded one already; choose another name, "
                    "or leave --lightningd out.",
                )
        if any(state.nodes[name].kind == "lightningd" for name in names):
            find_lightningd()  # before anything is started in vain

    async def _start_nodes(
        self,
        state: State,
        names: Sequence[str],
        bitcoind_port: int,
        started: list[RegtestNode | RegtestBitcoind],
        progress: Progress,
    ) -> None:
        nodes = [self._of(state, name) for name in names]
        self._save(state)
        progress(0, None, "Starting " + ", ".join(names))
        for node in nodes:
            if node.daemon.pid() is None:
                if not port_is_free(node.port):
                    raise UserError(
                        "port-in-use",
                        f"Port {node.port}, where the peers of node {node.name} look for it, "
                        "is in use; free it first.",
                    )
                node.start(f"http://127.0.0.1:{bitcoind_port}", self.bitcoind.cookie)
                started.append(node)
        for node in nodes:
            await asyncio.to_thread(node.wait)

    async def _fund(self, state: State, names: Sequence[str], amount: Sat) -> list[str]:
        nodes = [self._of(state, name) for name in names]
        async with self._miner(state) as miner:
            txids = []
            for node in nodes:
                async with Lightning(node.rpc_file) as lightning:
                    txids.append(await miner.send(await lightning.newaddr(), amount))
            await miner.mine(1)
        for node, txid in zip(nodes, txids, strict=True):
            await _until_funded(node, txid)
            state.nodes[node.name].funded = True
        self._save(state)
        return txids

    async def _node_status(self, node: RegtestNode, kind: Kind) -> NodeStatus:
        pid, identity = node.daemon.pid(), None
        if pid is not None:
            async with Lightning(node.rpc_file, STATUS_PATIENCE) as lightning:
                with suppress(LightningUnreachable):  # it is starting, or hangs
                    identity = (await lightning.call("getinfo"))["id"]
        address = f"127.0.0.1:{node.port}"
        return NodeStatus(node.name, kind, pid, identity, address, node.rpc_file)

    def _of(self, state: State, name: str) -> RegtestNode:
        if name not in state.nodes:
            known = ", ".join(state.nodes) or "none yet"
            raise UserError("not-found", f"There is no node {name!r}; there are: {known}.")
        path, record = self.directory / "nodes" / name, state.nodes[name]
        if record.kind == "lightningd":
            return LightningdNode(name, path, record.port, bitcoind=self._bitcoind_program)
        return RegtestNode(name, path, record.port, self._node)

    def _bitcoind_program(self) -> Sequence[str]:
        return find_bitcoind(self._program, self._cache)

    def _any_node_runs(self, state: State) -> bool:
        return any(self._of(state, name).daemon.pid() is not None for name in state.nodes)

    def _running(self) -> State:
        state = self._load()
        if self.bitcoind.daemon.pid() is None or state.bitcoind_port is None:
            raise UserError(
                "not-running",
                f"No regtest network runs in {self.directory}; start it with: oda regtest up",
            )
        return state

    @asynccontextmanager
    async def _miner(self, state: State) -> AsyncIterator[Miner]:
        if state.bitcoind_port is None:
            raise AssertionError("bitcoind has been started before")
        async with AsyncExitStack() as stack:
            rpc = await stack.enter_async_context(self.bitcoind.rpc(state.bitcoind_port))
            wallet = self.bitcoind.rpc(state.bitcoind_port, wallet=True)
            yield Miner(rpc, await stack.enter_async_context(wallet))

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """One change at a time, between processes too; the others wait for their turn."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.directory / "lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.05)
            yield

    @property
    def _file(self) -> Path:
        return self.directory / "network.json"

    def _load(self) -> State:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except msgspec.DecodeError as error:
            raise UserError(
                "bad-network-file",
                f"{self._file} can't be read ({error}); run `oda regtest down`, then remove it.",
            ) from None

    def _save(self, state: State) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
        draft.replace(self._file)


async def _until_seen(node: RegtestNode, height: int) -> None:
    async with Lightning(node.rpc_file) as lightning, _patiently(node, f"see block {height}"):
        while (await lightning.call("getinfo"))["blockheight"] < height:  # noqa: ASYNC110  (no event: the node is asked)
            await asyncio.sleep(0.02)


async def _until_funded(node: RegtestNode, txid: str) -> None:
    async with Lightning(node.rpc_file) as lightning, _patiently(node, f"see its coins ({txid})"):
        while not any(  # noqa: ASYNC110  (no event: the node is asked)
            output["txid"] == txid and output["status"] == "confirmed"
            for output in (await lightning.call("listfunds"))["outputs"]
        ):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def _patiently(node: RegtestNode, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError:
        raise node.daemon.failure(f"does not {what} within {PATIENCE} s") from None
