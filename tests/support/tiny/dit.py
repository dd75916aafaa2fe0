"""DiT, class-conditional."""

from __future__ import annotations

from typing import Any

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


def tiny_dit(layers: int = 4, scheduler: Any = None, sample_size: int = 8) -> Tiny:
    """`DiTPipeline`, guidance batched, no cache context; 4 x 4 tokens by default."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    embeds_source()
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        sample_size=sample_size,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipe = pipeline_of(DiTPipeline, transformer, scheduler or DDIMScheduler(), vae=vae)
    return pipe, {
        "class_labels": [1, 2],
        "guidance_scale": 3.0,
        "num_inference_steps": 8,
        "output_type": "np",
    }


@tiny_family(images=2, dispatches=False, resized_tokens=11 * 11)
def dit() -> Tiny:
    """`DiTPipeline` at 11 x 11 tokens: guidance batched, no text."""
    pipe, call = tiny_dit(sample_size=22)
    del call["guidance_scale"]  # its own default
    return pipe, call
