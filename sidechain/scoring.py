"""Scores for the node: weights and data come from the swarm, the sums from a process that scores.

What can't be had, or has other roots than were stated, is no answer: it is tried again for as long
as the node wants it, ever more seldom. Nothing is fetched before its sizes and roots, as far as a
torrent's metadata tells them, are what they must be.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from channels.errors import OdaError, RemoteProtocolError, UserError
from sidechain.model import roots
from sidechain.model.files import ARCHITECTURE, OBJECTIVE, WEIGHTS, dataset_names
from sidechain.params import Params
from sidechain.questions import Compare, Examine, Question, Score, Subject
from sidechain.scores import Answer, Request, ScoreRequest, Unusable
from sidechain.scoring_process import ScoringProcess
from torrent.magnet import Magnet, Peer

if TYPE_CHECKING:
    from sidechain.state import Definition
    from torrent.manifest import Manifest
    from torrent.swarm import Swarm

log = logging.getLogger(__name__)

Answered = Callable[[Request, Answer], None]
SwarmPeers = Callable[[], Sequence[tuple[str, int]]]

AT_ONCE: Final = 8
"""Requests that are worked on, and so the most fetches, at one time."""

FIRST_WAIT: Final = 1.0
LONGEST_WAIT: Final = 12
"""Times params.fetch_wait, between two tries."""

LONGEST_FETCH: Final = 4
"""Times params.fetch_wait, for one try."""

MAX_FILES: Final = 100
EXTRA_BYTES: Final = 1 << 20
"""What a model directory may have beside weights, their delta and data."""

HEADER_BYTES: Final = 1 << 16
HINTS: Final = 1024
PEERS_PER_HINT: Final = 8


@dataclass(slots=True, eq=False)
class Job:
    """A request that is still open. `problem` says why the last try failed."""

    request: Request
    definition: Definition
    place: int
    tries: int = 0
    due: float = 0.0
    problem: str = ""
    task: asyncio.Task[None] | None = None


class _Verdict(RemoteProtocolError):
    """The metadata shows that the data with the stated root breaks a rule."""

    def __init__(self, verdict: Unusable) -> None:
        super().__init__(verdict.reason, "The model's data can't be used.")
        self.verdict = verdict


class SwarmScorer:
    """A scores.Scorer. Use it as an async context manager within `swarm`'s; `answered` is
    node.scored, set before the loop turns. What was fetched is seeded by the swarm."""

    def __init__(
        self,
        params: Params,
        swarm: Swarm,
        swarm_peers: SwarmPeers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.answered: Answered = lambda request, found: None
        self.jobs: dict[Request, Job] = {}
        self.failure: asyncio.Future[None]
        """Set when the node could not take an answer, because of a full disk, say."""
        self.scored = 0
        self.failed = 0
        self._params = params
        self._swarm = swarm
        self._swarm_peers = swarm_peers
        self._clock = clock
        self._process = ScoringProcess()
        self._hints: OrderedDict[bytes, tuple[Peer, ...]] = OrderedDict()
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._process.__aenter__()
        self._running = asyncio.create_task(self._run())
        self.failure = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tasks = [self._running, *(job.task for job in self.jobs.values() if job.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._process.__aexit__(kind, error, trace)

    def want(self, wanted: Mapping[Request, Definition]) -> None:
        for request in self.jobs.keys() - wanted.keys():
            job = self.jobs.pop(request)
            if job.task is not None:
                job.task.cancel()
        for place, (request, definition) in enumerate(wanted.items()):
            job = self.jobs.setdefault(request, Job(request, definition, place))
            job.place = place
            job.request = request  # the same question may name another infohash now
        self._wake.set()

    def hint(self, infohash: bytes, peers: Iterable[Peer]) -> None:
        """Somebody says who has a torrent, beside the peers of the node."""
        known = self._hints.pop(infohash, ())
        self._hints[infohash] = tuple(dict.fromkeys((*peers, *known)))[:PEERS_PER_HINT]
        if len(self._hints) > HINTS:
            self._hints.popitem(last=False)

    # --- when ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            now = self._clock()
            idle = [job for job in self.jobs.values() if job.task is None]
            free = AT_ONCE - (len(self.jobs) - len(idle))
            # What never failed comes before what nobody seems to have.
            ready = [job for job in idle if job.due <= now]
            ready.sort(key=lambda job: (job.tries, job.place))
            for job in ready[:free]:
                job.task = asyncio.create_task(self._work(job))
            due = min((job.due for job in idle if job.due > now), default=None)
            try:
                async with asyncio.timeout(None if due is None else due - now):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _work(self, job: Job) -> None:
        found: Answer | None = None
        try:
            found = await self._answer(job.request, job.definition)
        except OdaError as error:
            self._put_off(job, str(error))
        except Exception as error:  # a bug must not leave a block pending for ever
            log.error("Scoring failed.", exc_info=error)
            self._put_off(job, f"Unexpected {type(error).__name__}: {error}")
        finally:
            job.task = None
            self._wake.set()
        # Who is not wanted any more is not in `jobs`, or is there anew.
        if found is not None and self.jobs.get(job.request) is job:
            del self.jobs[job.request]
            self.scored += 1
            try:
                self.answered(job.request, found)
            except Exception as error:  # noqa: BLE001  # the node can't go on; its owner is told
                if not self.failure.done():
                    self.failure.set_exception(error)

    def _put_off(self, job: Job, problem: str) -> None:
        self.failed += 1
        job.problem = problem
        wait = min(FIRST_WAIT * 2.0 ** min(job.tries, 30), LONGEST_WAIT * self._params.fetch_wait)
        job.tries += 1
        job.due = self._clock() + wait
        log.info("No score yet (%s); again in %.0f s.", problem, wait)

    # --- what ------------------------------------------------------------------------------------

    async def _answer(self, request: Request, definition: Definition) -> Answer:
        subject = Subject.of(self._params, definition)
        try:
            if isinstance(request, ScoreRequest):
                unusable = await self._process.ask(Examine(subject))
                if unusable is not None:
                    assert isinstance(unusable, Unusable), "what an examination says"
                    return unusable
                directory = await self.directory(request.infohash, definition)
                asked: Question = Score(subject, str(directory), request.weights_root)
            else:
                old = await self.directory(request.old_infohash, definition)
                new = await self.directory(request.new_infohash, definition)
                asked = Compare(
                    subject,
                    str(old),
                    str(new),
                    request.old_root,
                    request.new_root,
                    request.index,
                    request.key,
                )
        except _Verdict as verdict:
            if not isinstance(request, ScoreRequest):
                raise
            return verdict.verdict
        found = await self._process.ask(asked)
        assert found is not None, "only an examination has nothing to say"
        return found

    async def directory(self, infohash: bytes, definition: Definition) -> Path:
        """A model's directory, complete and on disk. Raises OdaError."""

        def accept(manifest: Manifest) -> None:
            check_manifest(self._params, definition, manifest)

        library = self._swarm.library
        try:
            known = await asyncio.to_thread(library.entry, infohash)
        except UserError:
            known = None
        # What is here may be somebody's own: it is looked at, but not deleted for being wrong.
        manifest = None if known is None else await asyncio.to_thread(known.manifest)
        if manifest is not None:
            accept(manifest)
        peers = [Peer(*peer) for peer in self._swarm_peers()]
        magnet = Magnet(infohash, (*self._hints.get(infohash, ()), *peers))
        try:
            # Whoever sends a few bytes now and then must not keep others waiting; what came stays.
            async with asyncio.timeout(LONGEST_FETCH * self._params.fetch_wait):
                return await self._swarm.fetch(magnet, accept=accept)
        except TimeoutError:
            raise UserError("fetch-slow", "The torrent comes too slowly.") from None
        except UserError as error:
            if error.reason == "already-running" and known is not None and known.record.complete:
                return known.data  # another program of ours serves it
            raise


def check_manifest(params: Params, definition: Definition, manifest: Manifest) -> None:
    """See to it that a torrent can be the directory of a version of the model, by its metadata.

    Raises RemoteProtocolError "wrong-model" or "too-large"; for data that has the stated root and
    breaks a rule, whoever has it, an error that is a verdict.
    """
    files = {file.path: file for file in manifest.files}
    for name, data in (ARCHITECTURE, definition.architecture), (OBJECTIVE, definition.objective):
        file = files.get(name)
        if file is None or (file.length, file.root) != (len(data), roots.bep52_root(data)):
            raise _wrong(f"its {name} is another")
    parts: list[tuple[int, bytes]] = []
    for name in dataset_names():
        if name not in files:
            break
        parts.append((files[name].length, files[name].root))
    try:
        if roots.dataset_root_of(parts) != definition.dataset_root:
            raise _wrong("its data is another")
    except ValueError:
        raise _wrong("it has no data") from None
    size = sum(length for length, _ in parts)
    if len(parts) - 1 != len(definition.shards) or size > params.dataset_bytes:
        raise _Verdict(Unusable("bad-dataset"))
    weights = files.get(WEIGHTS)
    if weights is None:
        raise _wrong("it has no weights")
    most = params.model_bytes + HEADER_BYTES
    # Twice, because of a delta, which is smaller than the weights.
    rest = 2 * most + size + EXTRA_BYTES
    if weights.length > most or manifest.total > rest or len(manifest.files) > MAX_FILES:
        raise RemoteProtocolError(
            "too-large", "The torrent is larger than the network allows; it is not fetched."
        )


def _wrong(what: str) -> RemoteProtocolError:
    return RemoteProtocolError("wrong-model", f"The torrent is no version of the model: {what}.")
