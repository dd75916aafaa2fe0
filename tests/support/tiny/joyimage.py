"""JoyImage Edit."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import Averages, noise_image

# A square is 8 x 8 tokens: its pipelines know sizes around 1024 x 1024 alone
FACTOR = 64
TRANSFORMER = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "mlp_width_ratio": 2.0,
    "num_layers": 3,
    "rope_dim_list": [4, 6, 6],
}


def awake(transformer: Any) -> Any:
    """The transformer with modulation: its tables begin with zeros."""
    torch.manual_seed(0)
    for name, weight in transformer.named_parameters():
        if "modulate_table" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return transformer


@tiny_family(resized={"height": 768, "width": 1280}, resized_tokens=2 * 6 * 10)
def joyimage() -> Tiny:
    """`JoyImageEditPipeline` at 8 x 8 tokens, and as many of the image that is edited."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        JoyImageEditPipeline,
        JoyImageEditTransformer3DModel,
    )

    embeds = embeds_source()
    pipe = pipeline_of(
        JoyImageEditPipeline,
        vae=Averages(FACTOR),
        transformer=awake(JoyImageEditTransformer3DModel(**TRANSFORMER, rope_type="mrope")),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5),
    )
    mask = torch.ones(1, 6, dtype=torch.long)
    return pipe, {
        "image": noise_image(),
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds_mask": mask,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=8 * 8, steps=8)
def joyimage_t2i() -> Tiny:
    """The same without an image to edit."""
    pipe, call = joyimage()
    return pipe, {**call, "image": None}
