"""Tiny random video pipelines: Wan's variants and what shares its blocks."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from tiny_registry import Tiny, embeds_source, quiet, tiny_family

_CALL = {
    "height": 96,
    "width": 96,
    "num_frames": 13,
    "num_inference_steps": 8,
    "guidance_scale": 4.0,
    "output_type": "latent",
}
_RESIZED = {"height": 64, "width": 112, "num_frames": 9}
_WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}


def wan_vae() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def _prompts() -> dict[str, Any]:
    embeds = embeds_source()
    return {"prompt_embeds": embeds(1, 6, 16), "negative_prompt_embeds": embeds(1, 6, 16)}


def _image() -> Image.Image:
    pixels = torch.rand(24, 24, 3, generator=torch.Generator().manual_seed(3))
    return Image.fromarray((pixels * 255).byte().numpy()).resize((96, 96))


def _image_encoder() -> dict[str, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=20,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    processor = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return {"image_encoder": CLIPVisionModel(config), "image_processor": processor}


@tiny_family("wan", variant=True, tokens=144, steps=8)
def wan_i2v() -> Tiny:
    """`WanImageToVideoPipeline` 2.1: the image as channels and as tokens of cross-attention."""
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

    call = {**_prompts(), **_CALL, "image": _image()}
    transformer = WanTransformer3DModel(
        **{**_WAN, "in_channels": 12}, image_dim=20, added_kv_proj_dim=24
    )
    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        **_image_encoder(),
        vae=wan_vae(),
        scheduler=_scheduler(),
        transformer=transformer,
    )
    return quiet(pipe), call


@tiny_family("wan", variant=True, tokens=144, steps=10)
def wan22_i2v() -> Tiny:
    """`WanImageToVideoPipeline` 2.2: two transformers, the image as channels alone."""
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

    call = {**_prompts(), **_CALL, "image": _image(), "num_inference_steps": 10}
    options = {**_WAN, "in_channels": 12, "num_layers": 2}
    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=_scheduler(),
        transformer=WanTransformer3DModel(**options),
        transformer_2=WanTransformer3DModel(**options),
        boundary_ratio=0.5,
    )
    return quiet(pipe), call


@tiny_family("wan", resized=_RESIZED, resized_tokens=3 * 4 * 7)
def wan_5b() -> Tiny:
    """`WanImageToVideoPipeline` as in 2.2 TI2V-5B: a timestep for each token, 0 for the image's."""
    from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

    call = {**_prompts(), **_CALL, "image": _image()}
    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=_scheduler(),
        transformer=WanTransformer3DModel(**_WAN),
        expand_timesteps=True,
    )
    return quiet(pipe), call


@tiny_family("wan", variant=True, tokens=144, steps=8)
def wan_v2v() -> Tiny:
    """`WanVideoToVideoPipeline`: starts in the middle of the schedule, no cache context."""
    from diffusers import WanTransformer3DModel, WanVideoToVideoPipeline

    embeds = embeds_source()
    call = {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "video": list(torch.rand(13, 96, 96, 3).numpy()),
        **{name: value for name, value in _CALL.items() if name != "num_frames"},
        "num_inference_steps": 11,
        "strength": 0.8,
    }
    pipe = WanVideoToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=_scheduler(),
        transformer=WanTransformer3DModel(**_WAN),
    )
    return quiet(pipe), call


@tiny_family(resized=_RESIZED, resized_tokens=3 * 4 * 7)
def wan_vace() -> Tiny:
    """`WanVACEPipeline`: side blocks whose hints go to three of four blocks, the last included."""
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    call = {**_prompts(), **_CALL, "conditioning_scale": [1.0, 0.5, 0.8]}
    transformer = WanVACETransformer3DModel(**_WAN, vace_layers=[0, 2, 3], vace_in_channels=72)
    pipe = WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=_scheduler(),
        transformer=transformer,
    )
    return quiet(pipe), call


@tiny_family(variant=True, tokens=2 * 8 * 8, steps=8)
def chronoedit() -> Tiny:
    """`ChronoEditPipeline` at 2 x 8 x 8 tokens: guidance in two calls without a cache context."""
    from diffusers import ChronoEditPipeline, ChronoEditTransformer3DModel

    call = {**_prompts(), **_CALL, "image": _image(), "height": 128, "width": 128}
    pipe = ChronoEditPipeline(
        tokenizer=None,
        text_encoder=None,
        **_image_encoder(),
        vae=wan_vae(),
        scheduler=_scheduler(),
        transformer=ChronoEditTransformer3DModel(
            **{**_WAN, "in_channels": 12}, image_dim=20, added_kv_proj_dim=24
        ),
    )
    return quiet(pipe), call


@tiny_family(variant=True, tokens=3 * 6 * 6, steps=8)
def wan_animate() -> Tiny:
    """`WanAnimatePipeline`: one segment, adapters of the face behind the first and third block."""
    from diffusers import WanAnimatePipeline, WanAnimateTransformer3DModel

    frames = list(torch.rand(5, 16, 16, 3, generator=torch.Generator().manual_seed(4)) * 255)
    videos = [Image.fromarray(frame.byte().numpy()) for frame in frames]
    call = {
        **_prompts(),
        **{name: value for name, value in _CALL.items() if name != "num_frames"},
        "image": _image(),
        "pose_video": [frame.resize((96, 96)) for frame in videos],
        "face_video": videos,
        "segment_frame_length": 5,
    }
    transformer = WanAnimateTransformer3DModel(
        **{**_WAN, "in_channels": 12},
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
    pipe = WanAnimatePipeline(
        tokenizer=None,
        text_encoder=None,
        **_image_encoder(),
        vae=wan_vae(),
        scheduler=_scheduler(),
        transformer=transformer,
    )
    return quiet(pipe), call


def _skyreels(kind: str, **options: Any) -> Any:
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    vae = wan_vae()
    embeds_source()  # the same weights each time
    return quiet(
        getattr(diffusers, kind)(
            tokenizer=None,
            text_encoder=None,
            vae=vae,
            scheduler=scheduler,
            transformer=diffusers.SkyReelsV2Transformer3DModel(**_WAN, **options),
        )
    )


@tiny_family(variant=True, tokens=4 * 6 * 6, steps=8)
def skyreels_v2() -> Tiny:
    """`SkyReelsV2Pipeline`: one timestep for all frames."""
    return _skyreels("SkyReelsV2Pipeline"), {**_prompts(), **_CALL}


@tiny_family("skyreels_v2", resized=_RESIZED, resized_tokens=3 * 4 * 7)
def skyreels_v2_forcing() -> Tiny:
    """`SkyReelsV2DiffusionForcingPipeline`, synchronous: a timestep for each frame, all alike."""
    pipe = _skyreels("SkyReelsV2DiffusionForcingPipeline", inject_sample_info=True)
    return pipe, {**_prompts(), **_CALL, "prompt": None}


def skyreels_v2_in_turn() -> Tiny:
    """The same, asynchronous: frames start one after the other (`ar_step`)."""
    pipe = _skyreels("SkyReelsV2DiffusionForcingPipeline", inject_sample_info=True)
    return pipe, {**_prompts(), **_CALL, "prompt": None, "ar_step": 3, "causal_block_size": 1}
