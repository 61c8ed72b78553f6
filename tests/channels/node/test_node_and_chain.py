"""What bitcoind may do to a running node, and what keeps a node from starting."""

from __future__ import annotations

import asyncio
import socket
import stat
from functools import partial
from pathlib import Path

import pytest

from channels.errors import UserError
from channels.units import Msat, Sat
from regtest.nodes import RegtestNode
from tests.conftest import Chain
from tests.nodes import LightningNode, Nodes, balances, check_conserved, until

CHANNEL = Sat(500_000)
PUSH = Msat(200_000_000)


async def kill_bitcoind(chain: Chain) -> None:
    await asyncio.to_thread(chain.process.daemon.kill)


async def restart_bitcoind(chain: Chain) -> None:
    await chain.process.start(chain.program, chain.port)


async def warned(node: LightningNode) -> bool:
    return "warning_bitcoind_sync" in await node.rpc.call("getinfo")


async def test_nodes_go_on_while_bitcoind_is_away(own_nodes: Nodes) -> None:
    chain = own_nodes.chain
    alice, bob = await own_nodes.start("alice", "bob")
    await own_nodes.open(alice, bob, CHANNEL, push_msat=PUSH)
    before = await balances(alice, bob)
    assert not await warned(alice)
    await kill_bitcoind(chain)
    for node in (alice, bob):
        await until(partial(warned, node), "getinfo warns")
    await alice.pay(await bob.new_invoice(1_000_000, "without a chain"))
    await check_conserved(alice, bob, before)
    # A withdrawal now is kept and broadcast when bitcoind is back.
    withdrawn = await bob.rpc.call(
        "withdraw", destination=await alice.rpc.newaddr(), satoshi=100_000
    )
    await restart_bitcoind(chain)
    for node in (alice, bob):

        async def calm(node: LightningNode = node) -> bool:
            return not await warned(node)

        await until(calm, "the warning goes")
    await until_in_mempool(chain, withdrawn["txid"])
    await own_nodes.mine(1)
    assert await coin(alice, withdrawn["txid"]) == "confirmed"
    assert (await alice.rpc.close(bob.id)).type == "mutual"


async def test_a_node_starts_without_bitcoind_and_says_so(own_nodes: Nodes) -> None:
    (alice,) = await own_nodes.start("alice")
    coins = (await alice.rpc.listfunds()).outputs
    await alice.stop()
    await kill_bitcoind(own_nodes.chain)
    await alice.start()
    await until(partial(warned, alice), "getinfo warns")
    assert (await alice.rpc.listfunds()).outputs == coins
    await restart_bitcoind(own_nodes.chain)
    await own_nodes.mine(1)


async def test_a_reorg_unconfirms_coins_and_a_funding_transaction(own_nodes: Nodes) -> None:
    chain = own_nodes.chain
    alice, bob = await own_nodes.start("alice", "bob")
    await alice.connect(bob)
    withdrawn = await bob.rpc.call(
        "withdraw", destination=await alice.rpc.newaddr(), satoshi=100_000
    )
    await until_in_mempool(chain, withdrawn["txid"])
    funded = await alice.rpc.call("fundchannel", id=bob.id, amount=CHANNEL, push_msat=PUSH)
    await until_in_mempool(chain, funded["txid"])
    (block,) = await own_nodes.mine(1)
    await alice.until_state("CHANNELD_NORMAL")
    await bob.until_state("CHANNELD_NORMAL")
    (channel,) = await alice.channels()
    scid = channel["short_channel_id"]
    assert await coin(alice, withdrawn["txid"]) == "confirmed"

    async with chain.rpc() as rpc:
        await rpc.call("invalidateblock", block)
        # Blocks without our transactions, so that they confirm at another height.
        for _ in range(2):
            await rpc.call("generateblock", "raw(51)", [])
        height = await rpc.call("getblockcount")
    for node in (alice, bob):
        await node.until_height(height)
    # What others sent is forgotten until a block brings it again: they may send it elsewhere.
    assert await coin(alice, withdrawn["txid"]) is None
    await own_nodes.mine(1)
    assert await coin(alice, withdrawn["txid"]) == "confirmed"

    async def moved() -> bool:
        scids = [(await node.channels())[0]["short_channel_id"] for node in (alice, bob)]
        return bool(scids[0] == scids[1] != scid)

    await until(moved, "both sides see the funding transaction at its new place")
    before = await balances(alice, bob)
    await alice.pay(await bob.new_invoice(1_000_000, "after the reorg"))
    await check_conserved(alice, bob, before)
    assert (await bob.rpc.close(alice.id)).type == "mutual"


# --- starting -------------------------------------------------------------------------------------


async def refused(node: LightningNode) -> str:
    """The last line that a node which can't start leaves behind."""
    with pytest.raises(UserError) as failure:
        await node.start()
    assert failure.value.reason == "did-not-start"
    return str(failure.value)


async def test_a_second_daemon_on_one_directory_is_refused(nodes: Nodes) -> None:
    (alice,) = await nodes.start("alice", coins=Sat(0))
    command = [
        *alice.process.command,
        f"--directory={alice.process.directory}",
        f"--bitcoind-url={nodes.chain.url}",
        f"--bitcoind-cookie={nodes.chain.cookie}",
    ]
    second = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await second.communicate()
    assert second.returncode == 1
    assert errors.decode().splitlines()[-1].startswith("Another process has")
    assert (await alice.rpc.getinfo()).id == alice.id


async def test_a_port_in_use_is_refused(nodes: Nodes) -> None:
    alice = nodes.make("alice")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", alice.process.port))
        taken.listen()
        assert f"Can't listen on 127.0.0.1:{alice.process.port}" in await refused(alice)
    await alice.start()


async def test_a_secret_that_others_may_read_is_refused(nodes: Nodes) -> None:
    (alice,) = await nodes.start("alice", coins=Sat(0))
    await alice.stop()
    secret = alice.process.directory / "hsm_secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    secret.chmod(0o640)
    assert f"Others may read {secret}" in await refused(alice)
    secret.chmod(0o600)
    await alice.start()


async def test_a_bitcoind_of_another_network_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    alice = nodes.make("alice")
    signet = SignetNode("alice", alice.process.directory, alice.process.port)
    alice.process = signet
    assert "bitcoind is on chain 'regtest', not 'signet'" in await refused(alice)


class SignetNode(RegtestNode):
    """A node that expects another network than its bitcoind has."""

    def start(self, bitcoind_url: str, bitcoind_cookie: Path) -> None:
        self.daemon.start(
            [
                *self.command,
                f"--directory={self.directory}",
                "--network=signet",
                f"--bitcoind-url={bitcoind_url}",
                f"--bitcoind-cookie={bitcoind_cookie}",
            ]
        )


# --- helpers --------------------------------------------------------------------------------------


async def until_in_mempool(chain: Chain, txid: str) -> None:
    async with chain.rpc() as rpc:

        async def there() -> bool:
            return txid in await rpc.call("getrawmempool")

        await until(there, f"bitcoind has {txid}")


async def coin(node: LightningNode, txid: str) -> str | None:
    """The status of a node's output of a transaction, or None where it knows of none."""
    outputs = (await node.rpc.listfunds()).outputs
    return next((o.status for o in outputs if o.txid == txid), None)
