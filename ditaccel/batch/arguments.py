"""The command line of `ditaccel generate`, and what its texts mean."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..io.arguments import add_call, add_device, add_dtype, add_pipeline
from ..io.given import whole_argument as whole
from .encode import CODECS, KINDS
from .inputs import MAX_PIXELS
from .manifest import Item
from .names import DEFAULT

# Processes, threads and items of a call: more is a slip of the keyboard.
_MOST = 4096

EXAMPLE = """\
examples:
  ditaccel generate samples/models/shapes-wan --jobs samples/prompts/shapes-wan.txt --out out
  ditaccel generate MODEL --jobs jobs.csv --config fast.yaml --out out --save mp4,latents
  ditaccel generate MODEL --jobs jobs.parquet --out out --shard 3/16
  ditaccel report out

columns of a job file: prompt, negative_prompt, seed, size (WIDTHxHEIGHT) or width and height,
frames, steps, guidance, class_label, image, video, fps, name, config, call (a JSON object),
meta.NAME. Cells of a csv may be parted by commas, semicolons or tabs; in a txt file # begins a
comment, and \\# a prompt with # in front. The same command on the same --out goes on where a killed
or interrupted one stopped.
exit code: 0 all made, 3 some items failed, 2 the command is wrong, 130 interrupted.
"""


def _seeds(text: str) -> tuple[int, ...]:
    one = whole("--seeds", 0)
    found = tuple(one(part) for part in text.split(","))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"--seeds {text!r} names a seed twice")
    return found


def _kinds(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    for kind in found:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"--save {kind!r}: it must be of {', '.join(KINDS)}")
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
    add = parser.add_argument
    add("model", help="folder or Hub id of a diffusers pipeline")
    add("--jobs", required=True, type=Path, metavar="FILE", help="txt, csv, tsv, jsonl or parquet")
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the job")
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
        help=f"of {', '.join(KINDS)} (default mp4, for pictures png)",
    )
    add("--codec", choices=tuple(CODECS), default="h264", help="of mp4 files (default h264)")
    add("--crf", type=whole("--crf", 0), help="quality of mp4 files (default 18; av1 24)")
    add("--fps", type=float, help="for rows without their own (default: the model's, else 16)")
    add("--seeds", type=_seeds, default=(0,), help="for rows without one, such as 0,1 (default 0)")
    add("--steps", type=whole("--steps", 1), help="for rows without their own")
    add_call(parser, " for rows that do not set it")
    add("--name", default=DEFAULT, help=f"template of file names (default {DEFAULT}), or vbench")
    add("--engine", choices=("local", "ray"), default="local", help="what runs the workers")
    add(
        "--workers",
        type=whole("--workers", 1, _MOST),
        help="processes (default: one per GPU or core)",
    )
    add(
        "--threads",
        type=whole("--threads", 1, _MOST),
        help="CPU threads per worker (default: 1 on a CPU)",
    )
    add_device(parser)
    add_dtype(parser, "float32 on a CPU, else bfloat16")
    add_pipeline(parser)
    add(
        "--batch",
        type=whole("--batch", 1, _MOST),
        default=1,
        help="items of one shape per call (default 1)",
    )
    add("--no-overlap", action="store_true", help="do not decode and encode beside denoising")
    add("--shard", metavar="I/N", help="only this part (default: what the launcher says)")
    add("--limit", type=whole("--limit", 1), help="only the first N items")
    add(
        "--filter",
        action="append",
        default=[],
        type=_filter,
        metavar="COLUMN=PATTERN",
        help="only items that match, such as 'prompt=*circle*'; repeatable",
    )
    add("--retry-failed", action="store_true", help="try failed items again")
    add("--verify", action="store_true", help="compare hashes of done files, not sizes alone")
    add("--allow-remote", action="store_true", help="input images and videos may be URLs")
    add(
        "--max-input",
        type=whole("--max-input", 1),
        default=MAX_PIXELS,
        metavar="PIXELS",
        help=f"most pixels of an input image, or of all frames of an input video ({MAX_PIXELS})",
    )
    add("--dry-run", action="store_true", help="say what would be done, and load nothing")
    add("--json", action="store_true", help="print the summary as JSON")
    add("--quiet", action="store_true", help="show no progress")


def choose(
    items: Sequence[Item], filters: Sequence[tuple[str, str]], limit: int | None
) -> list[Item]:
    """The items that `--filter` and `--limit` leave.

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
        raise ConfigError(f"--filter: unknown column {key!r}; known: {', '.join(known)}, meta.NAME")

    found = [
        item
        for item in items
        if all(fnmatch.fnmatchcase(value(item, key), pattern) for key, pattern in filters)
    ]
    if items and not found:
        wanted = " ".join(f"{key}={pattern}" for key, pattern in filters)
        raise ConfigError(f"--filter {wanted}: no item matches; --dry-run without it lists them")
    return found[:limit] if limit else found
