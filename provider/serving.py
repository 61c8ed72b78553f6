"""Which models are on offer, and how one is replaced while it is in use.

An answer is a function of its weights, so one that has begun ends with the weights that it began
with. Whoever is between two of its tokens keeps them; whoever was cut off finds them until the next
replacement, and after that is told.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from channels.http.session import Terms
from channels.units import UnixTime
from provider.engine import Engine
from provider.places import Places
from provider.pricing import Price
from sidechain.fees import Terms as Shares


@dataclass(frozen=True, slots=True)
class Served:
    """A model on offer. infohash: of its directory, where the provider shares it.

    model, weights_root: what it is on the sidechain; None for one that is not. shares: what is
    passed on to those who made it; None for a provider on no sidechain. places: how many of its
    answers may be made at a time, where that is not the provider's own limit.
    """

    engine: Engine
    price: Price
    tokens_per_second: int
    created: UnixTime
    infohash: bytes | None = None
    model: bytes | None = None
    weights_root: bytes | None = None
    shares: Shares | None = None
    places: Places | None = None

    @property
    def terms(self) -> Terms:
        price, shares = self.price, self.shares
        return Terms(
            self.engine.model_id,
            price.input_msat,
            price.output_msat,
            self.tokens_per_second,
            0 if shares is None else shares.trainer_ppm,
            0 if shares is None else shares.producers_ppm,
        )


class Models:
    """By name; the first is offered where a request names none. For the event loop's thread.

    An engine that is given to it is closed by it.
    """

    def __init__(self, served: Iterable[Served]) -> None:
        self._current = {each.engine.model_id: each for each in served}
        self._before: dict[str, list[Served]] = {name: [] for name in self._current}
        """By name, the newest last: what was replaced and may still be needed."""
        self._using: dict[int, int] = {}
        self._away: set[str] = set()

    @property
    def current(self) -> Mapping[str, Served]:
        return MappingProxyType(self._current)

    def is_away(self, name: str) -> bool:
        """Whether it was withdrawn and may come back."""
        return name in self._away

    def withdraw(self, name: str) -> None:
        """It can't be had for now; answers that have begun go on as far as they can."""
        withdrawn = self._current.pop(name, None)
        if withdrawn is not None:
            self._away.add(name)
            self._before.setdefault(name, []).append(withdrawn)
            self._close_unneeded(name)

    def swap(self, new: Served) -> None:
        """From now on requests for a model of this name are answered by this one."""
        name = new.engine.model_id
        replaced = self._current.get(name)
        if replaced is new:
            return
        self._current[name] = new
        self._away.discard(name)
        if replaced is not None:
            self._before.setdefault(name, []).append(replaced)
            self._close_unneeded(name)

    def with_weights(self, name: str, weights_id: str) -> Served | None:
        """Whatever can go on with an answer that these weights began."""
        current = self._current.get(name)
        known = [*self._before.get(name, ()), *([] if current is None else [current])]
        return next((each for each in known if each.engine.weights_id == weights_id), None)

    @contextmanager
    def using(self, served: Served) -> Iterator[None]:
        """For as long as the block runs its engine is not closed."""
        self._using[id(served)] = self._using.get(id(served), 0) + 1
        try:
            yield
        finally:
            self._using[id(served)] -= 1
            if not self._using[id(served)]:
                del self._using[id(served)]
                self._close_unneeded(served.engine.model_id)

    def close(self) -> None:
        for each in itertools.chain(self._current.values(), *self._before.values()):
            each.engine.close()

    def _close_unneeded(self, name: str) -> None:
        """Of what was replaced, the last stays, for answers that were cut off."""
        for served in self._before.get(name, [])[:-1]:
            if id(served) not in self._using:
                self._before[name].remove(served)
                served.engine.close()
