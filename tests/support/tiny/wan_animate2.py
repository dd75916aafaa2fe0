"""Wan Animate 2."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, modular_of, tiny_family
from tiny.parts import flow_scheduler, wan_vae

# Pixels of a side, and latents
SIDE, LATENTS = 64, 8


def _seen(rows: int, frames: int, b: Any, h: Any, query: Any, key: Any) -> torch.Tensor:
    """Whether a query sees a key: all of its own video, and its own frame of the reference."""
    own, padded = (frames + 1) * rows, 128 * math.ceil((frames + 1) * rows / 128)
    reference = (query // rows == (key - padded) // rows + 1) & (key - padded < frames * rows)
    return (query < own) & ((key < own) | ((key >= padded) & reference))


def _mask(frames: int, rows: int) -> Any:
    """The transformer's own mask, which it would compile, and which cannot be copied."""
    from torch.nn.attention.flex_attention import create_block_mask

    queries = 128 * math.ceil((frames + 1) * rows / 128)
    keys = queries + 128 * math.ceil(frames * rows / 128)
    seen = functools.partial(_seen, rows, frames)
    return create_block_mask(seen, None, None, queries, keys, device="cpu")


@tiny_family()
def wan_animate2() -> Tiny:
    """`WanAnimate2ModularPipeline`, its denoising alone: one segment of 3 x 4 x 4 tokens."""
    return segment(layers=2)


def segment(layers: int) -> Tiny:
    """One segment; without guidance's text the tenth of its layers is left out, if there is one."""
    from diffusers import ClassifierFreeGuidance, WanAnimate2Transformer3DModel
    from diffusers.modular_pipelines.wan_animate_2.denoise import WanAnimate2DenoiseStep

    embeds = embeds_source()
    transformer = WanAnimate2Transformer3DModel(
        text_len=6,
        in_dim=12,
        dim=32,
        ffn_dim=32,
        freq_dim=32,
        text_dim=16,
        out_dim=4,
        num_heads=2,
        num_layers=layers,
        use_img_emb=False,
    )
    transformer.block_masks[2, SIDE * SIDE // 256] = _mask(2, SIDE * SIDE // 256)
    pipe = modular_of(
        WanAnimate2DenoiseStep(),
        vae=wan_vae(),
        transformer=transformer,
        scheduler=flow_scheduler(),
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )
    return pipe, {
        "driving_video_pixels": embeds(1, 3, 5, SIDE, SIDE).clamp(-1, 1),
        "reference_image_latents": embeds(8, 1, LATENTS, LATENTS),
        "effective_segment": 4,
        "segment_frame_length": 5,
        "num_segments": 1,
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "prompt_ref_embeds": embeds(1, 6, 16),
        "condition_clip_context": embeds(1, 1),
        "max_seq_len": 3 * 16,
        "max_seq_len_ref": 2 * 16,
        "grid_sizes_ref": torch.tensor([[2, 4, 4]]),
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": 8,
        "output": "segment_frames",
    }
