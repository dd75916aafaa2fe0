"""`ditaccel tune`: search the steps worth computing for a model, and write them as config files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ditaccel import given
from ditaccel.arguments import (
    add_call,
    add_device,
    add_dtype,
    add_pipeline,
    listed,
    number,
)
from ditaccel.asking import asked, default_call
from ditaccel.errors import UsageError
from ditaccel.factory import Opened
from ditaccel.given import whole_argument as whole
from ditaccel.models import Sheet, read_prompts, read_sheet
from ditaccel.opening import open_pipeline
from ditaccel.tuning import MOST_PSNR, Target, Tuner

EXAMPLE = """\
examples:
  ditaccel tune samples/models/shapes-wan --psnr 35 --out wan-35db.yaml
  ditaccel tune samples/models/shapes-flux --share 0.2,0.3,0.4 --limit 6 --out tuned/

then: ditaccel.accelerate(pipe, "wan-35db.yaml"). A file holds for the step count it was made with.
With several targets --out is a folder, and the dense runs are made only once.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel tune`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("model", help="folder or Hub id of a diffusers pipeline")
    psnr = listed("--psnr", number("--psnr", 0, MOST_PSNR, open_ends=True), "30,35")
    share = listed("--share", number("--share", 0, 1, open_ends=True), "0.2,0.3")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--psnr", type=psnr, metavar="DB", help="PSNR to dense to reach, in dB")
    goal.add_argument("--share", type=share, metavar="PART", help="computed share to keep to")
    goal.add_argument(
        "--attention-error",
        type=listed("--attention-error", number("--attention-error", 0, 1, open_ends=True)),
        metavar="SHARE",
        help="calibrate LiteAttention instead: relative L1 error of each layer's output, e.g. 0.02",
    )
    parser.add_argument(
        "--statistic",
        choices=("mean", "min"),
        default="mean",
        help="hold the mean PSNR of the prompts against --psnr, or the worst one's (default mean)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help="file, or folder")
    parser.add_argument("--prompts", metavar="FILE", help="one prompt (or class name) a line")
    add = parser.add_argument
    add("--limit", type=whole("--limit", 1), default=4, help="prompts to learn from (default 4)")
    add("--seed", type=whole("--seed", 0), default=1000, help="seed of the first prompt")
    add("--steps", type=whole("--steps", 1), help="scheduler steps")
    add_call(parser)
    add_device(parser)
    add_dtype(parser)
    add_pipeline(parser)
    add("--threads", type=whole("--threads", 1), help="CPU threads")
    parser.add_argument(
        "--memory",
        default="4GB",
        metavar="SIZE",
        help="for one generation's outputs; more goes to a temporary file (default 4GB)",
    )


def _calls(opened: Opened, sheet: Sheet, args: argparse.Namespace) -> list[dict[str, Any]]:
    source = args.prompts or sheet.prompts
    if source is None:
        raise UsageError("give --prompts FILE: the model folder names no prompts of its own")
    # The last ones: evaluations begin with the first, and should not judge what was learnt from.
    prompts = read_prompts(source)[-args.limit :]
    given = dict(args.call)
    if args.steps is not None:
        given["num_inference_steps"] = args.steps
    call = default_call(opened.pipe, sheet, given, opened.call)
    return [{**call, **asked(opened.pipe, p)} for p in prompts]


def _calibrate(
    pipe: Any, calls: list[dict[str, Any]], args: argparse.Namespace, single: bool
) -> int:
    from ditaccel import config as configs
    from ditaccel.attention.calibration import calibrate

    print(f"{'target':<24}{'density':>9}{'error':>9}  file")
    for error in args.attention_error:
        found = calibrate(
            pipe,
            calls,
            target_error=error,
            seed=args.seed,
            progress=lambda line: print(line, file=sys.stderr),
        )
        name = f"attention-error-{error:g}"
        path = args.out if single else args.out / f"{name}.yaml"
        label = f"attention within {100 * error:g} %"
        configs.dump(configs.AccelerationConfig(attention=found.config, label=label), path)
        density = sum(found.density) / len(found.density)
        mean = sum(found.error) / len(found.error)
        print(f"{name:<24}{density:>9.3f}{mean:>9.4f}  {path}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Run `ditaccel tune`.

    Raises:
        DitaccelError: unusable input, in one line.
    """
    import torch

    from ditaccel import config as configs

    goals = [Target(psnr=p, statistic=args.statistic) for p in args.psnr or ()]
    goals += [Target(computed_share=s, statistic=args.statistic) for s in args.share or ()]
    goals += [Target(attention_error=e) for e in args.attention_error or ()]
    single = args.out.suffix in (".yaml", ".yml", ".json")
    if single and len(goals) > 1:
        raise UsageError(f"{len(goals)} targets need a folder, and --out {args.out} is a file")
    folder = args.out.parent if single else args.out
    given.output_folder(folder, "--out")
    if args.threads:
        torch.set_num_threads(args.threads)
    opened = open_pipeline(args.model, args.device, args.dtype, args.pipeline)
    pipe = opened.pipe
    calls = _calls(opened, read_sheet(args.model), args)
    try:  # not before: a wrong model leaves nothing behind
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {args.out}: {error}") from None
    if args.attention_error:
        return _calibrate(pipe, calls, args, single)
    tuner = Tuner(pipe, calls, args.seed, lambda line: print(line, file=sys.stderr), args.memory)
    print(f"{'target':<14}{'computed':>9}{'PSNR':>9}{'worst':>9}  file")
    for goal in goals:
        name = f"share-{goal.computed_share:g}" if goal.psnr is None else f"psnr-{goal.psnr:g}"
        found = tuner.reach(goal)
        path = args.out if single else args.out / f"{name}.yaml"
        configs.dump(found.config, path)
        levels = f"{found.psnr:>6.1f} dB{found.psnr_min:>6.1f} dB"
        print(f"{name:<14}{found.computed_share:>9.3f}{levels}  {path}")
    return 0
