"""`ditaccel export CONFIG --to ENGINE`: write the computed steps of a config for another engine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from .. import config as configs
from ..config import AccelerationConfig
from ..config.schedules import family_of_schedule
from ..core.transformers import transformers_of, with_checkpoint
from ..diagnosis.command import hollow_pipeline, model_folder
from ..io import arguments as options
from ..io import given
from ..io.files import write_atomically
from ..io.models import quiet_loading, read_sheet
from ..pipelines import FamilyAdapter
from .formats import FORMATS
from .schedule import schedule_of

EXAMPLE = """\
examples:
  ditaccel export wan-35db.yaml --to cache-dit --out mask.yaml
  ditaccel export published:budcache-13:checkpoint=flux.1-dev --to diffusers --out mag.json
  ditaccel export tuned.yaml --to json --model samples/models/shapes-flux

cache-dit:   cache_dit.enable_cache(pipe, **cache_dit.load_configs("mask.yaml"))
diffusers:   from diffusers import MagCacheConfig
             arguments = json.load(open("mag.json"))["arguments"]
             pipe.transformer.enable_cache(MagCacheConfig(**arguments))
vllm-omni:   vllm-omni serve MODEL --cache-backend mag_cache --cache-config "$(cat mag.json)"
sglang:      source bins.sh; sglang generate …
json:        computed steps, 0/1 mask, order and payload; with --model the timesteps
             and sigmas of its scheduler

What an engine cannot do (orders per gap, gap correction, branches computed less
often) is reported on stderr. cache-dit forecasts with its TaylorSeer calibrator
where the config's order is 1 or more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel export`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument(
        "config", help="config file, method:option=value, or preset whose steps are known"
    )
    parser.add_argument("--to", required=True, choices=tuple(FORMATS), help="which engine reads it")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="folder or cached Hub id: for presets, the step count and noise levels",
    )
    options.add_steps(parser, 2, ", where the config is for any number")
    options.add_out(parser, "file to write (default: standard output)", "FILE", needed=False)


def run(args: argparse.Namespace) -> int:
    """Write the file, or print it; 0.

    Raises:
        ConfigError: the config has no schedule that is known before a run.
        UsageError: the model or the file cannot be used.
    """
    pipe, steps = _hollow(args.model)
    config = _config(args.config, pipe)
    total = getattr(config.cache, "total", None)
    steps = args.steps or (steps if total is None else total)
    found = schedule_of(config, steps, getattr(pipe, "scheduler", None))
    text, notes = FORMATS[args.to](found)
    if found.lost and args.to != "json":
        notes.append(f"not exported: {', '.join(found.lost)}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if args.out is None:
        print(text, end="")
        return 0
    target = given.output_file(args.out)
    write_atomically(target, lambda file: file.write(text.encode()))
    print(f"{target}: {len(found.computed)} of {found.steps} steps are computed")
    return 0


def _hollow(model: str | None) -> tuple[Any, int | None]:
    """The pipeline of a model without its weights, and its own step count."""
    if model is None:
        return None, None
    folder = model_folder(model)
    with quiet_loading():
        pipe = hollow_pipeline(folder)
    return pipe, read_sheet(folder).call.get("num_inference_steps")


def _config(text: str, pipe: Any) -> AccelerationConfig:
    adapter: FamilyAdapter | str = ""
    if pipe is not None:
        transformers, family = transformers_of(pipe)
        adapter = with_checkpoint(pipe, transformers, family)
    else:
        found = family_of_schedule(text)
        adapter = "" if found is None else replace(found, checkpoint=None)
    return configs.resolve(text, adapter)
