import hashlib
import math
from pathlib import Path

import pytest
import torch

from channels.errors import OdaError
from sidechain.model import tables


def test_the_file_is_what_the_rule_gives() -> None:
    data = tables.generate()
    assert data == Path(tables.__file__).with_name("tables.bin").read_bytes()
    assert hashlib.sha256(data).hexdigest() == tables.SHA256


def test_what_the_tables_mean() -> None:
    assert tables.EXP[0] == 2**24
    assert tables.EXP[tables.EXP_END] == 0
    assert tables.EXP[1024] == round(2**24 / math.e)
    assert tables.LOG[0] == 0
    assert round(math.log(2) * 64e6) == tables.LN2
    assert bool((tables.EXP[1:] <= tables.EXP[:-1]).all())
    assert bool((tables.LOG[1:] > tables.LOG[:-1]).all())
    assert tables.EXP.dtype == tables.LOG.dtype == torch.float64


def test_a_changed_file_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(Path(tables.__file__).with_name("tables.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "tables.bin").write_bytes(data)
    monkeypatch.setattr(tables, "__file__", str(tmp_path / "tables.py"))
    with pytest.raises(OdaError) as caught:
        tables._load()
    assert caught.value.reason == "bad-tables"
