"""FramePack."""

from __future__ import annotations

from tiny.builder import Tiny, pipeline_of, tiny_family
from tiny.hunyuan_video import HUNYUAN, hunyuan_call, hunyuan_vae


@tiny_family(resized={"height": 80, "width": 112}, resized_tokens=3 * 5 * 7)
def framepack() -> Tiny:
    """`HunyuanVideoFramepackPipeline`, one section of 3 x 6 x 6 tokens behind those of the past."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoFramepackPipeline,
        HunyuanVideoFramepackTransformer3DModel,
    )
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    call = hunyuan_call(num_frames=9, latent_window_size=3, height=96, width=96)
    encoder = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=16,
        patch_size=8,
    )
    pipe = pipeline_of(
        HunyuanVideoFramepackPipeline,
        transformer=HunyuanVideoFramepackTransformer3DModel(
            **HUNYUAN, has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True
        ),
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        image_encoder=SiglipVisionModel(encoder),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
    )
    return pipe, call
