"""Train a small adapter for sparse-linear attention on the model's own dense outputs, and use it.

python samples/finetune_sla.py 40            # updates; the same command goes on after a kill
accelerate launch samples/finetune_sla.py    # several GPUs
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import WanPipeline

import ditaccel
from ditaccel import SLAConfig

HERE = Path(__file__).parent
FOLDER = HERE / "models" / "shapes-wan"
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 600
lines = (HERE / "prompts" / "shapes-wan.txt").read_text().splitlines()
prompts = [line for line in lines if line and not line.startswith("#")][16:]

pipe = WanPipeline.from_pretrained(FOLDER).to(PartialState().device)
pipe.set_progress_bar_config(disable=True)
call = {**json.loads((FOLDER / "sample.json").read_text())["call"], "num_inference_steps": 20}

made = ditaccel.finetune(
    pipe,
    prompts,
    SLAConfig(critical=0.05, mode="combined"),
    out=f"runs/finetune-sla-{steps}",
    steps=steps,
    train="attention",
    lr=2e-3,
    weights_lr=3e-4,
    negative_prompt="",
    **call,
)
print(f"error of the output: {made.error_before:.4f} before, {made.error_after:.4f} after")

ditaccel.accelerate(pipe, attention=SLAConfig(weights=str(made.adapter)))
pipe(prompts[0], generator=torch.Generator().manual_seed(0), **call)
print(ditaccel.report(pipe))
