"""The scorer against real swarms on loopback and its real process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from channels.errors import RemoteProtocolError, UserError
from sidechain.model import roots, sealed
from sidechain.params import REGTEST, Params
from sidechain.questions import Examine, Subject
from sidechain.scores import PairedRequest, PairedSums, Request, Scored, ScoreRequest, Unusable
from sidechain.scoring import SwarmScorer, check_manifest
from sidechain.scoring_process import ScoringProcess
from sidechain.state import Definition
from tests.sidechain.directories import (
    KEYS,
    Written,
    model,
    samples,
    updated,
    written,
)
from tests.torrent import nodes
from torrent import files
from torrent.magnet import Peer
from torrent.manifest import File, Manifest
from torrent.swarm import Swarm

QUICK = replace(REGTEST, fetch_wait=1)


@dataclass
class Scoring:
    """A scorer and what it answered."""

    scorer: SwarmScorer
    swarm: Swarm
    peers: list[tuple[str, int]]
    found: dict[Request, Scored | Unusable | PairedSums] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def answered(self, request: Request, found: Scored | Unusable | PairedSums) -> None:
        self.found[request] = found
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            # Failures are counted and not told: they are looked for.
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), 0.02)

    async def answer(
        self, request: Request, definition: Definition
    ) -> Scored | Unusable | PairedSums:
        self.scorer.want({request: definition})
        await self.until(lambda: request in self.found)
        return self.found[request]


@asynccontextmanager
async def scoring(folder: Path, params: Params = QUICK) -> AsyncIterator[Scoring]:
    peers: list[tuple[str, int]] = []
    async with nodes.node(folder, stall=params.fetch_wait) as swarm:
        scorer = SwarmScorer(params, swarm, lambda: peers)
        made = Scoring(scorer, swarm, peers)
        scorer.answered = made.answered
        async with scorer:
            yield made


@asynccontextmanager
async def seeder(folder: Path) -> AsyncIterator[Swarm]:
    async with nodes.node(folder) as swarm:
        yield swarm


async def test_weights_come_from_a_peer_and_are_seeded(tmp_path: Path) -> None:
    made = written(tmp_path / "model")
    async with seeder(tmp_path / "a") as there, scoring(tmp_path / "b") as here:
        infohash = (await there.publish(made.path)).infohash
        here.peers.append((there.address.host, there.address.port))
        answer = await here.answer(made.request(infohash), made.definition)
        assert answer == Scored(made.model.score(), made.model.score_cost())
        assert here.swarm.status(infohash).state == "seeding"
        assert not here.scorer.jobs


async def test_a_pair_needs_both_versions(tmp_path: Path) -> None:
    old = written(tmp_path / "old")
    new = updated(tmp_path / "new", old)
    async with seeder(tmp_path / "a") as there, scoring(tmp_path / "b") as here:
        hashes = [(await there.publish(each.path)).infohash for each in (old, new)]
        here.peers.append((there.address.host, there.address.port))
        request = PairedRequest(
            bytes(32), 0, KEYS[0], old.model.weights_root, new.model.weights_root, *hashes
        )
        answer = await here.answer(request, old.definition)
        assert isinstance(answer, PairedSums) and answer.passes(32)
        # Of the second version only the weights had to come.
        sizes = [each.stat().st_size for each in new.path.iterdir()]
        assert here.swarm.status(hashes[1]).downloaded < sum(sizes)


async def test_what_nobody_has_is_tried_again_until_somebody_has_it(tmp_path: Path) -> None:
    made = written(tmp_path / "model")
    infohash = files.describe(made.path).manifest.infohash
    async with seeder(tmp_path / "a") as there, scoring(tmp_path / "b") as here:
        request = made.request(infohash)
        here.scorer.want({request: made.definition})
        await here.until(lambda: here.scorer.failed > 0)
        assert here.scorer.jobs[request].problem and not here.found
        await there.publish(made.path)
        here.scorer.hint(infohash, [there.address])
        await here.until(lambda: request in here.found)


async def test_weights_without_the_stated_root_are_no_answer(tmp_path: Path) -> None:
    made = written(tmp_path / "model")
    async with scoring(tmp_path / "b") as here:
        infohash = (await here.swarm.publish(made.path)).infohash
        request = ScoreRequest(bytes(32), bytes(32), infohash)
        here.scorer.want({request: made.definition})
        await here.until(lambda: here.scorer.failed > 0)
        assert "root" in here.scorer.jobs[request].problem and not here.found


async def test_what_is_not_wanted_any_more_is_left(tmp_path: Path) -> None:
    made = written(tmp_path / "model")
    infohash = files.describe(made.path).manifest.infohash
    async with scoring(tmp_path / "b") as here:
        requests = [ScoreRequest(bytes([i]) * 32, bytes(32), infohash) for i in range(20)]
        here.scorer.want(dict.fromkeys(requests, made.definition))
        await here.until(lambda: any(job.task for job in here.scorer.jobs.values()))
        tasks = [job.task for job in here.scorer.jobs.values() if job.task]
        assert 0 < len(tasks) < len(requests), "fetches are bounded"
        here.scorer.want({})
        await asyncio.wait(tasks)
        assert not here.scorer.jobs and not here.found


async def test_a_verdict_on_the_architecture_needs_no_fetch(tmp_path: Path) -> None:
    made = written(tmp_path / "model")
    unknown = msgspec.structs.replace(made.definition, architecture=b'{"type":"oracle"}')
    async with scoring(tmp_path / "b") as here:
        answer = await here.answer(made.request(bytes(32)), unknown)
        assert answer == Unusable("bad-architecture")
        assert not here.swarm.library.entries()


async def test_data_beyond_the_limit_is_a_verdict_before_it_is_fetched(tmp_path: Path) -> None:
    made = written(tmp_path / "model")
    size = sum(len(each) for each in (made.model.dataset.public, *made.model.dataset.shards))
    async with (
        seeder(tmp_path / "a") as there,
        scoring(tmp_path / "b", replace(QUICK, dataset_bytes=size - 1)) as here,
    ):
        infohash = (await there.publish(made.path)).infohash
        here.peers.append((there.address.host, there.address.port))
        assert await here.answer(made.request(infohash), made.definition) == Unusable("bad-dataset")
        assert not here.swarm.library.entries()


async def test_somebodys_own_torrent_is_not_deleted_for_being_another_model(
    tmp_path: Path,
) -> None:
    made = written(tmp_path / "model")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "photo").write_bytes(b"mine")
    async with scoring(tmp_path / "b") as here:
        infohash = (await here.swarm.publish(tmp_path / "own")).infohash
        here.scorer.want({made.request(infohash): made.definition})
        await here.until(lambda: here.scorer.failed > 0)
        assert (here.swarm.library.entry(infohash).data / "photo").read_bytes() == b"mine"


async def test_a_process_that_was_killed_starts_again(tmp_path: Path) -> None:
    made = written(tmp_path / "model")
    question = Examine(Subject.of(REGTEST, made.definition))
    async with ScoringProcess() as process:
        assert await process.ask(question) is None
        assert process._process is not None
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(UserError) as caught:
            await process.ask(question)
        assert caught.value.reason == "scoring-died"
        assert await process.ask(question) is None


async def test_the_process_ends_with_whoever_started_it() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidechain.scoring_process"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.close()
    assert await process.wait() == 0


async def test_a_reply_goes_to_whoever_asked(tmp_path: Path) -> None:
    """Also when somebody before him has given up waiting."""
    made = written(tmp_path / "model")
    subject = Subject.of(REGTEST, made.definition)
    unknown = msgspec.structs.replace(subject, architecture=b"{}")
    async with ScoringProcess() as process:
        first = asyncio.create_task(process.ask(Examine(subject)))
        await asyncio.sleep(0)  # it has asked
        first.cancel()
        assert await process.ask(Examine(unknown)) == Unusable("bad-architecture")


# --- metadata ------------------------------------------------------------------------------------


def manifest_of(made: Written, **changed: File) -> Manifest:
    found = {file.path: file for file in files.describe(made.path).manifest.files}
    return Manifest.of((found | changed).values())


def refused(made: Written, manifest: Manifest, params: Params = REGTEST) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        check_manifest(params, made.definition, manifest)
    return caught.value.reason


def other(path: str, length: int = 50) -> Mapping[str, File]:
    return {path: File(path, length, b"\1" * 32)}


def test_the_metadata_of_a_version_is_accepted(tmp_path: Path) -> None:
    made = written(tmp_path / "model")
    check_manifest(REGTEST, made.definition, manifest_of(made))
    check_manifest(REGTEST, made.definition, manifest_of(made, **other("README.md")))


@pytest.mark.parametrize(
    "path", ["architecture.json", "objective.json", "public.oda", "shard-00.oda", "shard-01.oda"]
)
def test_another_file_than_the_definition_says_is_another_model(tmp_path: Path, path: str) -> None:
    made = written(tmp_path / "model")
    assert refused(made, manifest_of(made, **other(path))) == "wrong-model"


@pytest.mark.parametrize("path", ["weights.safetensors", "weights.delta", "film"])
def test_what_is_too_large_is_not_fetched(tmp_path: Path, path: str) -> None:
    made = written(tmp_path / "model")
    assert refused(made, manifest_of(made, **other(path, 40 << 20))) == "too-large"


def test_what_has_too_many_files_is_not_fetched(tmp_path: Path) -> None:
    made = written(tmp_path / "model")
    many = {f"f{i}": File(f"f{i}", 1, b"\1" * 32) for i in range(100)}
    assert refused(made, manifest_of(made, **many)) == "too-large"


def test_what_has_no_weights_is_no_model(tmp_path: Path) -> None:
    made = written(tmp_path / "model")
    rest = [file for file in manifest_of(made).files if file.path != "weights.safetensors"]
    assert refused(made, Manifest.of(rest)) == "wrong-model"


def test_other_shards_than_the_definition_has_keys_for_are_a_verdict(tmp_path: Path) -> None:
    dataset = sealed.seal(samples(80, 0), [samples(40, 1), samples(40, 2)], KEYS[:2])
    made = written(tmp_path / "model", replace(model(), dataset=dataset))
    short = replace(made, definition=msgspec.structs.replace(made.definition, shards=(bytes(32),)))
    assert refused(short, manifest_of(made)) == "bad-dataset"


def test_the_root_of_data_follows_from_its_metadata() -> None:
    data = [b"public", b"x" * 40_000]
    stated = [(len(each), roots.bep52_root(each)) for each in data]
    assert roots.dataset_root_of(stated) == roots.dataset_root(data[0], data[1:])
    for wrong in ([], [(0, bytes(32))], [(1, bytes(31))]):
        with pytest.raises(ValueError, match="public part"):
            roots.dataset_root_of(wrong)


def test_peers_are_hinted_at_in_bounds() -> None:
    peers = [Peer("127.0.0.1", port) for port in range(1, 100)]

    async def hints() -> int:
        scorer = SwarmScorer(REGTEST, None, lambda: ())  # type: ignore[arg-type] # not used here
        for i in range(2000):
            scorer.hint(i.to_bytes(32, "big"), peers)
        assert all(len(each) <= 8 for each in scorer._hints.values())
        return len(scorer._hints)

    assert asyncio.run(hints()) == 1024
