"""The embedded node as a process: `python -m channels.node --directory DIR ...`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from channels.errors import OdaError
from channels.node import seed
from channels.node.chain import Bitcoind, BitcoindUnreachable
from channels.node.networks import NETWORKS
from channels.node.node import Node
from channels.node.rpc_methods import commands
from channels.node.rpc_server import RpcServer
from channels.node.store import Store
from channels.node.wallet import Wallet

log = logging.getLogger("channels.node")

RESTORED = "restored"
"""A file beside the words that says that they were used before: read the chain from the start."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m channels.node", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="regtest")
    parser.add_argument("--bitcoind-url", required=True)
    parser.add_argument("--bitcoind-cookie", type=Path)
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT; port 0 takes any")
    parser.add_argument("--alias", default="oda")
    parser.add_argument(
        "--i-know-this-is-young-software",
        action="store_true",
        help="needed on mainnet, where channels are capped at 100000 sat",
    )
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> int:
    """Run until SIGTERM, SIGINT or the `stop` method; returns the exit status."""
    directory: Path = options.directory
    params = NETWORKS[options.network]
    stopping = asyncio.Event()
    failure: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failure.append(error)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    with contextlib.closing(Store(directory / "node.sqlite")) as store:
        mnemonic = seed.load_or_create_mnemonic(directory / "hsm_secret")
        restored = (directory / RESTORED).exists()
        wallet = Wallet(mnemonic, store, options.network, restored=restored)
        async with Bitcoind(options.bitcoind_url, options.bitcoind_cookie) as chain:
            await _check_chain(chain, params.bitcoind_chain)
            node = Node(params, store, wallet, chain, directory, options.alias, failed)
            host, _, port = options.listen.rpartition(":")
            await node.start(host.strip("[]"), int(port))
            server = RpcServer(directory / "lightning-rpc", commands(node, stopping.set))
            await server.start()
            log.info("node %s is ready", node.node_id.hex())
            await stopping.wait()
            await server.close()
            if not failure:
                await node.stop()
    if failure:
        log.critical("the node can't write its state and stops", exc_info=failure[0])
        return 1
    return 0


async def _check_chain(chain: Bitcoind, wanted: str) -> None:
    """A wrong network must not look like an empty one; an absent bitcoind may still come."""
    try:
        info = await chain.call("getblockchaininfo")
    except BitcoindUnreachable as error:
        log.warning("bitcoind is away, waiting for it: %s", error)
        return
    if info["chain"] != wanted:
        raise OdaError(
            "wrong-chain", f"bitcoind is on chain {info['chain']!r}, not {wanted!r}: use another."
        )


def main() -> int:
    options = parse(sys.argv[1:])
    if options.network == "mainnet" and not options.i_know_this_is_young_software:
        print(
            "The embedded node is young: use lightningd on mainnet, or say "
            "--i-know-this-is-young-software.",
            file=sys.stderr,
        )
        return 2
    logging.basicConfig(
        level=os.environ.get("ODA_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    options.directory.chmod(0o700)
    try:
        return asyncio.run(serve(options))
    except OdaError as error:
        print(f"{error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
