"""Stands in for apt-get, apt-cache, dpkg and dpkg-deb: an archive of two tiny packages.

It is run under each of these names; FAKE_ARCHIVE names a directory with the switches `offline` and
`tampered`, and with the file `calls`, to which every call that a network would see is added.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

ARCHIVE = Path(os.environ["FAKE_ARCHIVE"])
SOURCES = ("http://third.invalid/apt", "http://mirror.invalid/debian")
PACKAGES = {"bitcoin-knots": "29.4", "libc6": "1:2.41"}


def main(tool: str, arguments: list[str]) -> int:
    if tool == "dpkg":
        print("amd64")
    elif tool == "dpkg-deb":
        unpack(Path(arguments[1]).read_text(), Path(arguments[2]))
    elif tool == "apt-cache":
        for name, version in PACKAGES.items():
            digest = hashlib.sha256(name.encode()).hexdigest()
            print(f"Package: {name}\nVersion: {version}\nSize: {len(name)}\nSHA256: {digest}\n")
    elif "--print-uris" in arguments:
        for source in SOURCES:
            print(f"'{source}/dists/stable/InRelease' some_InRelease 0 ")
    elif "--simulate" in arguments:
        for name, version in PACKAGES.items():
            print(f"Inst {name} ({version} Debian:13/stable [amd64])")
    else:
        return online(arguments)
    return 0


def online(arguments: list[str]) -> int:
    config = Path(arguments[arguments.index("-c") + 1])
    mirror = (config.parent / "sources.list").read_text().split()[3]
    command = "download" if "download" in arguments else "update"
    with (ARCHIVE / "calls").open("a") as calls:
        calls.write(f"{command} {mirror}\n")
    if (ARCHIVE / "offline").exists():
        print(f"E: Could not resolve {mirror}", file=sys.stderr)
        return 100
    if command == "download":
        for name in (argument.partition("=")[0] for argument in arguments if "=" in argument):
            content = "tampered" if (ARCHIVE / "tampered").exists() else name
            Path(f"{name}.deb").write_text(content)
    return 0


def unpack(name: str, tree: Path) -> None:
    paths = {"bitcoin-knots": "usr/bin/bitcoind", "libc6": "usr/lib/x86_64-linux-gnu/ld-linux.so.2"}
    file = tree / paths[name]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[0]).name, sys.argv[1:]))
