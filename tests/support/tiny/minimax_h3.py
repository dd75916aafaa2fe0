"""MiniMax-H3, also with a first frame and with references."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, modular_of, tiny_family


def _minimax_h3(blocks: Any, part: str = "transformer") -> Tiny:
    """A modular pipeline of 37 frames of 2 x 2 tokens, 6 of text and 2 x 207 of sound."""
    from diffusers import MiniMaxH3Scheduler, MiniMaxH3Transformer3DModel

    embeds = embeds_source()
    transformer = MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        num_layers=4,
        num_refiner_layers=1,
        ffn_dim=32,
        text_dim=16,
        freq_dim=16,
        time_embed_hidden_dim=16,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    schedulers = {"scheduler": MiniMaxH3Scheduler(), "audio_scheduler": MiniMaxH3Scheduler(3.0)}
    return modular_of(blocks, **{part: transformer}, **schedulers), {
        "prompt_embeds": embeds(1, 6, 16),
        "text_token_tags": torch.ones(6, dtype=torch.long),
        "height": 64,
        "width": 64,
        "num_frames": 124,
        "num_inference_steps": 8,
        "output": "latents",
    }


@tiny_family(resized={"height": 96}, resized_tokens=37 * 3 * 2)
def minimax_h3() -> Tiny:
    """Text to video: 8 noise levels make 7 steps, and sound has a schedule of its own."""
    from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import (
        MiniMaxH3CoreDenoiseStep,
    )

    return _minimax_h3(MiniMaxH3CoreDenoiseStep())


@tiny_family(variant=True, tokens=(1 + 37) * 4 + 414, steps=7)
def minimax_h3_first_frame() -> Tiny:
    """A first frame: its tokens are in front of the sound, and always at timestep 0.999."""
    from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import (
        MiniMaxH3FL2VACoreDenoiseStep,
    )

    pipe, call = _minimax_h3(MiniMaxH3FL2VACoreDenoiseStep())
    frame = torch.randn(1, 24, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    return pipe, {**call, "condition_latents": [frame], "keyframe_anchors": ("first",)}


@tiny_family(variant=True, tokens=(1 + 37) * 4 + 2 * 20 + 414, steps=7)
def minimax_h3_references() -> Tiny:
    """A picture and sound to go by, with the transformer that was trained for references."""
    from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import (
        MiniMaxH3Ref2VACoreDenoiseStep,
    )

    pipe, call = _minimax_h3(MiniMaxH3Ref2VACoreDenoiseStep(), "transformer_ref")
    source = torch.Generator().manual_seed(3)
    return pipe, {
        **call,
        "normalized_references": [SimpleNamespace(kind="image"), SimpleNamespace(kind="audio")],
        "condition_latents": [torch.randn(1, 24, 1, 4, 4, generator=source)],
        "audio_condition_latents": [torch.randn(2 * 20, 32, generator=source)],
    }
