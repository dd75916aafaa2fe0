"""MiniMax Music 3."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, modular_of, tiny_family
from tiny.parts import Stub


class AsTheyAre(Stub):
    """In place of the condition encoder: a latent for each frame."""

    def forward(self, hiddens: torch.Tensor) -> torch.Tensor:
        """What the frames have, which is written to later on."""
        return hiddens.clone()


def windows(starts: list[int], frames: int) -> Tiny:
    """The modular denoising step over windows of 200 frames and less.

    Args:
        starts: frame with which each window starts.
        frames: in all.
    """
    from diffusers import (
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        MiniMaxMusic3Transformer1DModel,
    )
    from diffusers.modular_pipelines.minimax_music3.denoise import MiniMaxMusic3ChunkDenoiseStep

    embeds = embeds_source()
    pipe = modular_of(
        MiniMaxMusic3ChunkDenoiseStep(),
        condition_encoder=AsTheyAre(),
        guider=ClassifierFreeGuidance(guidance_scale=1.7),
        transformer=MiniMaxMusic3Transformer1DModel(
            in_channels=4,
            condition_dim=16,
            num_layers=4,
            num_attention_heads=2,
            attention_head_dim=16,
            ff_inner_dim=32,
            rotary_dim=8,
            fourier_embedding_dim=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1, shift=1.0, invert_sigmas=True
        ),
    )
    return pipe, {
        "frame_hiddens": embeds(1, frames, 16),
        "chunk_starts": starts,
        "num_inference_steps": 8,
        "output": "latent_chunks",
    }


@tiny_family(resized={"frame_hiddens": torch.ones(1, 40, 16)}, resized_tokens=40)
def minimax_music3() -> Tiny:
    """`MiniMaxMusic3ModularPipeline`, its denoising alone: one window of 121 tokens."""
    return windows([0], 121)
