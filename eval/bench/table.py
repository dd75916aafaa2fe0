"""The tables of the benchmarks: what machine they come from, and their CSV files.

Every row of a CSV names the commit, the device, its driver and the versions that its figures depend
on, so that rows of many machines can stand in one file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ditaccel.errors import UsageError
from ditaccel.io import provenance

MACHINE = ("commit", "device", "driver", "threads", "torch", "triton")


@cache
def _fixed(device: str) -> dict[str, Any]:
    versions = provenance.versions("triton")
    return {
        "commit": provenance.commit(),
        "device": provenance.device_name(torch.device(device)),
        "driver": provenance.driver(torch.device(device)),
        "torch": torch.__version__,
        "triton": versions.get("triton", ""),
    }


def machine(device: str | torch.device) -> dict[str, Any]:
    """What the figures of a row depend on, as the columns `MACHINE`."""
    return {**_fixed(str(device)), "threads": torch.get_num_threads()}


def machine_line(device: str | torch.device) -> str:
    """The same, as the line above a printed table."""
    found = machine(device)
    driver = f", driver {found['driver']}" if found["driver"] else ""
    triton = f", triton {found['triton']}" if found["triton"] and found["driver"] else ""
    threads = f"{found['threads']} thread{'' if found['threads'] == 1 else 's'}"
    return f"{found['device']}{driver}, {threads}, torch {found['torch']}{triton}"


def write_csv(
    path: Path | None,
    fields: Sequence[str],
    rows: Iterable[dict[str, Any]],
    device: str | torch.device,
    quiet: bool = False,
) -> None:
    """Append rows to a CSV, each with the columns `MACHINE`; nothing without a path.

    Args:
        path: of the file, made with a header where there is none.
        fields: columns of the rows.
        rows: values of these columns.
        device: that the figures come from.
        quiet: do not print where the rows went.

    Raises:
        UsageError: it cannot be written, or holds another table.
    """
    if path is None:
        return
    columns = [*fields, *MACHINE]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not path.exists() or not path.stat().st_size
        if not fresh and _header(path) != columns:
            raise UsageError(f"{path!s:.200}: its columns are others; name a new file", "out")
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if fresh:
                writer.writeheader()
            writer.writerows({**row, **machine(device)} for row in rows)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path!s:.200}: it cannot be written ({error})"[:400], "out") from None
    if not quiet:
        print(f"written to {path}")


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return next(csv.reader(file), [])


def read_csv(path: Path, fields: Sequence[str], what: str) -> list[dict[str, Any]]:
    """The rows of a CSV that has at least these columns (older tables lack those of the machine).

    Args:
        path: of the file.
        fields: columns that it must have.
        what: the table that it should be, for the message.

    Raises:
        UsageError: there is no such file, or it holds another table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows: list[dict[str, Any]] = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error})") from None
    missing = set(fields) - set(reader.fieldnames or ())
    if missing:
        raise UsageError(f"{path} is not {what}; it has no column {', '.join(sorted(missing))}")
    return rows
