"""Flux, also with images given."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, flux_vae, ramp


def tiny_flux(layers: int = 2, single_layers: int = 3) -> Tiny:
    """`FluxPipeline` with true guidance in two calls, latents out."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    embeds = embeds_source()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=False,
    )
    pipe = pipeline_of(
        FluxPipeline, scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 32),
        "pooled_prompt_embeds": embeds(1, 32),
        "negative_prompt_embeds": embeds(1, 6, 32),
        "negative_pooled_prompt_embeds": embeds(1, 32),
        "true_cfg_scale": 3.0,
        "height": 32,
        "width": 32,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


def tiny_controlnet() -> Tiny:
    """`FluxControlNetPipeline`, whose ControlNet adds to what goes from block to block."""
    from diffusers import AutoencoderKL, FluxControlNetModel, FluxControlNetPipeline

    whole, call = tiny_flux()
    torch.manual_seed(6)
    control = FluxControlNetModel.from_transformer(
        whole.transformer,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
    )
    own = control.controlnet_blocks, control.controlnet_single_blocks, control.controlnet_x_embedder
    with torch.no_grad():  # what it adds begins with zeros
        for part in own:
            for weight in part.parameters():
                weight.normal_(std=0.05)
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, shift_factor=0.1
    )
    parts = {**whole.components, "vae": vae.eval(), "controlnet": control.eval()}
    pipe = FluxControlNetPipeline(
        **{k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, {**call, "height": 16, "width": 16, "control_image": torch.rand(1, 3, 16, 16)}


@tiny_family(resized=SMALL, resized_tokens=5 * 3)
def flux() -> Tiny:
    """`FluxPipeline` at 11 x 11 tokens and 6 of text in front."""
    pipe, call = tiny_flux()
    return pipe, {**call, "height": 176, "width": 176}


def _flux(pipeline: str, in_channels: int = 16, **call: Any) -> Tiny:
    """A Flux pipeline at 11 x 11 tokens, 6 of text in front, whose VAE does not scale."""
    import diffusers

    embeds = embeds_source()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=in_channels,
        out_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    vae = flux_vae()
    pipe = pipeline_of(
        getattr(diffusers, pipeline),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        transformer=transformer,
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "pooled_prompt_embeds": embeds(1, 16),
        "height": 22,
        "width": 22,
        "num_inference_steps": 10,
        "output_type": "latent",
        **call,
    }


@tiny_family(variant=True, tokens=121, steps=7)
def flux_img2img() -> Tiny:
    """`FluxImg2ImgPipeline`: the last 7 of 10 steps."""
    return _flux("FluxImg2ImgPipeline", image=ramp(), strength=0.7)


@tiny_family(variant=True, tokens=121, steps=10)
def flux_fill() -> Tiny:
    """`FluxFillPipeline`: the masked image and its mask as channels next to the latents."""
    mask = Image.new("L", (22, 22), 255)
    return _flux("FluxFillPipeline", 16 + 16 + 4, image=ramp(), mask_image=mask)


@tiny_family(variant=True, tokens=121 + 36, steps=10)
def flux_kontext() -> Tiny:
    """`FluxKontextPipeline`: 6 x 6 tokens of a reference image behind those of the latents."""
    return _flux("FluxKontextPipeline", image=ramp(12), max_area=22 * 22, _auto_resize=False)


@tiny_family(variant=True, tokens=121, steps=10)
def flux_control() -> Tiny:
    """`FluxControlPipeline`: the control image as channels next to the latents."""
    return _flux("FluxControlPipeline", 16 + 16, control_image=ramp())
