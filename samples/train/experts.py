"""Two experts out of shapes-wan, as Wan 2.2 has them: one for much noise, one for little.

Both start from the weights of shapes-wan and are trained on their own noise levels alone, which
takes a few hundred steps. Text encoder and autoencoder stay as they are and are shared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from denoisers import DROP, build_wan, frames_at
from loop import averaged, device
from pools import Pool
from text import t5_tokenizer, tokenize, wan_prompt_embeds
from torch import Tensor, nn

# Of Wan2.2-T2V-A14B: steps whose sigma is at least this are the first expert's.
BOUNDARY = 0.875
SHIFT = 5.0


def build_expert() -> nn.ModuleDict:
    """Transformer and frozen text encoder, in the layout of the averaged weights."""
    model = build_wan()
    model["text_encoder"].requires_grad_(False)
    return nn.ModuleDict({part: model[part] for part in ("transformer", "text_encoder")})


def from_wan(expert: nn.ModuleDict) -> None:
    """Fill an expert with the averaged weights of the run "wan"."""
    whole = averaged("wan", build_wan())
    for part, module in expert.items():
        module.load_state_dict(whole[part].state_dict())


def noise_levels(n: int, generator: torch.Generator, *, high: bool, shift: float = SHIFT) -> Tensor:
    """Sigmas (n,) on one side of the boundary, spread as the sampler spreads its steps."""
    boundary = BOUNDARY / (shift - (shift - 1) * BOUNDARY)
    u = torch.rand(n, generator=generator)
    u = boundary + (1 - boundary) * u if high else boundary * u
    return shift * u / (1 + (shift - 1) * u)


def expert_loss(pool: Pool, *, high: bool) -> Callable:
    """Flow matching on one side of the boundary: eight of the latent frames, or whole clips.

    Args:
        pool: of clips.
        high: train on much noise.
    """
    t5 = t5_tokenizer()

    def loss(model: nn.ModuleDict, step: int, generator: torch.Generator) -> Tensor:
        batch, length = (2, 32) if step % 3 == 2 else (8, 8)
        latents, scenes = pool.batch(batch, generator)
        total = latents.shape[2]
        part = total // length
        frames = torch.arange(length) * part
        frames += torch.randint(part, (length,), generator=generator)
        latents = latents[:, :, frames].to(device())
        time = noise_levels(batch, generator, high=high).to(device())
        noise = torch.randn(latents.shape, generator=generator).to(device())
        noised = torch.lerp(latents, noise, time.view(-1, 1, 1, 1, 1))
        texts = pool.texts(scenes, generator, DROP)
        token_ids, mask = (x.to(device()) for x in tokenize(t5, texts))
        embeds = wan_prompt_embeds(model["text_encoder"], token_ids, mask)
        with frames_at(model["transformer"], frames.to(device()), total):
            output = model["transformer"](noised, time * 1000, embeds).sample
        return F.mse_loss(output.float(), noise - latents)

    return loss
