"""The test vectors of BOLT 3, appendices B to F, as they stand in bolt03.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_ALL: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())

FUNDING: dict[str, Any] = _ALL["appendix_b"]
COMMON: dict[str, Any] = _ALL["appendix_c"]["common"]
"""Keys, funding output and HTLCs of both appendix C and appendix F."""

STATIC_REMOTEKEY: list[dict[str, Any]] = _ALL["appendix_c"]["cases"]
"""Appendix C. Its to_remote pays the payment_basepoint itself, so it is of static_remotekey."""

SECRET_GENERATION: list[dict[str, Any]] = _ALL["appendix_d"]["generation"]
SECRET_STORAGE: list[dict[str, Any]] = _ALL["appendix_d"]["storage"]
KEY_DERIVATION: dict[str, str] = _ALL["appendix_e"]
ANCHORS: list[dict[str, Any]] = _ALL["appendix_f"]["cases"]
"""Appendix F: option_anchors with HTLC transactions that pay no fee."""
