"""HiDream."""

from __future__ import annotations

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(dispatches=False, resized=SMALL, resized_tokens=11 * 11)
def hidream() -> Tiny:
    """`HiDreamImagePipeline`: experts, text tokens of their own in each block, padded latents."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HiDreamImagePipeline,
        HiDreamImageTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=16,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(22, 22),
        llama_layers=[0, 1, 2, 3],
    )
    pipe = pipeline_of(
        HiDreamImagePipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    )
    pipe.default_sample_size = 22  # sizes are scaled up to it
    return pipe, {
        "prompt_embeds_t5": embeds(1, 6, 16),
        "prompt_embeds_llama3": embeds(4, 1, 6, 16),
        "pooled_prompt_embeds": embeds(1, 16),
        "negative_prompt_embeds_t5": embeds(1, 6, 16),
        "negative_prompt_embeds_llama3": embeds(4, 1, 6, 16),
        "negative_pooled_prompt_embeds": embeds(1, 16),
        **SQUARE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }
