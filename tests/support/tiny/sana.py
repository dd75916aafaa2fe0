"""Sana."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family


@tiny_family(resized={"height": 160, "width": 96}, resized_tokens=5 * 3)
def sana() -> Tiny:
    """`SanaPipeline`: linear self-attention, text by cross-attention, guidance batched."""
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    embeds = embeds_source()
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=11,
        patch_size=1,
    )
    pipe = pipeline_of(
        SanaPipeline,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "negative_prompt": None,
        "use_resolution_binning": False,
        "height": 352,
        "width": 352,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
