"""`ditaccel tune`: search the steps worth computing for a model, and write them as config files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ditaccel import given
from ditaccel.errors import UsageError

EXAMPLE = """\
examples:
  ditaccel tune samples/models/shapes-wan --psnr 35 --out wan-35db.yaml
  ditaccel tune samples/models/shapes-flux --share 0.2,0.3,0.4 --limit 6 --out tuned/

then: ditaccel.accelerate(pipe, "wan-35db.yaml"). A file holds for the step count it was made with.
With several targets --out is a folder, and the dense runs are made only once.
"""


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 30,35: {text!r}") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel tune`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("model", help="folder or Hub id of a diffusers pipeline")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--psnr", type=_numbers, metavar="DB", help="PSNR to dense to reach, in dB")
    goal.add_argument("--share", type=_numbers, metavar="PART", help="computed share to keep to")
    goal.add_argument(
        "--attention-error",
        type=_numbers,
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
    parser.add_argument("--limit", type=int, default=4, help="prompts to learn from (default 4)")
    parser.add_argument("--seed", type=int, default=1000, help="seed of the first prompt")
    parser.add_argument("--steps", type=int, help="scheduler steps")
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument(
        "--memory",
        default="4GB",
        metavar="SIZE",
        help="for one generation's outputs; more goes to a temporary file (default 4GB)",
    )


def _calls(pipe: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    from ditaccel.models import class_label, is_class_pipeline, read_prompts, read_sheet

    sheet = read_sheet(args.model)
    source = args.prompts or sheet.prompts
    if source is None:
        raise UsageError("give --prompts FILE: the model folder names no prompts of its own")
    # The last ones: evaluations begin with the first, and should not judge what was learnt from.
    prompts = read_prompts(source)[-max(args.limit, 1) :]
    call = dict(sheet.call)
    if args.steps is not None:
        call["num_inference_steps"] = args.steps
    if is_class_pipeline(pipe):
        return [{**call, "class_labels": [class_label(pipe, p)]} for p in prompts]
    if sheet.negative_prompt is not None:
        call.setdefault("negative_prompt", sheet.negative_prompt)
    return [{**call, "prompt": p} for p in prompts]


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
    from ditaccel.models import load_pipeline
    from ditaccel.tuning import Target, Tuner

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
    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    pipe = load_pipeline(args.model, device=args.device, dtype=dtype[args.dtype])
    calls = _calls(pipe, args)
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
