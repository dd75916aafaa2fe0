"""The autoencoder of the textured pictures: it shrinks 2x in space, so that texture survives.

How hard a model is for a cache is decided here. What a denoiser returns for one frequency turns
round once the noise has fallen to that frequency's strength, and hardly moves before and after. Of
latents as smooth as pictures, most frequencies are faint and turn at the very end. The latents of
real models are far closer to white, so these are taught to be: blocks of 2 x 2 count as channels of
their own in the term that keeps channels apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from loop import device
from torch import Tensor, nn

from scenes.world import SIZE, render, sample_scenes

CHANNELS = 6
SHRINK = 2
CROP = 48
WHITE = 5e-3
# Spread of what the denoiser sees. Latents of unit spread are still so smooth that their typical
# frequency is half as strong; at this spread the details are decided in the middle of the loop, as
# those of real models are.
SCALE = 1.5
_POOL, _RENEWED = 1024, 16


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(24, 48),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=12,
        sample_size=SIZE,
        shift_factor=0.0,
        scaling_factor=SCALE,
        mid_block_add_attention=False,
    )


def halved(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, H, W) at half the resolution, (n, 3, H / 2, W / 2)."""
    return F.avg_pool2d(pictures, 2)


class Crops:
    """Random crops of a pool of pictures that is renewed all the time, at both resolutions."""

    def __init__(self) -> None:
        self.pictures: Tensor | None = None

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 3, CROP, CROP) in [-1, 1]; every third batch shows pictures of half the size."""
        if self.pictures is None:  # seeded by the generator, so a resumed run has a new pool
            self.pictures = torch.cat(
                [render(sample_scenes(64, generator))[:, 0] for _ in range(_POOL // 64)]
            )
        if torch.rand(1, generator=generator) < 0.3:
            fresh = torch.randint(_POOL, (_RENEWED,), generator=generator)
            self.pictures[fresh] = render(sample_scenes(_RENEWED, generator))[:, 0]
        small = torch.rand(1, generator=generator) < 0.33
        chosen = self.pictures[torch.randint(_POOL, (n,), generator=generator)]
        chosen = halved(chosen) if small else chosen
        room = chosen.shape[-1] - CROP + 1
        y, x = torch.randint(room, (2,), generator=generator).tolist()
        return chosen[..., y : y + CROP, x : x + CROP].mul(2).sub(1).to(device())


def from_white(latents: Tensor) -> Tensor:
    """How far the channels of (n, C, h, w) are from white: the divergence of two normal laws.

    With it no channel is left idle; with the usual term for each pixel alone, two of six were.
    """
    flat = latents.transpose(0, 1).flatten(1)
    # In bfloat16, which a training step would choose, the products of sixteen channels come out
    # with negative eigenvalues now and then, and their logarithm is not a number.
    with torch.autocast(flat.device.type, enabled=False):
        flat = flat.double()
        covariance = torch.cov(flat) + 1e-4 * torch.eye(len(flat)).to(flat)
        divergence = covariance.trace() + flat.mean(1).square().sum() - covariance.logdet()
        return 0.5 * (divergence - len(flat)).float()


def vae_loss(batch: int) -> Callable:
    """L1, squared error and L1 of the differences of neighbours, which texture is made of."""
    crops = Crops()

    def loss(model: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        target = crops.batch(batch, generator)
        posterior = model.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(target.device)
        # A little noise keeps the decoder smooth; a sampler's latents are never quite right.
        latents = posterior.mean + 0.03 * noise
        output = model.decode(latents).sample.float()
        edges = sum(F.l1_loss(output.diff(dim=k), target.diff(dim=k)) for k in (-1, -2))
        error = F.l1_loss(output, target) + 2 * F.mse_loss(output, target) + edges
        # Neighbours count as channels of their own: each block of 2 x 2 is to be white.
        blocks = F.pixel_unshuffle(posterior.mean.float(), 2)
        return error + WHITE * from_white(blocks)

    return loss


def roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric (C, C) matrix that makes channels white, and the one that undoes it."""
    values, vectors = torch.linalg.eigh(covariance.double())
    root = values.clamp(min=1e-8).sqrt()
    return (vectors / root @ vectors.T).float(), (vectors * root @ vectors.T).float()


@torch.no_grad()
def whiten(vae: AutoencoderKL, mean: Tensor, covariance: Tensor) -> None:
    """Make latents of zero mean, unit spread and no correlation between channels.

    FLUX knows one scale for all channels. The change goes into the 1x1 convolutions at both sides
    of the latents, so the pictures stay what they were; the encoder's spread becomes a constant.

    Args:
        vae: with `quant_conv` and `post_quant_conv`.
        mean: (C,) of the latents.
        covariance: (C, C) of the latents.
    """
    inwards, outwards = roots(covariance)
    mean = mean.float()
    channels = len(mean)
    before, after = vae.quant_conv, vae.post_quant_conv
    weight, bias = before.weight[:, :, 0, 0], before.bias
    new = torch.zeros_like(weight)
    new[:channels] = inwards @ weight[:channels]
    offset = torch.full_like(bias, -6.0)  # log-variance
    offset[:channels] = inwards @ (bias[:channels] - mean)
    before.weight.copy_(new[:, :, None, None])
    before.bias.copy_(offset)
    weight = after.weight[:, :, 0, 0].clone()
    after.bias.add_(weight @ mean)
    after.weight.copy_((weight @ outwards)[:, :, None, None])
