"""Krea 2."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(masked=True, resized=SMALL, resized_tokens=5 * 3)
def krea2() -> Tiny:
    """`Krea2Pipeline` at 11 x 11 tokens, text in front (padding at its end), two branches."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel

    embeds = embeds_source()
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = pipeline_of(
        Krea2Pipeline,
        transformer,
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder_select_layers=(0, 1),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 8, 2, 16),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool(),
        "negative_prompt_embeds": embeds(1, 8, 2, 16),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]).bool(),
        **SQUARE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }
