"""What checking a block with a Reveal costs beside the exact scoring in it.

A node on disk gets the block, finds it pending, has weights and data read from a model directory,
their roots checked and the score computed, and makes the block its tip. Beside it stands
exact.score alone, before and after, on tensors that are in memory already. Both are processor time
of all threads, so that others on the machine count little; the disk is shown for itself. Wanted: at
most 1.1 times the scoring.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time

import torch

from benchmarks.chain import FREE, SECRET, solved
from benchmarks.scoring import rows, text
from sidechain.answers import Examiner
from sidechain.model import directory, exact, parts, registry
from sidechain.model import objective as objectives
from sidechain.model.architecture import ByteTransformer
from sidechain.model.classifiers import Mlp
from sidechain.model.directory import Model
from sidechain.model.network import Network
from sidechain.model.objective import CrossEntropy
from sidechain.model.parts import Part
from sidechain.model.registry import Architecture
from sidechain.model.sealed import Dataset
from sidechain.model.weights import quantise
from sidechain.node import ChainNode
from sidechain.params import MAIN
from sidechain.primitives import (
    NO_SIGNATURE,
    AddModel,
    AnyTransaction,
    Block,
    Commit,
    Reveal,
    commitment,
    signed,
    x_only,
)
from sidechain.questions import Score, Subject
from sidechain.scores import Answer, Request, ScoreRequest
from sidechain.state import Definition
from sidechain.store import SqliteStore

REPEATS = 5
KEY, ZEROS = x_only(SECRET), bytes(32)
RULES = replace(FREE, score_cost=MAIN.score_cost, model_bytes=MAIN.model_bytes)
CLOCK = RULES.genesis_time + 100 * RULES.spacing


@dataclass(frozen=True)
class Case:
    """A chain that ends with a Reveal, and where the weights are."""

    blocks: tuple[Block, ...]
    models: dict[bytes, tuple[Path, Model]]


def question(case: Case, request: Request, definition: Definition) -> Score:
    assert isinstance(request, ScoreRequest)  # nothing is sealed here
    path, _ = case.models[request.weights_root]
    return Score(Subject.of(RULES, definition), str(path), request.weights_root)


def answer(case: Case, node: ChainNode, examiner: Examiner) -> None:
    """What the node waits for, from the directories."""
    for request, definition in node.wanted().items():
        node.scored(request, found(examiner, question(case, request, definition)))


def found(examiner: Examiner, question: Score) -> Answer:
    answer = examiner.answer(question)
    assert answer is not None  # only Examine has nothing to say
    return answer


def models(folder: Path, architecture: Architecture, part: Part) -> dict[bytes, tuple[Path, Model]]:
    """Two versions, the worse one first."""
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        weights = quantise(Network(architecture).state_dict()).weights
        model = Model(architecture, CrossEntropy(), weights, Dataset(parts.encode(part)))
        made.append((model.score(), model))
    by_root = {}
    for number, (_, model) in enumerate(sorted(made, key=lambda each: -each[0])):
        path = folder / str(number)
        directory.write(path, model)
        by_root[model.weights_root] = (path, model)
    return by_root


def transactions(case: Case) -> tuple[AddModel, Commit, Reveal]:
    (_, old), (_, new) = case.models.values()
    add = AddModel(
        RULES.network_id,
        0,
        ZEROS,
        old.weights_root,
        registry.encode(old.architecture),
        objectives.encode(old.objective),
        old.dataset.root,
        (),
        (),
        1,
        old.score(),
        old.score_cost(),
        KEY,
        NO_SIGNATURE,
    )
    add = signed(add, SECRET)
    commit = Commit(RULES.network_id, 0, commitment(new.weights_root, add.txid, KEY, ZEROS))
    reveal = Reveal(
        RULES.network_id,
        0,
        add.txid,
        ZEROS,
        new.weights_root,
        new.score(),
        KEY,
        ZEROS,
        NO_SIGNATURE,
    )
    return add, commit, signed(reveal, SECRET)


def build(case: Case, store: SqliteStore) -> Case:
    """Mine AddModel, Commit and Reveal."""
    node, examiner, blocks = chain_node(store), Examiner(), []
    add, commit, reveal = transactions(case)
    plan: list[AnyTransaction | None] = [add, commit, *[None] * (RULES.reveal_delay - 1), reveal]
    for tx in plan:
        if tx is not None:
            node.accept_transaction(tx)
            answer(case, node, examiner)
        template = node.template(KEY)
        assert len(template.transactions) == 1 + (tx is not None)
        blocks.append(Block(solved(template.header), template.transactions))
        node.accept_block(blocks[-1])
    return replace(case, blocks=tuple(blocks))


def chain_node(store: SqliteStore) -> ChainNode:
    return ChainNode(RULES, store, now=lambda: CLOCK)


def check(case: Case, folder: Path) -> tuple[float, float]:
    """Processor seconds of checking the last block, and seconds of what of it is neither bytes nor
    scoring, the disk included."""
    with SqliteStore(folder / "chain.sqlite") as store:
        node, examiner = chain_node(store), Examiner()
        for block in case.blocks[:-1]:
            node.accept_block(block)
            answer(case, node, examiner)  # the dataset is in memory from here on
        began, start = process_time(), perf_counter()
        node.accept_block(case.blocks[-1])
        ((request, definition),) = node.wanted().items()
        asked = perf_counter()
        answered = found(examiner, question(case, request, definition))
        scored = perf_counter()
        node.scored(request, answered)
        rules = perf_counter() - scored + asked - start
        whole = process_time() - began
        assert node.chain.tip.hash == case.blocks[-1].hash
        return whole, rules


def alone(model: Model, part: Part) -> float:
    start = process_time()
    exact.score(model.architecture, model.objective, model.weights, part)
    return process_time() - start


def measure(name: str, architecture: Architecture, part: Part) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with SqliteStore(folder / "maker" / "chain.sqlite") as store:
            case = build(Case((), models(folder, architecture, part)), store)
        _, (_, new) = case.models.values()
        took = []
        for number in range(REPEATS):
            before = alone(new, part)
            whole, rules = check(case, folder / f"checker {number}")
            took.append((whole, rules, (before + alone(new, part)) / 2))
    whole, rules, bare = (min(column) for column in zip(*took, strict=True))
    typical = statistics.median(one[0] / one[2] for one in took)
    print(
        f"{name:24} {1000 * bare:8.1f} ms {1000 * whole:8.1f} ms"
        f" {whole / bare:6.3f} {typical:7.3f} {1000 * rules:8.2f} ms"
    )


def main() -> None:
    print("times of the fastest of each, their ratio, and the median of the ratios")
    print(f"{'':24} {'score':>11} {'block':>11} {'ratio':>6} {'median':>7} {'rules, disk':>11}")
    measure("text, 139k, context 128", ByteTransformer(context=128), text(32768))
    measure("mlp 784-1024-1024-10", Mlp(784, (1024, 1024), 10), rows(4000, 784, 10))
    measure("digits mlp 64-64-10", Mlp(64, (64,), 10), rows(1797, 64, 10))
    print("The rules and two commits cost the same for any model: beside less than ten times that,")
    print("the ratio is above 1.1, and nobody waits for it.")


if __name__ == "__main__":
    main()
