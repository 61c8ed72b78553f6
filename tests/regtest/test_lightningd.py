"""`oda regtest up --lightningd`: the same network, of Core Lightning where it is installed."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from channels.errors import UserError
from channels.lightning import Lightning
from channels.units import Sat
from regtest.lightningd import bitcoin_cli
from regtest.network import Network
from tests.regtest.test_network import make


@pytest.fixture
async def network(bitcoind_program: Sequence[str], tmp_path: Path) -> AsyncIterator[Network]:
    network = make(tmp_path / "regtest")
    yield network
    await network.down()


def test_bitcoin_cli_is_beside_bitcoind(tmp_path: Path) -> None:
    bitcoind = tmp_path / "bitcoind"
    with pytest.raises(UserError, match="bitcoin-cli") as caught:
        bitcoin_cli([str(bitcoind)])
    assert caught.value.reason == "not-found"
    cli = tmp_path / "bitcoin-cli"
    cli.touch()
    assert bitcoin_cli([str(bitcoind)]) == [str(cli)]
    assert bitcoin_cli(["ld.so", "--library-path", "lib", str(bitcoind)]) == [
        *("ld.so", "--library-path", "lib"),
        str(cli),
    ]


async def test_without_lightningd_nothing_is_started(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError) as caught:
        await network.up(["user"], kind="lightningd")
    assert caught.value.reason == "not-installed"
    assert (await network.status()).nodes == ()
    assert network.bitcoind.daemon.pid() is None


async def test_an_embedded_node_does_not_become_another(network: Network) -> None:
    await network.up(["user"], Sat(0))
    with pytest.raises(UserError, match="'user'") as caught:
        await network.up(["user"], kind="lightningd")
    assert caught.value.reason == "other-kind"
    assert [node.kind for node in (await network.status()).nodes] == ["embedded"]


async def test_lightningd_up_down_and_up_again(network: Network) -> None:
    if shutil.which("lightningd") is None:
        pytest.skip("lightningd is not on PATH")
    first = await network.up(["alice"], Sat(50_000), kind="lightningd")
    both = await network.up(["bob"], Sat(0))
    assert [node.kind for node in both.nodes] == ["lightningd", "embedded"]
    assert both.nodes[0] == first.nodes[0]
    await network.fund("alice", Sat(7_000))
    await network.mine(1)
    async with Lightning(network.node("alice").rpc_file) as alice:
        info = await alice.getinfo()
        assert info.version.startswith("v")
        amounts = sorted(output.amount_msat for output in (await alice.listfunds()).outputs)
    assert amounts == [7_000_000, 50_000_000]
    assert sorted(await network.down()) == ["alice", "bitcoind", "bob"]

    again = await network.up(["alice"])
    assert (again.nodes[0].kind, again.nodes[0].id) == ("lightningd", info.id)
    assert again.nodes[0].address == first.nodes[0].address
