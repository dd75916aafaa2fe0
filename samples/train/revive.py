"""Go on from exported weights where `runs/` is gone: `python samples/train/revive.py wan`.

`runs/` holds exact states and is not shipped. This makes it anew from the shipped folders: averaged
weights, step count and loss log are what they were; optimisers, randomness and the heads of the
auxiliary tasks start afresh, so it is a continuation but not an exact one.
"""

from __future__ import annotations

import argparse
import json

import torch
from denoisers import build_dit, build_flux, build_wan
from diffusers import AutoencoderKL, AutoencoderKLWan, DiffusionPipeline
from export import MODELS
from judge import CLASSES
from loop import RUNS
from pools import FOLDER
from torch import Tensor, nn
from vae import build_image_vae, build_video_vae

BUILD = {"dit": build_dit, "flux": build_flux, "wan": build_wan}


def _write(name: str, model: nn.Module, step: int = 0, log: list | None = None) -> None:
    path = RUNS / name / "state.pt"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    seconds = log[-1][1] if log else 0.0
    torch.save(
        {"model": weights, "ema": weights, "step": step, "seconds": seconds, "log": log or []}, path
    )


def _autoencoder(vae: AutoencoderKL | AutoencoderKLWan) -> None:
    """Store an autoencoder and what normalises its latents in the pools."""
    video = isinstance(vae, AutoencoderKLWan)
    model = build_video_vae() if video else build_image_vae()
    model.load_state_dict(vae.state_dict())
    _write("video-vae" if video else "image-vae", model)
    statistics: list[Tensor]
    if video:
        statistics = [torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)]
    else:
        statistics = [torch.zeros(1), torch.tensor([1.0 / vae.config.scaling_factor])]
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.save(statistics, FOLDER / f"statistics-{'wan' if video else 'image'}.pt")


def revive(name: str) -> None:
    """Make `runs/` of one denoiser and its autoencoder from its exported folder.

    States that exist are left alone.

    Args:
        name: "dit", "flux" or "wan".
    """
    folder = MODELS / f"shapes-{name}"
    pipe: DiffusionPipeline = CLASSES[name].from_pretrained(folder)
    _autoencoder(pipe.vae)
    model = BUILD[name]()
    for part, module in model.items():
        if hasattr(pipe, part):
            module.load_state_dict(getattr(pipe, part).state_dict())
    training = json.loads((folder / "card" / "training.json").read_text())
    _write(name, model, training["step"], training["loss"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", choices=BUILD)
    for model in parser.parse_args().models:
        revive(model)
