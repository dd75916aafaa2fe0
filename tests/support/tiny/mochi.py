"""Mochi."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


@tiny_family(
    dispatches=False,
    calls_a_layer=2,  # one for each item of the batch
    resized={"height": 80, "width": 48, "num_frames": 13},
    resized_tokens=3 * 5 * 3,
)
def mochi() -> Tiny:
    """`MochiPipeline` at 2 x 7 x 9 tokens, valid text behind them, guidance batched.

    Both prompts have the same number of tokens, so that nothing but their place in the batch tells
    the branches apart.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

    embeds = embeds_source()
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        max_sequence_length=8,
    )
    pipe = pipeline_of(
        MochiPipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        transformer=transformer,
    )
    return pipe, {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool(),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool(),
        "height": 112,
        "width": 144,
        "num_frames": 7,
        "num_inference_steps": 7,
        "output_type": "latent",
    }
