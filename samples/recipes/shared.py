"""What the recipes share: a pipeline from the command line, and a picture or clip from it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import ditaccel

SAMPLES = Path(__file__).resolve().parents[1] / "models"


def opened(
    cls: Any, sample: str | None = "shapes-flux", **parts: Any
) -> tuple[Any, dict[str, Any], argparse.Namespace]:
    """The pipeline that the command line names, the arguments of its call, and the rest.

    Args:
        cls: class of the pipeline.
        sample: the shipped model that is taken where none is named; None where there is none.
        **parts: components that are loaded apart.
    """
    parser = argparse.ArgumentParser()
    default = {"nargs": "?", "default": str(SAMPLES / sample)} if sample else {}
    parser.add_argument("model", help="folder or Hub id of a pipeline", **default)
    parser.add_argument(
        "more", nargs="*", help="what else the recipe asks for, see its first lines"
    )
    parser.add_argument(
        "--prompt", default="a red circle moving right" if "Wan" in cls.__name__ else "a red circle"
    )
    parser.add_argument("--steps", type=int, help="(default: those of the model)")
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    pipe = cls.from_pretrained(
        args.model, torch_dtype=torch.bfloat16 if gpu else torch.float32, **parts
    )
    pipe.to("cuda" if gpu else "cpu")
    sheet = Path(args.model) / "sample.json"  # the shipped models say how they are called
    call = json.loads(sheet.read_text())["call"] if sheet.is_file() else {}
    call["prompt"] = args.prompt
    if args.steps:
        call["num_inference_steps"] = args.steps
    return pipe, call, args


def made(pipe: Any, call: dict[str, Any]) -> Any:
    """The first picture or clip of a call, always from the same noise."""
    output = pipe(**call, generator=torch.Generator().manual_seed(0))
    return (output.frames if hasattr(output, "frames") else output.images)[0]


def show(pipe: Any, call: dict[str, Any], name: str) -> None:
    """Save what a call makes in `out/`, and print how long it took and what was skipped."""
    start = time.perf_counter()
    result = made(pipe, call)
    path = Path("out") / f"{name}.{'png' if hasattr(result, 'save') else 'gif'}"
    path.parent.mkdir(exist_ok=True)
    print(f"{path}: {time.perf_counter() - start:.1f} s")
    if hasattr(result, "save"):
        result.save(path)
    else:
        from diffusers.utils import export_to_gif

        export_to_gif(list(result), str(path), fps=8)
    if ditaccel.is_accelerated(pipe):
        print(ditaccel.report(pipe))
