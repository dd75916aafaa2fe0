"""`ditaccel finetune`: train an adapter for sparse-linear attention on a model's own outputs."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UsageError
from ..io.arguments import AUTO, add_call, add_device, add_dtype, add_pipeline
from ..io.asking import asked, calls_of, default_call
from ..io.given import output_folder
from ..io.given import whole_argument as whole
from ..io.opening import choose_device, open_pipeline

EXAMPLE = """\
examples:
  ditaccel finetune samples/models/shapes-wan --config "sla:critical=5" --steps 600 --out runs/sla
  accelerate launch -m ditaccel finetune MODEL --prompts FILE --train attention --out runs/sla

then: ditaccel.accelerate(pipe, attention=SLAConfig(weights="runs/sla/adapter.safetensors")).
The same command on the same --out goes on where a killed run stopped.
exit code: 0 the adapter lowers the error, 1 it does not, 2 the command is wrong.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel finetune`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("model", help="folder or Hub id of a diffusers pipeline")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--config",
        default="sla",
        metavar="SPEC",
        help='such as "sla:critical=5,mode=combined", or a YAML file',
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="one prompt a line (default: the model's)"
    )
    add = parser.add_argument
    skip = whole("--skip", 0)
    add(
        "--skip", type=skip, default=0, metavar="N", help="leave the first N prompts to evaluations"
    )
    add("--limit", type=whole("--limit", 1), help="use so many prompts")
    add("--latents", type=Path, help="safetensors file with `latents` (N, …): data")
    add("--steps", type=whole("--steps", 1), default=500, help="updates (default 500)")
    add("--train", default="projection", help="projection, attention or all")
    add("--lr", type=float, default=1e-3, help="of the projections (default 1e-3)")
    add("--weights-lr", type=float, default=1e-5, help="of the model's weights (default 1e-5)")
    add("--batch", type=whole("--batch", 1), default=1, help="calls per update (default 1)")
    add("--seed", type=whole("--seed", 0), default=0)
    add("--save-every", type=whole("--save-every", 1), default=25, metavar="N", help="updates")
    add("--average", type=float, default=0.99, help="decay of the averaged weights (default 0.99)")
    add(
        "--inference-steps",
        type=whole("--inference-steps", 1),
        help="scheduler steps of a generation",
    )
    add_call(parser)
    add_device(parser)
    add_dtype(parser)
    add_pipeline(parser)
    add("--threads", type=whole("--threads", 1), help="CPU threads")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _data(args: argparse.Namespace, pipe: Any, prompts: list[str]) -> list[Any]:
    if args.latents is None:
        return [asked(pipe, prompt) for prompt in prompts]
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(args.latents)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"--latents {args.latents}: not a safetensors file ({error})") from None
    if "latents" not in tensors:
        raise UsageError(f"--latents {args.latents}: it holds no tensor `latents`")
    latents = tensors["latents"]
    if len(latents) != len(prompts):
        raise ConfigError(
            f"--latents {args.latents} holds {len(latents)} items for {len(prompts)} prompts; give "
            "as many of one as of the other"
        )
    return [{**asked(pipe, p), "latents": x[None]} for p, x in zip(prompts, latents, strict=True)]


def _device(text: str) -> str:
    """`auto` is the launcher's device where several processes were started."""
    import torch

    if text == AUTO and torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        return str(PartialState().device)
    return choose_device(text)


def run(args: argparse.Namespace) -> int:
    """Run `ditaccel finetune`.

    Returns:
        0; 1 where training made nothing better.

    Raises:
        DitaccelError: unusable input, in one line.
    """
    import torch

    from .. import config as configs
    from ..attention.sla.planner import SLAConfig
    from ..io.models import read_prompts, read_sheet
    from .loss_curve import CURVE
    from .run import finetune

    sheet = read_sheet(args.model)
    source = args.prompts or sheet.prompts
    if source is None:
        raise UsageError("give --prompts FILE: the model folder names no prompts of its own")
    prompts = read_prompts(source)[args.skip :][: args.limit]
    if not prompts:
        raise UsageError(f"--skip {args.skip} leaves no prompt of {source}")
    is_file = args.config.endswith((".yaml", ".yml", ".json"))
    config = (configs.load if is_file else configs.parse_spec)(args.config).attention
    if not isinstance(config, SLAConfig):
        raise ConfigError(f"--config {args.config!r} is no config of sla, which is what can learn")
    output_folder(args.out, "--out")
    if args.threads:
        torch.set_num_threads(args.threads)
    opened = open_pipeline(args.model, _device(args.device), args.dtype, args.pipeline)
    pipe = opened.pipe
    given = dict(args.call)
    if args.inference_steps is not None:
        given["num_inference_steps"] = args.inference_steps
    call = default_call(pipe, sheet, given, opened.call)
    with calls_of(pipe, "finetune"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*training made the outputs no better")
        made = finetune(
            pipe,
            _data(args, pipe, prompts),
            config,
            out=args.out,
            steps=args.steps,
            train=args.train,
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
        f"{made.error_after:.4f} after {made.steps} steps\n"
        f"adapter: {made.adapter} ({made.size / 1e6:.2f} MB)\n"
        f"losses: {args.out / CURVE}"
    )
    if made.better:
        return 0
    print(f"ditaccel: {made.verdict}", file=sys.stderr)
    return 1
