"""Providers make themselves known by gossip that is signed, stamped and forgotten after a day.

An announcement is no transaction: no block has it and no state depends on it. It is encoded,
stamped and signed like one (type number 6), so that it costs something to flood and nobody else
can change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Final

import msgspec
from msgspec import Meta

from sidechain.params import Params
from sidechain.payee import is_endpoint
from sidechain.primitives import (
    Hash,
    Key,
    NodeId,
    Signature,
    Transaction,
    Uint,
    stamp_work,
    verify_schnorr,
)
from sidechain.reasons import Rejection

MAX_BYTES: Final = 4096
LIFETIME: Final = 24 * 3600
MAX_MODELS: Final = 64
MAX_KEPT: Final = 4096


class Announcement(Transaction, frozen=True, tag=6):
    """Where a provider is, until when, and what it serves."""

    SIGNED: ClassVar[bool] = True

    key: Key
    seq: Uint
    expires: Uint
    """Seconds since 1970, at most LIFETIME from now."""
    url: Annotated[str, Meta(min_length=1, max_length=256)]
    certificate: Hash
    """SHA-256 of the TLS certificate; zeros for plain HTTP, which is for loopback only."""
    node_id: NodeId
    models: Annotated[tuple[Hash, ...], Meta(max_length=MAX_MODELS)]
    sig: Signature


_announcement = msgspec.msgpack.Decoder(Announcement)


def decode(data: bytes) -> Announcement:
    """Raises Rejection("tx-decode") for anything but the one encoding of an announcement."""
    if len(data) > MAX_BYTES:
        raise Rejection("tx-decode", f"{len(data)} bytes")
    try:
        announcement = _announcement.decode(data)
        again = announcement.encode()
    except (ValueError, RecursionError) as error:
        raise Rejection("tx-decode", str(error)) from None
    if again != data:
        raise Rejection("tx-decode", "not canonical")
    return announcement


class Announcements:
    """The newest announcement of each provider. When full, the best stamps stay."""

    def __init__(self, params: Params, most: int = MAX_KEPT) -> None:
        self._params = params
        self._most = most
        self._kept: dict[bytes, Announcement] = {}
        self._by_hash: dict[bytes, Announcement] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Announcement]:
        return iter(self._kept.values())

    def get(self, announcement_hash: bytes) -> Announcement | None:
        """The announcement with this txid, by which peers offer it to each other."""
        return self._by_hash.get(announcement_hash)

    def add(self, announcement: Announcement, now: int) -> None:
        """Keep an announcement, which is then worth passing on. Raises Rejection."""
        known = self._kept.get(announcement.key)
        if announcement.network_id != self._params.network_id:
            raise Rejection("bad-network")
        if known is not None and announcement.seq <= known.seq:
            raise Rejection("stale-seq")
        if not now < announcement.expires <= now + LIFETIME + self._params.future_limit:
            raise Rejection("announcement-expired")
        work = stamp_work(announcement)
        if work < self._params.stamp:
            raise Rejection("bad-stamp")
        if not is_endpoint(announcement.url):
            raise Rejection("bad-payee-endpoint")
        digest = announcement.signature_hash()
        if not verify_schnorr(announcement.key, digest, announcement.sig):
            raise Rejection("bad-signature")
        if known is None and len(self._kept) >= self._most:
            self._make_room(work, now)
        if known is not None:
            self._forget(known)
        self._kept[announcement.key] = announcement
        self._by_hash[announcement.txid] = announcement

    def _forget(self, announcement: Announcement) -> None:
        del self._kept[announcement.key], self._by_hash[announcement.txid]

    def _make_room(self, work: int, now: int) -> None:
        self.expire(now)
        if len(self._kept) < self._most:
            return
        worst = min(self._kept.values(), key=stamp_work)
        if stamp_work(worst) >= work:
            raise Rejection("announcements-full")
        self._forget(worst)

    def expire(self, now: int) -> None:
        """Forget what is over."""
        for each in [each for each in self if each.expires <= now]:
            self._forget(each)

    def serving(self, model: bytes, now: int) -> list[Announcement]:
        """The providers that say they serve a model."""
        return [each for each in self if model in each.models and each.expires > now]
