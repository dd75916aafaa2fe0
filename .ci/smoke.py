"""Check an installed ditaccel: accelerate a tiny pipeline, undo it, and let doctor look at it.

python -P .ci/smoke.py

It needs what `pip install ditaccel` brings, and nothing else: no extra, no network, no GPU.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import ditaccel


def tiny_pipeline() -> DiTPipeline:
    """A DiT of four small blocks with random weights."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        sample_size=8,
        norm_type="ada_norm_zero",
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipe = DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler())
    pipe.transformer.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe: DiTPipeline) -> Any:
    """Two pictures, always from the same noise, as an array."""
    generator = torch.Generator().manual_seed(0)
    call = {"class_labels": [1, 2], "num_inference_steps": 12, "output_type": "np"}
    return pipe(**call, generator=generator).images


pipe = tiny_pipeline()
dense = pictures(pipe)
ditaccel.accelerate(pipe, "taylorseer:interval=3")
accelerated = pictures(pipe)
print(ditaccel.report(pipe))
forecast = ditaccel.report(pipe).forecasts
assert forecast > 0, "nothing was forecast"
assert (accelerated != dense).any(), "the accelerated pictures are the dense ones"
ditaccel.restore(pipe)
assert (pictures(pipe) == dense).all(), "restore left something behind"

with tempfile.TemporaryDirectory() as folder:
    pipe.save_pretrained(folder)
    command = [sys.executable, "-P", "-m", "ditaccel", "doctor", folder]
    subprocess.run(command, check=True)
print(f"ditaccel {ditaccel.__version__}: {ditaccel.__file__} works")
