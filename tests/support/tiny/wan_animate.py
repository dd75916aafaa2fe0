"""Wan Animate."""

from __future__ import annotations

import torch
from PIL import Image

from tiny.builder import Tiny, pipeline_of, tiny_family
from tiny.parts import (
    WAN,
    WAN_CALL,
    clip_encoder,
    flow_scheduler,
    noise_image,
    two_prompts,
    wan_vae,
)


@tiny_family(variant=True, tokens=3 * 6 * 6, steps=8)
def wan_animate() -> Tiny:
    """`WanAnimatePipeline`: one segment, adapters of the face behind the first and third block."""
    from diffusers import WanAnimatePipeline, WanAnimateTransformer3DModel

    frames = list(torch.rand(5, 16, 16, 3, generator=torch.Generator().manual_seed(4)) * 255)
    videos = [Image.fromarray(frame.byte().numpy()) for frame in frames]
    call = {
        **two_prompts(),
        **{name: value for name, value in WAN_CALL.items() if name != "num_frames"},
        "image": noise_image(),
        "pose_video": [frame.resize((96, 96)) for frame in videos],
        "face_video": videos,
        "segment_frame_length": 5,
    }
    transformer = WanAnimateTransformer3DModel(
        **{**WAN, "in_channels": 12},
        latent_channels=4,
        image_dim=20,
        added_kv_proj_dim=24,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    pipe = pipeline_of(
        WanAnimatePipeline,
        **clip_encoder(),
        vae=wan_vae(),
        scheduler=flow_scheduler(),
        transformer=transformer,
    )
    return pipe, call
