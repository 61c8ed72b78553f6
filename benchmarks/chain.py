"""How fast the core of the sidechain is, on one core.

Each figure stands beside what it rests on, run here and now: hashing, signatures. None is asserted.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import msgspec

from channels.bolt import keys, signmessage
from sidechain import payee, pow
from sidechain.chain import Chain, MemoryStore
from sidechain.headers import HeaderIndex
from sidechain.mempool import assemble
from sidechain.node import ChainNode
from sidechain.params import MAIN, REGTEST
from sidechain.primitives import (
    NO_SIGNATURE,
    AnyTransaction,
    Block,
    Commit,
    Header,
    RegisterPayee,
    sha256d,
    signed,
    verify_schnorr,
    x_only,
)
from sidechain.scores import NO_SCORES
from sidechain.store import SqliteStore
from sidechain.validation import check_block, state_transition

EASY = replace(MAIN, pow_limit_bits=0x207FFFFF)
"""Main's rules, ASERT included, with work that a benchmark can pay."""

FREE = replace(REGTEST, stamp=1, model_stamp=1)
HEADERS, BLOCKS, REORG = 20_000, 10_000, 100
TURN = 500
SECRET = hashlib.sha256(b"benchmark").digest()


def timed(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def solved(header: Header) -> Header:
    while not pow.meets(header.hash, header.bits):
        header = msgspec.structs.replace(header, nonce=header.nonce + 1)
    return header


def headers() -> None:
    index = HeaderIndex(EASY)
    tip, made = index.genesis, []
    for _ in range(HEADERS):
        time = tip.header.time + EASY.spacing
        header = solved(Header(1, tip.hash, bytes(32), time, index.next_bits(tip), 0))
        tip = index.accept(header, time)
        made.append(header.encode())
    now = tip.header.time

    def accept() -> None:
        fresh = HeaderIndex(EASY)
        for data in made:
            fresh.accept(Header.decode(data), now)

    def hash_only() -> None:
        for data in made:
            sha256d(data)

    seconds, alone = timed(accept), timed(hash_only)
    print(f"headers/s, ASERT and median time included: {HEADERS / seconds:,.0f} (wanted: 20,000)")
    print(f"  = {seconds / alone:.1f} x the double SHA-256 alone ({HEADERS / alone:,.0f}/s)")


def extend(chain: Chain, count: int, extra: bytes, txs: int = 0) -> list[Block]:
    """Mine blocks on the tip, each with some commits."""
    made = []
    for number in range(count):
        time = chain.tip.header.time + FREE.spacing
        blinds = (sha256d(extra + bytes([i]) + number.to_bytes(4, "big")) for i in range(txs))
        commits: list[AnyTransaction] = [Commit(FREE.network_id, 0, blind) for blind in blinds]
        block = assemble(
            FREE,
            chain.tip,
            chain.state,
            commits,
            NO_SCORES,
            payee=sha256d(extra),
            time=time,
            bits=FREE.pow_limit_bits,
            extra=extra,
        )
        block = Block(solved(block.header), block.transactions)
        chain.accept_block(block, time)
        chain.advance()
        made.append(block)
    return made


def feed(chain: Chain, blocks: list[bytes], now: int, every: int) -> None:
    for number, data in enumerate(blocks, 1):
        chain.accept_block(Block.decode(data, FREE.block_bytes), now)
        if number % every == 0:
            chain.advance()
    chain.advance()


def sync() -> None:
    chain = Chain(FREE, MemoryStore())
    blocks = [block.encode() for block in extend(chain, BLOCKS, b"sync", txs=2)]
    now = chain.tip.header.time
    fresh = Chain(FREE, MemoryStore())
    seconds = timed(lambda: feed(fresh, blocks, now, 16))
    assert fresh.tip.hash == chain.tip.hash
    print(f"{BLOCKS:,} blocks of 3 transactions, decoded, checked and connected: {seconds:.2f} s")
    print("  (wanted: under 10 s with the wire and the disk)")
    on_disk(blocks, now, seconds)


def on_disk(blocks: list[bytes], now: int, in_memory: float) -> None:
    """The same through a node and its file, TURN blocks to a commit, and a restart."""

    def feed() -> None:
        for start in range(0, len(blocks), TURN):
            with node.turn():
                for data in blocks[start : start + TURN]:
                    node.accept_block(Block.decode(data, FREE.block_bytes))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chain.sqlite"
        with SqliteStore(path) as store:
            node = ChainNode(FREE, store, now=lambda: now)
            seconds = timed(feed)
            tip = node.chain.tip.hash
        print(f"the same onto a disk, {TURN} to a commit: {seconds:.2f} s")
        print(f"  = {seconds / in_memory:.1f} x without a disk")
        with SqliteStore(path) as store:
            seconds = timed(lambda: ChainNode(FREE, store, now=lambda: now))
            assert store.tip() == tip
        print(f"taking them up again from there: {seconds:.2f} s")


def reorg() -> None:
    one, other = Chain(FREE, MemoryStore()), Chain(FREE, MemoryStore())
    extend(one, REORG, b"one", txs=20)
    blocks = extend(other, REORG + 1, b"other", txs=20)
    for block in blocks:
        one.accept_header(block.header, other.tip.header.time)
    for block in blocks[:-1]:
        one.accept_block(block, other.tip.header.time)
    one.accept_block(blocks[-1], other.tip.header.time)
    seconds = timed(one.advance)
    assert one.tip.hash == other.tip.hash
    print(f"reorg of {REORG} blocks of 21 transactions: {seconds:.3f} s (wanted: under 1 s)")


def full_block() -> None:
    """The dearest block without scores: 64 KiB of payees, two signatures each."""
    key, node_id = x_only(SECRET), keys.public_key(SECRET)
    txs: list[AnyTransaction] = []
    for seq in range(300):
        text = payee.payee_text(FREE.network_id, key, seq, node_id, "x")
        _, proof = signmessage.sign(SECRET, text)
        tx = RegisterPayee(FREE.network_id, 0, key, seq, node_id, "x", proof, NO_SIGNATURE)
        txs.append(signed(tx, SECRET))
    chain = Chain(FREE, MemoryStore())
    block = assemble(
        FREE,
        chain.tip,
        chain.state,
        txs,
        NO_SCORES,
        payee=key,
        time=FREE.genesis_time + 1,
        bits=FREE.pow_limit_bits,
    )

    def check() -> None:
        check_block(FREE, block)
        state_transition(FREE, chain.state, block)

    count = len(block.transactions) - 1
    seconds = min(timed(check) for _ in range(3))
    first = txs[0]
    assert isinstance(first, RegisterPayee)
    digest, sig = first.signature_hash(), first.sig
    alone = timed(lambda: [verify_schnorr(key, digest, sig) for _ in range(2 * count)])
    print(f"a full block without scores ({count} payees): {1000 * seconds:.0f} ms")
    print(f"  = {seconds / alone:.1f} x its {2 * count} signatures alone")
    print(
        "  Checking may cost 1.1 x the scoring in a block: beside this, scoring that takes "
        f"{10 * seconds:.2f} s or more"
    )


if __name__ == "__main__":
    headers()
    sync()
    reorg()
    full_block()
