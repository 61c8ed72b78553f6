"""`oda` finds out by itself who pays shares: programs, a sidechain, Lightning nodes, all real."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from channels.terminal import ExitCode
from channels.units import Sat
from provider.models import first_model
from regtest.daemon import free_port
from sidechain.model.architecture import ByteTransformer
from sidechain.model.trainer import Budget
from tests.conftest import Chain
from tests.nodes import COINS, LightningNode, Nodes, nodes_on, until
from tests.provider.test_processes import Programs, told

ENDLESS = "1000000"
QUESTION = ("chat", "What is a list?", "--max-tokens", "80", "--seed", "5", "--temperature", "0.9")


class House:
    """A user, a shop and a block producer who is owed half of what is spent."""

    def __init__(self, programs: Programs, model: Path, *nodes: LightningNode) -> None:
        self.programs = programs
        self.model = model
        self.user, self.shop, self.miner = nodes
        self.port = free_port()
        self.chain = ""
        self.seller: subprocess.Popen[str] | None = None

    async def found_chain(self) -> None:
        nodes = self.programs.path / "chain" / "regtest" / "nodes"
        nodes.mkdir(parents=True)
        (nodes / "miner").symlink_to(self.miner.process.rpc_file.parent)
        mining = ("--mine", "--processes", "1", "--empty-after", "3600", "--pay-to", "miner")
        node = self.programs.start("chain", "node", *mining, "--port", "0")
        self.chain = (await told(node))["url"]

    async def pays_at(self, endpoint: str) -> None:
        """Twice, so that it is buried under a block."""
        for _ in range(2):
            asked = ("--node", "miner", "--url", self.chain, "--endpoint", endpoint)
            process = self.programs.start("chain", "payee", "register", *asked)
            assert "height" in await told(process)
            assert process.wait() == 0

    async def sell(self, settle_seconds: str) -> None:
        """On the same port and ledger as before, after a kill -9."""
        if self.seller is not None:
            self.seller.kill()
            self.seller.wait()
        self.seller = self.programs.start(
            *("shop", "provider", "--rpc-file", str(self.shop.process.rpc_file)),
            *("--port", str(self.port), "--model", str(self.model)),
            ODA_PROVIDER_CHAIN=self.chain.removeprefix("http://"),
            ODA_PROVIDER_PRODUCERS_PPM="500000",
            ODA_PROVIDER_SETTLE_SECONDS=settle_seconds,
        )
        assert (await told(self.seller))["url"].endswith(f":{self.port}/v1")

    async def oda(self, *arguments: str, code: int = 0) -> Any:
        process = self.programs.start(
            "user",
            *arguments,
            ODA_LIGHTNING_RPC_FILE=str(self.user.process.rpc_file),
            ODA_CLIENT_PROVIDER=f"http://127.0.0.1:{self.port}",
            ODA_CLIENT_CHAIN=self.chain.removeprefix("http://"),
            ODA_CLIENT_SHARE_GRACE_SECONDS="1",
        )
        document = await told(process)
        assert process.wait() == code, document
        return document

    async def buy(self) -> int:
        """-> the closed session."""
        await self.oda(*QUESTION)
        (refund,) = (await self.oda("close"))["refunds"]
        return int(refund["session"])

    async def seller_entry(self) -> Any:
        """As `oda providers` lists it."""
        entries = (await self.oda("providers"))["providers"]
        return next(each for each in entries if each["url"].endswith(f":{self.port}"))


@pytest.fixture
def nodes(bitcoind: Chain) -> Iterator[Nodes]:
    with nodes_on(bitcoind) as made:
        yield made


@pytest.fixture
async def house(nodes: Nodes, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Of embedded nodes, unless a test asks for lightningd's."""
    make = nodes.make_lightningd if getattr(request, "param", "") == "lightningd" else nodes.make
    user, shop, miner = (make(name) for name in ("user", "shop", "miner"))
    model = first_model(
        tmp_path / "cache",
        # Enough for words: a client leaves an answer that is garbage.
        budget=Budget(steps=400),
        architecture=ByteTransformer(width=16, blocks=1, heads=4, context=16),
    )
    await asyncio.gather(*(node.start() for node in (user, shop, miner)))
    await nodes.give(COINS, user, shop, miner)
    await nodes.open(user, shop, Sat(100_000), push_msat=20_000_000)
    await nodes.open(shop, miner, Sat(100_000))
    with Programs(tmp_path) as programs:
        made = House(programs, model, user, shop, miner)
        await made.found_chain()
        yield made


@pytest.mark.timeout(600)
async def test_who_pays_and_who_does_not(house: House) -> None:
    await house.pays_at(f"{house.chain}/payee/invoice")
    await house.sell(ENDLESS)
    first = await house.buy()

    async def news() -> Any:
        return (await house.oda("providers"))["receipts"]

    (bad,) = await until(news, "the user is told of shares that were not paid", within=240)
    assert (bad["session"], bad["state"], bad["reason"]) == (first, "unpaid", "shares-unpaid")
    entry = await house.seller_entry()
    assert entry["owes_shares"] is True
    assert entry["score"] < 1000

    async def state(session: int, code: int = 0) -> str:
        rows = await house.oda("receipt", "check", str(session), code=code)
        return str(next(row for row in rows if row["session"] == session)["state"])

    assert await state(first, ExitCode.REFUSED) == "unpaid"

    # It is paid after all, and forgiven.
    await house.sell("1")

    async def paid() -> bool:
        await house.oda("providers")
        rows = await house.oda("receipt", "list")
        return any(row["session"] == first and row["state"] == "paid" for row in rows)

    await until(paid, "the receipt proves that the producer was paid", within=240)
    entry = await house.seller_entry()
    assert (entry["owes_shares"], entry["score"]) == (False, 1000)
    received = (await house.miner.rpc.call("listinvoices"))["invoices"]
    assert [each["status"] for each in received] == ["paid"]

    # Somebody who can't be reached is not the provider's fault.
    await house.pays_at("http://127.0.0.1:1/payee/invoice")
    second = await house.buy()

    async def looked() -> Any:
        await house.oda("receipt", "check", str(second))
        rows = await house.oda("receipt", "list")
        row = next(row for row in rows if row["session"] == second)
        return row if "can't be reached" in (row["message"] or "") else None

    row = await until(looked, "it is seen that the payee can't be reached", within=240)
    assert row["state"] == "carried"
    assert (await house.seller_entry())["owes_shares"] is False


@pytest.mark.timeout(600)
@pytest.mark.parametrize("house", ["lightningd"], indirect=True)
async def test_shares_between_nodes_of_lightningd(house: House) -> None:
    """An invoice commits to its batch by the hash of the description; its preimage proves it."""
    await house.pays_at(f"{house.chain}/payee/invoice")
    await house.sell("1")
    session = await house.buy()

    async def paid() -> bool:
        await house.oda("providers")
        rows = await house.oda("receipt", "list")
        return any(row["session"] == session and row["state"] == "paid" for row in rows)

    await until(paid, "the receipt proves that the producer was paid", within=240)
    invoices = (await house.miner.rpc.call("listinvoices"))["invoices"]
    assert "paid" in {invoice["status"] for invoice in invoices}
    for invoice in invoices:
        decoded = await house.shop.rpc.decode(invoice["bolt11"])
        assert decoded.payee == house.miner.id
        assert decoded.description_hash is not None and decoded.description is None
