from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from channels import lightning_answers as answers
from channels.bolt import invoice as bolt11
from channels.bolt import keys
from channels.lightning import LightningError, LightningUnreachable
from channels.receipts import check_invoice
from channels.sum_tree import Sum
from channels.units import Msat, UnixTime
from sidechain.payout import EXPIRY, PATH, PER_MINUTE, Payout

SECRET = b"\x21" * 32
ROOT = b"\x51" * 32
Client = TestClient[web.Request, web.Application]


class Node:
    """Makes real invoices, and forgets nothing but what it is told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.rows: dict[str, answers.Invoice] = {}
        self.made = 0
        self.down = False

    async def invoice(
        self,
        amount_msat: Msat | None,
        label: str,
        description: str,
        *,
        expiry: int | None = None,
        deschashonly: bool | None = None,
    ) -> answers.NewInvoice:
        if self.down:
            raise LightningUnreachable("lightning-unreachable", "No Lightning node answers.")
        assert deschashonly and expiry and amount_msat and label not in self.rows
        self.made += 1
        payment_hash = sha256(str(self.made).encode()).digest()
        value = bolt11.Invoice(
            "bcrt",
            amount_msat,
            UnixTime(int(self.now)),
            payment_hash,
            payment_secret=bytes(32),
            description_hash=sha256(description.encode()).digest(),
            expiry=expiry,
            features=frozenset({8, 14}),
        )
        text = bolt11.encode(value, SECRET)
        until = UnixTime(int(self.now) + expiry)
        hash_hex = payment_hash.hex()
        self.rows[label] = answers.Invoice(
            label, hash_hex, "unpaid", until, self.made, bolt11=text, amount_msat=amount_msat
        )
        return answers.NewInvoice(text, hash_hex, "00" * 32, until, self.made)

    async def listinvoices(
        self, *, label: str | None = None, payment_hash: str | None = None
    ) -> list[answers.Invoice]:
        return [row for row in self.rows.values() if row.label == label]

    async def delinvoice(self, label: str, status: str) -> answers.Invoice:
        if label not in self.rows:
            raise LightningError(905, "no such invoice")
        return self.rows.pop(label)


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    app = web.Application()
    app.add_routes(Payout(node, lambda: node.now).routes())
    async with TestClient(TestServer(app)) as made:
        yield made


async def ask(client: Client, amount: int = 5000, root: str = ROOT.hex()) -> str:
    async with client.post(PATH, json={"amount_msat": amount, "root": root}) as response:
        assert response.status == 200
        return str((await response.json())["invoice"])


async def refused(client: Client, body: bytes) -> tuple[int, str]:
    async with client.post(PATH, data=body) as response:
        assert response.content_type == "application/problem+json"
        return response.status, (await response.json())["type"]


async def test_the_invoice_commits_to_the_batch(client: Client, node: Node) -> None:
    text = await ask(client)
    check_invoice(
        text, "regtest", keys.public_key(SECRET), Sum(ROOT, Msat(5000)), UnixTime(int(node.now))
    )


async def test_the_same_batch_has_one_invoice(client: Client, node: Node) -> None:
    first = await ask(client)
    assert await ask(client) == first
    assert await ask(client, 5001) != first
    node.now += EXPIRY - 60
    assert await ask(client) != first  # it would expire while it is paid
    assert node.made == 3


async def test_what_was_paid_is_told_again(client: Client, node: Node) -> None:
    """The payer crashed before it knew: another invoice would be paid twice."""
    first = await ask(client)
    label, row = next(iter(node.rows.items()))
    node.rows[label] = msgspec.structs.replace(row, status="paid")
    node.now += 10 * EXPIRY
    assert await ask(client) == first


async def test_strangers_have_so_many_made_a_minute(client: Client, node: Node) -> None:
    for number in range(PER_MINUTE):
        await ask(client, root=f"{number:064x}")
    body = msgspec.json.encode({"amount_msat": 1, "root": "ff" * 32})
    assert await refused(client, body) == (429, "urn:oda:too-many-invoices")
    await ask(client, root=f"{0:064x}")
    node.now += 1
    assert node.made == PER_MINUTE
    await ask(client, root="ff" * 32)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"amount_msat": 0, "root": "00" * 32},
        {"amount_msat": 1 << 60, "root": "00" * 32},
        {"amount_msat": "1", "root": "00" * 32},
        {"amount_msat": 1, "root": "00"},
        {"amount_msat": 1, "root": "00" * 32, "label": "mine"},
    ],
)
async def test_bad_questions(client: Client, document: dict[str, Any]) -> None:
    assert await refused(client, msgspec.json.encode(document)) == (400, "urn:oda:bad-request")


async def test_long_questions(client: Client, node: Node) -> None:
    assert (await refused(client, b" " * 5000))[0] == 413
    assert (await refused(client, b""))[0] == 400


async def test_a_node_that_is_down(client: Client, node: Node) -> None:
    node.down = True
    body = msgspec.json.encode({"amount_msat": 1, "root": "00" * 32})
    assert await refused(client, body) == (503, "urn:oda:lightning-unreachable")
