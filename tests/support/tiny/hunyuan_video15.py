"""HunyuanVideo 1.5."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import VIDEO


@tiny_family(
    masked=True,
    resized={"height": 160, "width": 96, "num_frames": 13},
    resized_tokens=4 * 10 * 6,
)
def hunyuan_video15() -> Tiny:
    """`HunyuanVideo15Pipeline` at 2 x 7 x 9 tokens, valid text and then padding behind them."""
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )

    embeds = embeds_source()
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    pipe = pipeline_of(
        HunyuanVideo15Pipeline,
        transformer=transformer,
        vae=AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )
    pipe.vision_num_semantic_tokens = 4
    return pipe, {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "prompt_embeds_2": embeds(1, 4, 8),
        "prompt_embeds_mask_2": torch.tensor([[1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds_2": embeds(1, 4, 8),
        "negative_prompt_embeds_mask_2": torch.tensor([[1, 1, 1, 0]]),
        **VIDEO,
        "num_inference_steps": 8,
        "num_frames": 5,
    }
