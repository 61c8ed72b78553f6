"""The rules of blocks. `check_block` needs the block alone; `state_transition` is what it does.

Every rule that fails raises Rejection with its own reason (reasons.py, docs/sidechain.md). All
rules that need no weights come before the first that does, so nobody fetches a byte for a block
that is wrong anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

from channels.bolt import signmessage
from sidechain import payee
from sidechain.params import Params
from sidechain.primitives import (
    AddModel,
    AnyTransaction,
    Block,
    Commit,
    OpenShard,
    Producer,
    RegisterPayee,
    Reveal,
    commitment,
    shard_key_hash,
    stamp_work,
    verify_schnorr,
)
from sidechain.reasons import Rejection
from sidechain.scores import (
    NO_SCORES,
    PairedRequest,
    Request,
    Scored,
    ScoreRequest,
    Scores,
    ScoresMissing,
    Unusable,
)
from sidechain.state import (
    TIP_KEY,
    ChainState,
    Changes,
    Definition,
    Draft,
    Model,
    Payee,
    Root,
    Tip,
    Undo,
    Version,
    View,
    commit_key,
    definition_key,
    expiry_key,
    model_key,
    payee_key,
    root_key,
    timeout_key,
)

FIRST_GAIN: Final = 10
"""How many times min_gain is required right after an update; it falls to 1 over `tenure`."""


def required_gain(params: Params, min_gain: int, age: int) -> int:
    """The gain that a Reveal needs `age` blocks after the version it replaces, rounded up.

    Epsilon-grinders would otherwise take the trainer's right with ever smaller steps.
    """
    left = params.tenure - min(age, params.tenure)
    parts = params.tenure + (FIRST_GAIN - 1) * left
    return -(-min_gain * parts // params.tenure)


# --- what needs no state -------------------------------------------------------------------------


def check_transaction(params: Params, tx: AnyTransaction) -> None:
    """Network, stamp, form and signatures of one transaction other than a Producer."""
    if tx.network_id != params.network_id:
        raise Rejection("bad-network")
    if isinstance(tx, Producer):
        return
    # The stamp first: it is cheap to check and dear to make.
    stamp = params.model_stamp if isinstance(tx, AddModel) else params.stamp
    if stamp_work(tx) < stamp:
        raise Rejection("bad-stamp")
    if isinstance(tx, RegisterPayee):
        _check_payee(tx)
    elif isinstance(tx, AddModel):
        _check_model(params, tx)
        _check_signature(tx.trainer, tx)
    elif isinstance(tx, Reveal):
        _check_signature(tx.trainer, tx)
    # OpenShard's openers are in the state.


def _check_signature(key: bytes, tx: RegisterPayee | AddModel | Reveal) -> None:
    if not verify_schnorr(key, tx.signature_hash(), tx.sig):
        raise Rejection("bad-signature")


def _check_payee(tx: RegisterPayee) -> None:
    if not payee.is_endpoint(tx.endpoint):
        raise Rejection("bad-payee-endpoint")
    _check_signature(tx.key, tx)
    text = payee.payee_text(tx.network_id, tx.key, tx.seq, tx.node_id, tx.endpoint)
    if signmessage.signer(text, tx.proof) != tx.node_id:
        raise Rejection("bad-payee-proof")


def _check_model(params: Params, tx: AddModel) -> None:
    distinct = len(set(tx.shards)) == len(tx.shards) and len(set(tx.openers)) == len(tx.openers)
    if not distinct or bool(tx.shards) != bool(tx.openers):
        raise Rejection("bad-shards")
    if tx.trainer in tx.openers:
        raise Rejection("trainer-is-opener")
    # Opening a shard scores two versions in one block.
    if tx.score_cost * (2 if tx.shards else 1) > params.score_cost:
        raise Rejection("model-too-costly")


def check_block(params: Params, block: Block) -> None:
    """Everything about a block that needs neither its ancestors nor a score."""
    if block.merkle_root() != block.header.merkle_root:
        raise Rejection("bad-txnmrklroot")
    if len(block.encode()) > params.block_bytes:
        raise Rejection("bad-blk-length")
    if not block.transactions or not isinstance(block.transactions[0], Producer):
        raise Rejection("bad-producer-missing")
    if any(isinstance(tx, Producer) for tx in block.transactions[1:]):
        raise Rejection("bad-producer-multiple")
    if len(set(block.txids())) != len(block.transactions):
        raise Rejection("bad-txns-duplicate")
    for tx in block.transactions:
        check_transaction(params, tx)


# --- what a transaction does ---------------------------------------------------------------------


class BlockDraft:
    """The state while a block is applied to it. A transaction that is refused changes nothing.

    strict: raise ScoresMissing before applying a transaction whose score is not known; else take
    what it states and note the request in `missing`. outcomes: how openings whose sums are not
    known turn out, one after the other; beyond them they fail.
    """

    def __init__(
        self,
        params: Params,
        state: View,
        height: int,
        producer: bytes,
        scores: Scores = NO_SCORES,
        *,
        strict: bool = False,
        outcomes: tuple[bool, ...] = (),
    ) -> None:
        self.params = params
        self.draft = Draft(state)
        self.height = height
        self.producer = producer
        self.scores = scores
        self.strict = strict
        self.outcomes = outcomes
        self.missing: list[Request] = []
        self._unknown_openings = 0
        self._cost = 0
        self._openings = 0
        self._touched: set[bytes] = set()
        self._commits: list[bytes] = []
        self._updated: list[bytes] = []
        self._begin()

    def _begin(self) -> None:
        """What falls due at this height, before the transactions."""
        draft = self.draft
        for commit in draft.expiring(self.height):
            # A reveal may have used it, and the same bytes may be committed anew since.
            if draft.commit(commit) == self.height - self.params.commit_ttl - 1:
                draft.remove(commit_key(commit))
        draft.remove(expiry_key(self.height))
        for identity in draft.timing_out(self.height):
            model = draft.model(identity)
            assert model is not None  # models are never removed
            late = self.height - self.params.shard_timeout - 1
            if model.provisional is not None and model.provisional.height == late:
                draft.put(model_key(identity), Model(model.confirmed, None, model.opened))
        draft.remove(timeout_key(self.height))

    def apply(self, tx: AnyTransaction) -> None:
        """Raises Rejection, or in strict mode ScoresMissing. check_transaction() comes first."""
        if isinstance(tx, RegisterPayee):
            self._register_payee(tx)
        elif isinstance(tx, AddModel):
            self._add_model(tx)
        elif isinstance(tx, Commit):
            self._commit(tx)
        elif isinstance(tx, Reveal):
            self._reveal(tx)
        elif isinstance(tx, OpenShard):
            self._open_shard(tx)
        else:
            raise Rejection("bad-producer-multiple")

    def finish(self) -> Changes:
        """All changes of the block."""
        draft = self.draft
        if self._commits:
            expiry = self.height + self.params.commit_ttl + 1
            draft.put(expiry_key(expiry), tuple(self._commits))
        if self._updated:
            timeout = self.height + self.params.shard_timeout + 1
            draft.put(timeout_key(timeout), tuple(self._updated))
        draft.put(TIP_KEY, Tip(self.height, self.producer))
        return draft.changes

    def _register_payee(self, tx: RegisterPayee) -> None:
        known = self.draft.payee(tx.key)
        if known is not None and tx.seq <= known.seq:
            raise Rejection("stale-seq")
        self.draft.put(payee_key(tx.key), Payee(tx.seq, tx.node_id, tx.endpoint))

    def _add_model(self, tx: AddModel) -> None:
        if self.draft.root_of(tx.weights_root) is not None:
            raise Rejection("root-known")
        model = tx.txid
        cost = self._affordable(tx.score_cost)
        request = ScoreRequest(model, tx.weights_root, tx.infohash)
        self._scored(request, tx.score, tx.score_cost)
        self._cost = cost
        self.draft.put(definition_key(model), Definition.of(tx))
        version = self._version(tx)
        self.draft.put(model_key(model), Model(version, None, (0,) * len(tx.shards)))
        self._know(model, version, revealed=False, confirmed=True)

    def _commit(self, tx: Commit) -> None:
        # A copy must not make the first commit any younger.
        if self.draft.commit(tx.commit) is not None:
            raise Rejection("commit-known")
        self.draft.put(commit_key(tx.commit), self.height)
        self._commits.append(tx.commit)

    def _reveal(self, tx: Reveal) -> None:
        model, definition = self._untouched(tx.model)
        if tx.trainer in definition.openers:
            raise Rejection("trainer-is-opener")
        if model.provisional is not None:
            raise Rejection("provisional-pending")
        commit = commitment(tx.weights_root, tx.model, tx.trainer, tx.salt)
        committed = self.draft.commit(commit)
        if committed is None:
            raise Rejection("commit-missing")
        if self.height - committed < self.params.reveal_delay:
            raise Rejection("commit-immature")
        known = self.draft.root_of(tx.weights_root)
        # Whoever sees weights on their way could put them on the chain first, as a model of his
        # own, to have the reveal refused. The older commit shows whose they are.
        if known is not None and (known.revealed or known.height <= committed):
            raise Rejection("root-known")
        if definition.shards and all(model.opened):
            raise Rejection("no-sealed-shard")
        age = self.height - model.confirmed.height
        gain = model.confirmed.score - tx.score
        if gain < required_gain(self.params, definition.min_gain, age):
            raise Rejection("no-gain")
        cost = self._affordable(definition.score_cost)
        request = ScoreRequest(tx.model, tx.weights_root, tx.infohash)
        self._scored(request, tx.score, definition.score_cost)
        self._cost = cost
        self._touched.add(tx.model)
        self.draft.remove(commit_key(commit))
        version = self._version(tx)
        sealed = bool(definition.shards)
        confirmed, provisional = (model.confirmed, version) if sealed else (version, None)
        self.draft.put(model_key(tx.model), Model(confirmed, provisional, model.opened))
        self._know(tx.model, version, revealed=True, confirmed=not sealed)
        if sealed:
            self._updated.append(tx.model)

    def _open_shard(self, tx: OpenShard) -> None:
        model, definition = self._untouched(tx.model)
        if tx.index >= len(definition.shards):
            raise Rejection("shard-missing")
        if model.opened[tx.index]:
            raise Rejection("shard-open")
        if shard_key_hash(tx.key) != definition.shards[tx.index]:
            raise Rejection("bad-shard-key")
        digest = tx.signature_hash()
        if not any(verify_schnorr(key, digest, tx.sig) for key in definition.openers):
            raise Rejection("not-an-opener")
        if self._openings >= self.params.openings_per_block:
            raise Rejection("too-many-openings")
        confirmed, provisional = model.confirmed, model.provisional
        cost = self._cost
        if provisional is not None:
            cost = self._affordable(2 * definition.score_cost)
            # The shard was sealed when the update came, so also when it was committed to. One
            # that opened between commit and reveal doesn't count: of many commits, the one that
            # happens to pass could be chosen.
            if self._improves(tx, confirmed, provisional):
                confirmed = provisional
                self._know(tx.model, confirmed, revealed=True, confirmed=True)
        self._cost = cost
        self._openings += 1
        self._touched.add(tx.model)
        opened = (*model.opened[: tx.index], self.height, *model.opened[tx.index + 1 :])
        self.draft.put(model_key(tx.model), Model(confirmed, None, opened))

    # --- what transactions share -----------------------------------------------------------------

    def _untouched(self, identity: bytes) -> tuple[Model, Definition]:
        """A model that this block has neither revealed nor opened for, so that no transaction's
        validity hangs on the outcome of another in the same block."""
        model, definition = self.draft.model(identity), self.draft.definition(identity)
        if model is None or definition is None:
            raise Rejection("model-missing")
        if identity in self._touched:
            raise Rejection("model-twice-in-block")
        return model, definition

    def _affordable(self, cost: int) -> int:
        total = self._cost + cost
        if total > self.params.score_cost:
            raise Rejection("bad-blk-cost")
        return total

    def _scored(self, request: ScoreRequest, score: int, score_cost: int) -> None:
        """The stated score must equal the recomputed one; there is no tolerance."""
        found = self.scores.public.get(request)
        if found is None:
            if self.strict:
                raise ScoresMissing((request,))
            self.missing.append(request)
        elif isinstance(found, Unusable):
            raise Rejection(found.reason)
        elif found != Scored(found.score, score_cost):
            raise Rejection("bad-score-cost", f"it is {found.score_cost}")
        elif found.score != score:
            raise Rejection("bad-score", f"it is {found.score}")

    def _improves(self, tx: OpenShard, old: Version, new: Version) -> bool:
        request = PairedRequest(
            tx.model,
            tx.index,
            tx.key,
            old.weights_root,
            new.weights_root,
            old.infohash,
            new.infohash,
        )
        sums = self.scores.paired.get(request)
        if sums is not None:
            return sums.passes(self.params.min_shard_samples)
        if self.strict:
            raise ScoresMissing((request,))
        self.missing.append(request)
        self._unknown_openings += 1
        return self.outcomes[self._unknown_openings - 1 : self._unknown_openings] == (True,)

    @property
    def unknown_openings(self) -> int:
        """How many openings were applied whose sums are not known."""
        return self._unknown_openings

    def _version(self, tx: AddModel | Reveal) -> Version:
        return Version(
            tx.weights_root, tx.infohash, tx.score, tx.trainer, self.height, self.producer
        )

    def _know(self, model: bytes, version: Version, *, revealed: bool, confirmed: bool) -> None:
        root = Root(version.height, revealed, confirmed, model, version.trainer, version.producer)
        self.draft.put(root_key(version.weights_root), root)


# --- what a block does ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transition:
    """The state after a block, what changed, what leads back, and which scores were taken on
    trust (none unless that was asked for)."""

    state: ChainState
    changes: Changes
    undo: Undo
    assumed: tuple[Request, ...] = ()


def state_transition(
    params: Params,
    state: ChainState,
    block: Block,
    scores: Scores = NO_SCORES,
    *,
    assume_scored: bool = False,
) -> Transition:
    """The state after a block whose header was accepted and which passed check_block().

    Raises Rejection for good, or ScoresMissing when all that is left to check needs weights.
    assume_scored: take stated scores for true; where an opening's outcome is not stated, take the
    one that leads to the Producer's state_root.
    """
    drafted = _apply(params, state, block, scores, ())
    missing, unknown = tuple(drafted.missing), drafted.unknown_openings
    if not assume_scored or not unknown:
        if not unknown:
            # The root follows from what is stated, so it is checked before anything is fetched.
            found = _rooted(state, block, drafted)
            if found is None:
                raise Rejection("bad-state-root")
            if not missing or assume_scored:
                return Transition(found.state, found.changes, found.undo, missing)
        raise ScoresMissing(missing)
    for outcomes in product((True, False), repeat=unknown):
        found = _rooted(state, block, _apply(params, state, block, scores, outcomes))
        if found is not None:
            return Transition(found.state, found.changes, found.undo, missing)
    raise Rejection("bad-state-root")


def _apply(
    params: Params, state: ChainState, block: Block, scores: Scores, outcomes: tuple[bool, ...]
) -> BlockDraft:
    producer = block.transactions[0]
    assert isinstance(producer, Producer)  # check_block
    tip = state.tip()
    height = 1 if tip is None else tip.height + 1
    if producer.height != height:
        raise Rejection("bad-producer-height", f"{producer.height}, not {height}")
    drafted = BlockDraft(params, state, height, producer.payee, scores, outcomes=outcomes)
    for tx in block.transactions[1:]:
        drafted.apply(tx)
    return drafted


def _rooted(state: ChainState, block: Block, drafted: BlockDraft) -> Transition | None:
    """The transition, if it leads to the Producer's state_root."""
    producer = block.transactions[0]
    assert isinstance(producer, Producer)  # check_block
    changes = drafted.finish()
    after, undo = state.applied(changes)
    return Transition(after, changes, undo) if after.root == producer.state_root else None
