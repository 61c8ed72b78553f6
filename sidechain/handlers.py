"""What all nodes answer to the endpoints of openapi.py: methods by the name of the operation.

full_handlers.py and light_handlers.py have the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from channels.errors import UserError
from sidechain import announcements, api, views
from sidechain.announcements import Announcement, Announcements
from sidechain.headers import HeaderRecord
from sidechain.openapi import Endpoint
from sidechain.protocol import Service

if TYPE_CHECKING:
    from sidechain.miner import Miner
    from sidechain.peers import Peers
    from sidechain.scoring import SwarmScorer

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what is in its path, its query and its body."""

    endpoint: Endpoint
    path: Mapping[str, str]
    asked: Mapping[str, str]
    body: bytes

    def query(self, kind: type[V]) -> V:
        """Raises UserError("bad-request")."""
        assert kind is self.endpoint.query, "what the document says"
        return _read(lambda: msgspec.convert(dict(self.asked), kind, strict=False))

    def posted(self, kind: type[V]) -> V:
        assert kind is self.endpoint.body, "what the document says"
        return _read(lambda: msgspec.json.decode(self.body, type=kind))

    def hash(self, name: str) -> bytes:
        return _read(lambda: bytes.fromhex(msgspec.convert(self.path[name], api.Hash)))


def _read(read: Callable[[], V]) -> V:
    try:
        return read()
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UserError("bad-request", f"{error}; see /openapi.json.") from None


@dataclass(slots=True)
class Around:
    """What runs beside the node. swarm: its BitTorrent address. key: x-only, of who mines."""

    agent: str
    now: Callable[[], int]
    peers: Peers
    key: bytes | None = None
    swarm: str | None = None
    scorer: SwarmScorer | None = None
    miner: Miner | None = None


class Announcer(Protocol):
    """What is used of a node, full or light."""

    announcements: Announcements

    def accept_announcement(self, announcement: Announcement) -> None: ...


class Handlers:
    """What full and light nodes answer alike."""

    def __init__(self, announcer: Announcer, around: Around) -> None:
        self._announcer = announcer
        self._around = around

    async def status(self, call: Call) -> api.Status:
        raise NotImplementedError

    async def peers(self, call: Call) -> api.Peers:
        shown = [
            api.Peer(
                each.host,
                each.port,
                each.inbound,
                each.height,
                each.agent,
                not each.services & Service.FULL,
                each.swarm_port,
                each.score,
                each.connected_since,
                each.latency,
            )
            for each in self._around.peers.infos()
        ]
        banned = [api.Banned(host, until) for host, until in self._around.peers.bans().items()]
        return api.Peers(tuple(shown), tuple(banned))

    async def announcements(self, call: Call) -> api.Announcements:
        query = call.query(api.AnnouncementsQuery)
        model, now = query.model and bytes.fromhex(query.model), self._around.now()
        found = [
            each
            for each in self._announcer.announcements
            if each.expires > now and (model is None or model in each.models)
        ]
        shown = found[query.offset : query.offset + query.limit]
        return api.Announcements(len(found), tuple(views.announcement(each) for each in shown))

    async def post_announcement(self, call: Call) -> api.Posted:
        posted = announcements.decode(bytes.fromhex(call.posted(api.NewAnnouncement).announcement))
        self._announcer.accept_announcement(posted)
        return api.Posted(posted.txid.hex())


def no_such(what: str) -> UserError:
    return UserError("not-found", f"There is no such {what} here.")


def find_record(
    name: str,
    active: Callable[[int], HeaderRecord | None],
    known: Callable[[bytes], HeaderRecord | None],
) -> HeaderRecord:
    """A block by its height on the chain, or any known one by its hash. Raises UserError."""
    record = None
    if re.fullmatch("[0-9]{1,9}", name):
        record = active(int(name))
    elif re.fullmatch("[0-9a-f]{64}", name):
        record = known(bytes.fromhex(name)[::-1])
    if record is None:
        raise no_such("block")
    return record


def served(call: Call) -> tuple[bytes | None, bytes | None]:
    """The model and weights that a question about who is owed is about."""
    query = call.query(api.BeneficiariesQuery)
    model, root = (
        None if each is None else bytes.fromhex(each) for each in (query.model, query.weights_root)
    )
    return model, root
