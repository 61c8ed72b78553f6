"""Questions of a light client, asked of one peer after another until somebody proves the answer.

A false proof is its sender's fault and costs nothing but the time to ask the next. Pure: `now` is
an argument, and whoever waits is called back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sidechain.conversation import Conversation
from sidechain.headers import HeaderRecord
from sidechain.light import ProvenView
from sidechain.limits import Patience
from sidechain.protocol import MAX_PROOFS, GetProofs, Proofs, Service
from sidechain.reasons import Rejection


@dataclass(slots=True, eq=False)
class Question:
    """Entries of the state after the view's block. `done` is called once: whether they are proven,
    or nobody who is connected proves them."""

    view: ProvenView
    keys: tuple[bytes, ...]
    done: Callable[[bool], None]
    tried: set[Conversation] = field(default_factory=set)


class Proving:
    """The questions that are open. A peer has one at a time, because answers don't name theirs."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._open: list[Question] = []
        self._due: dict[Conversation, tuple[Question, float]] = {}
        """Whose answer is due, to what, and since when."""
        self._able: list[Conversation] = []
        self.wake: Callable[[], None] = lambda: None
        """Called when there is something new to ask."""

    def tips(self) -> list[HeaderRecord]:
        """The best headers that those who can prove something showed."""
        best = (peer.best for peer in self._able if peer.ready)
        return [record for record in best if record is not None]

    def ask(self, question: Question) -> None:
        assert len(question.keys) <= MAX_PROOFS
        self._open.append(question)
        self.wake()

    def withdraw(self, question: Question) -> None:
        """Nobody waits for it any more; an answer that is due is taken all the same."""
        if question in self._open:
            self._open.remove(question)

    def assign(self, peers: Iterable[Conversation], now: float) -> None:
        """Ask whoever is free; answer no where everybody has been asked."""
        self._able = able = [peer for peer in peers if peer.offers(Service.PROOFS)]
        asked = {id(question) for question, _ in self._due.values()}
        for question in list(self._open):
            if id(question) in asked:
                continue
            left = [peer for peer in able if peer not in question.tried]
            free = [peer for peer in left if peer not in self._due]
            if not left:
                self._finish(question, proven=False)
            elif free:
                # Who showed so much work has the block, if anybody has.
                peer = max(free, key=lambda each: each.best.work if each.best else 0)
                question.tried.add(peer)
                self._due[peer] = question, now
                peer.send(GetProofs(question.view.record.hash, question.keys))

    def _finish(self, question: Question, *, proven: bool) -> None:
        if question in self._open:
            self._open.remove(question)
            question.done(proven)

    def proofs(self, peer: Conversation, message: Proofs) -> None:
        """An answer came. Raises Rejection: "not-requested", or "bad-proof" for a false one."""
        if peer not in self._due:
            raise Rejection("not-requested", "proofs")
        question, _ = self._due.pop(peer)
        if len(message.proofs) != len(question.keys):
            raise Rejection("bad-proof", "not as many as keys")
        for key, proof in zip(question.keys, message.proofs, strict=True):
            question.view.learn(key, proof)
        self._finish(question, proven=True)

    def missing(self, peer: Conversation, block_hash: bytes) -> bool:
        """The peer does not have the block's state. Whether it was asked for it."""
        if peer not in self._due or self._due[peer][0].view.record.hash != block_hash:
            return False
        del self._due[peer]
        return True

    def left(self, peer: Conversation) -> None:
        self._due.pop(peer, None)

    def tick(self, now: float) -> None:
        """Leave peers that let us wait: whoever takes their place may be better."""
        for peer, (_, since) in self._due.items():
            if since + self._patience.proofs <= now:
                peer.close("peer-silent")
