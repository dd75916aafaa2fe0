"""Helios."""

from __future__ import annotations

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import wan_vae


@tiny_family(resized={"height": 64, "width": 112}, resized_tokens=3 * 4 * 7)
def helios() -> Tiny:
    """`HeliosPipeline`, one chunk of 3 x 6 x 6 tokens behind those of its history."""
    from diffusers import HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel

    embeds = embeds_source()
    transformer = HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=4,
        rope_dim=(4, 4, 4),
        is_amplify_history=True,
    )
    pipe = pipeline_of(
        HeliosPipeline,
        vae=wan_vae(),
        scheduler=HeliosScheduler(stages=1, stage_range=[0, 1], scheduler_type="euler"),
        transformer=transformer,
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "num_frames": 9,
        "num_latent_frames_per_chunk": 3,
        "history_sizes": [4, 2, 1],
        "height": 96,
        "width": 96,
        "num_inference_steps": 12,
        "output_type": "latent",
    }
