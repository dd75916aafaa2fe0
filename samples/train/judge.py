"""Generate from an exported sample and judge it: `python samples/train/judge.py MODEL --n 48`."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline, FluxPipeline, WanPipeline
from ditaccel.eval.shapes.features import FeatureNet, SceneObject, class_objects, parse_prompt
from ditaccel.eval.shapes.features import prompt_accuracy as accuracy
from export import MODELS
from loop import autocast, device
from PIL import Image
from torch import Tensor

CLASSES = {
    "dit": DiTPipeline,
    "flux": FluxPipeline,
    "flux-few": FluxPipeline,
    "wan": WanPipeline,
}


def load(name: str, **overrides: Any) -> tuple[Any, dict[str, Any], list[str]]:
    """Pipeline, default call and prompts of an exported sample."""
    folder = MODELS / f"shapes-{name}"
    sample = json.loads((folder / "sample.json").read_text())
    pipe = CLASSES[name].from_pretrained(folder).to(device())
    pipe.set_progress_bar_config(disable=True)
    lines = (folder / sample["prompts"]).read_text().splitlines()
    prompts = [line for line in lines if line and not line.startswith("#")]
    return pipe, {**sample["call"], **overrides}, prompts


def expected(name: str, prompts: list[str], pipe: Any) -> list[list[SceneObject]]:
    if name == "dit":
        return [class_objects(label) for label in pipe.get_label_ids(prompts)]
    return [parse_prompt(prompt) for prompt in prompts]


@torch.no_grad()
def generate(
    name: str,
    pipe: Any,
    call: dict[str, Any],
    prompts: list[str],
    seed: int,
    batch: int,
    exact: bool = False,
) -> Tensor:
    """Pictures (N, 3, 64, 64) or clips (N, 15, 3, 64, 64) in [0, 1]; prompt i has seed + i.

    Args:
        exact: float32 throughout; else bfloat16 autocast, four times faster on a CPU.
    """
    outputs = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        numbers = range(seed + start, seed + start + len(part))
        generators = [torch.Generator().manual_seed(n) for n in numbers]
        kwargs = dict(call, generator=generators, output_type="pt" if name != "dit" else "np")
        with nullcontext() if exact else autocast():
            if name == "dit":
                pictures = pipe(pipe.get_label_ids(part), **kwargs).images
                outputs.append(torch.from_numpy(pictures).permute(0, 3, 1, 2))
            elif name == "flux-few":
                outputs.append(pipe(part, **kwargs).images)  # guidance is in the weights
            elif name == "flux":
                outputs.append(pipe(part, negative_prompt=[""] * len(part), **kwargs).images)
            else:
                outputs.append(pipe(part, negative_prompt=[""] * len(part), **kwargs).frames)
    return torch.cat(outputs).float().cpu()


def sheet(images: Tensor, columns: int = 8, scale: int = 1) -> Image.Image:
    """Pictures in rows, or one clip a row (every other frame)."""
    rows = images[:, ::2] if images.ndim == 5 else images.split(columns)
    strips = [torch.cat(list(row), dim=2) for row in rows]
    width = max(s.shape[2] for s in strips)
    strips = [torch.nn.functional.pad(s, (0, width - s.shape[2])) for s in strips]
    grid = torch.cat(strips, dim=1).clamp(0, 1).mul(255).round().byte()
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=CLASSES)
    parser.add_argument("--n", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = arguments.model
    pipe, call, prompts = load(name)
    if arguments.steps:
        call["num_inference_steps"] = arguments.steps
    if arguments.guidance is not None:
        call["true_cfg_scale" if name == "flux" else "guidance_scale"] = arguments.guidance
    prompts = (prompts * (1 + arguments.n // len(prompts)))[: arguments.n]
    batch = arguments.batch or (8 if name == "wan" else 48)
    images = generate(name, pipe, call, prompts, arguments.seed, batch)
    net = FeatureNet.from_pretrained(MODELS / "shapes-features")
    wanted = expected(name, prompts, pipe)
    print(json.dumps({"n": len(prompts), **accuracy(net, images, wanted)}))
    for count in (1, 2):
        rows = [i for i, w in enumerate(wanted) if len(w) == count]
        if rows and name != "dit":
            result = accuracy(net, images[rows], [wanted[i] for i in rows])
            print(f"{count} object(s), {len(rows)} pictures:", json.dumps(result))
    if arguments.sheet:
        sheet(images[: 12 if name == "wan" else 64], scale=1 if name == "wan" else 2).save(
            arguments.sheet
        )
        print("\n".join(prompts[:12] if name == "wan" else []))


if __name__ == "__main__":
    main()
