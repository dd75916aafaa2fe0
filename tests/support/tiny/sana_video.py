"""Sana Video, text and image to video."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import VIDEO, flow_scheduler, wan_vae, with_image


@tiny_family(resized={"height": 32, "width": 64, "frames": 9}, resized_tokens=3 * 2 * 4)
def sana_video() -> Tiny:
    """`SanaVideoPipeline` at 2 x 8 x 8 tokens, linear attention, guidance batched."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        SanaVideoPipeline,
        SanaVideoTransformer3DModel,
    )

    embeds = embeds_source()
    transformer = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        mlp_ratio=2.0,
        rope_max_seq_len=32,
    )
    pipe = pipeline_of(
        SanaVideoPipeline,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    return pipe, {
        "negative_prompt": None,
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        **VIDEO,
        "height": 128,
        "width": 128,
        "frames": 5,
        "use_resolution_binning": False,
    }


@tiny_family(variant=True, steps=7)
def sana_video_i2v() -> Tiny:
    """`SanaImageToVideoPipeline`: a grid of timesteps, 0 for the image."""
    from diffusers import SanaImageToVideoPipeline

    pipe, call = sana_video()
    parts = {"vae": wan_vae(), "scheduler": flow_scheduler()}
    return with_image(pipe, call, SanaImageToVideoPipeline, **parts)
