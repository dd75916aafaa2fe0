"""LongCat-AudioDiT."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import WordEmbeddings, words_as_numbers


@tiny_family(resized={"audio_duration_s": 5.0}, resized_tokens=40)
def longcat_audio_dit() -> Tiny:
    """`LongCatAudioDiTPipeline` at 121 tokens: a mask over the audio, in which all is true."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        LongCatAudioDiTPipeline,
        LongCatAudioDiTTransformer,
        LongCatAudioDiTVae,
    )

    embeds_source()
    transformer = LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=3, dit_heads=2, dit_text_dim=16, latent_dim=4, ff_mult=1.0
    )
    with torch.no_grad():  # what a training begins with gives no output
        for name, weight in transformer.named_parameters():
            if name.startswith(("adaln_global_mlp", "norm_out", "proj_out")):
                weight.normal_(std=0.3)
    with torch.no_grad():  # else its normalized weights cannot be copied
        vae = LongCatAudioDiTVae(
            channels=4,
            c_mults=[1, 2],
            strides=[2],
            latent_dim=4,
            encoder_latent_dim=8,
            sample_rate=16,
            downsampling_ratio=2,
        )
    pipe = pipeline_of(
        LongCatAudioDiTPipeline,
        vae=vae,
        tokenizer=words_as_numbers,
        text_encoder=WordEmbeddings(16),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=False),
    )
    return pipe, {
        "prompt": "a bell",
        "audio_duration_s": 121 / 8,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
