"""HunyuanDiT."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


@tiny_family(dispatches=False, resized=SMALL, resized_tokens=5 * 3)
def hunyuan_dit() -> Tiny:
    """`HunyuanDiTPipeline`: later blocks take up what earlier ones gave; guidance batched."""
    from diffusers import DDIMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    embeds = embeds_source()
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=22,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        text_len=6,
        text_len_t5=4,
        use_style_cond_and_image_meta_size=False,
    )
    pipe = pipeline_of(
        HunyuanDiTPipeline,
        transformer=transformer,
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
        requires_safety_checker=False,
    )
    prompts = {}
    for branch in ("", "negative_"):
        for encoder, length in (("", 6), ("_2", 4)):
            prompts[f"{branch}prompt_embeds{encoder}"] = embeds(1, length, 16)
            mask = torch.arange(length)[None] < length - 1
            prompts[f"{branch}prompt_attention_mask{encoder}"] = mask.long()
    return pipe, {
        **prompts,
        "use_resolution_binning": False,
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
