"""Stable Audio."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


@tiny_family(dispatches=False, resized_tokens=121)
def stable_audio() -> Tiny:
    """`StableAudioPipeline`: 121 audio tokens behind a global one, grouped heads, batched."""
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )

    embeds = embeds_source()
    transformer = StableAudioDiTModel(
        sample_size=121,
        in_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=16,
        global_states_input_dim=32,
        cross_attention_input_dim=16,
    )
    with torch.no_grad():  # else its normalized weights cannot be copied
        vae = AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 2],
            channel_multiples=[1, 2],
            decoder_channels=4,
            decoder_input_channels=4,
            audio_channels=2,
            sampling_rate=4,
        )
    pipe = pipeline_of(
        StableAudioPipeline,
        vae=vae,
        projection_model=StableAudioProjectionModel(16, 16, 0, 512),
        transformer=transformer,
        scheduler=EDMDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500, prediction_type="v_prediction"
        ),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "num_inference_steps": 8,
        "output_type": "latent",
    }
