"""SANA-WM."""

from __future__ import annotations

import numpy as np
import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import Averages, noise_image


class Latents(Averages):
    """In place of LTX 2's VAE, which has the sizes of its latents as buffers."""

    def __init__(self) -> None:
        super().__init__(8)
        self.register_buffer("latents_mean", torch.zeros(4))
        self.register_buffer("latents_std", torch.ones(4))


@tiny_family(resized={"height": 32, "width": 56, "num_frames": 9}, resized_tokens=3 * 4 * 7)
def sana_wm() -> Tiny:
    """`SanaWMPipeline` at 4 x 6 x 6 tokens, the first frame given; the third block is softmax."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaWMPipeline, SanaWMTransformer3DModel

    embeds = embeds_source()
    transformer = SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=3,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=3,
        linear_head_dim=16,
        chunk_plucker_channels=24,
        caption_channels=16,
        mlp_ratio=1.0,
    )
    pipe = pipeline_of(
        SanaWMPipeline,
        vae=Latents(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    path = np.tile(np.eye(4, dtype=np.float32), (25, 1, 1))
    path[:, 2, 3] = np.linspace(0, 1, 25)
    mask = torch.ones(1, 6, dtype=torch.long)
    return pipe, {
        "image": noise_image(),
        "prompt": "",
        "c2w": path,
        "intrinsics": [96.0, 96.0, 48.0, 48.0],
        "prompt_embeds": embeds(1, 1, 6, 16),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": embeds(1, 1, 6, 16),
        "negative_prompt_attention_mask": mask,
        "height": 48,
        "width": 48,
        "num_frames": 13,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
