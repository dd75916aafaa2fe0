"""A sampling loop of your own around a bare transformer.

python samples/recipes/own_loop.py

The loop has no scheduler, so its noise levels are given to `accelerate`: with them, a cache knows
which step it is in, and corrects what its forecasts leave in the latents. A loop with a scheduler
gives that instead (`scheduler=`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import shared
import torch
from diffusers import WanPipeline

import ditaccel


@torch.no_grad()
def sample(
    transformer: Any,
    latents: torch.Tensor,
    sigmas: Sequence[float],
    positive: torch.Tensor,
    negative: torch.Tensor,
    guidance: float = 5.0,
) -> torch.Tensor:
    """Euler's method along falling noise levels, with classifier-free guidance.

    Args:
        transformer: Wan's.
        latents: noise, (1, C, T, H, W).
        sigmas: noise levels from 1 to 0.
        positive: embeddings of the prompt.
        negative: embeddings of the negative prompt.
        guidance: scale of guidance.
    """
    for sigma, following in pairwise(sigmas):
        given = {
            "hidden_states": latents,
            "timestep": torch.full((len(latents),), 1000 * sigma, device=latents.device),
            "return_dict": False,
        }
        (cond,) = transformer(**given, encoder_hidden_states=positive)
        (uncond,) = transformer(**given, encoder_hidden_states=negative)
        latents = latents + (following - sigma) * (uncond + guidance * (cond - uncond))
    return latents


if __name__ == "__main__":
    pipe, call, _ = shared.opened(WanPipeline, "shapes-wan")
    positive, negative = pipe.encode_prompt(call["prompt"], "", device=pipe.device)
    steps = call.get("num_inference_steps", 50)
    levels = torch.linspace(1, 0, steps + 1)
    sigmas = (5 * levels / (1 + 4 * levels)).tolist()  # shift 5, as Wan has it
    channels = pipe.transformer.config.in_channels
    latents = torch.randn(1, channels, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = latents.to(pipe.device, pipe.transformer.dtype)
    ditaccel.accelerate(pipe.transformer, "balanced", sigmas=sigmas)
    latents = sample(pipe.transformer, latents, sigmas, positive, negative)
    print(tuple(latents.shape), ditaccel.report(pipe.transformer), sep="\n")
