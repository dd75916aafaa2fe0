"""Real pictures and clips of the samples' worlds, for `ditaccel eval --real`.

They are drawn by the samples' own generators, which are in the repository only:
    python -m ditaccel.eval.shapes.real_shapes --model MODEL --n 1000 --out real.npz
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ditaccel.errors import DitaccelError, UsageError
from ditaccel.io.models import read_sheet

_DATA = Path(__file__).resolve().parents[2] / "samples" / "train" / "data.py"
_SCENES = "scenes-features"  # the judge of the models whose world is that of textured scenes
_BATCH = 64


def _missing(path: Path) -> UsageError:
    return UsageError(
        f"no {path}: the generator of the samples comes with the repository, not with the "
        "installed package; run this in a clone"
    )


def _scenes_module(folder: Path) -> ModuleType:
    if not (folder / "scenes" / "world.py").is_file():
        raise _missing(folder / "scenes" / "world.py")
    sys.path.insert(0, str(folder))  # its modules know each other by these names
    try:
        return importlib.import_module("scenes.world")
    finally:
        sys.path.remove(str(folder))


def _generator_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ditaccel_shapes_data", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise _missing(path)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def real_frames(model: str | Path, count: int, seed: int = 0, data: Path = _DATA) -> np.ndarray:
    """Real samples of what a sample model was trained on.

    Args:
        model: folder of a sample; its world, task and frame count are taken.
        count: how many.
        seed: of the scenes.
        data: the generator of the shapes, beside which that of the scenes is.

    Returns:
        uint8 (N, F, H, W, 3), of 64 x 64 for the shapes and 128 x 128 for the scenes.

    Raises:
        UsageError: no generator, or a model whose `sample.json` names no task.
    """
    if count < 2:
        raise UsageError(f"a distribution needs at least 2 samples, not {count}")
    sheet = read_sheet(model)
    if not sheet.task:
        raise UsageError(f"{model} has no sample.json with a task: it is not one of the samples")
    textured = sheet.features is not None and sheet.features.name == _SCENES
    world = _scenes_module(data.parent) if textured else _generator_module(data)
    moving = sheet.task == "text-to-video"
    options: dict[str, Any] = {"moving": moving}
    if not textured:
        options |= {"two_share": 0.0 if sheet.task == "class-to-image" else 0.5, "snap": True}
    scenes = world.sample_scenes(count, torch.Generator().manual_seed(seed), **options)
    frames = int(sheet.call.get("num_frames", 1)) if moving else 1
    parts = []
    for start in range(0, count, _BATCH):
        clips = world.render(scenes[slice(start, start + _BATCH)], frames)
        parts.append((clips.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2))
    return torch.cat(parts).numpy()


def main(argv: Sequence[str] | None = None) -> int:
    """Write an npz of real frames; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a sample")
    parser.add_argument("--n", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.npz")
    args = parser.parse_args(argv)
    try:
        frames = real_frames(args.model, args.n, args.seed)
        if args.out.suffix != ".npz" or not args.out.parent.is_dir():
            raise UsageError(f"{args.out}: give a .npz file in a folder that exists", "out")
        np.savez_compressed(args.out, frames=frames)
    except DitaccelError as error:
        print(f"ditaccel: error: {error}", file=sys.stderr)
        return 2
    print(f"{len(frames)} real samples: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
