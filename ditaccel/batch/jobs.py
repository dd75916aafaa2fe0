"""Job files: txt, csv, jsonl and parquet into raw rows; nothing is judged here."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import given
from ..errors import UsageError
from .rows import check_columns

SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in the file.

    Attributes:
        row: number in the file, from 1 (its line for txt and jsonl).
        values: column -> value; text where the format knows nothing else (csv).
        error: why it cannot be read, empty if it can.
    """

    row: int
    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def read_rows(path: str | Path) -> list[RawRow]:
    """Read a job file; a row that cannot be read becomes a row with an `error`.

    Args:
        path: `.txt` (a prompt a line, `#` begins a comment line), `.csv` (with a header), `.jsonl`
            (an object a line) or `.parquet`.

    Raises:
        UsageError: no such file, another format, not UTF-8, a header with an unknown column, or no
            row in it.
    """
    path = given.path(path)
    if not path.is_file():
        raise UsageError(f"no job file at {path}; give --jobs FILE ({', '.join(SUFFIXES)})")
    readers = {".txt": _txt, ".jsonl": _jsonl}
    try:
        if path.suffix == ".parquet":
            rows = list(_parquet(path))
        elif path.suffix == ".csv":
            rows = list(_csv(path, path.read_text(encoding="utf-8-sig")))
        elif path.suffix in readers:
            rows = list(readers[path.suffix](path.read_text(encoding="utf-8-sig")))
        else:
            raise UsageError(f"{path}: a job file ends in {', '.join(SUFFIXES)}")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text ({error})") from error
    if not rows:
        raise UsageError(f"{path} holds no row; write one item a line")
    return rows


def _txt(text: str) -> Iterator[RawRow]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield RawRow(number, {"prompt": line.strip()})


def _csv(path: Path, text: str) -> Iterator[RawRow]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    if not reader.fieldnames:
        return
    names = [name.strip() for name in reader.fieldnames]
    if len(set(names)) < len(names) or "" in names:
        raise UsageError(
            f"the csv's header must name every column once: {', '.join(map(repr, names))}"
        )
    check_columns(path, names)
    reader.fieldnames = names
    number = 0
    while True:
        number += 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            # The parser has lost its place: what follows cannot be told apart.
            yield RawRow(number, error=f"no valid csv from here on ({error})")
            return
        if values is None:
            return
        if None in values:
            yield RawRow(number, error="more cells than the header has columns (a comma unquoted?)")
            continue
        given = {k: v for k, v in values.items() if v is not None and v.strip()}
        if given:
            yield RawRow(number, given)


def _jsonl(text: str) -> Iterator[RawRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            yield RawRow(number, error=f"no valid JSON ({error})")
            continue
        if not isinstance(values, dict):
            yield RawRow(number, error='not a JSON object; write {"prompt": …}')
            continue
        yield RawRow(number, {k: v for k, v in values.items() if v is not None})


def _parquet(path: Path) -> Iterator[RawRow]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            f"{path}: reading parquet needs pyarrow: pip install pyarrow (or give a .jsonl)"
        ) from None
    try:
        table = parquet.read_table(path)
        names, values_of = table.column_names, table.to_pylist()
    except Exception as error:
        # pyarrow's own errors share no base class beside Exception.
        first = str(error).splitlines()[0]
        raise UsageError(f"{path} is no readable parquet file ({first})") from error
    check_columns(path, names)
    for number, values in enumerate(values_of, 1):
        yield RawRow(number, {k: v for k, v in values.items() if v is not None})
