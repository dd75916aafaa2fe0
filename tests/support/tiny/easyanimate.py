"""EasyAnimate."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


@tiny_family(
    dispatches=False,
    resized={"height": 80, "width": 48, "num_frames": 13},
    resized_tokens=4 * 5 * 3,
)
def easyanimate() -> Tiny:
    """`EasyAnimatePipeline` at 2 x 7 x 9 tokens, 6 of text in front, guidance batched."""
    from diffusers import (
        AutoencoderKLMagvit,
        EasyAnimatePipeline,
        EasyAnimateTransformer3DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    embeds = embeds_source()
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=4,
        mmdit_layers=4,
        time_embed_dim=8,
        text_embed_dim=16,
    )
    pipe = pipeline_of(
        EasyAnimatePipeline,
        vae=AutoencoderKLMagvit(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        ),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "height": 112,
        "width": 144,
        "num_frames": 5,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
