"""`ditaccel finetune`: train an adapter for sparse-linear attention on a model's own outputs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .errors import ConfigError, UsageError

EXAMPLE = """\
examples:
  ditaccel finetune samples/models/shapes-wan --config "sla:critical=5" --steps 600 --out runs/sla
  accelerate launch -m ditaccel finetune MODEL --prompts FILE --train attention --out runs/sla

then: ditaccel.accelerate(pipe, attention=SLAConfig(weights="runs/sla/adapter.safetensors")).
The same command on the same --out goes on where a killed run stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel finetune`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument("model", help="folder or Hub id of a diffusers pipeline")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--config", default="sla", metavar="SPEC", help='such as "sla:critical=5,mode=combined"'
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="one prompt a line (default: the model's)"
    )
    parser.add_argument(
        "--skip", type=int, default=0, metavar="N", help="leave the first N prompts to evaluations"
    )
    parser.add_argument("--limit", type=int, help="use so many prompts")
    parser.add_argument("--latents", type=Path, help="safetensors file with `latents` (N, …): data")
    parser.add_argument("--steps", type=int, default=500, help="updates (default 500)")
    parser.add_argument("--train", default="projection", help="projection, attention or all")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the projections (default 1e-3)")
    parser.add_argument(
        "--weights-lr", type=float, default=1e-5, help="of the model's weights (default 1e-5)"
    )
    parser.add_argument("--batch", type=int, default=1, help="calls per update (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=25, metavar="N", help="updates")
    parser.add_argument(
        "--average", type=float, default=0.99, help="decay of the averaged weights (default 0.99)"
    )
    parser.add_argument("--inference-steps", type=int, help="scheduler steps of a generation")
    parser.add_argument("--device", help="torch device (default: the launcher's, or cpu)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _data(args: argparse.Namespace, prompts: list[str]) -> list[Any]:
    if args.latents is None:
        return list(prompts)
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
    return [{"prompt": p, "latents": x[None]} for p, x in zip(prompts, latents, strict=True)]


def run(args: argparse.Namespace) -> int:
    """Run `ditaccel finetune`.

    Raises:
        DitaccelError: unusable input, in one line.
    """
    import torch

    from . import config as configs
    from .attention.sla import SLAConfig
    from .finetuning import finetune
    from .loss_curve import CURVE
    from .models import load_pipeline, read_prompts, read_sheet

    sheet = read_sheet(args.model)
    source = args.prompts or sheet.prompts
    if source is None:
        raise UsageError("give --prompts FILE: the model folder names no prompts of its own")
    prompts = read_prompts(source)[max(args.skip, 0) :][: args.limit]
    if not prompts:
        raise UsageError(f"--skip {args.skip} leaves no prompt of {source}")
    config = configs.parse_spec(args.config).attention
    if not isinstance(config, SLAConfig):
        raise ConfigError(f"--config {args.config!r} is no config of sla, which is what can learn")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = args.device
    if device is None:
        from accelerate import PartialState

        device = str(PartialState().device) if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(args.model, device=device, dtype=getattr(torch, args.dtype))
    pipe.set_progress_bar_config(disable=True)
    call = dict(sheet.call)
    if sheet.negative_prompt is not None:
        call["negative_prompt"] = sheet.negative_prompt
    if args.inference_steps is not None:
        call["num_inference_steps"] = args.inference_steps
    made = finetune(
        pipe,
        _data(args, prompts),
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
    return 0
