"""The autoencoder of the clips: 4x in space, 2x in time, 16 channels, so that texture survives."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from loop import device
from torch import Tensor, nn
from vae import forget_past

from scenes.vae import WHITE, from_white
from scenes.world import SIZE, Scenes, render, sample_scenes

CHANNELS = 16
SHRINK = 4
FRAMES = 47  # shown by LATENT_FRAMES; one more pair is encoded, since frames come in fours
LATENT_FRAMES = 24
FRAMES_A_LATENT = 2
CROP = 64


def build_video_vae() -> AutoencoderKLWan:
    # Two pixels a side go into channels first, which makes the 3-D convolutions four times cheaper.
    vae = AutoencoderKLWan(
        base_dim=32,
        z_dim=CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=FRAMES_A_LATENT,
        scale_factor_spatial=SHRINK,
    )
    forget_past(vae)
    return vae


def clip_scenes(n: int, generator: torch.Generator) -> Scenes:
    """Scenes whose things move before a moving background."""
    return sample_scenes(n, generator, moving=True)


def _crops(n: int, frames: int, generator: torch.Generator) -> Tensor:
    """(n, 3, frames, CROP, CROP) in [-1, 1]: single pictures, or beginnings of clips."""
    clips = render(clip_scenes(n, generator), frames).mul(2).sub(1)
    y, x = torch.randint(SIZE - CROP + 1, (2,), generator=generator).tolist()
    return clips[..., y : y + CROP, x : x + CROP].transpose(1, 2).to(device())


def video_vae_loss(plan: Callable[[int], tuple[int, int]]) -> Callable:
    """L1, squared error and L1 of the differences of neighbours, in space and in time.

    Args:
        plan: batch size and number of frames (1, or 1 + 4 k) of a step.
    """

    def loss(model: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        batch, frames = plan(step)
        target = _crops(batch, frames, generator)
        mean = model.encode(target).latent_dist.mean
        noise = torch.randn(mean.shape, generator=generator).to(target.device)
        output = model.decode(mean + 0.03 * noise).sample.float()
        axes = (-1, -2, -3) if frames > 1 else (-1, -2)
        edges = sum(F.l1_loss(output.diff(dim=k), target.diff(dim=k)) for k in axes)
        error = F.l1_loss(output, target) + 2 * F.mse_loss(output, target) + edges
        # As those of pictures: neighbours in a frame count as channels of their own.
        blocks = F.pixel_unshuffle(mean.float().transpose(1, 2).flatten(0, 1), 2)
        return error + WHITE * from_white(blocks)

    return loss
