"""Qwen-Image and its edit pipeline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE, ramp


@tiny_family(masked=True, resized=SMALL, resized_tokens=5 * 3)
def qwen_image() -> Tiny:
    """`QwenImagePipeline` at 11 x 11 tokens, text in front (padding at its end), two branches."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = pipeline_of(
        QwenImagePipeline, scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer
    )
    return pipe, {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]),
        "true_cfg_scale": 3.0,
        **SQUARE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


class PooledImages(torch.nn.Module):
    """In place of a VAE: pixels averaged 64 x 64, with four channels."""

    temperal_downsample = (True,) * 6
    dtype, device = torch.float32, torch.device("cpu")
    config = SimpleNamespace(z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)

    def encode(self, pixels: torch.Tensor) -> Any:
        """Mode of the latents `(B, 4, 1, H / 64, W / 64)`."""
        pooled = torch.nn.functional.avg_pool2d(pixels.squeeze(2), 64)
        latents = torch.cat([pooled, pooled[:, :1]], dim=1).unsqueeze(2)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))


@tiny_family(variant=True, tokens=121 + 64, steps=8, masked=True)
def qwen_image_edit() -> Tiny:
    """`QwenImageEditPipeline`: 8 x 8 tokens of the given image behind those of the latents."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPipeline,
        QwenImageTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = pipeline_of(
        QwenImageEditPipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=PooledImages(),
        transformer=transformer,
    )
    return pipe, {
        "image": ramp(64),
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]),
        "true_cfg_scale": 3.0,
        "height": 11 * 128,
        "width": 11 * 128,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
