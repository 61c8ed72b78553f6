"""The proof that a payee's Lightning node agrees: its `signmessage` over the payee's text.

`lightningd` and the embedded node answer with the same bytes (channels.bolt.signmessage).
"""

from __future__ import annotations

import re
from typing import Final

_ENDPOINT: Final = re.compile(r"[!-~]{1,256}", re.ASCII)


def payee_text(network_id: int, key: bytes, seq: int, node_id: bytes, endpoint: str) -> str:
    """What the payee's node signs. It names the network and seq, so it can't be replayed."""
    return f"ODA payee {network_id} {key.hex()} {seq} {node_id.hex()} {endpoint}"


def is_endpoint(endpoint: str) -> bool:
    """Printable ASCII without spaces: nothing that could confuse a log, a page or payee_text."""
    return _ENDPOINT.fullmatch(endpoint) is not None
