"""Tiny random video pipelines of newer families: Motif-Video and Helios."""

from __future__ import annotations

import torch
from tiny_registry import Tiny, embeds_source, quiet, tiny_family
from tiny_video import wan_vae

_SIZE = {"height": 96, "width": 96, "num_inference_steps": 12, "output_type": "latent"}


@tiny_family(
    masked=True,
    resized={"height": 64, "width": 112, "num_frames": 9},
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
    pipe = MotifVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=wan_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]),
        "num_frames": 13,
        **_SIZE,
    }


@tiny_family(resized={"height": 64, "width": 112}, resized_tokens=3 * 4 * 7)
def helios() -> Tiny:
    """`HeliosPipeline`, one chunk of 3 x 6 x 6 tokens behind those of its history."""
    from diffusers import HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel

    embeds = embeds_source()
    transformer = HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=4,
        rope_dim=(4, 4, 4),
        is_amplify_history=True,
    )
    pipe = HeliosPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=HeliosScheduler(stages=1, stage_range=[0, 1], scheduler_type="euler"),
        transformer=transformer,
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "num_frames": 9,
        "num_latent_frames_per_chunk": 3,
        "history_sizes": [4, 2, 1],
        **_SIZE,
    }
