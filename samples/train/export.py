"""Write trained runs as diffusers folders: `python samples/train/export.py [MODEL ...]`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from data import COLOURS, SHAPES, held_out_prompts
from denoisers import build_dit, build_few, build_flux, build_wan
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from judge_task import build_features
from loop import RUNS, averaged
from pools import LATENT_FRAMES, Trajectories, statistics
from text import TOKENS, clip_tokenizer, t5_tokenizer
from vae import build_image_vae, build_video_vae

SAMPLES = Path(__file__).resolve().parents[1]
MODELS = SAMPLES / "models"
PROMPTS = SAMPLES / "prompts"
# Sampling follows these shifts; training spends its noise levels the same way.
FLUX_SHIFT = 1.5
WAN_SHIFT = 5.0

CALLS = {
    "dit": {"num_inference_steps": 50, "guidance_scale": 4.0},
    "flux": {
        "height": 64,
        "width": 64,
        "num_inference_steps": 50,
        "guidance_scale": 1.0,
        "true_cfg_scale": 4.0,
        "max_sequence_length": TOKENS,
    },
    "flux-few": {
        "height": 64,
        "width": 64,
        "num_inference_steps": 8,
        "guidance_scale": 1.0,
        "max_sequence_length": TOKENS,
    },
    "wan": {
        "height": 64,
        "width": 64,
        "num_frames": 2 * LATENT_FRAMES - 1,
        "num_inference_steps": 50,
        "guidance_scale": 4.0,
        "max_sequence_length": TOKENS,
    },
}
TASKS = {
    "dit": "class-to-image",
    "flux": "text-to-image",
    "flux-few": "text-to-image",
    "wan": "text-to-video",
}
# Samples that are asked as another one is.
LIKE = {"flux-few": "flux"}


def class_names() -> list[str]:
    return [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]


def _image_vae() -> AutoencoderKL:
    vae = averaged("image-vae", build_image_vae())
    _, spread = statistics("image")
    vae.register_to_config(scaling_factor=1.0 / spread.item())
    return vae


def _video_vae() -> AutoencoderKLWan:
    vae = averaged("video-vae", build_video_vae())
    mean, spread = statistics("wan")
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=spread.tolist())
    return vae


def _dit() -> DiffusionPipeline:
    parts = averaged("dit", build_dit())
    labels = {str(i): name for i, name in enumerate(class_names())}
    # The training schedule clips nothing: latents are not bounded.
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return DiTPipeline(parts["transformer"], _image_vae(), scheduler, id2label=labels)


def _flux() -> DiffusionPipeline:
    parts = averaged("flux", build_flux())
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=FLUX_SHIFT),
        vae=_image_vae(),
        text_encoder=parts["text_encoder"],
        tokenizer=clip_tokenizer(),
        text_encoder_2=parts["text_encoder_2"],
        tokenizer_2=t5_tokenizer(),
        transformer=parts["transformer"],
    )


def _flux_few() -> DiffusionPipeline:
    pipe = Trajectories.teacher()
    pipe.transformer = averaged("flux-few", build_few())
    return pipe


def _wan() -> DiffusionPipeline:
    parts = averaged("wan", build_wan())
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=parts["text_encoder"],
        vae=_video_vae(),
        # what Wan ships with
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=WAN_SHIFT
        ),
        transformer=parts["transformer"],
    )


def write_prompts(name: str) -> None:
    """Held-out prompts, or the class names, one a line."""
    PROMPTS.mkdir(exist_ok=True)
    if name == "dit":
        head = "# Class names of shapes-dit, each five times: the seed makes the difference."
        lines = class_names() * 5
    else:
        head = f"# Prompts that shapes-{name} has never seen in training (data.held_out)."
        lines = held_out_prompts(128, seed=7, moving=name == "wan")
    (PROMPTS / f"shapes-{name}.txt").write_text("\n".join([head, *lines]) + "\n")


def _write_sample_json(name: str, folder: Path) -> None:
    description = {
        "family": LIKE.get(name, name),
        "task": TASKS[name],
        "call": CALLS[name],
        "prompts": f"../../prompts/shapes-{LIKE.get(name, name)}.txt",
        "features": "../shapes-features",
        "negative_prompt": "",
    }
    (folder / "sample.json").write_text(json.dumps(description, indent=2) + "\n")


def save(pipe: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline, without the places on this machine that its parts were loaded from."""
    pipe.save_pretrained(folder)
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def export(name: str) -> Path:
    """Write one model; weights in float16, text encoders (small, type-sensitive) in float32."""
    folder = MODELS / f"shapes-{name}"
    if name == "features":
        averaged("features", build_features()).save_pretrained(folder)
        return folder
    pipe = {"dit": _dit, "flux": _flux, "flux-few": _flux_few, "wan": _wan}[name]()
    for part in ("transformer", "vae"):
        getattr(pipe, part).to(torch.float16)
    for old in folder.iterdir() if folder.exists() else ():
        if old.is_dir() and old.name != "card":
            shutil.rmtree(old)
    save(pipe, folder)
    if name == "dit":
        # DiTPipeline reads the labels from here but does not write them.
        index = json.loads((folder / "model_index.json").read_text())
        index["id2label"] = {str(i): label for i, label in enumerate(class_names())}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    _write_sample_json(name, folder)
    # The card tells how these weights were trained, whatever the run does afterwards.
    (folder / "card").mkdir(exist_ok=True)
    shutil.copy(RUNS / name / "log.json", folder / "card" / "training.json")
    if name not in LIKE:
        write_prompts(name)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["features", "dit", "flux", "wan"])
    for model in parser.parse_args().models:
        print(export(model))
