"""What benchmarks share: the model that they run, and the options that name it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ditaccel.core.kinds import denoised
from ditaccel.errors import UsageError
from ditaccel.io import arguments as options
from ditaccel.io.arguments import SHORT_DTYPES, dtype
from ditaccel.io.asking import asked, calls_of, default_call
from ditaccel.io.factory import Opened
from ditaccel.io.given import whole_argument as whole
from ditaccel.io.models import line_of, prompts_for, read_sheet
from ditaccel.io.opening import choose_device, open_pipeline, use_threads
from ditaccel.io.schedulers import put_scheduler


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


def add_model(
    parser: argparse.ArgumentParser, limit: int | None = None, threads: bool = True
) -> None:
    """Declare what names a model and its prompts, and how it runs.

    Args:
        parser: of the benchmark.
        limit: default of `--limit`; None does not declare it.
        threads: whether the benchmark runs in this process: with one `--threads`, and with
            `--scheduler`.
    """
    options.add_model(parser)
    options.add_prompts(parser)
    options.add_renamed(parser, "--prompt-file", "is called --prompts now")
    if limit is not None:
        options.add_limit(parser, limit)
    options.add_device(parser)
    options.add_dtype(parser)
    options.add_pipeline(parser)
    if threads:
        options.add_scheduler(parser)
        options.add_threads(parser)


def add_kernel(
    parser: argparse.ArgumentParser, lengths: Sequence[int], backends: Sequence[str]
) -> None:
    """Declare the sizes that a kernel is timed at, and where it runs.

    Args:
        parser: of the benchmark.
        lengths: default numbers of tokens.
        backends: that can be named.
    """
    add = parser.add_argument

    def size(option: str, default: int, text: str, low: int = 1) -> None:
        add(
            option,
            type=whole(option, low),
            default=default,
            metavar="N",
            help=f"{text} (default {default})",
        )

    add(
        "--lengths",
        type=whole("--lengths", 1),
        nargs="+",
        default=list(lengths),
        metavar="N",
        help=f"numbers of tokens (default {' '.join(map(str, lengths))})",
    )
    add(
        "--dtype",
        nargs="+",
        type=short_dtype,
        default=["fp32", "bf16"],
        metavar="DTYPE",
        help="float32 (fp32), float16 (fp16), bfloat16 (bf16); default: fp32 bf16",
    )
    size("--heads", 2, "attention heads")
    size("--head-dim", 64, "channels per head")
    size("--q-tile", 128, "queries per tile", 16)
    size("--k-tile", 64, "keys per tile", 16)
    size("--repeats", 5, "turns, of which the median counts")
    options.add_device(parser)
    options.add_threads(parser)
    add("--backend", choices=backends, help="of the kernels (default: the fastest there is)")
    add_csv(parser)


def add_csv(parser: argparse.ArgumentParser) -> None:
    """Declare `--out` of a benchmark."""
    options.add_out(parser, "CSV file to append the rows to", "FILE", needed=False)


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
    texts = prompts_for(args.model, sheet, args.prompts)[:prompts]
    opened = open_model(args)
    given = {key: value for key, value in changes.items() if value is not None}
    call = default_call(opened.pipe, sheet, given, opened.call)
    name = Path(args.model).expanduser().resolve().name
    return Subject(opened.pipe, [{**call, **asked(opened.pipe, text)} for text in texts], name)


def open_model(args: argparse.Namespace) -> Opened:
    """Load the pipeline, with the threads that were asked for."""
    use_threads(args.threads, choose_device(args.device))
    opened = open_pipeline(args.model, args.device, args.dtype, args.pipeline)
    put_scheduler(opened.pipe, args.scheduler)
    return opened


def run_dense(subject: Subject, index: int) -> None:
    """One generation of a subject, its noise drawn with its number."""
    with torch.no_grad(), calls_of(subject.pipe, "bench"):
        subject.pipe(
            **{**denoised(subject.pipe), **subject.calls[index]},
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
        raise UsageError(f"{name}: {line_of(error)}", "backend") from error


def short_dtype(text: str) -> str:
    """The short name of a dtype in any usual spelling, as tables have it."""
    found = dtype(text)
    if found is None:
        raise argparse.ArgumentTypeError("a benchmark of kernels needs a dtype by name")
    return SHORT_DTYPES[found]
