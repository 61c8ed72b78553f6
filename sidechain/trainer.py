"""A trainer: improves a model's version, commits, reveals, and goes on with the next.

What is due is read off the chain after each of its turns (training.py). All that is remembered are
pledges, which are on disk before anything is sent, so a trainer may be killed at any instant.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from channels.errors import OdaError, UserError
from channels.terminal import no_progress
from sidechain import training
from sidechain.attempts import Attempts, Fetch, Told, Wishes
from sidechain.events import Event, TipChanged
from sidechain.model import together
from sidechain.model.world import ALONE, World
from sidechain.node import ChainNode
from sidechain.pledges import Pledge, Pledges
from sidechain.primitives import Commit, Reveal, signed, x_only
from sidechain.reasons import REASONS, Rejection
from sidechain.stamping import stamp
from sidechain.training import WAITING, Do, Step

if TYPE_CHECKING:
    from torrent.swarm import Swarm

RETRY: Final = 2.0
"""Seconds before what is no event of the node (peers, bytes in the swarm) is looked at again."""

BURIED: Final = 100
"""Blocks over a version that settle it, where reorgs of any depth are allowed."""

HOPELESS: Final = frozenset({"bad-score", "bad-weights", "root-known"})
"""Reasons after which the same weights need not be offered again."""

OWN_FAULT: Final = frozenset({"bad-data", "bad-dataset"})
"""What is wrong with the trainer's own data does not pass."""


def tell_nobody(name: str, fields: dict[str, Any]) -> None:
    """For those who don't want to hear of anything."""


@dataclass(slots=True)
class _Search:
    """An attempt under way; base: the root of what it improves."""

    base: bytes
    stop: threading.Event
    task: asyncio.Task[None]


class Trainer:
    """Improves the model with this identity while run() does. fetch: a version's directory.
    synced: whether the node has what its peers have. offer_again: a txid, to all peers. told: hears
    events, as a name and fields.

    In a `world` of several processes this one leads, and the others are in together.follow().
    """

    def __init__(
        self,
        node: ChainNode,
        swarm: Swarm,
        fetch: Fetch,
        *,
        secret: bytes,
        model: bytes,
        wishes: Wishes,
        synced: Callable[[], bool] = lambda: True,
        offer_again: Callable[[bytes], None] = lambda txid: None,
        told: Told = tell_nobody,
        world: World = ALONE,
    ) -> None:
        """Raises UserError("bad-pledges")."""
        self.key = x_only(secret)
        self.model = model
        self.pledges = Pledges(wishes.folder / "pledges")
        self._node = node
        self._swarm = swarm
        self._secret = secret
        self._once = wishes.once
        self._synced = synced
        self._offer_again = offer_again
        self._told = told
        self._world = world
        self._attempts = Attempts(
            node,
            swarm,
            fetch,
            self.pledges,
            wishes,
            model=model,
            key=self.key,
            told=told,
            world=world,
        )
        self._search: _Search | None = None
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._offered: dict[bytes, int] = {}
        """At which height a transaction of each pledge was last offered to all peers."""
        self._said: dict[bytes, tuple[str, str, int | None]] = {}
        self._kept: tuple[bytes, set[bytes]] | None = None
        """The tip, and what was pinned for it."""
        self._made: dict[bytes, Commit | Reveal] = {}
        """The last transaction of each pledge; its bytes hang on the pledge alone."""

    async def run(self) -> None:
        """Until cancelled, or as `wishes.once` says. Raises UserError("trainer-is-opener"), and
        what ends the node."""
        unlisten = self._node.listen(self._hear)
        try:
            while True:
                self._changed.clear()
                if self._failure is not None:
                    raise self._failure
                busy, confirmed = await self._tend()
                await self._keep()
                if confirmed and self._once:
                    return
                self._look_after_search(busy)
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY):
                        await self._changed.wait()
        finally:
            unlisten()
            await self._end()

    def _hear(self, event: Event) -> None:
        if isinstance(event, TipChanged):
            self._changed.set()

    async def _end(self) -> None:
        search = self._search
        if search is not None:
            search.stop.set()
            await asyncio.gather(search.task, return_exceptions=True)
        await asyncio.to_thread(together.dismiss, self._world)

    def _say(self, about: bytes, name: str, reason: str = "", **fields: Any) -> None:
        """Once, until something else is said about the same."""
        saying = (name, reason, fields.get("height"))
        if self._said.get(about) == saying:
            return
        self._said[about] = saying
        if reason:
            sentence = WAITING.get(reason) or REASONS.get(reason, "")
            fields = {"reason": reason, "sentence": sentence} | fields
        self._told(name, fields)

    # --- pledges ---------------------------------------------------------------------------------

    async def _tend(self) -> tuple[bool, bool]:
        """Do what is due for each pledge; -> whether one is on its way, and whether one was
        confirmed just now."""
        busy = confirmed = False
        for pledge in self.pledges.all:
            state = self._node.chain.state
            step = training.proceed(self._node.params, state, self.model, self.key, pledge)
            if step.do in (Do.COMMIT, Do.REVEAL):
                busy |= await self._offer(pledge, step.do)
            elif step.do is Do.WAIT:
                busy = True
                self._report(pledge, "waiting", step.why)
            elif step.do is Do.OVERTAKEN:
                self._report(pledge, "overtaken")
                await self._drop(pledge)
            elif step.do is Do.REFUSED:
                self._report(pledge, "refused", step.why)
                await self._drop(pledge)
            else:
                self._report(pledge, step.do.value, height=step.height)
                confirmed |= self._settle(pledge, step)
        return busy, confirmed

    def _report(self, pledge: Pledge, name: str, reason: str = "", **fields: Any) -> None:
        root = pledge.weights_root
        self._say(root, name, reason, weights_root=root.hex(), score=pledge.score, **fields)

    def _settle(self, pledge: Pledge, step: Step) -> bool:
        """Keep it until no reorg can undo it; -> whether it was confirmed for the first time."""
        deepest = self._node.params.max_reorg
        if self._node.chain.tip.height - step.height > (BURIED if deepest is None else deepest):
            self.pledges.remove(pledge)
        elif step.do is Do.CONFIRMED and not pledge.taken:
            self.pledges.replace(pledge, msgspec.structs.replace(pledge, taken=True))
            return True
        return False

    async def _offer(self, pledge: Pledge, what: Do) -> bool:
        """Have a commit or reveal in the mempool; whether there is hope for the weights."""
        tx = await self._transaction(pledge, what)
        name = "committing" if what is Do.COMMIT else "revealing"
        height = self._node.chain.tip.height
        if tx.txid in self._node.mempool:
            # Whoever was a block behind has refused it, and whom a reorg led elsewhere has lost it.
            if self._offered.get(pledge.weights_root) != height:
                self._offer_again(tx.txid)
        else:
            try:
                self._node.accept_transaction(tx)
            except Rejection as rejection:
                if rejection.reason in HOPELESS:
                    self._report(pledge, "refused", rejection.reason)
                    await self._drop(pledge)
                    return False
                self._report(pledge, "waiting", rejection.reason)
                return True
        self._offered[pledge.weights_root] = height
        self._report(pledge, name, txid=tx.txid.hex())
        return True

    async def _transaction(self, pledge: Pledge, what: Do) -> Commit | Reveal:
        params = self._node.params
        kind = Commit if what is Do.COMMIT else Reveal
        made = self._made.get(pledge.weights_root)
        if made is None or not isinstance(made, kind):
            if what is Do.COMMIT:
                commit = training.commit_of(params, self.model, self.key, pledge)
                made = await stamp(commit, params.stamp, no_progress)
            else:
                reveal = training.reveal_of(params, self.model, self.key, pledge)
                made = signed(await stamp(reveal, params.stamp, no_progress), self._secret)
            self._made[pledge.weights_root] = made
        return made

    async def _drop(self, pledge: Pledge) -> None:
        """The chain will not have these weights, and nobody needs their bytes."""
        self.pledges.remove(pledge)
        self._made.pop(pledge.weights_root, None)
        if not training.is_known(self._node.chain.state, pledge.weights_root):
            with suppress(OdaError):
                await self._swarm.forget(pledge.infohash)

    async def _keep(self) -> None:
        """On disk stays what the chain may need of us: what is pledged, as deep as a reorg may
        reach, and what the model is now or may be again. Older versions may be evicted."""
        model = self._node.chain.state.model(self.model)
        versions = () if model is None else (model.confirmed, model.provisional)
        needed = {each.infohash for each in (*versions, *self.pledges.all) if each is not None}
        seen = (self._node.chain.tip.hash, needed)
        if seen != self._kept:
            await self._swarm.keep(training.pin(self.model), needed)
            self._kept = seen

    # --- searching -------------------------------------------------------------------------------

    def _look_after_search(self, busy: bool) -> None:
        """Begin one when it is time, stop one whose base is not the model's any more."""
        state = self._node.chain.state
        model, definition = state.model(self.model), state.definition(self.model)
        if definition is not None and self.key in definition.openers:
            raise UserError("trainer-is-opener", REASONS["trainer-is-opener"])
        if self._search is not None:
            if model is None or model.confirmed.weights_root != self._search.base:
                self._search.stop.set()
            return
        if busy:
            return
        step = training.begin(state, self.model) if self._synced() else Step(Do.WAIT, "syncing")
        if step.do is Do.WAIT:
            self._say(self.model, "waiting", step.why)
            return
        assert model is not None and definition is not None  # else it waits
        self._said.pop(self.model, None)
        base, stop = model.confirmed, threading.Event()
        task = asyncio.create_task(self._attempts.improve(base, definition, stop))
        self._search = _Search(base.weights_root, stop, task)
        task.add_done_callback(self._searched)

    def _searched(self, task: asyncio.Task[None]) -> None:
        if self._search is not None and self._search.stop.is_set():
            self._told("stopped", {"base": self._search.base.hex()})
        self._search = None
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OdaError) and error.reason not in OWN_FAULT:
            # Bytes that nobody gives, say. The next look, in a while, tries again.
            self._say(self.model, "failed", error.reason, sentence=str(error))
            return
        self._failure = error
        self._changed.set()
