"""The two autoencoders: one for images, one for clips. Both shrink 4x in space."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from data import render, sample_scenes
from diffusers import AutoencoderKL, AutoencoderKLWan
from loop import device
from torch import Tensor, nn

IMAGE_CHANNELS = 4
VIDEO_CHANNELS = 8


def build_image_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=IMAGE_CHANNELS,
        norm_num_groups=16,
        sample_size=64,
        shift_factor=0.0,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def build_video_vae() -> AutoencoderKLWan:
    # Two pixels a side go into channels first, which makes the 3-D convolutions four times cheaper.
    vae = AutoencoderKLWan(
        base_dim=24,
        z_dim=VIDEO_CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * VIDEO_CHANNELS,
        latents_std=[1.0] * VIDEO_CHANNELS,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )
    forget_past(vae)
    return vae


@torch.no_grad()
def forget_past(vae: AutoencoderKLWan) -> None:
    """Zero what the 3x3x3 convolutions take from earlier frames.

    Single frames never train those weights; left random, they spoil the first clips.
    """
    for layer in vae.modules():
        if isinstance(layer, nn.Conv3d) and layer.kernel_size == (3, 3, 3):
            layer.weight[:, :, :2] = 0


def _pictures(generator: torch.Generator, n: int, frames: int) -> Tensor:
    """(n, frames, 3, 64, 64) in [-1, 1]."""
    scenes = sample_scenes(n, generator, moving=frames > 1, two_share=0.7)
    first = int(torch.randint(16 - frames, (1,), generator=generator)) if frames > 1 else 0
    return render(scenes, torch.arange(first, first + frames)).mul(2).sub(1).to(device())


def _reconstruction(output: Tensor, target: Tensor) -> Tensor:
    """L1 + L2 + L1 of the differences between neighbouring pixels, which keeps outlines sharp.

    Coloured pixels are few and count five times, else their hue is learnt last. The colour axis is
    the third from the right for pictures and clips (N, F, 3, H, W).
    """
    colourful = target.amax(-3, keepdim=True) - target.amin(-3, keepdim=True)
    weight = 1 + 4 * (colourful > 0.5).float()
    error = (output - target) * weight
    edges = sum(F.l1_loss(output.diff(dim=axis), target.diff(dim=axis)) for axis in (-1, -2))
    return error.abs().mean() + 2 * (error * (output - target)).mean() + edges


def vae_loss(frames: Callable[[int], tuple[int, int]]) -> Callable:
    """Loss of an autoencoder; `frames(step)` gives batch size and number of frames."""

    def loss(model: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        batch, length = frames(step)
        target = _pictures(generator, batch, length)
        video = isinstance(model, AutoencoderKLWan)
        target = target.transpose(1, 2) if video else target[:, 0]
        frozen = not next(model.encoder.parameters()).requires_grad
        with torch.set_grad_enabled(not frozen):
            posterior = model.encode(target).latent_dist
        # A decoder that learns alone learns to forgive what samplers get slightly wrong.
        spread = 0.1 * posterior.mean.std() if frozen else posterior.std
        latents = posterior.mean + torch.randn_like(posterior.mean) * spread
        output = model.decode(latents).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        if video:
            output, target = output.transpose(1, 2), target.transpose(1, 2)
        return _reconstruction(output.float(), target) + 2e-4 * kl

    return loss
