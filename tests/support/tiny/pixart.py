"""PixArt alpha and sigma."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(dispatches=False, resized=SMALL, resized_tokens=5 * 3)
def pixart() -> Tiny:
    """`PixArtAlphaPipeline`: learned variance, text by cross-attention, guidance batched."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        cross_attention_dim=32,
        sample_size=22,
        caption_channels=16,
        use_additional_conditions=False,
    )
    pipe = pipeline_of(
        PixArtAlphaPipeline, transformer=transformer, scheduler=DPMSolverMultistepScheduler()
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "negative_prompt": None,
        "use_resolution_binning": False,
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=121, steps=8)
def pixart_sigma() -> Tiny:
    """`PixArtSigmaPipeline`: the same transformer and loop as alpha."""
    from diffusers import PixArtSigmaPipeline

    made, call = pixart()
    return pipeline_of(PixArtSigmaPipeline, **made.components), call
