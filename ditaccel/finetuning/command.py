"""`ditaccel finetune`: train for a method on a model's own outputs."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UsageError
from ..io import arguments as options
from ..io.arguments import AUTO
from ..io.asking import asked, calls_of, default_call
from ..io.given import output_folder
from ..io.given import whole_argument as whole
from ..io.opening import choose_device, open_pipeline, use_threads

_UPDATES = 500

EXAMPLE = """\
examples:
  ditaccel finetune samples/models/shapes-wan --config "sla:critical=0.05" \\
      --updates 600 --out runs/sla
  accelerate launch -m ditaccel finetune MODEL --prompts FILE \\
      --train attention --out runs/sla

  ditaccel finetune samples/models/shapes-flux \\
      --config "clear:radius=4,min_tokens=0" --out runs/clear

then: ditaccel.accelerate(pipe,
          attention=SLAConfig(weights="runs/sla/adapter.safetensors"))
The same command with the same --out resumes where a killed run stopped.
exit code: 0 the adapter lowers the error, 1 it does not, 2 the command is
wrong.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel finetune`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    options.add_model(parser)
    options.add_out(parser, "folder of the run", "DIR")
    add = parser.add_argument
    add(
        "--config",
        default="sla",
        metavar="SPEC",
        help='of the method to train for, such as "sla:critical=0.05" (default sla), or a file',
    )
    options.add_prompts(parser)
    options.add_skip(parser, "none")
    options.add_limit(parser)
    add("--latents", type=Path, metavar="FILE", help="safetensors file with `latents` (N, …): data")
    add("--updates", type=whole("--updates", 1), metavar="N", help="(default 500)")
    add("--train", help="attention or all; for sla also projection, which is its default")
    add("--rank", type=whole("--rank", 1), metavar="N", help="of the changes of weights (LoRA)")
    add("--lr", type=float, default=1e-3, help="of what the method adds (default 1e-3)")
    add("--weights-lr", type=float, default=1e-5, help="of the model's weights (default 1e-5)")
    add(
        "--batch",
        type=whole("--batch", 1),
        default=1,
        metavar="N",
        help="lessons per update, mostly transformer calls (default 1)",
    )
    add(
        "--save-every",
        type=whole("--save-every", 1),
        default=25,
        metavar="N",
        help="updates between checkpoints (default 25)",
    )
    add("--average", type=float, default=0.99, help="decay of the averaged weights (default 0.99)")
    options.add_seed(parser, 0)
    options.add_steps(parser)
    options.add_renamed(
        parser,
        "--inference-steps",
        "is called --steps now, as in every command, and what --steps was is --updates",
    )
    options.add_call(parser)
    options.add_running(parser)
    options.add_quiet(parser)


def _data(args: argparse.Namespace, pipe: Any, prompts: list[str]) -> list[Any]:
    if args.latents is None:
        return [asked(pipe, prompt) for prompt in prompts]
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(args.latents)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{args.latents}: not a safetensors file ({error})", "latents") from None
    if "latents" not in tensors:
        raise UsageError(f"{args.latents}: it holds no tensor `latents`", "latents")
    latents = tensors["latents"]
    if len(latents) != len(prompts):
        raise ConfigError(
            f"{args.latents} holds {len(latents)} items for {len(prompts)} prompts; give as many "
            "of one as of the other",
            "latents",
        )
    return [{**asked(pipe, p), "latents": x[None]} for p, x in zip(prompts, latents, strict=True)]


def _device(text: str) -> str:
    """`auto` is the launcher's device where several processes were started."""
    import torch

    if text == AUTO and torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        return str(PartialState().device)
    return choose_device(text)


def _prompts(args: argparse.Namespace, sheet: Any) -> list[str]:
    """The prompts to train on."""
    from ..io.models import part_of_prompts, prompts_for

    return part_of_prompts(prompts_for(args.model, sheet, args.prompts), args.skip or 0, args.limit)


def _config(text: str) -> Any:
    """The config to train for, from the text of `--config`."""
    from .. import config as configs
    from .student import student_of

    is_file = text.endswith((".yaml", ".yml", ".json"))
    found = (configs.load if is_file else configs.parse_spec)(text).methods
    if len(found) != 1:
        raise ConfigError(f"{text!r} names {len(found)} methods; train for one at a time", "config")
    student_of(found[0])
    return found[0]


def run(args: argparse.Namespace) -> int:
    """Run `ditaccel finetune`.

    Returns:
        0; 1 where training made nothing better.

    Raises:
        DitaccelError: unusable input, in one line.
    """
    from ..io.models import read_sheet
    from .loss_curve import CURVE
    from .run import finetune

    if args.steps is not None and args.updates is None:
        raise UsageError("counts scheduler steps; also say how many --updates to train", "steps")
    sheet = read_sheet(args.model)
    prompts = _prompts(args, sheet)
    config = _config(args.config)
    output_folder(args.out)
    device = _device(args.device)
    use_threads(args.threads, device)
    opened = open_pipeline(args.model, device, args.dtype, args.pipeline)
    pipe = opened.pipe
    given = dict(args.call)
    if args.steps is not None:
        given["num_inference_steps"] = args.steps
    call = default_call(pipe, sheet, given, opened.call)
    with calls_of(pipe, "finetune"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*training made the outputs no better")
        made = finetune(
            pipe,
            _data(args, pipe, prompts),
            config,
            out=args.out,
            steps=args.updates or _UPDATES,
            train=args.train,
            rank=args.rank,
            lr=args.lr,
            weights_lr=args.weights_lr,
            batch=args.batch,
            seed=args.seed,
            save_every=args.save_every,
            average=args.average,
            quiet=args.quiet,
            **call,
        )
    print(
        f"error of the output on held-out calls: {made.error_before:.4f} before, "
        f"{made.error_after:.4f} after {made.steps} updates\n"
        f"adapter: {made.adapter} ({made.size / 1e6:.2f} MB)\n"
        f"losses: {args.out / CURVE}"
    )
    if made.better:
        return 0
    print(f"ditaccel: {made.verdict}", file=sys.stderr)
    return 1
