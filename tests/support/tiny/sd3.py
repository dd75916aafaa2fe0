"""Stable Diffusion 3."""

from __future__ import annotations

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(dispatches=False, resized=SMALL, resized_tokens=5 * 3)
def sd3() -> Tiny:
    """`StableDiffusion3Pipeline` at 11 x 11 tokens, 6 of text behind, guidance batched.

    Its first block has a second attention of the image alone, as in 3.5 medium.
    """
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    embeds = embeds_source()
    transformer = SD3Transformer2DModel(
        sample_size=22,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    pipe = pipeline_of(
        StableDiffusion3Pipeline,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "pooled_prompt_embeds": embeds(1, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_pooled_prompt_embeds": embeds(1, 16),
        **SQUARE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }
