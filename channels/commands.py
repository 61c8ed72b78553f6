"""`oda wallet` and `oda lightning`: the user's coins, and the embedded node that keeps them."""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from channels.errors import OdaError, UserError
from channels.settings import LightningSettings, Network, Settings, load_section, load_settings
from channels.terminal import EXIT_CODES, ExitCode, JsonFlag, print_json, progress, run

EXIT_CODES.update(
    {
        "secret-file-exists": ExitCode.IN_USE,
        "did-not-start": ExitCode.UNREACHABLE,
        "no-bitcoind": ExitCode.UNREACHABLE,
        "path-too-long": ExitCode.USAGE,
    }
)

PATIENCE: Final = 60
POLL: Final = 0.05
ENDED: Final = ("FUNDING_SPEND_SEEN", "ONCHAIN", "CLOSED")
"""lightningd goes on listing channels that are, or soon will be, coins on chain."""
CHECKED_WORDS: Final = 2
"""Off regtest, so many of the new words must be typed again before they are kept."""

NameOption = Annotated[str, typer.Option("--name", help="Which embedded node.")]

wallet = typer.Typer(name="wallet", help="Coins on chain and in channels.", no_args_is_help=True)
lightning = typer.Typer(name="lightning", help="The embedded Lightning node.", no_args_is_help=True)


class RegtestFile(msgspec.Struct, frozen=True):
    """What is read of the `network.json` that `oda regtest` keeps."""

    class Node(msgspec.Struct, frozen=True):
        port: int

    bitcoind_port: int | None = None
    nodes: dict[str, Node] = {}


def mount(root: typer.Typer) -> None:
    root.add_typer(wallet)
    root.add_typer(lightning)


# Wallet ------------------------------------------------------------------------------------------


@wallet.command()
def new(name: NameOption = "user", as_json: JsonFlag = False) -> None:
    """Make a wallet and show its twelve words, once."""
    from channels.node import seed  # here, because `oda` must start quickly

    settings = load_settings()
    path = _secret_file(settings, name)
    _must_be_free(path)
    words = seed.generate_mnemonic()
    if as_json:
        seed.save_mnemonic(path, words)
        print_json({"words": words.split(), "file": path})
        return
    typer.echo("These words are your money. Write them down; they are not shown again:\n")
    numbered = [f"{number:2}. {word:10}" for number, word in enumerate(words.split(), 1)]
    for start in range(0, len(numbered), 4):
        typer.echo("  " + "".join(numbered[start : start + 4]))
    typer.echo("")
    if settings.network is not Network.REGTEST:
        _confirm(words.split())
    seed.save_mnemonic(path, words)
    typer.echo(f"The wallet is kept in {path}")


@wallet.command()
def restore(name: NameOption = "user", as_json: JsonFlag = False) -> None:
    """Bring a wallet back from its words, which are read from the terminal or stdin.

    Coins on chain come back; channels are not in the words.
    """
    from channels.node import seed
    from channels.node.__main__ import RESTORED

    path = _secret_file(load_settings(), name)
    _must_be_free(path)
    if sys.stdin.isatty():
        words = typer.prompt("The words, with spaces between them")
    else:
        words = sys.stdin.readline(1000)
    seed.to_seed(words)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Before the words: a node that starts in between must not think that they are new.
    (path.parent / RESTORED).touch(mode=0o600)
    seed.save_mnemonic(path, words)
    if as_json:
        print_json({"file": path})
    else:
        typer.echo(f"The wallet is kept in {path}; the node looks for its coins when it starts.")


@wallet.command()
def address(name: NameOption = "user", as_json: JsonFlag = False) -> None:
    """A fresh address to send coins to."""
    found = run(_address(rpc_file(load_settings(), name)))
    print_json({"address": found}) if as_json else typer.echo(found)


@wallet.command()
def balance(name: NameOption = "user", as_json: JsonFlag = False) -> None:
    """What there is on chain and in channels."""
    found = run(_balance(rpc_file(load_settings(), name)))
    if as_json:
        print_json(found)
        return
    typer.echo(f"on chain     {found.onchain_sat:>12} sat")
    if found.unconfirmed_sat:
        typer.echo(f"unconfirmed  {found.unconfirmed_sat:>12} sat")
    typer.echo(f"in channels  {found.channels_msat // 1000:>12} sat")
    if found.closing_msat:
        typer.echo(f"closing      {found.closing_msat // 1000:>12} sat")


class Balance(msgspec.Struct, frozen=True):
    """onchain_sat: confirmed; channels_msat: our side of channels that are not closed.

    closing_msat: outputs of closing transactions that the node has yet to claim, fees included;
        lightningd does not tell, so 0 there.
    """

    onchain_sat: int
    unconfirmed_sat: int
    channels_msat: int
    closing_msat: int


def rpc_file(settings: Settings, name: str = "user") -> Path:
    """The socket of `lightning.rpc_file`, else that of an embedded node."""
    named = load_section("lightning", LightningSettings).rpc_file
    return named or settings.node_dir(name) / "lightning-rpc"


async def _address(socket: Path) -> str:
    from channels.lightning import Lightning

    _must_run(socket)
    async with Lightning(socket) as node:
        return await node.newaddr()


async def _balance(socket: Path) -> Balance:
    from channels.lightning import Lightning

    _must_run(socket)
    async with Lightning(socket) as node:
        funds = await node.listfunds()
        closes = await node.listcloses()
    unspent = [output for output in funds.outputs if output.status != "spent"]
    confirmed = sum(o.amount_msat for o in unspent if o.status == "confirmed")
    return Balance(
        onchain_sat=confirmed // 1000,
        unconfirmed_sat=(sum(o.amount_msat for o in unspent) - confirmed) // 1000,
        channels_msat=sum(c.our_amount_msat for c in funds.channels if c.state not in ENDED),
        closing_msat=sum(
            output.amount_msat
            for close in closes
            for output in close.outputs
            if output.status in ("waiting", "claiming")
        ),
    )


def _secret_file(settings: Settings, name: str) -> Path:
    return settings.node_dir(name) / "hsm_secret"


def _must_be_free(path: Path) -> None:
    if path.exists():
        raise UserError(
            "secret-file-exists",
            f"{path} holds a wallet already: move it, or choose another --data directory.",
        )


def _confirm(words: list[str]) -> None:
    for index in sorted(secrets.SystemRandom().sample(range(len(words)), CHECKED_WORDS)):
        if typer.prompt(f"Type word {index + 1} again").strip().lower() != words[index]:
            raise UserError(
                "words-not-confirmed", "That was another word; nothing was kept. Begin again."
            )


def _must_run(socket: Path) -> None:
    if not socket.exists():
        raise UserError(
            "not-running",
            f"No Lightning node runs here ({socket} is missing): start a network with "
            "`oda regtest up`, or the node with `oda lightning start`.",
        )


# Lightning node ----------------------------------------------------------------------------------

BitcoindUrl = Annotated[str | None, typer.Option(help="Where its bitcoind answers.")]
BitcoindCookie = Annotated[Path | None, typer.Option(help="The bitcoind's cookie file.")]
Young = Annotated[
    bool,
    typer.Option("--i-know-this-is-young-software", help="Needed on mainnet, which is capped."),
]


@lightning.command("run")
def run_node(
    name: NameOption = "user",
    bitcoind_url: BitcoindUrl = None,
    bitcoind_cookie: BitcoindCookie = None,
    young: Young = False,
    as_json: JsonFlag = False,
) -> None:
    """Run the embedded node in the foreground, until Ctrl-C; it logs to standard error."""
    settings = load_settings()
    command = node_command(settings, name, bitcoind_url, bitcoind_cookie, young)
    if as_json:
        socket = settings.node_dir(name) / "lightning-rpc"
        print_json({"name": name, "pid": os.getpid(), "rpc_file": socket})
        sys.stdout.flush()  # the node takes this process over, and what is buffered would be lost
    os.execv(command[0], command)  # noqa: S606  # a list of our own arguments, and no shell


@lightning.command()
def start(
    name: NameOption = "user",
    bitcoind_url: BitcoindUrl = None,
    bitcoind_cookie: BitcoindCookie = None,
    young: Young = False,
    as_json: JsonFlag = False,
) -> None:
    """Run the embedded node in the background."""
    settings = load_settings()
    command = node_command(settings, name, bitcoind_url, bitcoind_cookie, young)
    directory = settings.node_dir(name)
    with progress(f"Starting node {name}"):
        pid = _start(directory, command)
        _wait_until_ready(directory, pid)
    socket = directory / "lightning-rpc"
    if as_json:
        print_json({"name": name, "pid": pid, "rpc_file": socket})
    else:
        typer.echo(f"Node {name} runs (pid {pid}); its socket is {socket}")


@lightning.command()
def stop(name: NameOption = "user", as_json: JsonFlag = False) -> None:
    """Stop the embedded node; its channels stay."""
    directory = load_settings().node_dir(name)
    ran = _running(directory)
    if ran:
        run(_stop(directory / "lightning-rpc"))
        deadline = time.monotonic() + PATIENCE
        while _running(directory):
            if time.monotonic() > deadline:
                raise OdaError("unstoppable", f"Node {name} does not end; see {directory}/log")
            time.sleep(POLL)
    if as_json:
        print_json({"name": name, "stopped": ran})
    else:
        typer.echo(f"Node {name} has stopped." if ran else f"Node {name} was not running.")


async def _stop(socket: Path) -> None:
    from channels.lightning import Lightning

    async with Lightning(socket) as node:
        await node.stop()


def node_command(
    settings: Settings, name: str, url: str | None, cookie: Path | None, young: bool
) -> list[str]:
    """The program and arguments of an embedded node. Raises UserError `no-bitcoind`."""
    given = load_section(
        "lightning", LightningSettings, {"bitcoind_url": url, "bitcoind_cookie": cookie}
    )
    url, cookie, listen = given.bitcoind_url, given.bitcoind_cookie, "127.0.0.1:0"
    if settings.network is Network.REGTEST:
        known = _regtest_file(settings)
        if url is None and known.bitcoind_port is not None:
            url = f"http://127.0.0.1:{known.bitcoind_port}"
            cookie = settings.bitcoind_dir / "regtest" / ".cookie"
        if name in known.nodes:
            listen = f"127.0.0.1:{known.nodes[name].port}"
    if url is None:
        raise UserError(
            "no-bitcoind",
            "The node needs a bitcoind: start one with `oda regtest up`, or name yours with "
            "--bitcoind-url and --bitcoind-cookie.",
        )
    command = [sys.executable, "-m", "channels.node"]
    command += [f"--directory={settings.node_dir(name)}", f"--network={settings.network}"]
    command += [f"--bitcoind-url={url}", f"--listen={listen}", f"--alias={name}"]
    if cookie is not None:
        command.append(f"--bitcoind-cookie={cookie}")
    if young:
        command.append("--i-know-this-is-young-software")
    return command


def _regtest_file(settings: Settings) -> RegtestFile:
    path = settings.regtest_dir / "network.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=RegtestFile)
    except FileNotFoundError:
        return RegtestFile()
    except msgspec.DecodeError as error:
        raise UserError("bad-network-file", f"{path} can't be read: {error}.") from None


def _start(directory: Path, command: list[str]) -> int:
    """Start it so that it outlives us. It inherits a lock on the file `pid`, by which `oda
    regtest` knows it too. Raises UserError `already-running`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / "pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _try_lock(lock, fcntl.LOCK_EX):
            raise UserError("already-running", f"A node is already running in {directory}.")
        with (directory / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[lock],
            )
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % process.pid, 0)
    finally:
        os.close(lock)
    _children.append(process)
    return process.pid


_children: Final[list[subprocess.Popen[bytes]]] = []
"""Those that are our own must be waited for when they end."""


def _wait_until_ready(directory: Path, pid: int) -> None:
    import socket

    deadline = time.monotonic() + PATIENCE
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(directory / "lightning-rpc")) == 0:
                return
        if not _running(directory) or time.monotonic() > deadline:
            text = (directory / "log").read_bytes()[-4000:].decode(errors="replace")
            last = next((line for line in reversed(text.split("\n")) if line.strip()), "")
            raise UserError(
                "did-not-start", f"The node (pid {pid}) did not start: {last.strip() or 'no log'}"
            )
        time.sleep(POLL)


def _running(directory: Path) -> bool:
    """Whether a node that was started in the background runs in a directory."""
    for child in _children:
        child.poll()
    try:
        lock = os.open(directory / "pid", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
