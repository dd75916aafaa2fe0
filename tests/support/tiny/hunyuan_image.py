"""HunyuanImage."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


@tiny_family(masked=True, resized={"height": 192, "width": 128}, resized_tokens=6 * 4)
def hunyuan_image() -> Tiny:
    """`HunyuanImagePipeline`: a guider calls the transformer, text behind with padding.

    Without the second text encoder's projection, whose fixed width would be most of the model.
    """
    from diffusers import (
        AdaptiveProjectedMixGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanImagePipeline,
        HunyuanImageTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        rope_axes_dim=(8, 8),
    )
    guiders = [AdaptiveProjectedMixGuidance(guidance_scale=3.0) for _ in range(2)]
    pipe = pipeline_of(
        HunyuanImagePipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=transformer,
        guider=guiders[0],
        ocr_guider=guiders[1],
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 0, 0, 0]]),
        "prompt_embeds_2": embeds(1, 4, 16),
        "prompt_embeds_mask_2": torch.tensor([[1, 1, 0, 0]]),
        "negative_prompt_embeds_2": embeds(1, 4, 16),
        "negative_prompt_embeds_mask_2": torch.tensor([[1, 1, 1, 0]]),
        "height": 384,
        "width": 384,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
