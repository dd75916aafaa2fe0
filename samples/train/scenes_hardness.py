"""Foretell how hard a model on an autoencoder's latents will be for caches.

python samples/train/scenes_hardness.py scenes-vae
python samples/train/scenes_hardness.py scenes-video-vae --n 16 --steps 40

Run it before a denoiser is trained; `ditaccel bench trajectory` measures the same afterwards.
"""

from __future__ import annotations

import argparse

import torch
from loop import averaged
from scenes.flux import SHIFT
from scenes.hardness import foretold, power
from scenes.vae import SCALE, build_vae, roots
from scenes.video import FRAMES, LATENT_FRAMES, build_video_vae, clip_scenes
from scenes.wan import SHIFT as WAN_SHIFT
from scenes.world import render, sample_scenes
from torch import Tensor

SEED = 99


@torch.no_grad()
def image_latents(n: int) -> tuple[Tensor, float]:
    """Latents (n, C, height, width) of new pictures, and the PSNR of their reconstruction in dB."""
    vae = averaged("scenes-vae", build_vae())
    pictures = render(sample_scenes(n, torch.Generator().manual_seed(SEED)))[:, 0].mul(2).sub(1)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(8)])
    back = torch.cat([vae.decode(part).sample for part in latents.split(8)])
    inwards, _ = roots(torch.cov(latents.transpose(0, 1).flatten(1)))
    return torch.einsum("cd,ndhw->nchw", inwards, latents), _psnr(back, pictures)


@torch.no_grad()
def video_latents(n: int) -> tuple[Tensor, float]:
    """Latents (n, C, frames, height, width) of new clips, each channel of unit spread; PSNR."""
    vae = averaged("scenes-video-vae", build_video_vae())
    scenes = clip_scenes(n, torch.Generator().manual_seed(SEED))
    latents, errors = [], []
    for i in range(n):
        clip = render(scenes[i : i + 1], FRAMES + 2).mul(2).sub(1).transpose(1, 2)
        latents.append(vae.encode(clip).latent_dist.mean[:, :, :LATENT_FRAMES])
        if i < 2:
            back = vae.decode(latents[-1]).sample
            errors.append(_psnr(back, clip[:, :, : back.shape[2]]))
    found = torch.cat(latents)
    spread = found.transpose(0, 1).flatten(1).std(1)
    return found / spread.view(1, -1, 1, 1, 1), sum(errors) / len(errors)


def _psnr(found: Tensor, target: Tensor) -> float:
    error = (found.clamp(-1, 1) - target).square().mean(tuple(range(1, target.ndim))) / 4
    return float(-10 * error.log10().mean())


LATENTS = {"scenes-vae": (image_latents, SHIFT), "scenes-video-vae": (video_latents, WAN_SHIFT)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=sorted(LATENTS))
    parser.add_argument("--n", type=int, default=64, help="pictures or clips (default: 64)")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 28])
    parser.add_argument("--scale", type=float, default=SCALE, help="spread that a denoiser sees")
    parser.add_argument("--shift", type=float, help="of the noise levels (default: the model's)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    latents, shift = LATENTS[arguments.name]
    shift = arguments.shift or shift
    found, psnr = latents(arguments.n)
    powers = power(found, arguments.scale)
    print(f"{arguments.name}: {psnr:.1f} dB, spread {arguments.scale:g}, shift {shift:g}")
    for steps in arguments.steps:
        hard = foretold(powers, steps, shift)
        start, middle, end = hard.change
        print(
            f"{steps} steps: change per step {start:.3f} / {middle:.3f} / {end:.3f}, "
            f"weight of the newest output {hard.newest:.2f}, half the steps {hard.half:.1f} dB"
        )


if __name__ == "__main__":
    main()
