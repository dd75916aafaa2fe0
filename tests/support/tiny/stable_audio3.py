"""Stable Audio 3."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


@tiny_family(resized={"duration": 50.0}, resized_tokens=50, calls_a_layer=2)
def stable_audio3() -> Tiny:
    """`StableAudio3Pipeline`: 121 audio tokens behind 3 of memory, differential attention."""
    from diffusers import (
        AutoencoderSAME,
        FlowMatchEulerDiscreteScheduler,
        StableAudio3DiTModel,
        StableAudio3DurationEmbedder,
        StableAudio3Pipeline,
    )

    embeds = embeds_source()
    transformer = StableAudio3DiTModel(
        io_channels=4,
        embed_dim=32,
        depth=3,
        num_heads=2,
        cond_token_dim=16,
        global_cond_dim=16,
        local_add_cond_dim=5,
        timestep_features_dim=16,
        ff_mult=1.0,
        num_memory_tokens=3,
    )
    with torch.no_grad():  # else its normalized weights cannot be copied
        vae = AutoencoderSAME(
            patch_size=2,
            encoder_channels=4,
            encoder_c_mults=(2,),
            encoder_strides=(2,),
            encoder_transformer_depths=(1,),
            latent_dim=4,
            dim_heads=4,
            sampling_rate=4,
            encoder_sinusoidal_blocks=(0,),
            decoder_sinusoidal_blocks=(0,),
        )
    pipe = pipeline_of(
        StableAudio3Pipeline,
        vae=vae,
        duration_embedder=StableAudio3DurationEmbedder(output_dim=16, fourier_dim=16),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
    mask = torch.ones(1, 6, dtype=torch.long)
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "encoder_attention_mask": mask,
        "negative_encoder_attention_mask": mask,
        "guidance_scale": 4.0,
        "duration": 121.0,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
