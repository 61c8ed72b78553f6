"""How models travel, each figure beside bare libtorrent's or beside another in the same run.

    python benchmarks/swarm.py [MIB]         512 by default

All processes share this machine's cores and disk. From one to eight is measured with a limit on
everybody's upload, as the Internet sets one: without it eight fetchers compete for the processor.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import libtorrent as lt

from torrent import delta, files, manifest
from torrent.library import Library
from torrent.magnet import Magnet, Peer
from torrent.session import Options, settings_pack
from torrent.swarm import Swarm

SPAWN = multiprocessing.get_context("spawn")
MIB = 1 << 20
EIGHT_MIB = 64
EIGHT_LIMIT = 8 * MIB


def main() -> None:
    mib = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    folder = Path(tempfile.mkdtemp(prefix="oda-benchmark-"))
    try:
        one_to_one(folder, mib)
        small(folder)
        one_to_eight(folder)
        update(folder)
    finally:
        shutil.rmtree(folder)


def make(folder: Path, name: str, mib: int) -> Path:
    directory = folder / name / manifest.NAME
    directory.mkdir(parents=True)
    with (directory / "weights.bin").open("wb") as out:
        for _ in range(mib):
            out.write(os.urandom(MIB))
    (directory / "architecture.json").write_text(json.dumps({"a": 1}))
    return directory


@contextmanager
def process(target: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """A process that is told and asked over a pipe; None ends it."""
    ours, theirs = SPAWN.Pipe()
    started = SPAWN.Process(target=target, args=(theirs, *arguments))
    started.start()
    try:
        yield ours
    finally:
        ours.send(None)
        started.join()


# --- one to one ----------------------------------------------------------------------------------


def one_to_one(folder: Path, mib: int) -> None:
    directory = make(folder, "big", mib)
    described = files.describe(directory)
    metainfo = manifest.metainfo(described.manifest, described.layers)
    bare, ours = [], []
    with (
        process(bare_seeder, directory.parent, metainfo) as bare_side,
        process(swarm, folder / "seeder", directory, 0) as our_side,
    ):
        port, magnet = bare_side.recv(), our_side.recv()
        for turn in range(4):
            # Who goes second finds the disk busy with the first one's pages: they take turns.
            for which in (turn % 2, 1 - turn % 2):
                target = folder / f"to{turn}{which}"
                if which:
                    bare.append(bare_fetch(target, metainfo, port))
                else:
                    ours.append(our_fetch(target, magnet))
                shutil.rmtree(target)
    rate = [mib * MIB / 1e6 / statistics.median(times) for times in (ours, bare)]
    print(
        f"one to one, {mib} MiB: {rate[0]:.0f} MB/s (infohash in, checked, on disk), bare "
        f"libtorrent {rate[1]:.0f} MB/s (metadata in hand, flushed); ratio {rate[0] / rate[1]:.2f}"
    )


def bare_session() -> lt.session:
    """With the settings that we use: fast ones for loopback."""
    return lt.session(cast("lt.settings_pack", settings_pack(Options())))


def bare_params(folder: Path, metainfo: bytes) -> lt.add_torrent_params:
    params = lt.load_torrent_buffer(metainfo)
    params.save_path = str(folder)
    params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    return params


def bare_seeder(pipe: Connection, folder: Path, metainfo: bytes) -> None:
    session = bare_session()
    params = bare_params(folder, metainfo)
    params.flags |= lt.torrent_flags.seed_mode
    session.add_torrent(params)
    pipe.send(session.listen_port())
    pipe.recv()


def bare_fetch(folder: Path, metainfo: bytes, port: int, *, boost: bool = True) -> float:
    folder.mkdir()
    session = bare_session()
    params = bare_params(folder, metainfo)
    started = time.perf_counter()
    if boost:
        params.peers = [("127.0.0.1", port)]
    handle = session.add_torrent(params)
    if not boost:
        handle.connect_peer(("127.0.0.1", port))
    wait_for(session, lt.torrent_finished_alert)
    handle.flush_cache()
    wait_for(session, lt.cache_flushed_alert)
    return time.perf_counter() - started


def wait_for(session: lt.session, kind: type) -> None:
    while True:
        session.wait_for_alert(1000)
        if any(isinstance(alert, kind) for alert in session.pop_alerts()):
            return


def our_fetch(folder: Path, magnet: str) -> float:
    async def fetch() -> float:
        async with Swarm(Library(folder, 1 << 40), Options()) as node:
            started = time.perf_counter()
            await node.fetch(Magnet.parse(magnet))
            return time.perf_counter() - started

    return asyncio.run(fetch())


def swarm(pipe: Connection, folder: Path, directory: Path | None, limit: int) -> None:
    """A node in a process of its own: says its link or address, then does as it is told."""

    async def serve() -> None:
        options = Options(upload_limit=limit)
        async with Swarm(Library(folder, 1 << 40), options, stall=600) as node:
            magnet = await node.publish(directory) if directory else None
            pipe.send(str(magnet) if magnet else str(node.address))
            while (asked := await asyncio.to_thread(pipe.recv)) is not None:
                started = time.perf_counter()
                await node.fetch(Magnet.parse(asked))
                pipe.send(time.perf_counter() - started)
            if magnet is not None:
                pipe.send(node.status(magnet.infohash).uploaded)

    asyncio.run(serve())


# --- small ---------------------------------------------------------------------------------------


def small(folder: Path) -> None:
    directory = make(folder, "small", 1)
    described = files.describe(directory)
    metainfo = manifest.metainfo(described.manifest, described.layers)
    bare, ours = [], []
    with (
        process(bare_seeder, directory.parent, metainfo) as bare_side,
        process(swarm, folder / "small-seeder", directory, 0) as our_side,
    ):
        port, magnet = bare_side.recv(), our_side.recv()
        for turn in range(5):
            bare.append(bare_fetch(folder / f"sb{turn}", metainfo, port, boost=False))
            ours.append(our_fetch(folder / f"so{turn}", magnet))
    print(
        f"1 MiB model: {statistics.median(ours):.3f} s from its infohash (worst {max(ours):.3f}); "
        f"bare libtorrent with connect_peer {statistics.median(bare):.3f} s"
    )


# --- one to eight --------------------------------------------------------------------------------


def one_to_eight(folder: Path) -> None:
    directory = make(folder, "eight", EIGHT_MIB)
    alone, _ = spread(folder, directory, 1)
    together, copies = spread(folder, directory, 8)
    print(
        f"one to eight, {EIGHT_MIB} MiB, uploads limited to {EIGHT_LIMIT / 1e6:.0f} MB/s each: "
        f"{together:.1f} s against {alone:.1f} s for one fetcher, ratio {together / alone:.2f}; "
        f"the seeder sent {copies:.2f} copies"
    )


def spread(folder: Path, directory: Path, count: int) -> tuple[float, float]:
    ours, theirs = SPAWN.Pipe()
    seeder = SPAWN.Process(
        target=swarm, args=(theirs, folder / f"spread{count}", directory, EIGHT_LIMIT)
    )
    seeder.start()
    magnet = Magnet.parse(ours.recv())
    pipes, processes = [], []
    for index in range(count):
        pipe, end = SPAWN.Pipe()
        one = SPAWN.Process(
            target=swarm, args=(end, folder / f"to{count}-{index}", None, EIGHT_LIMIT)
        )
        one.start()
        pipes.append(pipe)
        processes.append(one)
    others = tuple(Peer.parse(pipe.recv()) for pipe in pipes)
    started = time.perf_counter()
    for pipe in pipes:
        pipe.send(str(Magnet(magnet.infohash, (*magnet.peers, *others))))
    for pipe in pipes:
        pipe.recv()
    elapsed = time.perf_counter() - started
    ours.send(None)
    copies = ours.recv() / (EIGHT_MIB * MIB)
    for pipe in pipes:
        pipe.send(None)
    for one in (seeder, *processes):
        one.join()
    return elapsed, copies


# --- updates -------------------------------------------------------------------------------------


def update(folder: Path) -> None:
    """A byte transformer is trained, and each round's delta compared with its float32 bytes."""
    import torch
    from safetensors.torch import save

    from sidechain.model.architecture import ByteTransformer

    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = ByteTransformer(width=128, blocks=4, heads=8, context=64).build()
    module.train()
    text = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)

    def weights() -> bytes:
        return delta.quantise(save({k: v.contiguous() for k, v in module.state_dict().items()}))

    before = weights()
    for steps in (1, 10, 100):
        for _ in range(steps):
            starts = torch.randint(0, len(text) - 65, (16,))
            batch = torch.stack([text[i : i + 65] for i in starts])
            logits = module(batch[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
            optimizer.step()
        after = weights()
        started = time.perf_counter()
        packed = delta.make(before, after)
        took = time.perf_counter() - started
        print(
            f"update after {steps} steps: {len(packed)} of {len(after)} bytes, "
            f"{len(packed) / len(after):.1%} (packed in {took:.2f} s)"
        )
        before = after


if __name__ == "__main__":
    main()
