"""LTX-2, text and image to video, with sound."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import with_image


@tiny_family(resized={"height": 96, "width": 160, "num_frames": 17}, resized_tokens=3 * 3 * 5)
def ltx2() -> Tiny:
    """`LTX2Pipeline` at 2 x 7 x 9 tokens and 9 of sound: guidance batched, and one call more."""
    from diffusers import (
        AutoencoderKLLTX2Audio,
        FlowMatchEulerDiscreteScheduler,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )

    embeds = embeds_source()
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=4,
        caption_channels=16,
        perturbed_attn=True,
    )
    connectors, vae = _connectors(), _video_vae()
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=8
    )
    pipe = pipeline_of(
        LTX2Pipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        audio_vae=audio_vae,
        connectors=connectors,
        transformer=transformer,
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]]),
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "height": 224,
        "width": 288,
        "num_frames": 9,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=2 * 7 * 9, steps=7)
def ltx2_i2v() -> Tiny:
    """`LTX2ImageToVideoPipeline`: 0 for the tokens of the image, and none for the sound."""
    from diffusers import LTX2ImageToVideoPipeline

    return with_image(*ltx2(), LTX2ImageToVideoPipeline)


def _connectors() -> Any:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    return LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
    )


def _video_vae() -> Any:
    from diffusers import AutoencoderKLLTX2Video

    return AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(4,) * 3,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
