"""Qwen-Image 2.1, with and without its cache of keys and values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


class Template:
    """In place of a processor: what the pipeline asks one for when it is made."""

    tokenizer = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, messages: Any, **options: Any) -> list[list[int]]:
        """Tokens of the system's message."""
        return [[1, 2]]


@tiny_family(resized={"height": 160, "width": 96}, resized_tokens=10 * 6)
def qwen_image21() -> Tiny:
    """`QwenImage21Pipeline` at 12 x 10 tokens, text in front, two branches.

    The first step also computes the text.
    """
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        QwenImage21Pipeline,
        QwenImage21Transformer2DModel,
    )

    embeds = embeds_source()
    transformer = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        mlp_ratio=1,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = pipeline_of(
        QwenImage21Pipeline,
        transformer,
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        processor=Template(),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool(),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]).bool(),
        "true_cfg_scale": 3.0,
        "use_kv_cache": True,
        "height": 192,
        "width": 160,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=12 * 10, steps=7)
def qwen_image21_uncached() -> Tiny:
    """All tokens at every step."""
    pipe, call = qwen_image21()
    return pipe, {**call, "use_kv_cache": False}
