"""Somebody's own data as samples: a text, or rows of numbers from a CSV or .npz file.

What is read is bounded before it is read, and nothing is unpickled.
"""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from channels.errors import UserError
from sidechain.model.parts import Int16, Labelled, Part, Regression, Text, fixed_point
from sidechain.model.table import Table

MAX_FILE: Final = 256 << 20
MAX_NPY_HEADER: Final = 10_000
MAX_CLASSES: Final = 1 << 16

_MEMBERS: Final = ("inputs", "labels", "targets")
_SHAPE: Final = re.compile(r"'shape': \(([\d, ]*)\)", re.ASCII)
_KIND: Final = re.compile(r"'descr': '([<>|=]?[biufU]\d{1,9})'", re.ASCII)


def read_text(path: Path) -> Text:
    """Raises UserError("bad-data")."""
    data = _read(path)
    if len(data) < 2:
        raise _bad(path, "it is empty")
    return Text(data)


def read_rows(path: Path, table: Table) -> Labelled | Regression:
    """From .csv or .npz (arrays "inputs" and "labels", or "targets"). Raises UserError: "bad-data",
    or "bad-dataset" for numbers that are too large."""
    if not (math.isfinite(table.divide_by) and table.divide_by > 0):
        raise _bad(path, "what it is divided by must be positive")
    if path.suffix == ".npz":
        inputs, answers = _npz(path, table.regression)
    elif path.suffix == ".csv":
        inputs, answers = _csv(path, table)
    else:
        raise _bad(path, "its name must end in .csv or .npz")
    if len(inputs) == 0 or len(inputs) != len(answers):
        raise _bad(path, f"it has {len(inputs)} rows of inputs and {len(answers)} answers")
    rows = _scaled(inputs, table.divide_by)
    if table.regression:
        return Regression(rows, fixed_point(answers.reshape(len(rows), -1)))
    return Labelled(rows, _classes(path, answers))


def read_like(part: Part, path: Path, table: Table) -> Part:
    """More samples of the kind of `part`."""
    if isinstance(part, Text):
        return read_text(path)
    kind = isinstance(part, Regression)
    return read_rows(path, Table(table.divide_by, kind, table.target))


def _scaled(inputs: npt.NDArray[np.float64], divide_by: float) -> Int16:
    try:
        return fixed_point(inputs.reshape(len(inputs), -1) / divide_by)
    except UserError as error:
        raise UserError(error.reason, f"{error} Name a number to divide all inputs by.") from None


def _classes(path: Path, answers: npt.NDArray[np.generic]) -> npt.NDArray[np.uint16]:
    """Whole numbers are classes as they are; names get their place in the alphabet."""
    try:
        numbers = answers.astype(np.float64)
    except ValueError:
        names, found = np.unique(answers, return_inverse=True)
        if len(names) > MAX_CLASSES:
            raise _bad(path, f"it has {len(names)} classes") from None
        return np.asarray(found.reshape(-1), np.uint16)
    whole = np.isfinite(numbers) & (numbers >= 0) & (numbers < MAX_CLASSES)
    if numbers.ndim != 1 or not (whole & (numbers == np.floor(numbers))).all():
        raise _bad(path, "its labels are neither names nor whole numbers from 0 on")
    return np.asarray(numbers, np.uint16)


# --- CSV -----------------------------------------------------------------------------------------


def _csv(path: Path, table: Table) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.generic]]:
    try:
        text = _read(path).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _bad(path, str(error)) from None
    if not rows or len(rows[0]) < 2:
        raise _bad(path, "it has no rows of at least two columns")
    column = _column(path, rows[0], table.target)
    numbers = [cell for i, cell in enumerate(rows[0]) if i != column]
    first = 0 if all(_is_number(cell) for cell in numbers) else 1
    inputs = np.empty((len(rows) - first, len(rows[0]) - 1))
    answers = []
    for i, row in enumerate(rows[first:]):
        if len(row) != len(rows[0]):
            raise _bad(path, f"row {i + first + 1} has {len(row)} columns, not {len(rows[0])}")
        answers.append(row[column].strip())
        try:
            inputs[i] = [float(cell) for j, cell in enumerate(row) if j != column]
        except ValueError as error:
            raise _bad(path, f"row {i + first + 1}: {error}") from None
    if not table.regression:
        return inputs, np.array(answers)
    try:
        return inputs, np.array([float(answer) for answer in answers])
    except ValueError as error:
        raise _bad(path, f"its targets: {error}") from None


def _column(path: Path, head: Sequence[str], target: str | None) -> int:
    if target is None:
        return len(head) - 1
    if target in head:
        return list(head).index(target)
    if target.isascii() and target.isdigit() and int(target) < len(head):
        return int(target)
    raise _bad(path, f"it has no column {target!r}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# --- .npz ----------------------------------------------------------------------------------------


def _npz(path: Path, regression: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.generic]]:
    answer = "targets" if regression else "labels"
    _check_npz(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs, answers = arrays["inputs"], arrays[answer]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _bad(path, f"it needs arrays named inputs and {answer} ({error})") from None
    if inputs.ndim < 2 or answers.ndim < 1 or inputs.dtype.kind not in "biuf":
        raise _bad(path, "inputs must be rows of numbers")
    if regression and answers.dtype.kind not in "biuf":
        raise _bad(path, "targets must be numbers")
    return inputs.astype(np.float64), answers


def _check_npz(path: Path) -> None:
    """What an archive says that it holds is not more than we read, and what an array says of its
    size is what the archive says."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.removesuffix(".npy") in _MEMBERS]
            if sum(member.file_size for member in members) > MAX_FILE:
                raise _bad(path, f"it holds more than {MAX_FILE} bytes")
            for member in members:
                with archive.open(member) as file:
                    if _npy_size(file.read(MAX_NPY_HEADER + 12)) != member.file_size:
                        raise _bad(path, f"{member.filename} is not as long as it says")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise _bad(path, str(error)) from None


def _npy_size(head: bytes) -> int:
    """Bytes of a .npy file, from its beginning; ValueError."""
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if length > MAX_NPY_HEADER:
        raise ValueError("its header is too long")
    text = file.read(length).decode("latin-1")
    shape, kind = _SHAPE.search(text), _KIND.search(text)
    if shape is None or kind is None:
        raise ValueError("it holds neither numbers nor words")
    sizes = [int(size) for size in shape[1].split(",") if size.strip()]
    return file.tell() + math.prod(sizes) * int(np.dtype(kind[1]).itemsize)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise _bad(path, error.strerror or str(error)) from None
    if len(data) > MAX_FILE:
        raise _bad(path, f"it is longer than {MAX_FILE} bytes")
    return data


def _bad(path: Path, what: str) -> UserError:
    return UserError("bad-data", f"{path} can't be used: {what}.")
