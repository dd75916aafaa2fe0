"""LTX-Video, text and image to video."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import with_image


@tiny_family(resized={"height": 96, "width": 160, "num_frames": 17}, resized_tokens=3 * 3 * 5)
def ltx() -> Tiny:
    """`LTXPipeline` at 2 x 7 x 9 tokens, text by cross-attention, guidance batched."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    embeds = embeds_source()
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=4,
        caption_channels=16,
    )
    pipe = pipeline_of(
        LTXPipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        transformer=transformer,
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "height": 224,
        "width": 288,
        "num_frames": 9,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=2 * 7 * 9, steps=7)
def ltx_i2v() -> Tiny:
    """`LTXImageToVideoPipeline`: 0 for the tokens of the image."""
    from diffusers import AutoencoderKLLTXVideo, LTXImageToVideoPipeline

    pipe, call = ltx()
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(4,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )
    return with_image(pipe, call, LTXImageToVideoPipeline, vae=vae)
