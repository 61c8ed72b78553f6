"""What the rules ask about weights and data (scores.py), answered from directories on disk.

An answer follows from the bytes behind the stated roots alone: bytes that are missing or have
other roots raise UserError, which is no answer. Needs torch, so nodes ask a process of its own
(scoring_process.py).
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Final

from torch import Tensor

from channels.errors import UserError
from sidechain.model import exact, registry, roots, sealed, weights
from sidechain.model import objective as objectives
from sidechain.model.files import WEIGHTS, read_plain
from sidechain.model.objective import Objective
from sidechain.model.registry import Architecture
from sidechain.model.sealed import Dataset
from sidechain.questions import Compare, Examine, Finding, Question, Score, Subject
from sidechain.scores import PairedSums, Scored, Unusable

NO_SAMPLES: Final = PairedSums(0, 0, 0)

KEPT: Final = 4
"""Datasets that stay in memory: one model's updates come one after the other."""


class Examiner:
    """Answers questions. It blocks for as long as scoring takes."""

    def __init__(self) -> None:
        self._datasets: OrderedDict[bytes, Dataset | None] = OrderedDict()

    def answer(self, question: Question) -> Finding:
        """None to Examine where nothing is wrong. Raises UserError where there is no answer."""
        if isinstance(question, Examine):
            found = self._definition(question.subject)
            return found if isinstance(found, Unusable) else None
        if isinstance(question, Score):
            return self._score(question)
        return self._compare(question)

    def _definition(self, subject: Subject) -> tuple[Architecture, Objective] | Unusable:
        try:
            architecture = registry.decode(subject.architecture)
            objective = objectives.decode(subject.objective)
            exact.prove(architecture, objective)
        except UserError:
            return Unusable("bad-architecture")
        if 2 * architecture.parameters > subject.model_bytes:
            return Unusable("bad-architecture")
        return architecture, objective

    def _score(self, question: Score) -> Scored | Unusable:
        subject = question.subject
        known = self._definition(subject)
        if isinstance(known, Unusable):
            return known
        architecture, objective = known
        dataset = self._dataset(subject, Path(question.directory))
        if dataset is None:
            return Unusable("bad-dataset")
        part = dataset.public_part
        try:
            samples = exact.count_samples(architecture, objective, part)
        except UserError:
            return Unusable("bad-dataset")
        cost = exact.score_cost(architecture, objective, samples)
        tensors = self._weights(question.directory, question.weights_root, subject, architecture)
        if tensors is None:
            return Unusable("bad-weights")
        if cost != subject.score_cost:
            # The rules look at the cost first. A model that understates it is not worth a score,
            # which may take longer than any block's.
            return Scored(0, cost)
        return Scored(exact.score(architecture, objective, tensors, part), cost)

    def _compare(self, question: Compare) -> PairedSums:
        subject = question.subject
        known = self._definition(subject)
        dataset = self._dataset(subject, Path(question.new_directory))
        if isinstance(known, Unusable) or dataset is None:
            return NO_SAMPLES
        architecture, objective = known
        old = self._weights(question.old_directory, question.old_root, subject, architecture)
        new = self._weights(question.new_directory, question.new_root, subject, architecture)
        if old is None or new is None:
            return NO_SAMPLES
        try:
            shard = dataset.open_shard(question.index, question.key)
            samples = exact.count_samples(architecture, objective, shard)
            most = exact.count_samples(architecture, objective, dataset.public_part)
        except UserError:
            return NO_SAMPLES
        if samples > most:
            return NO_SAMPLES
        before = exact.sample_losses(architecture, objective, old, shard)
        after = exact.sample_losses(architecture, objective, new, shard)
        differences = [a - b for a, b in zip(before, after, strict=True)]
        return PairedSums(samples, sum(differences), sum(d * d for d in differences))

    def _dataset(self, subject: Subject, directory: Path) -> Dataset | None:
        """None for one that has the root and can't be used; UserError for another root."""
        root = subject.dataset_root
        if root not in self._datasets:
            public, *shards = sealed.read_files(directory)
            try:
                found = roots.dataset_root(public, shards)
            except ValueError:  # an empty file
                found = b""
            if found != root:
                raise UserError("wrong-root", "The data is not that with the root; fetch it again.")
            try:
                self._datasets[root] = Dataset(public, tuple(shards))
            except UserError:
                self._datasets[root] = None
            if len(self._datasets) > KEPT:
                self._datasets.popitem(last=False)
        self._datasets.move_to_end(root)
        return self._datasets[root]

    @staticmethod
    def _weights(
        directory: str, root: bytes, subject: Subject, architecture: Architecture
    ) -> dict[str, Tensor] | None:
        """None for those that have the root and are not the architecture's."""
        data = read_plain(Path(directory) / WEIGHTS, subject.model_bytes + weights.MAX_HEADER)
        try:
            return weights.of_root(data, root, architecture.shapes())
        except UserError as error:
            if error.reason == "bad-weights":
                return None
            raise
