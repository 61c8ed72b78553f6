"""Stands in for `python -m channels.node`: a socket with the few methods that Network needs.

Its coins are what the chain holds for the addresses that it gave out; nobody can spend them. With
an alias that begins with "deaf" it never gets ready.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import signal
import socketserver
import sys
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

parser = argparse.ArgumentParser()
for flag in ("directory", "network", "bitcoind-url", "bitcoind-cookie", "listen", "alias"):
    parser.add_argument(f"--{flag}", required=True)
options = parser.parse_args()
addresses = Path(options.directory) / "addresses"
rpc_file = Path(options.directory) / "lightning-rpc"


def bitcoind(method: str, *params: object) -> Any:
    login = base64.b64encode(Path(options.bitcoind_cookie).read_bytes().strip()).decode()
    request = urllib.request.Request(  # noqa: S310  (always http, to this machine)
        f"{options.bitcoind_url}",
        json.dumps({"method": method, "params": params}).encode(),
        {"Authorization": f"Basic {login}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310  (as above)
        return json.load(answer)["result"]


def call(method: str) -> dict[str, object]:
    if method == "getinfo":
        identity = "02" + hashlib.sha256(options.alias.encode()).hexdigest()
        return {"id": identity, "blockheight": bitcoind("getblockcount")}
    known = addresses.read_text().split() if addresses.exists() else []
    if method == "newaddr":
        secret = hashlib.sha256(f"{options.alias} {len(known)}".encode()).hexdigest()
        address = bitcoind("decodescript", "20" + secret)["segwit"]["address"]
        addresses.write_text("\n".join([*known, address]))
        return {"bech32": address}
    assert method == "listfunds"
    coins = bitcoind("scantxoutset", "start", [f"addr({address})" for address in known])
    outputs = [
        {
            "txid": coin["txid"],
            "status": "confirmed",
            "amount_msat": round(coin["amount"] * 100_000_000) * 1000,
        }
        for coin in coins["unspents"]
    ]
    return {"outputs": outputs, "channels": []}


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        text = b""
        while piece := self.request.recv(65536):
            text += piece
            try:
                request = json.loads(text)
            except ValueError:
                continue
            answer = {"jsonrpc": "2.0", "id": request["id"], "result": call(request["method"])}
            self.request.sendall(json.dumps(answer).encode() + b"\n\n")
            text = b""


def leave(number: int, frame: FrameType | None) -> None:
    rpc_file.unlink(missing_ok=True)
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    rpc_file.unlink(missing_ok=True)
    if options.alias.startswith("deaf"):
        signal.pause()
    sys.stderr.write(f"{options.alias} is ready\n")
    with socketserver.ThreadingUnixStreamServer(str(rpc_file), Handler) as server:
        server.serve_forever()
