"""Trained scenes models as diffusers pipelines and folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from loop import RUNS, averaged

from scenes.flux import SHIFT, build_flux, tokenizers
from scenes.pools import statistics
from scenes.vae import build_vae, whiten
from scenes.words import TOKENS, held_out_prompts
from scenes.world import SIZE

CALL = {
    "height": SIZE,
    "width": SIZE,
    "num_inference_steps": 50,
    "guidance_scale": 1.0,
    "true_cfg_scale": 4.0,
    "max_sequence_length": TOKENS,
}


def image_vae() -> AutoencoderKL:
    """The autoencoder with white latents, which is what the denoiser has learnt."""
    vae = averaged("scenes-vae", build_vae())
    whiten(vae, *statistics())
    return vae


def flux_pipeline() -> FluxPipeline:
    """scenes-flux as far as it is trained, in float32."""
    parts = averaged("scenes-flux", build_flux())
    clip, t5 = tokenizers()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=image_vae(),
        text_encoder=parts["text_encoder"],
        tokenizer=clip,
        text_encoder_2=parts["text_encoder_2"],
        tokenizer_2=t5,
        transformer=parts["transformer"],
    )


def write(folder: Path, prompts: Path) -> Path:
    """Write scenes-flux: weights in float16, text encoders (small, type-sensitive) in float32.

    Args:
        folder: of the model; what is there of earlier weights goes.
        prompts: file for the held-out prompts.
    """
    pipe = flux_pipeline()
    for part in (pipe.transformer, pipe.vae):
        part.to(torch.float16)
    for old in folder.iterdir() if folder.exists() else ():
        if old.is_dir() and old.name != "card":
            shutil.rmtree(old)
    pipe.save_pretrained(folder)
    prompts.parent.mkdir(parents=True, exist_ok=True)
    head = "# Prompts that scenes-flux has never seen in training (scenes.words.held_out)."
    prompts.write_text("\n".join([head, *held_out_prompts(128, seed=7)]) + "\n")
    description = {
        "family": "flux",
        "task": "text-to-image",
        "call": CALL,
        "prompts": str(prompts) if prompts.is_absolute() else prompts.as_posix(),
        "negative_prompt": "",
    }
    samples = Path(__file__).resolve().parents[2]
    if prompts.is_relative_to(samples) and folder.is_relative_to(samples):
        description["prompts"] = "../../" + prompts.relative_to(samples).as_posix()
    (folder / "sample.json").write_text(json.dumps(description, indent=2) + "\n")
    (folder / "card").mkdir(exist_ok=True)
    log = RUNS / "scenes-flux" / "log.json"
    if log.exists():
        shutil.copy(log, folder / "card" / "training.json")
    return folder
