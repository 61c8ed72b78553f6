from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from channels.errors import UserError
from sidechain.model import samples
from sidechain.model.parts import Labelled, Regression, Text
from sidechain.model.samples import read_like, read_rows, read_text
from sidechain.model.table import Table


def csv(folder: Path, text: str) -> Path:
    path = folder / "data.csv"
    path.write_text(text)
    return path


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def refused(path: Path, table: Table | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_rows(path, table or Table())
    assert caught.value.reason in ("bad-data", "bad-dataset")
    return str(caught.value)


def test_rows_with_a_head_and_names(tmp_path: Path) -> None:
    found = read_rows(csv(tmp_path, "a,b,kind\n1,-2,cat\n0.5,0,ant\n\n3,4,cat\n"), Table())
    assert isinstance(found, Labelled)
    assert found.inputs.tolist() == [[4096, -8192], [2048, 0], [12288, 16384]]
    assert found.labels.tolist() == [1, 0, 1]


def test_rows_without_a_head_and_another_column(tmp_path: Path) -> None:
    path = csv(tmp_path, "7,16,32\n3,0,8\n")
    found = read_rows(path, Table(divide_by=16, target="0"))
    assert isinstance(found, Labelled)
    assert (found.inputs.tolist(), found.labels.tolist()) == ([[4096, 8192], [0, 2048]], [7, 3])
    wanted = read_rows(path, Table(divide_by=16, regression=True, target="0"))
    assert isinstance(wanted, Regression) and wanted.targets.tolist() == [[28672], [12288]]
    named = read_rows(csv(tmp_path, "y,x\n7,1\n"), Table(target="y"))
    assert isinstance(named, Labelled) and named.labels.tolist() == [7]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "two columns"),
        ("1\n2\n", "two columns"),
        ("1,2\n1,2,3\n", "row 2 has 3 columns"),
        ("1,2\nx,2\n", "row 2"),
        ("1,1.5\n", "labels"),
        ("1,-1\n", "labels"),
        ("1,70000\n", "labels"),
        ("a,b\n", "0 rows"),
        ("9,1\n", "divide"),
        ("nan,1\n", "divide"),
        ('1,"2\n', "can't be used"),
    ],
)
def test_rows_that_are_none(tmp_path: Path, text: str, what: str) -> None:
    assert what in refused(csv(tmp_path, text))


def test_what_is_asked_for_wrongly(tmp_path: Path) -> None:
    path = csv(tmp_path, "1,2\n")
    assert "column 'z'" in refused(path, Table(target="z"))
    assert "positive" in refused(path, Table(divide_by=0))
    assert "positive" in refused(path, Table(divide_by=float("nan")))
    assert ".csv or .npz" in refused(path.rename(tmp_path / "data.pkl"))
    assert "No such file" in refused(tmp_path / "nothing.csv")
    assert "targets" in refused(csv(tmp_path, "1,x\n"), Table(regression=True))


def test_arrays(tmp_path: Path) -> None:
    images = np.arange(8).reshape(2, 2, 2) / 8
    path = npz(tmp_path, inputs=images, labels=np.array([3, 1]), targets=images)
    found = read_rows(path, Table())
    assert isinstance(found, Labelled)
    assert found.inputs.tolist() == [[0, 512, 1024, 1536], [2048, 2560, 3072, 3584]]
    assert found.labels.tolist() == [3, 1]
    wanted = read_rows(path, Table(regression=True))
    assert isinstance(wanted, Regression) and wanted.targets.shape == (2, 4)
    like = read_like(wanted, path, Table())
    assert isinstance(like, Regression)


def test_arrays_that_are_none(tmp_path: Path) -> None:
    one = np.ones((2, 2))
    assert "labels" in refused(npz(tmp_path, inputs=one))
    assert "2 rows of inputs and 3" in refused(npz(tmp_path, inputs=one, labels=np.ones(3)))
    assert "rows of numbers" in refused(npz(tmp_path, inputs=np.ones(2), labels=np.ones(2)))
    assert "neither" in refused(
        npz(tmp_path, inputs=one, labels=np.array([{}, {}], dtype=object))
    ), "nothing is unpickled"
    (tmp_path / "data.npz").write_bytes(b"PK\3\4 and nothing")
    refused(tmp_path / "data.npz")


def test_an_array_that_claims_more_than_it_has(tmp_path: Path) -> None:
    """Else its memory is asked for before the first byte of it is read."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    header += b" " * (117 - len(header)) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("inputs.npy", array)
    (tmp_path / "data.npz").write_bytes(made.getvalue())
    assert "as long as it says" in refused(tmp_path / "data.npz")


def test_what_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_FILE", 100)
    assert "longer" in refused(csv(tmp_path, "1,2\n" * 100))
    assert "more than" in refused(npz(tmp_path, inputs=np.ones((9, 9)), labels=np.ones(9)))
    long = tmp_path / "long"
    long.write_bytes(bytes(101))
    with pytest.raises(UserError, match="longer"):
        read_text(long)


def test_a_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\0ab")
    assert read_text(path) == Text(b"\0ab") == read_like(Text(b"x"), path, Table())
    path.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        read_text(path)
