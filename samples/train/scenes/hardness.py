"""How hard a model of given latents will be for caches, foretold from the latents alone.

A denoiser that has learnt normally distributed latents exactly returns, for one frequency of power
P at noise level s, the velocity

    v(s) = (s - (1 - s) P) / sqrt((1 - s)^2 P + s^2) z

along the whole way that begins with the noise z (flow matching: noised latents are
(1 - s) latents + s noise).
So what `ditaccel bench trajectory` measures on a trained model can be worked out for an
autoencoder, before a denoiser is trained for hours. Such outputs turn smoothly, so that a straight
line through the last two foretells the next one (weights of 2 and -1). What is not normal about
pictures (edges, things, which texture it is) is decided within few steps, and comes on top once it
is learnt: then the weight of the newest output falls towards 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from loop import averaged
from torch import Tensor

from scenes.flux import SHIFT
from scenes.vae import SCALE, build_vae, roots
from scenes.video import FRAMES, LATENT_FRAMES, build_video_vae, clip_scenes
from scenes.wan import SHIFT as WAN_SHIFT
from scenes.world import render, sample_scenes

SEED = 99  # of pictures that no training sees


@dataclass(frozen=True)
class Hardness:
    """What an exact denoiser of such latents would show.

    Attributes:
        change: relative change of the output from step to step at the start (the first fifth), in
            the middle, and at the end (the last fifth).
        newest: weight of the newest output in the least-squares predictor of the next one from the
            last two, in the middle.
        half: signal-to-noise ratio in dB of latents made in half the steps.
    """

    change: tuple[float, float, float]
    newest: float
    half: float


def power(latents: Tensor, scale: float) -> Tensor:
    """Power of each frequency of each channel, (frequencies,), 1 for white latents of unit spread.

    Args:
        latents: (n, C, height, width) or (n, C, frames, height, width).
        scale: spread of what the denoiser sees.
    """
    axes = tuple(range(2, latents.ndim))
    centred = latents.double() - latents.double().mean((0, *axes), keepdim=True)
    found = torch.fft.fftn(centred, dim=axes, norm="ortho").abs().square().mean(0).flatten()
    return found / found.mean() * scale**2


def noise_levels(steps: int, shift: float) -> Tensor:
    """Levels (steps + 1,) of flow-matching Euler, from 1 to 0."""
    even = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    return torch.cat([shift * even / (1 + (shift - 1) * even), torch.zeros(1).double()])


def velocity(power: Tensor, levels: Tensor) -> Tensor:
    """Factor of z in the velocity, (levels, frequencies), where the way is followed exactly."""
    clean, level = 1 - levels[:, None], levels[:, None]
    return (level - clean * power) / (clean**2 * power + level**2).sqrt()


def _sampled(power: Tensor, levels: Tensor) -> Tensor:
    """What Euler makes of one unit of each frequency, (frequencies,)."""
    state = torch.ones_like(power)
    for level, following in pairwise(levels):
        clean = 1 - level
        slope = (level - clean * power) / (clean**2 * power + level**2)
        state = state * (1 + (following - level) * slope)
    return state


def _newest(outputs: Tensor) -> float:
    """Weight of the newest of two outputs (steps, frequencies) that foretell the next; its mean."""
    products = outputs @ outputs.T
    found = []
    for i in range(1, len(outputs) - 1):
        known = products[i - 1 : i + 1, i - 1 : i + 1]
        found.append(torch.linalg.solve(known, products[i - 1 : i + 1, i + 1])[1])
    return float(torch.stack(found).mean())


def foretold(power: Tensor, steps: int, shift: float) -> Hardness:
    """What `ditaccel bench trajectory` would measure on an exact denoiser.

    Args:
        power: of each frequency, (frequencies,).
        steps: of the sampler, flow-matching Euler; at least 10.
        shift: of its noise levels.
    """
    levels = noise_levels(steps, shift)
    outputs = velocity(power, levels[:-1])
    sizes = outputs.square().mean(1).sqrt()
    changes = (outputs[1:] - outputs[:-1]).square().mean(1).sqrt() / sizes[:-1]
    count = len(changes)
    first, last = count // 5, 4 * count // 5
    parts = [float(part.mean()) for part in (changes[:first], changes[first:last], changes[last:])]
    whole, half = (_sampled(power, noise_levels(n, shift)) for n in (steps, steps // 2))
    ratio = whole.square().mean() / (whole - half).square().mean()
    return Hardness(
        change=(parts[0], parts[1], parts[2]),
        newest=_newest(outputs[first:last]),
        half=10 * math.log10(float(ratio)),
    )


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


def report(kind: str, count: int, steps: tuple[int, ...] = (50, 28)) -> str:
    """Lines about the autoencoder that is trained so far.

    Args:
        kind: `pictures` or `clips`.
        count: how many are encoded.
        steps: of the samplers.
    """
    encoded, shift = (image_latents, SHIFT) if kind == "pictures" else (video_latents, WAN_SHIFT)
    found, psnr = encoded(count)
    powers = power(found, SCALE)
    lines = [f"{kind}: reconstructed at {psnr:.1f} dB, spread {SCALE:g}, shift {shift:g}"]
    for each in steps:
        hard = foretold(powers, each, shift)
        changes = " / ".join(f"{change:.3f}" for change in hard.change)
        lines.append(
            f"{each} steps: change per step {changes}, weight of the newest output "
            f"{hard.newest:.2f}, half the steps {hard.half:.1f} dB"
        )
    return "\n".join(lines)
