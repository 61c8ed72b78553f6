"""What bad input gets, as far as the pure core sees it: each time, the chain goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from sidechain import fees, light
from sidechain.chain import Status
from sidechain.light import LightClient
from sidechain.mempool import assemble
from sidechain.primitives import (
    AnyTransaction,
    Block,
    Commit,
    Header,
    Producer,
    Reveal,
    stamp_work,
)
from sidechain.protocol import BAN, AnyMessage, BlockData, Headers, Tx
from sidechain.reasons import Rejection
from sidechain.scores import Request, Scored, ScoreRequest
from sidechain.state import model_key
from tests.sidechain.simulator import SimNode, Simulation, private_fork
from tests.sidechain.world import (
    ALICE,
    BOB,
    CAROL,
    COST,
    QUICK,
    Truth,
    World,
    add_model,
    commit,
    h,
    register,
    reveal,
    sealed_block,
    solved,
)

FAST = replace(QUICK, spacing=30)
HOUR = 3600


def network(seed: int = 1, nodes: int = 8) -> Simulation:
    """A network with a model (by Alice) and a ripe commit of Bob's to the weights "w"."""
    simulation = Simulation(seed, nodes, params=FAST, degree=4)
    tx = add_model(FAST)
    simulation.truth.score(tx.txid, "first", tx.score)
    simulation.relay(simulation.nodes[0], tx)
    simulation.relay(simulation.nodes[0], commit(FAST, tx.txid, BOB, "w"))
    simulation.run(600)
    assert all(node.chain.state.model(MODEL) for node in simulation.nodes)
    return simulation


MODEL = add_model(FAST).txid
REVEAL = reveal(FAST, MODEL, BOB, "w", 9_000)


def by_attacker(simulation: Simulation, *txs: AnyTransaction, **changes: Any) -> Block:
    """A block of an attacker with these transactions, whose state root is as if all were fine."""
    node = simulation.nodes[0]
    believed = Truth(dict(simulation.truth.public), dict(simulation.truth.paired))
    for tx in txs:
        if isinstance(tx, Reveal):
            believed.public[ScoreRequest(tx.model, tx.weights_root, b"")] = Scored(tx.score, COST)
    block = assemble(
        FAST,
        node.chain.tip,
        node.chain.state,
        txs,
        believed.scores,
        payee=CAROL.key,
        time=simulation.clock(),
        bits=FAST.pow_limit_bits,
    )
    header = msgspec.structs.replace(block.header, **changes)
    return sealed_block(Block(header, block.transactions))


def attack(simulation: Simulation, *messages: AnyMessage) -> SimNode:
    """A stranger connects to everybody and sends these."""
    attacker = SimNode("attacker", FAST, honest=False)
    for node in simulation.nodes:
        simulation.link(attacker, node)
        for message in messages:
            simulation.send(attacker, node, message)
    return attacker


def goes_on(simulation: Simulation, seconds: float = 1800) -> None:
    """Blocks are still mined, and after quiet there is one tip."""
    before = max(node.chain.tip.height for node in simulation.nodes if node.honest)
    simulation.run(seconds)
    simulation.settle()
    assert len(simulation.tips()) == 1
    honest = [node for node in simulation.nodes if node.honest]
    assert honest[0].chain.tip.height > before + seconds / FAST.spacing / 2
    for node in honest:
        for other in honest:
            assert node.points[other.name] < BAN


def everywhere(simulation: Simulation, block: Block) -> set[Status]:
    return {node.chain.status(block.hash) for node in simulation.nodes if node.honest}


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", ["a false score", "bad-weights"])
def test_false_scores_and_useless_weights(truth: str) -> None:
    """Changed architecture or shape, numbers out of range: the verdict is the scorer's, and what
    the chain makes of it is the same everywhere."""
    simulation = network()
    if truth == "bad-weights":
        simulation.truth.unusable(MODEL, "w", "bad-weights")
    else:
        simulation.truth.score(MODEL, "w", 9_001)
    block = by_attacker(simulation, REVEAL)
    assert REVEAL in block.transactions
    attack(simulation, BlockData(block.encode()))
    goes_on(simulation)
    assert everywhere(simulation, block) == {Status.INVALID}


def test_weights_that_never_come_or_do_not_hash() -> None:
    """Bytes that don't hash to the root are not the weights, so they are missing still."""
    simulation = network()
    block = by_attacker(simulation, REVEAL)
    attacker = attack(simulation, BlockData(block.encode()))
    goes_on(simulation)
    assert everywhere(simulation, block) == {Status.PENDING}
    assert all(node.points[attacker.name] == 0 for node in simulation.nodes)


def test_weights_that_come_late() -> None:
    """They come while the block is still the best: it is taken up."""
    simulation = network()
    simulation.mining = False
    simulation.run(120)
    block = by_attacker(simulation, REVEAL)
    attack(simulation, BlockData(block.encode()))
    simulation.run(300)
    assert everywhere(simulation, block) == {Status.PENDING}
    simulation.truth.score(MODEL, "w", 9_000)
    simulation.run(HOUR)
    assert everywhere(simulation, block) == {Status.ACTIVE}
    simulation.mining = True
    goes_on(simulation)


def test_weights_served_to_half_the_nodes_only() -> None:
    """Half the nodes connect the block, the others can't; when the bytes spread, they agree."""
    simulation = network()
    simulation.truth.score(MODEL, "w", 9_000)
    favoured = set(simulation.nodes[::2])
    start = simulation.now

    def withheld(node: SimNode, request: Request) -> bool:
        missing = isinstance(request, ScoreRequest) and request.weights_root == h("w")
        return missing and node not in favoured and simulation.now < start + HOUR

    simulation.withheld = withheld
    block = by_attacker(simulation, REVEAL)
    attack(simulation, BlockData(block.encode()))
    simulation.run(60)
    assert len(everywhere(simulation, block)) > 1
    goes_on(simulation, 2 * HOUR)
    assert Status.INVALID not in everywhere(simulation, block)


# --- transactions --------------------------------------------------------------------------------


def test_replays_and_stale_seqs() -> None:
    world = World()
    old = register(QUICK, ALICE, 1)
    world.mine(old)
    world.mine(register(QUICK, ALICE, 2))
    elsewhere = register(replace(QUICK, network_id=99), ALICE, 3)
    assert world.refused(old) == "stale-seq"
    assert world.refused(elsewhere) == "bad-network"
    world.mine()


def test_a_withheld_reveal_blocks_nobody() -> None:
    world = World()
    model = world.model()
    world.wait(QUICK.tenure)
    world.mine(commit(QUICK, model, BOB, "never shown"))
    world.update(model, CAROL, "shown", 9_000)
    found = world.state.model(model)
    assert found is not None and found.confirmed.trainer == CAROL.key


def test_a_stolen_reveal_comes_too_late() -> None:
    """Carol sees Bob's reveal on its way. Her commit would have to be older than her theft."""
    world = World()
    model = world.model()
    world.wait(QUICK.tenure)
    world.committed(model, BOB, "w")
    world.truth.score(model, "w", 9_000)
    stolen = reveal(QUICK, model, CAROL, "w", 9_000)
    assert world.refused(stolen) == "commit-missing"
    assert world.refused(msgspec.structs.replace(stolen, sig=bytes(64))) == "bad-signature"
    world.mine(commit(QUICK, model, CAROL, "w"))
    assert world.refused(stolen) == "commit-immature"
    world.mine(reveal(QUICK, model, BOB, "w", 9_000))
    world.wait(2)
    assert world.refused(stolen) == "root-known"


def test_a_reveal_can_not_be_pointed_elsewhere_by_a_relay() -> None:
    """The infohash is signed: else the block could be made to wait for bytes that nobody has."""
    world = World()
    model = world.model()
    world.wait(QUICK.tenure)
    world.committed(model, BOB, "w")
    tx = msgspec.structs.replace(reveal(QUICK, model, BOB, "w", 9_000), infohash=h("nowhere"))
    assert world.refused(tx) in ("bad-signature", "bad-stamp")


def test_junk_models_earn_nothing_and_harm_nobody() -> None:
    world = World()
    model = world.model()
    for i in range(20):
        world.model(weights=f"junk {i}", trainer=CAROL, min_gain=1, score=1)
    owed = fees.beneficiaries(world.state, model, h("first"))
    assert owed.trainer == ALICE.key
    world.wait(1)


def test_flooding_the_mempool_costs_more_than_it_pushes_out() -> None:
    simulation = network()
    honest = register(FAST, ALICE)
    flood = [
        tx
        for i in range(400)
        if stamp_work(tx := Commit(FAST.network_id, i, h(f"flood {i}"))) >= FAST.stamp
    ]
    attack(simulation, *(Tx(tx.encode()) for tx in flood))
    simulation.relay(simulation.nodes[0], honest)
    goes_on(simulation)
    assert simulation.nodes[-1].chain.state.payee(ALICE.key) is not None


def test_flooding_without_work_ends_in_a_ban() -> None:
    simulation = network()
    bad = [Tx(Commit(FAST.network_id, i, h(f"x{i}")).encode()) for i in range(40)]
    attacker = attack(simulation, *bad)
    goes_on(simulation)
    assert all(node.banned(attacker) for node in simulation.nodes)


# --- headers and forks ---------------------------------------------------------------------------


def test_timestamps_in_the_future_wait() -> None:
    simulation = network()
    block = by_attacker(simulation, time=simulation.clock() + FAST.future_limit + 60)
    attacker = attack(simulation, BlockData(block.encode()))
    simulation.run(10)
    assert everywhere(simulation, block) == {Status.UNKNOWN}
    goes_on(simulation)
    assert not any(node.banned(attacker) for node in simulation.nodes)


def test_forged_headers_end_in_a_ban() -> None:
    simulation = network()
    tip = simulation.nodes[0].chain.tip
    forged = Header(1, tip.hash, h("x"), simulation.clock(), 0x1D00FFFF, 0)
    attacker = attack(simulation, Headers((forged.encode(),)))
    goes_on(simulation)
    assert all(node.banned(attacker) for node in simulation.nodes)


def test_headers_without_blocks_hold_nobody_up() -> None:
    """Work without bodies: the best header is elsewhere, and the chain goes on."""
    simulation = network()
    parent, headers = simulation.nodes[0].chain.tip, []
    prev, time = parent.hash, parent.header.time
    for _ in range(20):
        time += 1
        header = solved(Header(1, prev, h("no body"), time, FAST.pow_limit_bits, 0))
        headers.append(header.encode())
        prev = header.hash
    attack(simulation, Headers(tuple(headers)))
    goes_on(simulation)


def test_a_private_fork_of_100_blocks() -> None:
    """Who has more work than all others rewrites the chain: that is the rule. It is clean: what
    was undone is mined again, and the network stays together."""
    simulation = network()
    attacker = simulation.nodes[-1]
    fork = private_fork(simulation, attacker, 100)
    simulation.cut = lambda one, other: attacker in (one, other)
    honest = register(FAST, ALICE)
    simulation.relay(simulation.nodes[0], honest)
    simulation.run(600)
    chain = simulation.nodes[0].chain
    undone = chain.tip.height
    assert chain.state.payee(ALICE.key) is not None and undone < 100
    simulation.cut = lambda one, other: False
    attacker.honest = True
    for block in fork:
        for node in simulation.nodes[:-1]:
            simulation.send(attacker, node, BlockData(block.encode()))
    simulation.run(5)
    assert everywhere(simulation, fork[-1]) == {Status.ACTIVE}
    goes_on(simulation)
    assert simulation.nodes[0].chain.state.payee(ALICE.key) is not None


def test_a_partition_heals() -> None:
    simulation = network()
    west = set(simulation.nodes[:3])
    simulation.cut = lambda one, other: (one in west) != (other in west)
    simulation.run(HOUR)
    assert len(simulation.tips()) == 2
    simulation.cut = lambda one, other: False
    goes_on(simulation)


def test_an_eclipse_ends_with_one_honest_peer() -> None:
    """A stranger's node that knows liars only believes their chain, until it meets an honest
    one."""
    simulation = network()
    victim = SimNode("victim", FAST)
    liar = SimNode("liar", FAST, honest=False)
    simulation.nodes += [victim, liar]
    simulation.link(victim, liar)
    simulation._tick(victim)
    for block in private_fork(simulation, liar, 5):
        simulation.send(liar, victim, BlockData(block.encode()))
    simulation.run(120)
    assert victim.chain.tip.hash == liar.chain.tip.hash
    simulation.link(victim, simulation.nodes[0])
    goes_on(simulation)
    assert victim.chain.tip.hash == simulation.nodes[0].chain.tip.hash


def test_a_stranger_who_starts_later_agrees() -> None:
    simulation = network()
    simulation.truth.score(MODEL, "w", 9_000)
    simulation.relay(simulation.nodes[0], REVEAL)
    simulation.run(HOUR)
    stranger = simulation.join("stranger")
    goes_on(simulation)
    model = stranger.chain.state.model(MODEL)
    assert model is not None and model.confirmed.trainer == BOB.key
    assert stranger.chain.state == simulation.nodes[0].chain.state


def test_a_light_client_among_liars() -> None:
    simulation = network()
    goes_on(simulation)
    client = LightClient(FAST)
    now = simulation.clock()
    for liar in range(3):
        false = solved(Header(1, client.headers.genesis.hash, h(f"{liar}"), now, 0x207FFFFF, 0))
        client.accept([false], now)
    chain = simulation.nodes[0].chain
    client.accept([r.header for r in list(chain.tip.chain())[-2::-1]], now)
    record = client.pinned()
    block = chain.block(record.hash)
    assert block is not None
    view = client.view()
    proof = light.Prover(block, chain.state_at(FAST.fee_depth)).prove(model_key(MODEL))
    view.learn(model_key(MODEL), proof)
    model = view.model(MODEL)
    assert model is not None and model.confirmed.trainer == ALICE.key
    producer = block.transactions[0]
    assert isinstance(producer, Producer)
    with pytest.raises(Rejection):
        view.learn(model_key(MODEL), msgspec.structs.replace(proof, block=chain.tip.hash))
