"""Motif-Video."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import WAN_RESIZED, wan_vae


@tiny_family(
    masked=True,
    resized=WAN_RESIZED,
    resized_tokens=3 * 4 * 7,
)
def motif_video() -> Tiny:
    """`MotifVideoPipeline` at 4 x 6 x 6 tokens; its last block is of the decoder.

    That one is given the tokens of the video as they came in, and those of the block before it in
    place of text.
    """
    from diffusers import (
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        MotifVideoPipeline,
        MotifVideoTransformer3DModel,
    )

    embeds = embeds_source()
    transformer = MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=3,
        num_decoder_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        rope_axes_dim=(4, 4, 4),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    pipe = pipeline_of(
        MotifVideoPipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=wan_vae(),
        transformer=transformer,
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]),
        "num_frames": 13,
        "height": 96,
        "width": 96,
        "num_inference_steps": 12,
        "output_type": "latent",
    }
