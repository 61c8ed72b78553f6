"""The tree of known headers, and the rules that need no more than headers.

Full nodes and light clients share it. A header is kept once it has shown its work; whether the
block behind it is valid is not known here, except that `invalidate` tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from channels.tagged_hash import tagged
from sidechain import pow
from sidechain.params import Params
from sidechain.primitives import Header, display
from sidechain.reasons import Rejection


def genesis(params: Params) -> Header:
    """The first header, known by definition: it has no work, no transactions and an empty state."""
    return Header(
        version=1,
        prev=bytes(32),
        merkle_root=tagged("ODA/genesis")(params.name.encode()),
        time=params.genesis_time,
        bits=params.pow_limit_bits,
        nonce=0,
    )


@dataclass(slots=True, eq=False)
class HeaderRecord:
    """A header in its place. `work` counts from genesis to here; `invalid` is a reason."""

    header: Header
    hash: bytes
    height: int
    work: int
    parent: HeaderRecord | None
    order: int
    """When it came, to prefer what was seen first among equals."""
    invalid: str | None = None
    children: list[HeaderRecord] = field(default_factory=list)
    _skip: HeaderRecord | None = field(default=None, init=False)
    """Far below, so that an ancestor is found in about log(height) steps."""

    def __post_init__(self) -> None:
        if self.parent is not None:
            self._skip = self.parent.ancestor(_skip_height(self.height))

    def ancestor(self, height: int) -> HeaderRecord:
        """The record at that height, from here towards genesis."""
        record = self
        while record.height > height:
            skip = record._skip
            if skip is not None and skip.height >= height:
                record = skip
            else:
                assert record.parent is not None  # only genesis has none, at height 0
                record = record.parent
        return record

    def median_time(self) -> int:
        """BIP 113's median time past, which a child's time must be above."""
        times: list[int] = []
        record: HeaderRecord | None = self
        while record is not None and len(times) < pow.MEDIAN_SPAN:
            times.append(record.header.time)
            record = record.parent
        return pow.median(times)

    def chain(self) -> Iterator[HeaderRecord]:
        """From here to genesis."""
        record: HeaderRecord | None = self
        while record is not None:
            yield record
            record = record.parent

    def family(self) -> Iterator[HeaderRecord]:
        """This record and all that builds on it."""
        waiting = [self]
        while waiting:
            each = waiting.pop()
            yield each
            waiting += each.children

    def __repr__(self) -> str:
        return f"<{self.height} {display(self.hash)[:16]}>"


def _skip_height(height: int) -> int:
    """How far down a record at this height points, as Bitcoin Core's GetSkipHeight says."""
    if height < 2:
        return 0
    if height & 1:
        even = height - 1
        even &= even - 1  # without its lowest one
        return (even & (even - 1)) + 1
    return height & (height - 1)


def fork_point(one: HeaderRecord, other: HeaderRecord) -> HeaderRecord:
    """The highest record that both chains have."""
    one = one.ancestor(min(one.height, other.height))
    other = other.ancestor(one.height)
    while one is not other:
        assert one.parent is not None and other.parent is not None  # they meet at genesis
        one, other = one.parent, other.parent
    return one


class HeaderIndex:
    """All headers that were accepted. `best` has the most work of those not known to be invalid."""

    def __init__(self, params: Params) -> None:
        self.params = params
        first = genesis(params)
        self.genesis = HeaderRecord(first, first.hash, 0, 0, None, 0)
        self.records: dict[bytes, HeaderRecord] = {self.genesis.hash: self.genesis}
        self.best = self.genesis

    def get(self, block_hash: bytes) -> HeaderRecord | None:
        return self.records.get(block_hash)

    def accept(self, header: Header, now: int) -> HeaderRecord:
        """The header's record; the known one if it is known.

        Raises Rejection. "time-too-new" may pass later; all other reasons are final.
        """
        block_hash = header.hash
        known = self.records.get(block_hash)
        if known is not None:
            if known.invalid is not None:
                raise Rejection("duplicate-invalid", known.invalid)
            return known
        parent = self.records.get(header.prev)
        if parent is None:
            raise Rejection("prev-blk-not-found")
        if parent.invalid is not None:
            raise Rejection("bad-prevblk", parent.invalid)
        # The work comes first: it is the only check that costs a stranger something.
        if header.bits != self.next_bits(parent):
            raise Rejection("bad-diffbits")
        if not pow.meets(block_hash, header.bits):
            raise Rejection("high-hash")
        if header.time <= parent.median_time():
            raise Rejection("time-too-old")
        if header.time > now + self.params.future_limit:
            raise Rejection("time-too-new")
        work = parent.work + pow.work_of(header.bits)
        record = HeaderRecord(
            header, block_hash, parent.height + 1, work, parent, len(self.records)
        )
        self.records[block_hash] = record
        parent.children.append(record)
        if work > self.best.work:
            self.best = record
        return record

    def next_bits(self, parent: HeaderRecord) -> int:
        """The bits that a child of this record must have."""
        return pow.next_bits(self.params, parent.height, parent.header.time)

    def invalidate(self, record: HeaderRecord, reason: str) -> list[HeaderRecord]:
        """Mark a block and all that builds on it as invalid for good; -> those newly marked."""
        marked = []
        for each in record.family():
            if each.invalid is None:
                each.invalid = reason if each is record else "bad-prevblk"
                marked.append(each)
        if self.best.invalid is not None:
            valid = (each for each in self.records.values() if each.invalid is None)
            self.best = max(valid, key=lambda each: (each.work, -each.order))
        return marked

    def locator(self, record: HeaderRecord) -> list[bytes]:
        """Hashes from here to genesis, ever further apart, as Bitcoin's getheaders has them."""
        hashes, step = [], 1
        height = record.height
        while height > 0:
            record = record.ancestor(height)
            hashes.append(record.hash)
            if len(hashes) >= 10:
                step *= 2
            height -= step
        return [*hashes, self.genesis.hash]
