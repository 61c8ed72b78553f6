"""Embedded nodes as processes of their own, for tests that need the real thing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from channels.lightning import Lightning, LightningError, LightningUnreachable
from channels.units import Sat
from regtest.bitcoind import Miner
from regtest.daemon import free_port
from regtest.lightningd import LightningdNode
from regtest.nodes import NODE, RegtestNode
from tests.conftest import Chain

PATIENCE = 30
COINS = Sat(2_000_000)


async def until(
    condition: Callable[[], Awaitable[Any]], what: str, within: float = PATIENCE
) -> Any:
    """Ask again until the answer is true; other processes have no event to wait for."""
    try:
        async with asyncio.timeout(within):
            while not (answer := await condition()):  # noqa: ASYNC110  # as said above
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {within} s in vain: {what}") from None
    return answer


class LightningNode:
    """One node, running or not. `rpc` works again whenever the process does."""

    def __init__(self, chain: Chain, process: RegtestNode) -> None:
        self.chain = chain
        self.process = process
        self.rpc = Lightning(process.rpc_file)
        self.id = ""

    async def start(self) -> None:
        self.process.start(self.chain.url, self.chain.cookie)
        await asyncio.to_thread(self.process.wait)
        self.id = (await self.rpc.getinfo()).id

    async def stop(self) -> None:
        """SIGTERM, and wait until it has ended."""
        await asyncio.to_thread(self.process.daemon.stop)

    async def kill(self) -> None:
        """SIGKILL: it gets no chance to tidy up."""
        await asyncio.to_thread(self.process.daemon.kill)

    async def until_ended(self) -> None:
        async def ended() -> bool:
            return self.process.daemon.pid() is None

        await until(ended, f"{self.process.name} ends")

    async def connect(self, peer: LightningNode) -> None:
        await self.rpc.connect(peer.id, "127.0.0.1", peer.process.port)

    async def channels(self) -> list[dict[str, Any]]:
        channels: list[dict[str, Any]] = (await self.rpc.call("listpeerchannels"))["channels"]
        return channels

    async def until_state(self, state: str, channel_id: str | None = None) -> None:
        """Wait until all channels, or this one, have a state."""

        async def reached() -> bool:
            chosen = [c for c in await self.channels() if channel_id in (None, c["channel_id"])]
            return bool(chosen) and all(c["state"] == state for c in chosen)

        await until(reached, f"{self.process.name}'s channels reach {state}")

    async def until_usable(self) -> None:
        """Wait until every channel that is not closed can carry payments (again)."""

        async def usable() -> bool:
            return all(
                c["state"] == "CHANNELD_NORMAL" and c.get("reestablished")
                for c in await self.channels()
                if c["state"] not in ("ONCHAIN", "CLOSED")
            )

        await until(usable, f"{self.process.name} can pay")

    async def until_usable_or_closing(self, channel_id: str) -> None:
        """Wait until a channel is connected again, whether or not its closing has begun."""

        async def connected() -> bool:
            (channel,) = [c for c in await self.channels() if c["channel_id"] == channel_id]
            done = channel["state"] in ("CLOSINGD_COMPLETE", "ONCHAIN")
            return bool(done or channel.get("reestablished"))

        await until(connected, f"{self.process.name} goes on with the channel")

    async def until_height(self, height: int) -> None:
        async def seen() -> bool:
            info: dict[str, Any] = await self.rpc.call("getinfo")
            return bool(info["blockheight"] >= height)

        await until(seen, f"{self.process.name} sees block {height}")

    async def new_invoice(self, amount: int | str, label: str, **options: Any) -> str:
        invoice = await self.rpc.call(
            "invoice", amount_msat=amount, label=label, description=label, **options
        )
        text: str = invoice["bolt11"]
        return text

    async def pay(self, bolt11: str, **options: Any) -> dict[str, Any]:
        """`xpay`, with any number at once: no threads stand between the caller and the socket.

        Raises LightningError and LightningUnreachable, as `rpc` does.
        """
        params = {"invstring": bolt11, **options}
        request = {"jsonrpc": "2.0", "id": "pay", "method": "xpay", "params": params}
        try:
            reader, writer = await asyncio.open_unix_connection(self.process.rpc_file)
            async with contextlib.aclosing(_Closing(writer)):
                writer.write(json.dumps(request).encode())
                async with asyncio.timeout(2 * PATIENCE):
                    reply = json.loads(await reader.readuntil(b"\n\n"))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise LightningUnreachable("lightning-unreachable", str(error)) from error
        if "error" in reply:
            raise LightningError(reply["error"]["code"], reply["error"]["message"])
        result: dict[str, Any] = reply["result"]
        return result


class _Closing:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Nodes:
    """Nodes on one chain, below one directory."""

    def __init__(self, chain: Chain, directory: Path) -> None:
        self.chain = chain
        self.directory = directory
        self.all: list[LightningNode] = []

    def make(self, name: str, command: Sequence[str] = NODE) -> LightningNode:
        """A node that is not started yet."""
        return self._add(RegtestNode(name, self.directory / name, self._free_port(), command))

    def make_lightningd(self, name: str, *options: str) -> LightningNode:
        """Core Lightning that is not started yet; skips the test where it is not installed."""
        if shutil.which("lightningd") is None:
            pytest.skip("lightningd is not on PATH")
        directory, port = self.directory / name, self._free_port()
        process = LightningdNode(
            name, directory, port, bitcoind=lambda: self.chain.program, options=options
        )
        return self._add(process)

    def _free_port(self) -> int:
        return free_port({node.process.port for node in self.all})

    def _add(self, process: RegtestNode) -> LightningNode:
        node = LightningNode(self.chain, process)
        self.all.append(node)
        return node

    async def start(self, *names: str, coins: Sat = COINS) -> list[LightningNode]:
        """Running nodes, each with one confirmed coin (none when `coins` is 0)."""
        nodes = [self.make(name) for name in names]
        await asyncio.gather(*(node.start() for node in nodes))
        if coins:
            await self.give(coins, *nodes)
        return nodes

    async def give(self, coins: Sat, *nodes: LightningNode) -> None:
        process, port = self.chain.process, self.chain.port
        async with self.chain.rpc() as rpc, process.rpc(port, wallet=True) as wallet:
            for node in nodes:
                await Miner(rpc, wallet).send(await node.rpc.newaddr(), coins)
        await self.mine(1, *nodes)

    async def mine(self, blocks: int, *nodes: LightningNode) -> list[str]:
        """Mine, and wait until these nodes (default: all that run) have seen it."""
        hashes = await self.chain.mine(blocks)
        async with self.chain.rpc() as rpc:
            height = await rpc.call("getblockcount")
        running = nodes or [n for n in self.all if n.process.daemon.pid() is not None]
        await asyncio.gather(*(node.until_height(height) for node in running))
        return hashes

    async def until_in_mempool(self, txid: str) -> None:
        """Wait until bitcoind has a transaction: lightningd answers before that."""
        async with self.chain.rpc() as rpc:

            async def arrived() -> bool:
                return txid in await rpc.call("getrawmempool")

            await until(arrived, f"bitcoind has {txid}")

    async def open(
        self, opener: LightningNode, accepter: LightningNode, amount: Sat, **options: Any
    ) -> dict[str, Any]:
        """A channel that both sides can use; the answer of fundchannel."""
        await opener.connect(accepter)
        opened = await opener.rpc.call("fundchannel", id=accepter.id, amount=amount, **options)
        # lightningd says mindepth only if it was asked for one; it wants 1 on regtest.
        await self.mine(opened.get("mindepth", 1), opener, accepter)
        for node in (opener, accepter):
            await node.until_state("CHANNELD_NORMAL", opened["channel_id"])
            await node.until_usable()
        return opened

    def stop_all(self) -> None:
        for node in self.all:
            # What tests check is behind us, so there is nothing to wait for.
            node.process.daemon.stop(patience=0)
            asyncio.run(node.rpc.aclose())


@contextlib.contextmanager
def nodes_on(chain: Chain) -> Iterator[Nodes]:
    """Nodes that are gone afterwards, with all that they stored."""
    # Not a temporary directory of pytest: the path of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="oda-") as directory:
        nodes = Nodes(chain, Path(directory))
        try:
            yield nodes
        finally:
            nodes.stop_all()


# --- conservation ---------------------------------------------------------------------------------


async def until_settled(*nodes: LightningNode) -> None:
    """Wait until no HTLC is under way and no payment is pending."""

    async def settled() -> bool:
        for node in nodes:
            if any(c["htlcs"] for c in await node.channels()):
                return False
            if any(p.status == "pending" for p in await node.rpc.listpays()):
                return False
        return True

    await until(settled, "every HTLC is settled and every payment known")


async def balances(*nodes: LightningNode) -> list[int]:
    """What each node has in channels, in msat."""
    return [sum(c["to_us_msat"] for c in await node.channels()) for node in nodes]


async def sent(node: LightningNode) -> int:
    return sum(p.amount_sent_msat or 0 for p in await node.rpc.listpays() if p.status == "complete")


async def received(node: LightningNode) -> int:
    return sum(
        i.amount_received_msat or 0 for i in await node.rpc.listinvoices() if i.status == "paid"
    )


async def check_conserved(one: LightningNode, two: LightningNode, before: Sequence[int]) -> None:
    """No msat is lost or doubled since `before` (balances without any payment)."""
    await until_settled(one, two)
    totals = [sum(c["total_msat"] for c in await node.channels()) for node in (one, two)]
    now = await balances(one, two)
    assert totals[0] == totals[1] == sum(now)
    sums = [(await sent(node), await received(node)) for node in (one, two)]
    assert sums[0][0] == sums[1][1], "what one has sent, two was paid"
    assert sums[1][0] == sums[0][1], "what two has sent, one was paid"
    assert now == [b - s + r for b, (s, r) in zip(before, sums, strict=True)]
