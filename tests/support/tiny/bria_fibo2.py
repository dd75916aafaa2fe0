"""Bria Fibo 2, also with images to edit."""

from __future__ import annotations

from typing import Any

from tiny.builder import Tiny, embeds_source, filled, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE, noise_image


@tiny_family(resized=SMALL, resized_tokens=5 * 3)
def bria_fibo2() -> Tiny:
    """`BriaFibo2Pipeline` at 11 x 11 tokens, gists of 6 and 4 in front, two branches."""
    return _fibo2()


@tiny_family(variant=True, tokens=121 + 121, steps=7)
def bria_fibo2_edit() -> Tiny:
    """As many tokens of an image to edit behind those of the image that is made."""
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    pipe, call = _fibo2(vae=vae)
    return pipe, {**call, "image": noise_image()}


def _fibo2(**parts: Any) -> Tiny:
    from diffusers import (
        BriaFibo2Pipeline,
        BriaFibo2Transformer2DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    embeds = embeds_source()
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=16,
        injection_layer_ids=(1, 3),
        perceiver_num_layers=1,
        min_num_gist_tokens=2,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=2,
        gist_max_text_len=12,
        axes_dims=(4, 6, 6),
        axes_lens=(32, 16, 16),
    )
    filled(transformer)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = pipeline_of(BriaFibo2Pipeline, transformer, scheduler, **parts)
    return pipe, {
        "prompt_embeds": embeds(1, 3, 8, 16),
        "negative_prompt_embeds": embeds(1, 3, 5, 16),
        **SQUARE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }
