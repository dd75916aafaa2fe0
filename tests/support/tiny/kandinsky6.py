"""Kandinsky 6."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import Stub, noise_frames


@tiny_family(resized={"height": 80, "width": 48, "num_frames": 13}, resized_tokens=4 * 5 * 3)
def kandinsky6() -> Tiny:
    """`Kandinsky6TI2VAPipeline` at 2 x 7 x 9 tokens and 9 of sound, as released models are set."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Kandinsky6TI2VAPipeline,
        Kandinsky6Transformer3DModel,
    )

    embeds = embeds_source()
    transformer = Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 6, 6),
        in_audio_dim=4,
        out_audio_dim=4,
        model_dim_a=16,
        ff_dim_a=32,
        axes_dims_a=(2, 2, 4),
        ca_rope=False,
        cross_gates=True,
        fix_modulation=True,
        visual_token_type_num_embeddings=2,
    )
    sound = Stub(sample_rate=44_100)
    sound.latent_hop_length = 1024
    pipe = pipeline_of(
        Kandinsky6TI2VAPipeline,
        audio_vae=sound,
        vocoder=Stub(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "pooled_prompt_embeds": embeds(1, 8),
        "negative_prompt_embeds": embeds(1, 5, 16),
        "negative_pooled_prompt_embeds": embeds(1, 8),
        "guidance_scale": 3.0,
        "height": 112,
        "width": 144,
        "num_frames": 5,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=3 * 7 * 9, steps=8)
def kandinsky6_image() -> Tiny:
    """The same with an image, whose frame is behind the others, and without sound."""
    from diffusers import AutoencoderKLHunyuanVideo

    pipe, call = kandinsky6()
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    pipe = pipeline_of(type(pipe), **{**pipe.components, "vae": vae})
    return pipe, {**call, "image": noise_frames(1)[0], "sample_audio": False}
