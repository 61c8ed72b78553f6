"""A receipt is verified long after the blocks that it names: real light nodes, real proofs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from channels import receipts
from channels.bolt import signmessage
from channels.errors import UserError
from channels.http.session import Provenance
from client import session as paid_session
from client.chain import FollowedChain
from client.check_table import CheckTable
from client.known_chain import KnownChain
from client.receipts import Checked, check, transcript
from client.sdk import connect
from client.settings import ClientSettings
from client.store import Store
from provider.share_book import Backing
from sidechain import payee
from sidechain.fees import Beneficiaries
from sidechain.follower import follow
from sidechain.node import ChainNode
from sidechain.primitives import NO_SIGNATURE, RegisterPayee
from sidechain.serving import PROOF_DEPTH
from tests.client.fakes import Shop, UserNode
from tests.provider.payees import Payee, PayeeWorld
from tests.sidechain.peering import running
from tests.sidechain.test_light_node import grown
from tests.sidechain.wire import LATER, full_node, mine
from tests.sidechain.world import BOB, CAROL, MINER, QUICK, Person, finished


@dataclass
class Resident(Payee):
    """A payee who has a key on a real sidechain."""

    person: Person = BOB

    @property
    def key(self) -> bytes:
        return self.person.key

    @property
    def secret(self) -> bytes:
        return self.person.node_secret


class Town(PayeeWorld):
    """A provider's view of a real chain."""

    def __init__(self, node: ChainNode) -> None:
        super().__init__()
        model = grown(node)
        found = node.chain.state.model(model)
        assert found is not None
        bob, miner = (Resident(p.name, self.clock, person=p) for p in (BOB, MINER))
        miner.registered = False
        self.people = [bob, miner]
        pinned = node.chain.active(node.chain.tip.height - QUICK.fee_depth)
        assert pinned is not None
        root = found.confirmed.weights_root
        self.provenance = Provenance(pinned.height, pinned.hash, model, root)

    def backing(self, model: bytes | None, weights_root: bytes | None) -> Backing | None:
        return Backing(self.provenance, Beneficiaries(BOB.key, MINER.key, MINER.key))


@dataclass
class Place:
    full: ChainNode
    address: tuple[str, int]
    town: Town
    shop: Shop

    @asynccontextmanager
    async def following(self) -> AsyncIterator[FollowedChain]:
        """A user's light node, which knows nothing yet."""
        async with follow(QUICK, [self.address], None, lambda: LATER) as follower:
            follower.light._patience = 2.0
            yield FollowedChain(follower)


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(paid_session, "REFUND_SECONDS", 2.0)
    full = full_node(tmp_path)
    town = Town(full)
    async with AsyncExitStack() as stack:
        stack.callback(full.store.close)
        peer = await stack.enter_async_context(running(full))
        (tmp_path / "shop").mkdir()
        shop = Shop(tmp_path / "shop")
        shop.payees = town
        await shop.start()
        stack.push_async_callback(shop.stop)
        yield Place(full, (peer.host, peer.port), town, shop)


async def bought(place: Place, store: Path) -> bytes:
    """The receipt of a session of which the trainer's share is paid, and the unregistered miner's
    is not."""
    async with (
        place.following() as chain,
        connect(
            place.shop.url,
            UserNode(place.shop.node),
            settings=ClientSettings(),
            store=store,
            chain=chain,
        ) as client,
    ):
        async for _ in client.chat("abc", max_tokens=1000, seed=7):
            pass
        [refund] = await client.close()
        assert place.shop.provider.desk is not None
        place.shop.clock.ahead += 4000
        place.town.clock.ahead += 4000
        await place.shop.provider.desk.settlement.tick()
        return (await client.receipt(refund.session)).encode()


async def verified(receipt: bytes, path: Path, chain: FollowedChain) -> Checked:
    """As another process would, from what is on disk alone."""
    store = Store(path)
    try:
        row = store.session(1)
        node_id = store.pinned(row.provider)
        assert node_id is not None
        known = KnownChain(chain, CheckTable(store))
        seen = transcript(row, store, node_id)
        return await check(receipts.decode(receipt), seen, 1, known)
    finally:
        store.close()


async def test_a_receipt_of_blocks_that_nobody_proves_any_more(
    place: Place, tmp_path: Path
) -> None:
    store = tmp_path / "client.sqlite"
    receipt = await bought(place, store)
    mine(place.full, PROOF_DEPTH + 8)
    async with place.following() as chain:
        with pytest.raises(UserError) as too_deep:
            await chain.beneficiaries(place.town.provenance)
        assert too_deep.value.reason == "no-proof"
        checked = await verified(receipt, store, chain)
    spent = 3 * 50 + 1000 * 250
    assert checked.spent_msat == spent
    assert checked.paid == {BOB.key.hex(): -(-spent * 5 // 100)}
    assert checked.carried == {MINER.key.hex(): -(-spent // 100)}


def moved(person: Person, node: Person) -> RegisterPayee:
    """The person is paid at another node from now on."""
    endpoint = f"http://{node.name}.example"
    text = payee.payee_text(QUICK.network_id, person.key, 2, node.node_id, endpoint)
    _, proof = signmessage.sign(node.node_secret, text)
    tx = RegisterPayee(
        QUICK.network_id, 0, person.key, 2, node.node_id, endpoint, proof, NO_SIGNATURE
    )
    return finished(QUICK, tx, person)


async def test_a_payee_that_moved_to_another_node_was_paid_all_the_same(
    place: Place, tmp_path: Path
) -> None:
    store = tmp_path / "client.sqlite"
    receipt = await bought(place, store)
    mine(place.full, 3, moved(BOB, CAROL))
    async with place.following() as chain:
        found = await chain.payees([BOB.key])
        assert found[BOB.key].node_id == CAROL.node_id
        assert BOB.key.hex() in (await verified(receipt, store, chain)).paid
