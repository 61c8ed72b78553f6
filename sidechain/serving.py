"""What a peer asked for, looked up when it is about to be sent and not before.

So a peer that asks and does not read costs a short list and no memory. Only what was checked is
given away: headers, bodies and states of the active chain.
"""

from __future__ import annotations

from typing import Final

from sidechain.announcements import Announcements
from sidechain.chain import Chain, Status
from sidechain.conversation import Conversation
from sidechain.headers import HeaderRecord
from sidechain.light import Prover
from sidechain.mempool import Mempool
from sidechain.protocol import (
    MAX_HEADERS,
    Announce,
    AnyMessage,
    BlockData,
    GetHeaders,
    GetProofs,
    Headers,
    Item,
    NotFound,
    Proofs,
    Tx,
)

PROOF_DEPTH: Final = 32
"""How deep below the tip entries are proven; older states would have to be rebuilt."""

_AT_ONCE: Final = 16
"""Answers that are made before others have their turn."""

_LEAST: Final = 1024
"""Bytes that an answer is counted as, however short it is."""

_PROOF_COST: Final = 32 * 1024
"""Bytes that a proof is counted as: it is dearer to make than to send."""


class Serving:
    """The answers of a node. `chain` and `mempool` are None for a light one, which has nothing but
    announcements."""

    def __init__(
        self, announcements: Announcements, chain: Chain | None, mempool: Mempool | None
    ) -> None:
        self._announcements = announcements
        self._chain = chain
        self._mempool = mempool
        self._provers: dict[bytes, Prover] = {}

    def serve(self, peer: Conversation, now: float) -> None:
        """Put the next answers into the peer's outbox; nothing while it has had too much."""
        for _ in range(_AT_ONCE):
            if not peer.served or peer.over is not None or peer.serving_pause(now):
                return
            wanted = peer.served.popleft()
            if isinstance(wanted, GetHeaders):
                answer: AnyMessage = self._headers(wanted)
                cost = 80 * len(answer.headers) if isinstance(answer, Headers) else 0
            elif isinstance(wanted, GetProofs):
                answer = self._proofs(wanted)
                cost = _PROOF_COST * len(wanted.keys)
            else:
                answer, cost = self._item(*wanted)
            peer.charge_served(max(cost, _LEAST), now)
            peer.send(answer)

    def _headers(self, wanted: GetHeaders) -> Headers:
        chain = self._chain
        if chain is None:
            return Headers(())
        start = 1
        for block_hash in wanted.locator:
            record = chain.headers.get(block_hash)
            if record is not None and chain.is_active(record):
                start = max(1, record.height)
                break
        found = []
        for height in range(start, start + MAX_HEADERS):
            record = chain.active(height)
            if record is None:
                break
            found.append(record.header.encode())
            if record.hash == wanted.stop:
                break
        return Headers(tuple(found))

    def _item(self, item: Item, wanted: bytes) -> tuple[AnyMessage, int]:
        data: bytes | None = None
        if item is Item.BLOCK and self._chain is not None:
            # Others blame whoever sends them a false block: none leaves that was not checked.
            if self._chain.status(wanted) is Status.ACTIVE:
                data = self._chain.body(wanted)
            if data is not None:
                return BlockData(data), len(data)
        elif item is Item.TX and self._mempool is not None:
            tx = self._mempool.get(wanted)
            if tx is not None:
                data = tx.encode()
                return Tx(data), len(data)
        elif item is Item.ANNOUNCEMENT:
            announcement = self._announcements.get(wanted)
            if announcement is not None:
                data = announcement.encode()
                return Announce(data), len(data)
        return NotFound(item, (wanted,)), 0

    # --- proofs ----------------------------------------------------------------------------------

    def _proofs(self, wanted: GetProofs) -> Proofs | NotFound:
        """Of keys that light.PROVABLE allows."""
        chain = self._chain
        record = chain.headers.get(wanted.block) if chain else None
        if chain is None or record is None or not self._provable(chain, record):
            return NotFound(Item.BLOCK, (wanted.block,))
        prover = self._prover(chain, record)
        return Proofs(tuple(prover.prove(key) for key in wanted.keys))

    @staticmethod
    def _provable(chain: Chain, record: HeaderRecord) -> bool:
        deepest = max(0, chain.tip.height - PROOF_DEPTH)
        return record.height > deepest and chain.is_active(record)

    def _prover(self, chain: Chain, record: HeaderRecord) -> Prover:
        """States share what they have in common, so keeping some costs little."""
        prover = self._provers.get(record.hash)
        if prover is None:
            block = chain.block(record.hash)
            assert block is not None  # the active chain's bodies are kept
            prover = Prover(block, chain.state_at(chain.tip.height - record.height))
            if len(self._provers) >= PROOF_DEPTH:
                del self._provers[next(iter(self._provers))]
            self._provers[record.hash] = prover
        return prover
