"""The network in virtual time: one tip after quiet, whatever the weather, the same for a seed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from sidechain.primitives import AnyTransaction
from sidechain.reasons import Rejection
from tests.sidechain.simulator import Simulation
from tests.sidechain.world import ALICE, BOB, QUICK, add_model, commit, register, reveal

FAST = replace(QUICK, spacing=30)
HOUR = 3600


def busy(seed: int) -> Simulation:
    """Five nodes for hours: loss, restarts, a partition, trainers at work."""
    simulation = Simulation(seed, 5, params=FAST, degree=3, loss=0.05)
    nodes, random = simulation.nodes, simulation.random
    model = add_model(FAST)
    simulation.truth.score(model.txid, "first", model.score)
    simulation.at(10, lambda: simulation.relay(nodes[0], model))
    simulation.at(20, lambda: simulation.relay(nodes[1], register(FAST, ALICE)))
    for i in range(4):
        name, score, start = f"w{i}", 9_000 - 1000 * i, 600 + 1800 * i
        simulation.truth.score(model.txid, name, score)
        made = commit(FAST, model.txid, BOB, name)
        shown = reveal(FAST, model.txid, BOB, name, score)
        for again in range(10):  # their owner offers them until a block has them
            simulation.at(start + 60 * again, partial(_offer, simulation, made))
            simulation.at(start + 300 + 60 * again, partial(_offer, simulation, shown))
    for _ in range(6):
        node = random.choice(nodes)
        simulation.at(random.uniform(0, 3 * HOUR), partial(simulation.restart, node, 200))
    simulation.at(HOUR, lambda: _cut(simulation, True))
    simulation.at(HOUR + 900, lambda: _cut(simulation, False))
    simulation.run(3 * HOUR)
    simulation.settle()
    return simulation


def _offer(simulation: Simulation, tx: AnyTransaction) -> None:
    node = simulation.nodes[2]
    try:
        if node.online:
            simulation.relay(node, tx)
    except Rejection as rejection:
        assert rejection.reason in {
            "commit-immature",
            "commit-known",
            "commit-missing",
            "no-gain",
            "root-known",
            "txn-already-in-mempool",
        }


def _cut(simulation: Simulation, apart: bool) -> None:
    west = set(simulation.nodes[:2])
    simulation.cut = lambda one, other: apart and (one in west) != (other in west)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_five_nodes_for_hours(seed: int) -> None:
    simulation = busy(seed)
    assert len(simulation.tips()) == 1
    chain = simulation.nodes[0].chain
    assert chain.tip.height > 200
    assert len({node.chain.state.root for node in simulation.nodes}) == 1
    model = add_model(FAST).txid
    found = chain.state.model(model)
    assert found is not None and found.confirmed.score < 10_000
    assert all(points < 100 for node in simulation.nodes for points in node.points.values())


def test_a_seed_is_repeated_to_the_last_message() -> None:
    one, again, other = busy(4), busy(4), busy(5)
    assert (one.trace, one.messages, one.tips()) == (again.trace, again.messages, again.tips())
    assert one.trace != other.trace


def test_a_thousand_nodes_for_a_few_blocks() -> None:
    params = replace(QUICK, spacing=60)
    simulation = Simulation(1, 1000, params=params, encode=False)
    simulation.run(4 * 60)
    simulation.settle(5 * 60)
    assert len(simulation.tips()) == 1
    assert simulation.nodes[0].chain.tip.height >= 2
    assert simulation.propagation(0.9) < 10


def test_forks_get_rarer_with_the_interval() -> None:
    rates = []
    for spacing in (1, 5, 60):
        params = replace(QUICK, spacing=spacing)
        simulation = Simulation(7, 10, params=params, degree=3, encode=False)
        simulation.run(150 * spacing)
        simulation.settle()
        assert len(simulation.tips()) == 1
        rates.append(simulation.fork_rate())
    assert rates[0] > rates[1] > rates[2]
