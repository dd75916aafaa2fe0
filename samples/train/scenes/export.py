"""Trained scenes models as diffusers pipelines and folders."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from loop import RUNS, averaged
from text import t5_tokenizer

from scenes.flux import SHIFT, build_flux, tokenizers
from scenes.pools import clip_statistics, statistics
from scenes.vae import build_vae, whiten
from scenes.video import FRAMES, build_video_vae
from scenes.wan import SHIFT as WAN_SHIFT
from scenes.wan import build_wan
from scenes.words import TOKENS, WORDS, held_out_prompts
from scenes.world import SIZE

_SHAPE = {"height": SIZE, "width": SIZE, "num_inference_steps": 50}
CALLS: dict[str, dict[str, Any]] = {
    "scenes-flux": {
        **_SHAPE,
        "guidance_scale": 1.0,
        "true_cfg_scale": 4.0,
        "max_sequence_length": TOKENS,
    },
    "scenes-wan": {
        **_SHAPE,
        "num_frames": FRAMES,
        "guidance_scale": 4.0,
        "max_sequence_length": TOKENS,
    },
}
TASKS = {"scenes-flux": "text-to-image", "scenes-wan": "text-to-video"}


def image_vae() -> AutoencoderKL:
    """The autoencoder with white latents, which is what the denoiser has learnt."""
    vae = averaged("scenes-vae", build_vae())
    whiten(vae, *statistics())
    return vae


def video_vae() -> AutoencoderKLWan:
    """The autoencoder of the clips, which knows the mean and spread of its latents."""
    vae = averaged("scenes-video-vae", build_video_vae())
    mean, spread = clip_statistics()
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=spread.tolist())
    return vae


def flux_pipeline(parts: Any, vae: AutoencoderKL) -> FluxPipeline:
    """scenes-flux of its trained parts."""
    clip, t5 = tokenizers()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=parts["text_encoder"],
        tokenizer=clip,
        text_encoder_2=parts["text_encoder_2"],
        tokenizer_2=t5,
        transformer=parts["transformer"],
    )


def wan_pipeline(parts: Any, vae: AutoencoderKLWan) -> WanPipeline:
    """scenes-wan of its trained parts, with the scheduler that Wan ships with."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=WAN_SHIFT
    )
    return WanPipeline(
        tokenizer=t5_tokenizer(WORDS),
        text_encoder=parts["text_encoder"],
        vae=vae,
        scheduler=scheduler,
        transformer=parts["transformer"],
    )


def trained(name: str) -> DiffusionPipeline:
    """A model as far as it is trained, in float32."""
    if name == "scenes-flux":
        return flux_pipeline(averaged(name, build_flux()), image_vae())
    return wan_pipeline(averaged(name, build_wan()), video_vae())


def write(pipe: DiffusionPipeline, name: str, folder: Path, prompts: Path) -> Path:
    """Write a model: weights in float16, text encoders (small, type-sensitive) in float32.

    Args:
        pipe: what `trained` gave; its large parts become float16.
        name: "scenes-flux" or "scenes-wan".
        folder: of the model; what is there of earlier weights goes.
        prompts: file for the held-out prompts.
    """
    for part in (pipe.transformer, pipe.vae):
        part.to(torch.float16)
    for old in folder.iterdir() if folder.exists() else ():
        if old.is_dir() and old.name != "card":
            shutil.rmtree(old)
    pipe.save_pretrained(folder)
    prompts.parent.mkdir(parents=True, exist_ok=True)
    head = f"# Prompts that {name} has never seen in training (scenes.words.held_out)."
    prompts.write_text("\n".join([head, *held_out_prompts(128, seed=7)]) + "\n")
    description = {
        "family": name.removeprefix("scenes-"),
        "task": TASKS[name],
        "call": CALLS[name],
        "prompts": Path(os.path.relpath(prompts, folder)).as_posix(),
        "negative_prompt": "",
    }
    (folder / "sample.json").write_text(json.dumps(description, indent=2) + "\n")
    log = RUNS / name / "log.json"
    if log.exists():
        # The card tells how these weights were trained, whatever the run does afterwards.
        (folder / "card").mkdir(exist_ok=True)
        shutil.copy(log, folder / "card" / "training.json")
    return folder
