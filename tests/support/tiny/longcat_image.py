"""LongCat-Image."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SQUARE, like_flux


@tiny_family(variant=True, tokens=121, steps=8)
def longcat_image() -> Tiny:
    """`LongCatImagePipeline`: the blocks of Flux, two branches; it takes words only."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImagePipeline

    def encode(prompts: list[str]) -> torch.Tensor:
        words = prompts[0].split() or ["nothing"]
        source = torch.Generator().manual_seed(sum(map(ord, prompts[0])))
        return torch.randn(1, len(words), 16, generator=source)

    embeds_source()
    transformer = like_flux("LongCatImageTransformer2DModel", pooled_projection_dim=16)
    pipe = pipeline_of(LongCatImagePipeline, transformer, FlowMatchEulerDiscreteScheduler())
    pipe._encode_prompt = encode
    return pipe, {
        "prompt": "a red circle",
        "enable_prompt_rewrite": False,
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
