"""Trained scenes models as diffusers pipelines and folders."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from denoisers import build_few
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from experts import BOUNDARY
from export import save
from loop import RUNS, averaged
from text import t5_tokenizer

from scenes.experts import build_expert
from scenes.flux import SHIFT, build_flux, tokenizers
from scenes.pools import clip_statistics, statistics
from scenes.turbo import SceneTrajectories
from scenes.vae import SCALE, build_vae, whiten
from scenes.video import FRAMES, build_video_vae
from scenes.wan import SHIFT as WAN_SHIFT
from scenes.wan import build_wan
from scenes.words import TOKENS, WORDS, held_out_prompts
from scenes.world import SIZE

HALVES = ("high", "low")
_SHAPE = {"height": SIZE, "width": SIZE, "num_inference_steps": 50, "max_sequence_length": TOKENS}
CALLS: dict[str, dict[str, Any]] = {
    "scenes-flux": {**_SHAPE, "guidance_scale": 1.0, "true_cfg_scale": 4.0},
    "scenes-flux-turbo": {**_SHAPE, "num_inference_steps": 8, "guidance_scale": 1.0},
    "scenes-wan": {**_SHAPE, "num_frames": FRAMES, "guidance_scale": 4.0},
    "scenes-wan22": {
        **_SHAPE,
        "num_inference_steps": 40,
        "num_frames": FRAMES,
        "guidance_scale": 4.0,
        "guidance_scale_2": 3.0,
    },
}
# Whose parts, other than transformers, and whose prompts a model has.
BASE = {"scenes-flux-turbo": "scenes-flux", "scenes-wan22": "scenes-wan"}
JUDGE = "scenes-features"


def image_vae() -> AutoencoderKL:
    """The autoencoder with white latents, which is what the denoiser has learnt."""
    vae = averaged("scenes-vae", build_vae())
    whiten(vae, *statistics())
    return vae


def video_vae() -> AutoencoderKLWan:
    """The autoencoder of the clips, which knows the mean and spread of its latents."""
    vae = averaged("scenes-video-vae", build_video_vae())
    mean, spread = clip_statistics()
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=(spread / SCALE).tolist())
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


def wan_pipeline(parts: Any, vae: AutoencoderKLWan, low_noise: Any = None) -> WanPipeline:
    """scenes-wan of its trained parts, with the scheduler that Wan ships with.

    Args:
        parts: of the model, or of the expert for much noise.
        vae: of the clips.
        low_noise: transformer of the expert for little noise.
    """
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=WAN_SHIFT
    )
    return WanPipeline(
        tokenizer=t5_tokenizer(WORDS),
        text_encoder=parts["text_encoder"],
        vae=vae,
        scheduler=scheduler,
        transformer=parts["transformer"],
        transformer_2=low_noise,
        boundary_ratio=None if low_noise is None else BOUNDARY,
    )


def trained(name: str) -> DiffusionPipeline:
    """A model as far as it is trained, in float32."""
    if name == "scenes-flux":
        return flux_pipeline(averaged(name, build_flux()), image_vae())
    if name == "scenes-flux-turbo":
        pipe = SceneTrajectories.teacher()
        pipe.transformer = averaged(name, build_few(SceneTrajectories))
        return pipe
    if name == "scenes-wan":
        return wan_pipeline(averaged(name, build_wan()), video_vae())
    high, low = (averaged(f"{name}-{half}", build_expert()) for half in HALVES)
    return wan_pipeline(high, video_vae(), low["transformer"])


def write(pipe: DiffusionPipeline, name: str, folder: Path, prompts: Path) -> Path:
    """Write a model: weights in float16, text encoders (small, type-sensitive) in float32.

    Parts that are those of another model are links into its folder, if that is beside this one.

    Args:
        pipe: what `trained` gave; its large parts become float16.
        name: of the model.
        folder: of the model; what is there of earlier weights goes.
        prompts: file for the held-out prompts.
    """
    for part in ("transformer", "transformer_2", "vae"):
        if getattr(pipe, part, None) is not None:
            getattr(pipe, part).to(torch.float16)
    for old in folder.iterdir() if folder.exists() else ():
        if old.is_symlink():
            old.unlink()
        elif old.is_dir() and old.name != "card":
            shutil.rmtree(old)
    save(pipe, folder)
    _link(folder, BASE.get(name, ""))
    prompts.parent.mkdir(parents=True, exist_ok=True)
    head = (
        f"# Prompts that {BASE.get(name, name)} has never seen in training (scenes.words.held_out)."
    )
    prompts.write_text("\n".join([head, *held_out_prompts(128, seed=7)]) + "\n")
    description = {
        "family": "wan" if "num_frames" in CALLS[name] else "flux",
        "task": "text-to-video" if "num_frames" in CALLS[name] else "text-to-image",
        "call": CALLS[name],
        "prompts": Path(os.path.relpath(prompts, folder)).as_posix(),
        "features": f"../{JUDGE}",
        "negative_prompt": "",
    }
    (folder / "sample.json").write_text(json.dumps(description, indent=2) + "\n")
    _copy_logs(name, folder / "card")
    return folder


def _link(folder: Path, base: str) -> None:
    """Replace what a model shares with another one by links into that one's folder."""
    if not base or not (folder.parent / base).is_dir():
        return
    for part in folder.iterdir():
        shared = part.is_dir() and not part.name.startswith(("transformer", "scheduler", "card"))
        if shared and (folder.parent / base / part.name).is_dir():
            shutil.rmtree(part)
            part.symlink_to(Path("..") / base / part.name)


def _copy_logs(name: str, card: Path) -> None:
    """Keep the logs: the card tells how these weights were trained, whatever the run does later."""
    for half in ("", *HALVES):
        end = f"-{half}" if half else ""
        log = RUNS / f"{name}{end}" / "log.json"
        if log.exists():
            card.mkdir(exist_ok=True)
            shutil.copy(log, card / f"training{end}.json")
