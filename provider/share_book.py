"""Under which provenance sessions spend, and what of it is counted for shares.

A challenge names the provenance that holds from then on. The one that was last sent to a session
is what its next answer is counted under, to the answer's end, so that a user can hold every part
of a statement against a challenge that it has seen.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final, Protocol

from channels.http.session import Provenance
from provider.serving import Served
from provider.sessions import Session
from provider.share_ledger import ShareLedger
from sidechain.fees import Beneficiaries, Terms
from sidechain.state import Version

REMEMBERED: Final = 10_000
"""Sessions whose last challenge is kept in memory."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What the sidechain says of weights: from which block, and whose keys are owed."""

    provenance: Provenance
    beneficiaries: Beneficiaries


class Lineage(Protocol):
    """The sidechain, as far as a provider asks it before it serves."""

    trouble: str | None
    """Why it can't be followed now."""

    def backing(self, model: bytes | None, weights_root: bytes | None) -> Backing | None:
        """As of now; None while nothing is known. Must not block."""

    def version(self, model: bytes) -> Version | None:
        """The newest confirmed one of a registered model, where it is known."""


class ShareBook:
    def __init__(self, ledger: ShareLedger, lineage: Lineage) -> None:
        self._ledger = ledger
        self._lineage = lineage
        self._sent: OrderedDict[bytes, Backing] = OrderedDict()

    def current(self, served: Served) -> Backing | None:
        if served.shares is None:
            return None
        return self._lineage.backing(served.model, served.weights_root)

    def sent(self, session: bytes, backing: Backing) -> None:
        """A challenge with this provenance goes to the session."""
        self._sent[session] = backing
        self._sent.move_to_end(session)
        while len(self._sent) > REMEMBERED:
            self._sent.popitem(last=False)

    def begin(self, session: Session, served: Served) -> int | None:
        """The period that an answer is counted under; None where nothing is shared."""
        terms = Terms(session.terms.trainer_ppm, session.terms.producers_ppm)
        backing = self._sent.get(session.id) or self.current(served)
        if backing is None or not (terms.trainer_ppm or terms.producers_ppm):
            return None
        provenance = backing.provenance
        if (provenance.model, provenance.weights_root) != (served.model, served.weights_root):
            # The weights changed after the challenge was sent: what is said is what is served.
            backing = self.current(served) or backing
            provenance = replace(
                backing.provenance, model=served.model, weights_root=served.weights_root
            )
        return self._ledger.begin(session.id, provenance, backing.beneficiaries, terms)
