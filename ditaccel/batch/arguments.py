"""The command line of `ditaccel generate`, and what its texts mean."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..io import arguments as options
from ..io.frames import MOST_PSNR
from ..io.given import whole_argument as whole
from .encode import CODECS, KINDS
from .inputs import MAX_PIXELS
from .manifest import Item
from .names import DEFAULT

EXAMPLE = """\
examples:
  ditaccel generate samples/models/shapes-wan --out out \\
      --jobs samples/prompts/shapes-wan.txt
  ditaccel generate MODEL --jobs jobs.csv --config fast.yaml --out out \\
      --save mp4,latents
  ditaccel generate MODEL --jobs jobs.parquet --out out --shard 3/16
  ditaccel report out

Columns of a job file: prompt, negative_prompt, seed, size (WIDTHxHEIGHT) or
width and height, frames, steps, guidance, class_label, image, video, fps,
name, config, call (a JSON object), meta.NAME. Cells of a csv are separated by
commas, semicolons or tabs. In a txt file, # begins a comment, and \\# a prompt
that begins with #.
The same command with the same --out resumes where a killed or interrupted one
stopped.
exit code: 0 all made, 3 some items failed, 2 the command is wrong, 130
interrupted.
"""


def _kinds(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    for kind in found:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is not one of {', '.join(KINDS)}")
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"--save {text!r} names a kind twice")
    return found


def _filter(text: str) -> tuple[str, str]:
    key, separator, pattern = text.partition("=")
    if not separator or not key.strip():
        raise argparse.ArgumentTypeError(f"expected column=pattern, got {text!r}")
    return key.strip(), pattern


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel generate`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    options.add_model(parser)
    parser.add_argument(
        "--jobs",
        required=True,
        type=Path,
        metavar="FILE",
        help="one item per line or row: txt, csv, tsv, jsonl or parquet",
    )
    options.add_out(parser, "folder of the job", "DIR")
    _add_outputs(parser)
    _add_workers(parser)
    _add_choice(parser)
    _add_audit(parser)
    options.add_json(parser, "the summary")
    options.add_quiet(parser)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """What is generated, and how it is written."""
    add = parser.add_argument
    add(
        "--config",
        default="balanced",
        metavar="SPEC",
        help="preset, YAML file or method:option=value (default balanced); none for dense",
    )
    add(
        "--save",
        type=_kinds,
        metavar="KIND,…",
        help=f"what to write: {', '.join(KINDS)} (default: mp4 for videos, png for pictures)",
    )
    add("--codec", choices=tuple(CODECS), default="h264", help="of mp4 files (default h264)")
    add(
        "--crf",
        type=whole("--crf", 0),
        metavar="N",
        help="quality of mp4 files, lower is better (default 18; for av1 24)",
    )
    add(
        "--fps",
        type=float,
        metavar="N",
        help="for rows without their own (default: the model's own, else 16)",
    )
    options.add_seeds(parser)
    options.add_steps(parser)
    options.add_call(parser, " for rows that do not set it")
    add(
        "--name",
        default=DEFAULT,
        metavar="TEMPLATE",
        help=f"template of file names (default {DEFAULT}), or vbench",
    )
    add("--allow-remote", action="store_true", help="input images and videos may be URLs")
    add(
        "--max-input",
        type=whole("--max-input", 1),
        default=MAX_PIXELS,
        metavar="PIXELS",
        help="most pixels of an input image, or of all frames of an input video (default "
        f"{MAX_PIXELS})",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    """What does the work, and where."""
    add = parser.add_argument
    add("--engine", choices=("local", "ray"), default="local", help="what runs the workers")
    add(
        "--workers",
        type=whole("--workers", 1, options.MOST),
        metavar="N",
        help="processes (default: one per GPU, or as many as pay off on a CPU)",
    )
    options.add_running(parser, "float32 on a CPU, else bfloat16")
    options.add_scheduler(parser)
    add(
        "--batch",
        type=whole("--batch", 1, options.MOST),
        default=1,
        metavar="N",
        help="items of one shape per call (default 1)",
    )
    add("--no-overlap", action="store_true", help="do not decode and encode during denoising")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Which of the items this command makes."""
    add = parser.add_argument
    add("--shard", metavar="I/N", help="only this part (default: what the launcher says)")
    options.add_limit(parser, of="items")
    add(
        "--filter",
        action="append",
        default=[],
        type=_filter,
        metavar="COLUMN=PATTERN",
        help="only items that match, such as 'prompt=*circle*'; repeatable",
    )
    add("--retry-failed", action="store_true", help="try failed items again")
    add("--verify", action="store_true", help="compare hashes of finished files, not only sizes")
    add("--dry-run", action="store_true", help="show what would be done, and load nothing")


def _share(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(
            f"--audit must be a share above 0 and at most 1, such as 0.02: {text!r}"
        )
    return found


def _target(text: str) -> float:
    key, _, level = text.partition("=")
    if key.strip() != "psnr":
        raise argparse.ArgumentTypeError(f"--audit-target must be psnr=DB, not {text!r}")
    return options.number("--audit-target", 0, MOST_PSNR, open_ends=True)(level)


def _add_audit(parser: argparse.ArgumentParser) -> None:
    """How much is compared with dense, and what follows."""
    add = parser.add_argument
    add(
        "--audit",
        type=_share,
        metavar="SHARE",
        help="make this share of the items dense as well, chosen at random, and compare: 0.02",
    )
    add(
        "--audit-target",
        type=_target,
        metavar="psnr=DB",
        help="if the mean of the audited items is surely below, use the next safer preset from "
        "then on",
    )
    add("--audit-stop", action="store_true", help="make no more items then, in place of that")


def choose(
    items: Sequence[Item], filters: Sequence[tuple[str, str]], limit: int | None
) -> list[Item]:
    """The items that the filters and the limit leave.

    Raises:
        ConfigError: no such column, or no item is left.
    """
    known = ("id", "row", "name", "prompt", "negative_prompt", "class_label", "seed", "fps")

    def value(item: Item, key: str) -> str:
        if key.startswith("meta."):
            return str(item.meta.get(key.removeprefix("meta."), ""))
        if key in known:
            found = getattr(item, key)
            return "" if found is None else str(found)
        if any(key in other.call for other in items):
            return str(item.call.get(key, ""))
        raise ConfigError(
            f"{key!r} is not a column; known: {', '.join(known)}, meta.NAME", "filter"
        )

    found = [
        item
        for item in items
        if all(fnmatch.fnmatchcase(value(item, key), pattern) for key, pattern in filters)
    ]
    if items and not found:
        wanted = " ".join(f"{key}={pattern}" for key, pattern in filters)
        raise ConfigError(f"{wanted}: no item matches; a dry run without it lists them", "filter")
    return found[:limit] if limit else found
