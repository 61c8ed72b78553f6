"""A bitcoind of one's own: finding the program, and running it on a regtest chain."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from channels.errors import UserError
from channels.node.chain import Bitcoind, BitcoindError, BitcoindUnreachable
from channels.terminal import Progress, no_progress
from channels.units import Sat
from regtest import provision
from regtest.daemon import Daemon, free_port, port_is_free

PATIENCE: Final = 60
WALLET: Final = "miner"
MATURE: Final = 101
"""Blocks after which the first coinbase can be spent (100 confirmations)."""

RPC_WALLET_NOT_FOUND: Final = -18  # these are of Bitcoin Core, src/rpc/protocol.h
RPC_INSUFFICIENT_FUNDS: Final = -6
RPC_INVALID_LABEL: Final = -11
PORT_ATTEMPTS: Final = 3


def find_bitcoind(
    named: Path | None, cache: Path, progress: Progress = no_progress
) -> Sequence[str]:
    """The command that runs bitcoind: the one that was named, PATH, the cache, or Debian's.

    Raises UserError: `not-found` (what was named), `not-installed`, `provisioning-failed`.
    """
    if named is not None:
        program = shutil.which(named)
        if program is None:
            raise UserError("not-found", f"{named} is not a program; name bitcoind itself.")
        return [str(Path(program).absolute())]
    if program := shutil.which("bitcoind"):
        return [program]
    return provision.command(cache) or provision.provision(cache, progress)


@dataclass(frozen=True)
class RegtestBitcoind:
    """The bitcoind of one directory, running or not. Everything is below `directory`."""

    directory: Path

    @property
    def daemon(self) -> Daemon:
        return Daemon("bitcoind", self.directory)

    @property
    def cookie(self) -> Path:
        return self.directory / "regtest" / ".cookie"

    def rpc(self, port: int, wallet: bool = False) -> Bitcoind:
        """Its RPC, or that of the miner's wallet; the caller closes it."""
        path = f"/wallet/{WALLET}" if wallet else ""
        return Bitcoind(f"http://127.0.0.1:{port}{path}", self.cookie)

    async def start(self, program: Sequence[str], port: int | None = None) -> int:
        """Start it, wait until it answers, and give its RPC port (None: any that is free).

        Raises UserError: `port-in-use`, `already-running`, `did-not-start`.
        """
        if port is not None and not port_is_free(port):
            raise UserError(
                "port-in-use", f"Port {port}, which bitcoind needs, is in use; free it first."
            )
        for attempt in range(PORT_ATTEMPTS):
            chosen = port or free_port()
            try:
                await self._start(program, chosen)
            except UserError as error:
                # Somebody may have taken the free port before bitcoind did.
                taken = error.reason == "did-not-start" and not port_is_free(chosen)
                if port is not None or not taken or attempt + 1 == PORT_ATTEMPTS:
                    raise
            else:
                return chosen
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _start(self, program: Sequence[str], port: int) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory.chmod(0o700)  # it was perhaps there before
        if self.daemon.pid() is None:
            # After a crash, the cookie of the past would pass for that of the new process.
            self.cookie.unlink(missing_ok=True)
        arguments = [
            f"-datadir={self.directory}",
            "-regtest",
            "-server",
            "-listen=0",
            "-rpcbind=127.0.0.1",
            "-rpcallowip=127.0.0.1",
            f"-rpcport={port}",
            "-fallbackfee=0.00002",
            "-txindex=1",
            "-printtoconsole=0",
            "-rpcthreads=32",  # every follower of the chain keeps one of them waiting
            *await asyncio.to_thread(_policy, program),
        ]
        self.daemon.start([*program, *arguments])
        try:
            async with self.rpc(port) as rpc:
                await self._until_ready(rpc)
        except BaseException:
            await asyncio.to_thread(self.daemon.stop)
            raise

    async def _until_ready(self, rpc: Bitcoind) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while True:
            try:
                await rpc.call("getblockchaininfo")
                return
            except BitcoindUnreachable as error:
                if self.daemon.pid() is None:
                    raise self.daemon.failure("ended at once") from None
                if loop.time() > deadline:
                    raise self.daemon.failure(f"does not answer in {PATIENCE} s") from error
            await asyncio.sleep(0.05)

    async def stop(self) -> bool:
        """Stop it cleanly. False: it did not run."""
        return await asyncio.to_thread(self.daemon.stop)


@dataclass(frozen=True)
class Miner:
    """The wallet in bitcoind that blocks pay to, and that pays others."""

    rpc: Bitcoind
    wallet: Bitcoind

    async def prepare(self) -> None:
        """Load or create the wallet, and mine until it has something to spend."""
        try:
            await self.wallet.call("getwalletinfo")
        except BitcoindError as error:
            if error.code != RPC_WALLET_NOT_FOUND:
                raise
            try:
                await self.rpc.call("loadwallet", WALLET, True)
            except BitcoindError as missing:
                if missing.code != RPC_WALLET_NOT_FOUND:
                    raise
                await self.rpc.call(
                    "createwallet", WALLET, False, False, "", False, True, True
                )  # …, descriptors, load on startup
        height = await self.rpc.call("getblockcount")
        if height < MATURE:
            await self.mine(MATURE - height)

    async def mine(self, blocks: int) -> list[str]:
        """Mine blocks to the wallet and give their hashes (display order)."""
        address = await self._address()
        hashes: list[str] = await self.rpc.call("generatetoaddress", blocks, address, limit=300)
        # Core writes its block index to disk about once an hour; this makes it do so now, so
        # that a bitcoind that is killed still knows the block when it is started again.
        await self.rpc.call("gettxoutsetinfo", "none")
        return hashes

    async def send(self, address: str, amount: Sat) -> str:
        """Pay an address; gives the txid. Raises UserError `not-enough-funds`."""
        bitcoin = f"{amount // 100_000_000}.{amount % 100_000_000:08}"
        try:
            txid: str = await self.wallet.call("sendtoaddress", address, bitcoin)
        except BitcoindError as error:
            if error.code != RPC_INSUFFICIENT_FUNDS:
                raise
            raise UserError(
                "not-enough-funds",
                f"The miner has less than {amount} sat to give; mine more blocks first.",
            ) from None
        return txid

    async def _address(self) -> str:
        """Always the same one, which its label finds again."""
        try:
            found: dict[str, object] = await self.wallet.call("getaddressesbylabel", WALLET)
            return next(iter(found))
        except BitcoindError as error:
            if error.code != RPC_INVALID_LABEL:  # no address has it yet
                raise
        address: str = await self.wallet.call("getnewaddress", WALLET, "bech32")
        return address


def _policy(program: Sequence[str]) -> list[str]:
    """Knots relays less than Core does, unless told to do as Core; Core has no such option."""
    text = subprocess.run([*program, "-help"], capture_output=True, text=True, check=False)
    if text.returncode:
        detail = (text.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise UserError("not-found", f"{program[-1]} can't be run: {detail}.")
    return ["-corepolicy=1"] if "-corepolicy" in text.stdout else []
