"""Latte."""

from __future__ import annotations

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


@tiny_family(dispatches=False, resized={"height": 96, "width": 80}, resized_tokens=6 * 5)
def latte() -> Tiny:
    """`LattePipeline` at 4 frames of 11 x 10 tokens, guidance batched."""
    from diffusers import DDIMScheduler, LattePipeline, LatteTransformer3DModel

    embeds = embeds_source()
    transformer = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=22,
        patch_size=2,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=16,
        video_length=4,
    )
    pipe = pipeline_of(LattePipeline, transformer=transformer, scheduler=DDIMScheduler())
    return pipe, {
        "negative_prompt": None,
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "height": 176,
        "width": 160,
        "video_length": 4,
        "guidance_scale": 3.0,
        "num_inference_steps": 7,
        "output_type": "latent",
        "clean_caption": False,
    }
