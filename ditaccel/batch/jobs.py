"""Job files: txt, csv, tsv, jsonl and parquet into raw rows; nothing is judged here."""

from __future__ import annotations

import codecs
import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..io import given
from .rows import check_columns, is_column

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_NOTED = 3

Note = Callable[[str], object]


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


def read_rows(path: str | Path, note: Note = lambda line: None) -> list[RawRow]:
    """Read a job file; a row that cannot be read becomes a row with an `error`.

    Args:
        path: `.txt` (one prompt per line, `#` begins a comment line, `\\#` a prompt that begins
            with `#`), `.csv` (with a header; commas, semicolons or tabs between cells), `.tsv`,
            `.jsonl` (one object per line) or `.parquet`.
        note: told, in one line each, what a reader of the file may not expect.

    Raises:
        UsageError: no such file, another format, not UTF-8, a header with an unknown column, or no
            row in it.
    """
    path = given.path(path)
    if not path.is_file():
        raise UsageError(
            f"{path}: there is no such file; name one of {', '.join(SUFFIXES)}", "jobs"
        )
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: a job file ends in {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        rows = list(_parquet(path))
    else:
        text = _text(path)
        if suffix == ".txt":
            rows = list(_txt(path, text, note))
        elif suffix == ".jsonl":
            rows = list(_jsonl(text))
        else:
            rows = list(_csv(path, text, "\t" if suffix == ".tsv" else ""))
    if not rows:
        raise UsageError(f"{path} holds no row; write one item per line")
    return rows


def _text(path: Path) -> str:
    """The file as text; bytes that are not UTF-8 stay as lone surrogates, which fail their rows."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from error
    for mark, name in _OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise UsageError(f"{path} is {name} text; save it as UTF-8")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _txt(path: Path, text: str, note: Note) -> Iterator[RawRow]:
    comments = []
    for number, line in enumerate(given.lines(text), 1):
        prompt = given.prompt_of(line)
        if prompt is not None:
            yield RawRow(number, {"prompt": prompt})
        elif line.strip().startswith("#") and line.strip()[1:2].strip(" #!"):
            comments.append(number)
    if comments:
        # `# words` is how comments are written; `#words` may be a prompt.
        which = ", ".join(map(str, comments[:_NOTED])) + (", …" if len(comments) > _NOTED else "")
        note(
            f"{path.name}: taken for comments: line{'s' if len(comments) > 1 else ''} {which}; a "
            "prompt that begins with # is written \\#"
        )


def _header(path: Path, text: str, delimiter: str) -> tuple[str, list[str]]:
    """The delimiter of a csv file and its columns.

    A comma, unless another one makes more known columns of the header.
    """
    found: dict[str, list[str]] = {}
    for candidate in [delimiter] if delimiter else _DELIMITERS:
        try:
            names = next(csv.reader(io.StringIO(text, newline=""), delimiter=candidate), [])
        except csv.Error as error:
            raise UsageError(f"{path}: the csv's header cannot be read ({error})") from None
        found[candidate] = [name.strip() for name in names]
    best = max(found, key=lambda key: sum(map(is_column, found[key])))
    return best, found[best]


def _csv(path: Path, text: str, delimiter: str) -> Iterator[RawRow]:
    before = csv.field_size_limit(max(len(text), 1) + 1)
    try:
        yield from _cells(path, text, delimiter)
    finally:
        csv.field_size_limit(before)


def _cells(path: Path, text: str, delimiter: str) -> Iterator[RawRow]:
    delimiter, names = _header(path, text, delimiter)
    if not names:
        return
    if len(set(names)) < len(names) or "" in names:
        raise UsageError(f"the csv's header must name every column once: {given.shown(names, 300)}")
    check_columns(path, names)
    # Not split beforehand: which characters end a line is the parser's to know.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    next(reader)
    number = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # The parser has lost its place: what follows cannot be told apart.
            yield RawRow(number + 1, error=f"no valid csv from here on ({error})")
            return
        if not cells:
            continue
        number += 1
        if len(cells) > len(names):
            yield RawRow(
                number,
                error=f"{len(cells)} cells for {len(names)} columns: put a cell that holds "
                f"{_DELIMITERS[delimiter]} in double quotes",
            )
            continue
        values = {k: v for k, v in zip(names, cells, strict=False) if v.strip()}
        if values:
            yield RawRow(number, values)


def _jsonl(text: str) -> Iterator[RawRow]:
    for number, line in enumerate(given.lines(text), 1):
        if not line.strip():
            continue
        try:
            values = given.parse_json(line)
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
    except Exception as error:
        # pyarrow's own errors share no base class beside Exception.
        first = str(error).splitlines()[0]
        raise UsageError(f"{path} is not a readable parquet file ({first})") from error
    names = table.column_names
    if len(set(names)) < len(names):
        raise UsageError(f"{path} has two columns of one name: {given.shown(names, 300)}")
    check_columns(path, names)
    columns = [table.column(name) for name in names]
    for index in range(table.num_rows):
        values = {}
        try:
            for name, column in zip(names, columns, strict=True):
                value = column[index].as_py()
                # Some writers have no other way to say that a cell is empty.
                if value is not None and not (isinstance(value, float) and math.isnan(value)):
                    values[name] = value
        except (ValueError, OverflowError, ArithmeticError) as error:
            # A text that is not UTF-8, a date beyond Python's calendar
            line = str(error).splitlines()[0]
            yield RawRow(index + 1, values, error=f"{name}: the value cannot be read ({line})")
            continue
        yield RawRow(index + 1, values)
