"""Payments per second between embedded nodes on disk: `python -m benchmarks.payments`.

payer - hub - payee, three processes and a real bitcoind: the payer pays the hub, over one hop, then
the payee, over two. One fixed-amount invoice per payment, made before the clock starts. Beside it
runs what bounds a node that may answer only after its state is on disk: 4 KiB appended and synced,
one after the other, on the same disk. `per fsync` is the ratio of both rates; above 1, payments
share syncs.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.table import Table

from channels.lightning import Lightning
from channels.settings import load_settings
from channels.units import Msat, Sat
from regtest.network import Network

CONCURRENCY: Final = (1, 10, 50)
CHANNEL: Final = Sat(10_000_000)
AMOUNT: Final = Msat(1_000_000)
FSYNC_SECONDS: Final = 2.0


def fsyncs_per_second(directory: Path) -> float:
    """The baseline: how often this disk can promise that 4 KiB more are safe."""
    block = os.urandom(4096)
    with (directory / "fsync").open("wb") as file:
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < FSYNC_SECONDS:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            count += 1
        return count / (time.perf_counter() - start)


async def open_channel(network: Network, opener: Lightning, peer: Lightning, port: int) -> None:
    peer_id = (await peer.getinfo()).id
    await opener.connect(peer_id, "127.0.0.1", port)
    await opener.fundchannel(peer_id, CHANNEL)
    await network.mine(1)
    for node in (opener, peer):
        # There is no event to wait for: the node is asked again.
        while any(  # noqa: ASYNC110
            channel.state != "CHANNELD_NORMAL" for channel in await node.listpeerchannels()
        ):
            await asyncio.sleep(0.05)


async def until_public(network: Network, payer: Lightning) -> None:
    """Wait until the payer knows both channels, in both directions."""
    await network.mine(6)
    while len((await payer.call("listchannels"))["channels"]) < 4:  # noqa: ASYNC110  # as above
        await asyncio.sleep(0.05)


async def xpay(rpc_file: Path, bolt11: str) -> None:
    """Straight to the socket, so that no thread of ours is part of what is measured."""
    request = {"id": "benchmark", "method": "xpay", "params": {"invstring": bolt11}}
    reader, writer = await asyncio.open_unix_connection(rpc_file)
    try:
        writer.write(json.dumps(request).encode())
        reply = json.loads(await reader.readuntil(b"\n\n"))
    finally:
        writer.close()
        await writer.wait_closed()
    if "result" not in reply:
        raise SystemExit(f"A payment failed: {reply['error']['message']}")


async def payments_per_second(
    payer: Lightning, payee: Lightning, payments: int, concurrency: int
) -> float:
    invoices = [
        (await payee.invoice(AMOUNT, f"{concurrency}/{i}", "benchmark")).bolt11
        for i in range(payments)
    ]
    waiting = iter(invoices)

    async def pay_on() -> None:
        for text in waiting:
            await xpay(payer.rpc_file, text)

    start = time.perf_counter()
    await asyncio.gather(*(pay_on() for _ in range(concurrency)))
    return payments / (time.perf_counter() - start)


async def measure(directory: Path, payments: int) -> Table:
    settings = load_settings()
    network = Network(directory, settings.cache, settings.bitcoind)
    table = Table("hops", "concurrency", "payments/s", "fsyncs/s", "payments per fsync")
    try:
        await network.up(["payer", "hub", "payee"], Sat(CHANNEL + 100_000))
        async with (
            Lightning(network.node("payer").rpc_file) as payer,
            Lightning(network.node("hub").rpc_file) as hub,
            Lightning(network.node("payee").rpc_file) as payee,
        ):
            await open_channel(network, payer, hub, network.node("hub").port)
            await open_channel(network, hub, payee, network.node("payee").port)
            await until_public(network, payer)
            for hops, payee_of_it in ((1, hub), (2, payee)):
                for concurrency in CONCURRENCY:
                    baseline = fsyncs_per_second(directory)
                    rate = await payments_per_second(payer, payee_of_it, payments, concurrency)
                    table.add_row(
                        str(hops),
                        str(concurrency),
                        f"{rate:.0f}",
                        f"{baseline:.0f}",
                        f"{rate / baseline:.2f}",
                    )
    finally:
        await network.down()
    return table


def main(payments: int = 500, directory: Path | None = None) -> None:
    """Measure on the disk of `directory` (default: that of temporary files)."""
    with tempfile.TemporaryDirectory(prefix="oda-", dir=directory) as below:
        table = asyncio.run(measure(Path(below), payments))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
