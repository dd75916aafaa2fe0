"""Kandinsky 5."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


def _kandinsky5(**options: Any) -> Tiny:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Kandinsky5T2VPipeline,
        Kandinsky5Transformer3DModel,
    )

    embeds = embeds_source()
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=4,
        axes_dims=(4, 6, 6),
        **options,
    )
    for name, weight in transformer.named_parameters():
        if "modulation" in name:  # zeros until trained: blocks that do nothing
            torch.nn.init.normal_(weight, std=0.3)
    pipe = pipeline_of(
        Kandinsky5T2VPipeline,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    return pipe, {
        "prompt_embeds_qwen": embeds(1, 6, 16),
        "prompt_embeds_clip": embeds(1, 8),
        "prompt_cu_seqlens": torch.tensor([0, 6]),
        "negative_prompt_embeds_qwen": embeds(1, 5, 16),
        "negative_prompt_embeds_clip": embeds(1, 8),
        "negative_prompt_cu_seqlens": torch.tensor([0, 5]),
        "guidance_scale": 3.0,
        "height": 112,
        "width": 144,
        "num_frames": 5,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(
    resized={"height": 80, "width": 48, "num_frames": 13},
    resized_tokens=4 * 5 * 3,
    rounding=1e-3,  # its RoPE rounds queries and keys to bfloat16
)
def kandinsky5() -> Tiny:
    """`Kandinsky5T2VPipeline` at 2 x 7 x 9 tokens: latents have their channels last."""
    return _kandinsky5()


def kandinsky5_nabla() -> Tiny:
    """The same with NABLA: flex attention over blocks of 64 tokens."""
    pipe, call = _kandinsky5(
        attention_type="nabla",
        attention_P=0.5,
        attention_wT=1,
        attention_wH=1,
        attention_wW=1,
        attention_add_sta=True,
        attention_method="topcdf",
    )
    for block in pipe.transformer.visual_transformer_blocks:
        block.self_attention.processor._attention_backend = "flex"
    return pipe, {**call, "height": 256, "width": 128, "num_inference_steps": 5}
