"""Electrum: a Lightning node that others wrote, for our node to be tested against on regtest.

Electrum comes from Debian's archive like bitcoind, its Electrum server (e-x) and the libraries of
both from PyPI into a virtual environment of their own. All of it is kept in the cache. Both run as
background programs that only listen on the loopback interface.
"""

from __future__ import annotations

import asyncio
import base64
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from channels.errors import OdaError, UserError
from channels.terminal import Progress, no_progress
from channels.units import Sat
from regtest import provision
from regtest.daemon import Daemon, free_port

PATIENCE: Final = 60
USER: Final = "oda"
CALL_PATIENCE: Final = aiohttp.ClientTimeout(60)

ELECTRUM: Final = provision.Wanted(
    "Electrum",
    (
        f"electrum/{provision.PACKAGE_SUITE}",
        f"python3-electrum/{provision.PACKAGE_SUITE}",
        f"libsecp256k1-2/{provision.LIBRARY_SUITE}",
    ),
    "run this on a Debian or Ubuntu that reaches its archive",
    # Its libraries come from PyPI, for the Python that runs here; the desktop program isn't run.
    dependencies=False,
)
LIBRARIES: Final = (
    "e-x==1.20.0",
    "plyvel",
    "aiorpcx>=0.25,<0.26",
    "aiohttp",
    "aiohttp_socks",
    "attrs",
    "certifi",
    "cryptography",
    "dnspython",
    "electrum-aionostr",
    "electrum-ecc",
    "jsonpatch",
    "qrcode",
)


class ElectrumError(OdaError):
    """What Electrum answers when it does not do what it was asked."""


@dataclass(frozen=True)
class Programs:
    """Electrum and e-x, ready to run from `tree`."""

    tree: Path

    @property
    def server(self) -> list[str]:
        return [str(self._python), "-m", "electrumx.cli.electrumx_server"]

    @property
    def electrum(self) -> list[str]:
        libraries = next(iter(sorted((self.tree / "usr/lib").glob("*-linux-gnu*"))))
        variables = {
            "PYTHONPATH": str(self.tree / "usr/lib/python3/dist-packages"),
            "LD_LIBRARY_PATH": str(libraries),
        }
        return _with(variables, [str(self._python), str(self.tree / "usr/bin/electrum")])

    @property
    def _python(self) -> Path:
        return self.tree / "venv/bin/python"


def find_electrum(cache: Path, progress: Progress = no_progress) -> Programs:
    """The programs in the cache, fetched if they are not there yet.

    Raises UserError: `not-installed` (no apt here), `provisioning-failed`.
    """
    home = cache.absolute() / "electrum"
    python = ".".join(map(str, sys.version_info[:2]))
    tree = home / f"{platform.machine()}-{python}"
    with provision.locked(home):
        if not tree.is_dir():
            debs = provision.fetch(ELECTRUM, home, progress)
            with provision.whole(tree) as filling:
                progress(0, None, "Unpacking Electrum")
                provision.unpack(debs, filling, ELECTRUM)
                progress(0, None, "Fetching Electrum's libraries")
                _install(filling / "venv")
    return Programs(tree)


def _install(venv: Path) -> None:
    # Our own pip installs into it, because some systems' Pythons bring none for new environments.
    # Compiling libsecp256k1 would need autotools; Debian's is used.
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(venv)],
        _with({"ELECTRUM_ECC_DONT_COMPILE": "1"}, [*pip, *LIBRARIES]),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
            detail = (lines or done.stderr.strip().splitlines() or ["it does not say why"])[-1]
            raise UserError(
                "provisioning-failed",
                f"Electrum's libraries could not be installed ({detail}); check the network, "
                "and that pip can reach its index.",
            )


@dataclass(frozen=True)
class ElectrumServer:
    """The server that tells Electrum of the chain, over plain TCP."""

    directory: Path
    programs: Programs
    port: int

    @property
    def daemon(self) -> Daemon:
        return Daemon("e-x", self.directory)

    async def start(self, bitcoind_port: int, cookie: Path) -> None:
        """Start it; it is ready when it has read bitcoind's chain."""
        variables = self._variables(bitcoind_port, cookie)
        self.daemon.start(_with(variables, self.programs.server))
        await asyncio.to_thread(self.daemon.wait, lambda: _listens(self.port), PATIENCE)

    def _variables(self, bitcoind_port: int, cookie: Path) -> Mapping[str, str]:
        database = self.directory / "database"
        database.mkdir(parents=True, exist_ok=True, mode=0o700)
        return {
            "DAEMON_URL": f"http://{cookie.read_text().strip()}@127.0.0.1:{bitcoind_port}/",
            "DB_DIRECTORY": str(database),
            "DB_ENGINE": "leveldb",
            "COIN": "Bitcoin",
            "NET": "regtest",
            "SERVICES": f"tcp://127.0.0.1:{self.port}",
            "PEER_DISCOVERY": "off",
            "PEER_ANNOUNCE": "",
            "ALLOW_ROOT": "1",
            "COST_SOFT_LIMIT": "0",
            "COST_HARD_LIMIT": "0",
            "DAEMON_POLL_INTERVAL_BLOCKS": "100",
            "DAEMON_POLL_INTERVAL_MEMPOOL": "100",
        }

    async def stop(self) -> bool:
        """End it kindly. False: it did not run."""
        return await asyncio.to_thread(self.daemon.stop)


class Electrum:
    """One Electrum with one wallet, running or not. `port` is where its Lightning peers reach it.

    Methods of its RPC are called by name: `await electrum.call("lnpay", invoice=...)`.
    """

    def __init__(self, directory: Path, programs: Programs, port: int) -> None:
        self.directory = directory
        self.port = port
        self._programs = programs
        self._rpc_port = free_port({port})
        self._password = secrets.token_hex(16)

    @property
    def daemon(self) -> Daemon:
        return Daemon("Electrum", self.directory)

    async def start(self, server_port: int) -> None:
        """Start it and load its wallet, which is made the first time."""
        data = self.directory / "data"
        network = data / "regtest"
        network.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Electrum reads most of these only while it starts.
        (network / "config").write_bytes(msgspec.json.encode(self._config(server_port)))
        if self.daemon.pid() is None:
            # It is there after a crash, and would be asked for its RPC.
            (network / "daemon").unlink(missing_ok=True)
        command = [*self._programs.electrum, "--regtest", "-D", str(data), "-v", "daemon"]
        self.daemon.start(command)
        await asyncio.to_thread(self.daemon.wait, lambda: _listens(self._rpc_port), PATIENCE)
        if not (network / "wallets/default_wallet").exists():
            await self.call("create")
        await self.call("load_wallet")
        await self.call("wait_for_sync")

    def _config(self, server_port: int) -> Mapping[str, object]:
        return {
            "config_version": 3,
            "rpcsock": "tcp",
            "rpchost": "127.0.0.1",
            "rpcport": self._rpc_port,
            "rpcuser": USER,
            "rpcpassword": self._password,
            "server": f"127.0.0.1:{server_port}:t",
            "oneserver": True,
            "auto_connect": False,
            "lightning_listen": f"127.0.0.1:{self.port}",
            # With gossip it finds its own routes, instead of asking a trampoline node for them.
            "use_gossip": True,
            # With recoverable channels it lets nobody open one to it.
            "use_recoverable_channels": False,
            "test_force_disable_mpp": True,
            # Blocks that who closes alone waits for its coins; Electrum would ask for a week.
            "lightning_to_self_delay": 6,
        }

    async def call(self, method: str, **params: object) -> Any:
        """Raises ElectrumError `electrum-refused`."""
        body = {"id": 0, "method": method, "params": params}
        credentials = base64.b64encode(f"{USER}:{self._password}".encode()).decode()
        headers = {"Authorization": f"Basic {credentials}"}
        async with (
            aiohttp.ClientSession(headers=headers, timeout=CALL_PATIENCE) as session,
            session.post(f"http://127.0.0.1:{self._rpc_port}", json=body) as response,
        ):
            answer = await response.json()
        error = answer.get("error")
        if error is not None:
            detail = error.get("data", {}).get("exception") or error["message"]
            raise ElectrumError("electrum-refused", f"Electrum refuses {method}: {detail}.")
        return answer["result"]

    async def stop(self) -> bool:
        """End it kindly. False: it did not run."""
        return await asyncio.to_thread(self.daemon.stop)


def bitcoin(amount: Sat) -> str:
    """Electrum's RPC speaks of amounts in bitcoin."""
    return f"{amount // 100_000_000}.{amount % 100_000_000:08}"


def _with(variables: Mapping[str, str], command: list[str]) -> list[str]:
    return ["/usr/bin/env", *(f"{name}={value}" for name, value in variables.items()), *command]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
