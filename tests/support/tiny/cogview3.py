"""CogView3 Plus."""

from __future__ import annotations

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(dispatches=False, resized=SMALL, resized_tokens=5 * 3)
def cogview3() -> Tiny:
    """`CogView3PlusPipeline`: text in front, guidance batched."""
    from diffusers import (
        CogVideoXDDIMScheduler,
        CogView3PlusPipeline,
        CogView3PlusTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=22,
    )
    pipe = pipeline_of(
        CogView3PlusPipeline, transformer=transformer, scheduler=CogVideoXDDIMScheduler()
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
