"""The network: a real bitcoind, and small programs in the place of the Lightning nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from channels.errors import UserError
from channels.lightning import Lightning
from channels.settings import load_settings
from channels.units import Sat
from regtest.network import Network, Status

NODE = (sys.executable, str(Path(__file__).with_name("node_stand_in.py")))
UP = """
import asyncio, sys
from pathlib import Path
from regtest.network import Network
directory, cache, node, *names = sys.argv[1:]
asyncio.run(Network(Path(directory), Path(cache), node=(sys.executable, node)).up(names))
"""


def make(directory: Path) -> Network:
    settings = load_settings()
    return Network(directory, settings.cache, settings.bitcoind, NODE)


@pytest.fixture
async def network(bitcoind_program: Sequence[str], tmp_path: Path) -> AsyncIterator[Network]:
    network = make(tmp_path / "regtest")
    yield network
    await network.down()


def pids(status: Status) -> list[int]:
    return [
        pid
        for pid in (status.bitcoind.pid, *(node.pid for node in status.nodes))
        if pid is not None
    ]


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def coins(network: Network, name: str) -> list[int]:
    async with Lightning(network.node(name).rpc_file) as lightning:
        funds = await lightning.call("listfunds")
    return sorted(output["amount_msat"] for output in funds["outputs"])


async def test_up_fund_mine_status_down(network: Network) -> None:
    status = await network.up(coins=Sat(50_000))
    assert [node.name for node in status.nodes] == ["user", "provider"]
    assert status.bitcoind.height == 102
    assert len(pids(status)) == 3
    assert await coins(network, "user") == [50_000_000]
    assert await network.fund("user", Sat(7_000))
    assert await coins(network, "user") == [7_000_000, 50_000_000]
    assert await coins(network, "provider") == [50_000_000]
    assert len(await network.mine(2)) == 2

    status = await network.status()
    assert status.bitcoind.height == 105
    assert all(node.id is not None and len(node.id) == 66 for node in status.nodes)

    assert sorted(await network.down()) == ["bitcoind", "provider", "user"]
    assert not any(exists(pid) for pid in pids(status))
    assert await network.down() == []
    assert pids(await network.status()) == []


async def test_up_again_changes_nothing_and_adds_what_is_new(network: Network) -> None:
    first = await network.up(["user"])
    second = await network.up(["user", "carol"])
    assert second.bitcoind == first.bitcoind.__class__(
        first.bitcoind.pid, first.bitcoind.url, first.bitcoind.cookie, 103
    )
    assert second.nodes[0] == first.nodes[0]
    assert await coins(network, "user") == [1_000_000_000]
    assert await coins(network, "carol") == [1_000_000_000]


async def test_down_and_up_again_keeps_ports_and_coins(network: Network) -> None:
    first = await network.up(["user"])
    await network.down()
    again = await network.up(["user"])
    assert again.bitcoind.url == first.bitcoind.url
    assert again.nodes[0].address == first.nodes[0].address
    assert again.bitcoind.height == first.bitcoind.height
    assert await coins(network, "user") == [1_000_000_000]


async def test_two_at_once_start_it_once(network: Network) -> None:
    first, second = await asyncio.gather(network.up(["user"]), make(network.directory).up(["user"]))
    assert pids(first) == pids(second)
    assert await coins(network, "user") == [1_000_000_000]


async def test_directories_are_independent(network: Network, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    try:
        first, second = await asyncio.gather(network.up(["user"]), other.up(["user"]))
        assert not set(pids(first)) & set(pids(second))
        await other.mine(1)
        assert (await network.status()).bitcoind.height == first.bitcoind.height
    finally:
        await other.down()
    assert len(pids(await network.status())) == 2


async def test_after_everything_was_killed(network: Network) -> None:
    status = await network.up(["user"])
    for pid in pids(status):
        os.kill(pid, signal.SIGKILL)
    for daemon in (network.bitcoind.daemon, network.node("user").daemon):
        with pytest.raises(UserError, match="ended at once"):
            daemon.wait(lambda: False, patience=20)
    assert await network.down() == []
    assert not any(exists(pid) for pid in pids(status))
    again = await network.up(["user"])
    assert again.bitcoind.height == status.bitcoind.height
    assert await coins(network, "user") == [1_000_000_000]


async def test_bitcoind_alone_was_killed(network: Network) -> None:
    status = await network.up(["user"])
    assert status.bitcoind.pid is not None
    os.kill(status.bitcoind.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="ended at once"):
        network.bitcoind.daemon.wait(lambda: False, patience=20)
    with pytest.raises(UserError) as caught:
        await network.mine(1)
    assert caught.value.reason == "not-running"
    again = await network.up(["user"])
    assert again.bitcoind.url == status.bitcoind.url
    assert again.nodes == status.nodes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_up_that_was_interrupted(
    network: Network, number: signal.Signals, tmp_path: Path
) -> None:
    arguments = [str(network.directory), str(load_settings().cache), NODE[1], "user", "deaf"]
    with (tmp_path / "up").open("wb") as log:
        up = subprocess.Popen([sys.executable, "-c", UP, *arguments], stderr=log)  # noqa: ASYNC220  (quick)
        with up:
            await until_started(network, "deaf")
            pids = [network.node(name).daemon.pid() for name in ("user", "deaf")]
            up.send_signal(number)
    assert up.returncode != 0
    stopped = await network.down()
    # After Ctrl-C `up` has cleaned up behind itself; after a kill there was nobody to do it.
    assert stopped == ([] if number is signal.SIGINT else ["deaf", "user", "bitcoind"])
    assert None not in pids
    assert network.bitcoind.daemon.pid() is None
    assert all(network.node(name).daemon.pid() is None for name in ("user", "deaf"))


async def until_started(network: Network, name: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                if network.node(name).daemon.pid() is not None:
                    return
            except UserError:  # network.json does not know it yet
                pass
            await asyncio.sleep(0.02)


async def test_a_node_that_can_not_start_takes_the_rest_of_this_up_with_it(
    network: Network,
) -> None:
    await network.up(["user"])
    port = int(network.node("user").port)
    await network.down()
    taken = socket.create_server(("127.0.0.1", port))
    with taken, pytest.raises(UserError, match=str(port)) as caught:
        await network.up(["user"])
    assert caught.value.reason == "port-in-use"
    assert pids(await network.status()) == []


async def test_bitcoind_moves_when_its_port_was_taken_meanwhile(network: Network) -> None:
    first = await network.up(["user"])
    await network.down()
    assert first.bitcoind.url is not None
    with socket.create_server(("127.0.0.1", int(first.bitcoind.url.rpartition(":")[2]))):
        again = await network.up(["user"])
        assert again.bitcoind.url != first.bitcoind.url
        await network.mine(1)


async def test_what_is_not_there(network: Network, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        await network.fund("user", Sat(1000))
    assert caught.value.reason == "not-running"
    with pytest.raises(UserError) as caught:
        network.node("nobody")
    assert caught.value.reason == "not-found"
    with pytest.raises(UserError) as caught:
        await network.up(["../user"])
    assert caught.value.reason == "bad-name"
    with pytest.raises(UserError) as caught:
        await make(tmp_path / ("long" * 30)).up(["user"])
    assert caught.value.reason == "path-too-long"
    (network.directory / "network.json").write_text("{")
    with pytest.raises(UserError) as caught:
        await network.status()
    assert caught.value.reason == "bad-network-file"
    (network.directory / "network.json").unlink()
    assert pids(await network.status()) == []
