"""A provider that follows the sidechain, over real WebSockets to a full node in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from channels.errors import RemoteProtocolError, UserError
from channels.http.session import Provenance
from channels.units import UnixTime
from client.chain import FollowedChain
from provider.announcing import announcement, announcing
from provider.lineage import FollowedLineage
from provider.serving import Models, Served
from provider.share_book import Backing
from sidechain.fees import Beneficiaries
from sidechain.follower import Follower, follow
from sidechain.node import ChainNode
from sidechain.state import Version
from tests.provider.fakes import MODEL, PACE, PRICE, FakeEngine
from tests.provider.payees import SHARES
from tests.sidechain.peering import Running, running, until
from tests.sidechain.test_light_node import grown
from tests.sidechain.wire import LATER, full_node
from tests.sidechain.world import ALICE, BOB, MINER, QUICK


@dataclass
class Here:
    full: ChainNode
    peer: Running
    follower: Follower
    model: bytes


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    full = full_node(tmp_path)
    model = grown(full)
    async with AsyncExitStack() as stack:
        stack.callback(full.store.close)
        peer = await stack.enter_async_context(running(full))
        places = [(peer.host, peer.port)]
        follower = await stack.enter_async_context(
            follow(QUICK, places, tmp_path / "headers.sqlite", lambda: LATER)
        )
        yield Here(full, peer, follower, model)


class Watched(Models):
    """Remembers what was known of weights when they were about to be served."""

    lineage: FollowedLineage

    def __init__(self, first: Served) -> None:
        super().__init__([first])
        self.known: list[Backing | None] = []

    def swap(self, new: Served) -> None:
        self.known.append(self.lineage.backing(new.model, new.weights_root))
        super().swap(new)


def served(here: Here, root: bytes | None) -> Served:
    plain = Served(FakeEngine(), PRICE, PACE, UnixTime(0))
    return replace(plain, model=here.model, weights_root=root, shares=SHARES)


def confirmed(here: Here) -> Version:
    model = here.full.chain.state.model(here.model)
    assert model is not None
    return model.confirmed


async def test_who_is_owed_is_known_before_anything_is_served(here: Here) -> None:
    root = confirmed(here).weights_root
    lineage = FollowedLineage(here.follower, Models([served(here, root)]))
    assert lineage.backing(here.model, root) is None
    async with lineage.running():
        backing = lineage.backing(here.model, root)
    assert backing is not None
    pinned = here.full.chain.active(here.full.chain.tip.height - QUICK.fee_depth)
    assert pinned is not None
    assert backing.provenance == Provenance(pinned.height, pinned.hash, here.model, root)
    assert backing.beneficiaries == Beneficiaries(BOB.key, MINER.key, MINER.key)
    assert lineage.version(here.model) == confirmed(here)


async def test_an_unregistered_model_owes_its_producer_alone(here: Here) -> None:
    plain = replace(served(here, None), model=None)
    lineage = FollowedLineage(here.follower, Models([plain]))
    await lineage.look()
    backing = lineage.backing(None, None)
    assert backing is not None
    assert backing.beneficiaries == Beneficiaries(None, MINER.key, None)


async def test_newer_weights_take_the_place_of_older_ones(here: Here) -> None:
    models = Watched(served(here, b"\x01" * 32))
    told: list[Version] = []

    async def newer(model: bytes, version: Version) -> None:
        told.append(version)
        await lineage.adopt(served(here, version.weights_root))

    lineage = models.lineage = FollowedLineage(here.follower, models, newer)
    await lineage.look()
    assert told == [confirmed(here)]
    # Whoever asks for a challenge from then on is told whose they are: it was known before.
    assert models.known == [lineage.backing(here.model, confirmed(here).weights_root)] != [None]
    await lineage.look()
    assert len(told) == 1
    assert list(models.current) == [MODEL]


async def test_what_nobody_can_be_paid_for_is_not_adopted(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = served(here, b"\x01" * 32), served(here, confirmed(here).weights_root)
    models = Models([old])

    async def unknown(*_: object) -> Beneficiaries:
        raise UserError("no-proof", "Nobody proves it.")

    monkeypatch.setattr(here.follower, "beneficiaries", unknown)
    with pytest.raises(UserError, match="Nobody proves it"):
        await FollowedLineage(here.follower, models).adopt(new)
    assert models.current[MODEL] is old
    assert isinstance(new.engine, FakeEngine) and new.engine.closed


async def test_what_an_upstream_has_next_is_backed_already(here: Here) -> None:
    lineage = FollowedLineage(here.follower, Models([]))
    await lineage.look()
    backing = lineage.backing(None, None)
    assert backing is not None
    assert backing.beneficiaries == Beneficiaries(None, MINER.key, None)


async def test_a_model_that_is_on_no_chain(here: Here) -> None:
    unknown = replace(served(here, b"\x01" * 32), model=b"\x02" * 32)
    with pytest.raises(UserError) as caught:
        await FollowedLineage(here.follower, Models([unknown])).look()
    assert caught.value.reason == "unknown-model"


async def test_payees(here: Here) -> None:
    lineage = FollowedLineage(here.follower, Models([]))
    found = await lineage.payee(BOB.key)
    assert found is not None
    assert found.node_id == BOB.node_id
    assert await lineage.payee(ALICE.key) is None


async def test_the_user_sees_the_same(here: Here) -> None:
    chain = FollowedChain(here.follower)
    root = confirmed(here).weights_root
    tip = here.full.chain.tip
    provenance = Provenance(tip.height - 1, tip.ancestor(tip.height - 1).hash, here.model, root)
    chain.check_tip(provenance)
    assert await chain.beneficiaries(provenance) == Beneficiaries(BOB.key, MINER.key, MINER.key)
    found = await chain.payees([BOB.key, ALICE.key])
    assert {key: payee.node_id for key, payee in found.items()} == {BOB.key: BOB.node_id}
    for stale in (
        replace(provenance, height=1, block=tip.ancestor(1).hash),
        replace(provenance, block=b"\x09" * 32),
        replace(provenance, height=tip.height + 1),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            chain.check_tip(stale)
        assert caught.value.reason == "stale-tip"
    with pytest.raises(UserError) as unknown:
        await chain.beneficiaries(replace(provenance, block=b"\x09" * 32))
    assert unknown.value.reason == "unknown-block"


async def test_a_provider_is_found_through_the_chain(here: Here, tmp_path: Path) -> None:
    models = Models([served(here, confirmed(here).weights_root)])
    url = "http://127.0.0.1:8402"
    told = asyncio.create_task(
        announcing(here.follower, b"\x31" * 32, url, ALICE.node_id.hex(), models, lambda: LATER)
    )
    try:
        await until(lambda: len(here.full.announcements), "the announcement at the full node")
        places = [(here.peer.host, here.peer.port)]
        async with follow(QUICK, places, None, lambda: LATER) as user:
            chain = FollowedChain(user, lambda: LATER)
            await until(lambda: chain.announced(here.model), "the announcement at the user")
            [found] = chain.announced(here.model)
            assert (found.url, found.node_id) == (url, ALICE.node_id)
            assert chain.announced(b"\x05" * 32) == []
    finally:
        told.cancel()


async def test_an_announcement_rises_with_the_clock(here: Here) -> None:
    one, two = (
        announcement(here.follower, b"\x31" * 32, "http://127.0.0.1:1", ALICE.node_id, (), at)
        for at in (LATER, LATER + 60)
    )
    here.full.accept_announcement(one)
    here.full.accept_announcement(two)
    assert [each.seq for each in here.full.announcements] == [LATER + 60]


async def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        async with follow(QUICK, [("127.0.0.1", 1)]):
            pass
    assert caught.value.reason == "no-chain-peer"
