"""What benchmarks share: the model they run, checked numbers, and their CSV files."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ditaccel.errors import UsageError
from ditaccel.io.arguments import SHORT_DTYPES, add_device, add_dtype, add_pipeline, dtype
from ditaccel.io.asking import asked, calls_of, default_call
from ditaccel.io.models import line_of, read_prompts, read_sheet
from ditaccel.io.opening import open_pipeline


@dataclass(frozen=True)
class Subject:
    """A pipeline to watch.

    Attributes:
        pipe: the pipeline.
        calls: arguments of a call for each prompt, without a generator.
        name: of the model.
    """

    pipe: Any
    calls: list[dict[str, Any]]
    name: str


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare what names a model and where it runs."""
    parser.add_argument("model", help="folder or Hub id of a diffusers pipeline")
    parser.add_argument(
        "--prompt-file", metavar="FILE", help="one prompt (or class name) a line; default: its own"
    )
    add_device(parser)
    add_dtype(parser)
    add_pipeline(parser)


def open_subject(args: argparse.Namespace, prompts: int = 1, **changes: Any) -> Subject:
    """Load what the arguments of `add_model` name.

    Args:
        args: parsed.
        prompts: how many to take.
        **changes: arguments of the pipeline call that replace the model's; None changes nothing.

    Raises:
        UsageError: there is no such model, or it names no prompt, or the pipeline does not take
            what is to be changed.
    """
    sheet = read_sheet(args.model)
    source = args.prompt_file or sheet.prompts
    if source is None:
        raise UsageError("give --prompt-file FILE: the model folder names no prompts of its own")
    texts = read_prompts(source, prompts)
    opened = open_pipeline(args.model, args.device, args.dtype, args.pipeline)
    given = {key: value for key, value in changes.items() if value is not None}
    call = default_call(opened.pipe, sheet, given, opened.call)
    name = Path(args.model).expanduser().resolve().name
    return Subject(opened.pipe, [{**call, **asked(opened.pipe, text)} for text in texts], name)


def run_dense(subject: Subject, index: int) -> None:
    """One generation of a subject, its noise drawn with its number."""
    with torch.no_grad(), calls_of(subject.pipe, "bench"):
        subject.pipe(
            **{"output_type": "latent", **subject.calls[index]},
            generator=torch.Generator("cpu").manual_seed(index),
        )


@contextmanager
def backend_of(name: str | None) -> Iterator[None]:
    """Kernels by a backend that the user named: that it cannot run here is one line.

    Raises:
        UsageError: it cannot.
    """
    try:
        yield
    except ValueError as error:
        if name is None:
            raise
        raise UsageError(f"--backend {name}: {line_of(error)}") from error


def short_dtype(text: str) -> str:
    """The short name of a dtype in any usual spelling, as tables have it."""
    found = dtype(text)
    if found is None:
        raise argparse.ArgumentTypeError("a benchmark of kernels needs a dtype by name")
    return SHORT_DTYPES[found]


def write_csv(
    path: Path | None,
    fields: Sequence[str],
    rows: Iterable[dict[str, Any]],
    append: bool = False,
    quiet: bool = False,
) -> None:
    """Write rows to a CSV, or add them to it; nothing without a path. Says so, unless `quiet`.

    Raises:
        UsageError: it cannot be written.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not append or not path.exists()
        with path.open("a" if append else "w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            if fresh:
                writer.writeheader()
            writer.writerows(rows)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write --out {path!s:.200}: {error}"[:400]) from None
    if not quiet:
        print(f"written to {path}")
