"""bitcoind from Debian's archive, without root and without touching the system.

apt itself does the work, in a state directory of its own: it resolves what Debian's
`bitcoin-knots` needs, checks the archive's signatures with the system's keyring and fetches the
packages, which are then unpacked into the cache and run through their own dynamic loader. So they
run on systems with an older libc too. The mirror is the one that this machine's apt uses.

`fetch`, `unpack` and `whole` do the same for other packages.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from channels.errors import UserError
from channels.terminal import Progress, no_progress

PACKAGE_SUITE: Final = "sid"
LIBRARY_SUITE: Final = "trixie"
TOOLS: Final = ("apt-get", "apt-cache", "dpkg", "dpkg-deb")
KEYRINGS: Final = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)

APT_CONF: Final = """\
Dir::State "{root}/state";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Default-Release "{suite}";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Get::Assume-Yes "true";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::Retries "2";
#clear APT::Update;
#clear DPkg;
"""

# What bitcoin-knots wants for its system service; bitcoind itself runs without.
NOT_NEEDED: Final = ("systemd", "debconf")


@dataclass(frozen=True)
class Wanted:
    """Packages of Debian, each by its name or as name/suite.

    `title` and `advice` are for sentences: what is wanted, and what to do where it can't be had.
    """

    title: str
    packages: tuple[str, ...]
    advice: str
    dependencies: bool = True


BITCOIND: Final = Wanted(
    "bitcoind",
    ("bitcoin-knots",),
    "install Bitcoin Core or Bitcoin Knots (macOS: brew install bitcoin) so that bitcoind is on "
    "PATH, or name it with --bitcoind or ODA_BITCOIND",
)


@dataclass(frozen=True)
class _Deb:
    name: str
    version: str
    sha256: str
    size: int


def command(cache: Path) -> list[str] | None:
    """How to run the bitcoind that was provisioned into `cache`, or None."""
    tree = _tree(cache)
    program = tree / "usr/bin/bitcoind"
    if not program.is_file():
        return None
    libraries = next(iter(sorted((tree / "usr/lib").glob("*-linux-gnu*"))))
    loader = next(iter(sorted(libraries.glob("ld-linux*.so.*"))))
    return [str(loader), "--library-path", str(libraries), str(program)]


def provision(cache: Path, progress: Progress = no_progress) -> list[str]:
    """Fetch bitcoind into `cache`, unless it is there, and give the command that runs it.

    Raises UserError: `not-installed` (no apt here), `provisioning-failed`.
    """
    home = _home(cache)
    with locked(home):
        if found := command(cache):  # somebody else was quicker
            return found
        debs = fetch(BITCOIND, home, progress)
        progress(0, None, "Unpacking bitcoind")
        with whole(_tree(cache)) as tree:
            unpack(debs, tree, BITCOIND)
    found = command(cache)
    if found is None:
        packages = ", ".join(BITCOIND.packages)
        raise UserError("provisioning-failed", f"Debian's {packages} holds no bitcoind any more.")
    return found


def fetch(wanted: Wanted, home: Path, progress: Progress = no_progress) -> list[Path]:
    """The files of the packages, kept in `home` by their SHA-256; apt has checked signatures.

    Raises UserError: `not-installed` (no apt here), `provisioning-failed`.
    """
    if any(shutil.which(tool) is None for tool in TOOLS):
        raise UserError(
            "not-installed",
            f"There is no {wanted.title} here, and no apt to fetch one with: {wanted.advice}.",
        )
    apt = _Apt(home / "apt", wanted)
    progress(0, None, "Reading Debian's package lists")
    apt.update()
    files = _download(apt, apt.resolve(), home / "debs", progress)
    shutil.rmtree(home / "apt")
    return files


class _Apt:
    """apt with a configuration, a state and an (almost) empty set of installed packages."""

    def __init__(self, root: Path, wanted: Wanted) -> None:
        self._root = root
        self._wanted = wanted
        for part in ("state/lists/partial", "cache/archives/partial"):
            (root / part).mkdir(parents=True, exist_ok=True)
        (root / "apt.conf").write_text(APT_CONF.format(root=root, suite=LIBRARY_SUITE))
        stanza = "Package: {}\nStatus: install ok installed\nArchitecture: {}\nVersion: 999\n"
        architecture = self.run("dpkg", "--print-architecture").strip()
        status = (stanza.format(name, architecture) for name in NOT_NEEDED)
        (root / "status").write_text("\n".join(status))

    def run(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=_english(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise _failed(self._wanted, " ".join(command[:1]), done.stderr)
        return done.stdout

    def apt(self, tool: str, *arguments: str, cwd: Path | None = None) -> str:
        return self.run(tool, "-q", "-c", str(self._root / "apt.conf"), *arguments, cwd=cwd)

    def update(self) -> None:
        """Fetch the lists from the first of this machine's mirrors that has both suites."""
        failure: UserError | None = None
        for mirror in self._mirrors():
            (self._root / "sources.list").write_text(_sources(mirror))
            try:
                # Without the option, apt-get only warns when a list can't be fetched.
                self.apt("apt-get", "-o", "APT::Update::Error-Mode=any", "update")
            except UserError as error:
                failure = failure or error
            else:
                return
        raise failure or UserError(
            "provisioning-failed",
            f"apt has no Debian mirror to fetch {self._wanted.title} from: {self._wanted.advice}.",
        )

    def _mirrors(self) -> list[str]:
        """The archives of the system's own apt sources, likely Debian mirrors first."""
        uris = re.findall(r"^'([^']+)/dists/", self.run("apt-get", "update", "--print-uris"), re.M)
        mirrors = [uri for uri in dict.fromkeys(uris) if "security" not in uri]
        return sorted(mirrors, key=lambda uri: "debian" not in uri.rpartition("/")[2])

    def resolve(self) -> list[_Deb]:
        """The packages and, if it is wanted, everything that they need, as apt would install it."""
        wanted = list(self._wanted.packages)
        if self._wanted.dependencies:
            plan = self.apt("apt-get", "--simulate", "install", *wanted)
            versions = re.findall(r"^Inst (\S+) \((\S+) ", plan, re.M)
            wanted = [f"{name}={version}" for name, version in versions]
        debs: dict[str, _Deb] = {}
        for stanza in self.apt("apt-cache", "show", *wanted).split("\n\n"):
            fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.M))
            if fields:
                debs[fields["Package"]] = _Deb(
                    fields["Package"], fields["Version"], fields["SHA256"], int(fields["Size"])
                )
        return list(debs.values())

    def download(self, debs: Sequence[_Deb], directory: Path, progress: Progress) -> None:
        """`apt-get download` into `directory`; apt checks every package against its lists."""
        total = sum(deb.size for deb in debs)
        names = [f"{deb.name}={deb.version}" for deb in debs]
        config = str(self._root / "apt.conf")
        errors = self._root / "errors"
        with errors.open("wb") as log:
            fetching = subprocess.Popen(
                ["apt-get", "-q", "-c", config, "download", *names],  # noqa: S607  (PATH's apt is the system's)
                cwd=directory,
                env=_english(),
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            with fetching:
                label = f"Fetching {self._wanted.title} ({total / 1e6:.0f} MB)"
                while fetching.poll() is None:
                    progress(_bytes_in(directory), total, label)
                    time.sleep(0.1)
        if fetching.returncode:
            raise _failed(self._wanted, "apt-get download", errors.read_text(errors="replace"))


def _download(apt: _Apt, debs: Sequence[_Deb], store: Path, progress: Progress) -> list[Path]:
    """The packages' files, by their SHA-256; what was fetched before isn't fetched again."""
    store.mkdir(exist_ok=True)
    missing = [deb for deb in debs if not _is(store / f"{deb.sha256}.deb", deb.sha256)]
    if missing:
        with tempfile.TemporaryDirectory(dir=store.parent) as directory:
            apt.download(missing, Path(directory), progress)
            for file in Path(directory).glob("*.deb"):
                file.rename(store / f"{_sha256(file)}.deb")
    files = [store / f"{deb.sha256}.deb" for deb in debs]
    if absent := [deb.name for deb, file in zip(debs, files, strict=True) if not file.is_file()]:
        raise UserError(
            "provisioning-failed", f"apt fetched other packages than it lists: {', '.join(absent)}."
        )
    return files


def unpack(debs: Sequence[Path], tree: Path, wanted: Wanted) -> None:
    """Unpack the packages' files into a directory, their scripts aside."""
    for deb in debs:
        done = subprocess.run(
            ["dpkg-deb", "-x", str(deb), str(tree)],  # noqa: S607  (PATH's dpkg is the system's)
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise _failed(wanted, "dpkg-deb", done.stderr)


@contextmanager
def whole(tree: Path) -> Iterator[Path]:
    """A directory to fill, which appears as `tree` when the block ends: all or nothing."""
    with tempfile.TemporaryDirectory(dir=tree.parent) as directory:
        filling = Path(directory) / "tree"
        filling.mkdir()
        yield filling
        filling.rename(tree)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """One provisioning at a time, between processes too; the others wait for it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _home(cache: Path) -> Path:
    return cache.absolute() / "bitcoind"


def _tree(cache: Path) -> Path:
    """One tree per kind of machine: a home directory may be shared."""
    return _home(cache) / platform.machine()


def _sources(mirror: str) -> str:
    keyring = next((f"signed-by={path}" for path in KEYRINGS if path.is_file()), "")
    # The list of sid may carry a date that has passed; its signature is checked all the same.
    return (
        f"deb [{keyring} check-valid-until=no] {mirror} {PACKAGE_SUITE} main\n"
        f"deb [{keyring} check-valid-until=yes] {mirror} {LIBRARY_SUITE} main\n"
    )


def _failed(wanted: Wanted, what: str, stderr: str) -> UserError:
    errors = [line for line in stderr.splitlines() if line.startswith(("E:", "Err:"))]
    detail = (errors or stderr.strip().splitlines() or ["it does not say why"])[0]
    return UserError(
        "provisioning-failed",
        f"{wanted.title} could not be fetched from Debian's archive ({what}: {detail}); "
        f"check the network, or {wanted.advice}.",
    )


def _english() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


def _bytes_in(directory: Path) -> int:
    total = 0
    for file in directory.rglob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # renamed since, which is how apt finishes a file
            continue
    return total


def _is(file: Path, sha256: str) -> bool:
    return file.is_file() and _sha256(file) == sha256


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
