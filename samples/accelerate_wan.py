"""First steps: the same clip dense and accelerated, with what the plugin skipped.

python samples/accelerate_wan.py "a red circle moving right and a blue square moving up"
"""

import json
import sys
import time
from pathlib import Path

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_gif

import ditaccel

FOLDER = Path(__file__).parent / "models" / "shapes-wan"
prompt = sys.argv[1] if len(sys.argv) > 1 else "a red circle moving right"
out = Path("out")
out.mkdir(exist_ok=True)

device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = WanPipeline.from_pretrained(FOLDER).to(device)
call = json.loads((FOLDER / "sample.json").read_text())["call"]


def generate(name: str) -> None:
    """Save one clip, always from the same noise."""
    start = time.perf_counter()
    clip = pipe(prompt, generator=torch.Generator().manual_seed(0), output_type="pil", **call)
    print(f"{name}: {time.perf_counter() - start:.1f} s, saved as {out / name}.gif")
    export_to_gif(clip.frames[0], str(out / f"{name}.gif"), fps=8)


pipe(prompt, **{**call, "num_inference_steps": 3})  # the first calls of a process are slower
generate("dense")
ditaccel.accelerate(pipe, "balanced")
generate("accelerated")
print(ditaccel.report(pipe))
ditaccel.restore(pipe)
