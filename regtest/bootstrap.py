"""A virtual environment for a Python that comes without ensurepip (Debian's python3 alone).

Run by the Makefile with the system's Python, so it imports nothing but the standard library. pip is
taken from Debian's own package of it, fetched without root into a private apt state and checked by
apt's signatures.

    python3 regtest/bootstrap.py .venv
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "python3-pip-whl"

SENTENCE = (
    "This Python can't make virtual environments and pip could not be fetched ({reason}): "
    "install your system's venv package (Debian: apt install python3-venv) and try again."
)


def main() -> int:
    venv = Path(sys.argv[1])
    try:
        with tempfile.TemporaryDirectory() as directory:
            wheel = fetch_pip(Path(directory))
            run([sys.executable, "-m", "venv", "--without-pip", str(venv)])
            # A wheel of pip can run from inside itself, and so installs itself.
            command = [str(venv / "bin" / "python"), f"{wheel}/pip", "install", "--quiet"]
            run([*command, "--no-index", str(wheel)])
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(venv, ignore_errors=True)
        print(SENTENCE.format(reason=reason(error)), file=sys.stderr)
        return 1
    return 0


def fetch_pip(directory: Path) -> Path:
    """The wheel of pip inside Debian's package."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True)
    apt = ["apt-get", "-q", "-o", f"Dir::State={directory}/state"]
    apt += ["-o", f"Dir::Cache={directory}/cache", "-o", "APT::Sandbox::User="]
    # What is installed is not of interest, only what could be.
    status = directory / "state" / "status"
    status.touch()
    apt += ["-o", f"Dir::State::status={status}"]
    run([*apt, "update"])
    run([*apt, "download", PACKAGE], directory)
    (package,) = directory.glob(f"{PACKAGE}_*.deb")
    run(["dpkg-deb", "-x", str(package), str(directory / "tree")])
    (wheel,) = (directory / "tree").rglob("pip-*.whl")
    return wheel


def run(command: list[str], directory: Path | None = None) -> None:
    subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True)


def reason(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in str(error.stderr).splitlines() if line.strip()]
        return lines[-1] if lines else f"{error.cmd[0]} exited with {error.returncode}"
    return f"{error.strerror}: {error.filename}"


if __name__ == "__main__":
    sys.exit(main())
