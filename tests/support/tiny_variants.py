"""Tiny pipelines that share all contracts with another one, and differ in what goes in.

Reference images add tokens, masks and control images add channels, and a given image starts the
loop in the middle of the schedule.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from tiny_registry import Tiny, embeds_source, quiet, tiny_family


def _picture(size: int = 22) -> Image.Image:
    ramp = torch.arange(size * size * 3).reshape(size, size, 3) * 5 % 256
    return Image.fromarray(ramp.to(torch.uint8).numpy())


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
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, shift_factor=0.0
    )
    pipe = getattr(diffusers, pipeline)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "pooled_prompt_embeds": embeds(1, 16),
        "height": 22,
        "width": 22,
        "num_inference_steps": 10,
        "output_type": "latent",
        **call,
    }


@tiny_family("flux", variant=True, tokens=121, steps=7)
def flux_img2img() -> Tiny:
    """`FluxImg2ImgPipeline`: the last 7 of 10 steps."""
    return _flux("FluxImg2ImgPipeline", image=_picture(), strength=0.7)


@tiny_family("flux", variant=True, tokens=121, steps=10)
def flux_fill() -> Tiny:
    """`FluxFillPipeline`: the masked image and its mask as channels beside the latents."""
    mask = Image.new("L", (22, 22), 255)
    return _flux("FluxFillPipeline", 16 + 16 + 4, image=_picture(), mask_image=mask)


@tiny_family("flux", variant=True, tokens=121 + 36, steps=10)
def flux_kontext() -> Tiny:
    """`FluxKontextPipeline`: 6 x 6 tokens of a reference image behind those of the latents."""
    return _flux("FluxKontextPipeline", image=_picture(12), max_area=22 * 22, _auto_resize=False)


@tiny_family("flux", variant=True, tokens=121, steps=10)
def flux_control() -> Tiny:
    """`FluxControlPipeline`: the control image as channels beside the latents."""
    return _flux("FluxControlPipeline", 16 + 16, control_image=_picture())


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


@tiny_family("qwen_image", variant=True, tokens=121 + 64, steps=8, masked=True)
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
    pipe = QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=PooledImages(),
        text_encoder=None,
        tokenizer=None,
        processor=None,
        transformer=transformer,
    )
    return quiet(pipe), {
        "image": _picture(64),
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


@tiny_family("z_image", variant=True, tokens=128, steps=5)
def z_image_img2img() -> Tiny:
    """`ZImageImg2ImgPipeline`: timesteps that rise from the middle, the last 5 of 10 steps."""
    from diffusers import AutoencoderKL, ZImageImg2ImgPipeline
    from tiny_image2 import z_image

    made, call = z_image()
    embeds_source()
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, shift_factor=0.0
    )
    pipe = ZImageImg2ImgPipeline(**{**made.components, "vae": vae})
    image = {"image": _picture(), "strength": 0.5, "height": 22, "width": 22}
    return quiet(pipe), {**call, **image, "num_inference_steps": 10}


@tiny_family("pixart", variant=True, tokens=121, steps=8)
def pixart_sigma() -> Tiny:
    """`PixArtSigmaPipeline`: the same transformer and loop as alpha."""
    from diffusers import PixArtSigmaPipeline
    from tiny_image import pixart

    made, call = pixart()
    return quiet(PixArtSigmaPipeline(**made.components)), call


@tiny_family("flux2", variant=True, tokens=121 + 36, steps=8)
def klein_edit() -> Tiny:
    """`Flux2KleinPipeline` with 6 x 6 tokens of a reference image behind those of the latents."""
    from tiny_image import klein

    pipe, call = klein()
    return pipe, {**call, "image": [_picture(96)]}


def klein_kv() -> Tiny:
    """`Flux2KleinKVPipeline`: keys and values of the reference image are kept from one step on."""
    from diffusers import Flux2KleinKVPipeline
    from tiny_image import klein

    made, call = klein()
    pipe = Flux2KleinKVPipeline(**made.components)
    del call["negative_prompt_embeds"]
    return quiet(pipe), {**call, "image": [_picture(96)]}


def _like_flux(transformer: str, **more: Any) -> Any:
    import diffusers

    return getattr(diffusers, transformer)(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        **more,
    )


def _without_text_encoder(transformer: Any, **more: Any) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": None,
        "text_encoder": None,
        "tokenizer": None,
        "transformer": transformer,
        **more,
    }


@tiny_family(variant=True, tokens=121, steps=8)
def ovis_image() -> Tiny:
    """`OvisImagePipeline`: the blocks of Flux, two branches."""
    from diffusers import OvisImagePipeline

    embeds = embeds_source()
    transformer = _like_flux("OvisImageTransformer2DModel", out_channels=64)
    pipe = OvisImagePipeline(**_without_text_encoder(transformer))
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt": None,
        "negative_prompt_embeds": embeds(1, 4, 16),
        "height": 176,
        "width": 176,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=121, steps=8)
def longcat_image() -> Tiny:
    """`LongCatImagePipeline`: the blocks of Flux, two branches; it takes words only."""
    from diffusers import LongCatImagePipeline

    def encode(prompts: list[str]) -> torch.Tensor:
        words = prompts[0].split() or ["nothing"]
        source = torch.Generator().manual_seed(sum(map(ord, prompts[0])))
        return torch.randn(1, len(words), 16, generator=source)

    embeds_source()
    transformer = _like_flux("LongCatImageTransformer2DModel", pooled_projection_dim=16)
    pipe = LongCatImagePipeline(**_without_text_encoder(transformer, text_processor=None))
    pipe._encode_prompt = encode
    return quiet(pipe), {
        "prompt": "a red circle",
        "enable_prompt_rewrite": False,
        "height": 176,
        "width": 176,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=121, steps=8)
def bria() -> Tiny:
    """`BriaPipeline`: the blocks of Flux, guidance batched."""
    from diffusers import AutoencoderKL, BriaPipeline

    embeds = embeds_source()
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=16, shift_factor=0.0
    )
    parts = _without_text_encoder(_like_flux("BriaTransformer2DModel"), vae=vae)
    return quiet(BriaPipeline(**parts)), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "height": 22,
        "width": 22,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=144, steps=8)
def glm_image() -> Tiny:
    """`GlmImagePipeline`: the blocks of CogView4, timesteps one below the schedule's."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        GlmImagePipeline,
        GlmImageTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
    )
    pipe = GlmImagePipeline(
        tokenizer=None,
        processor=None,
        text_encoder=None,
        vision_language_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "prior_token_ids": torch.arange(144)[None] % 16,
        "height": 192,
        "width": 192,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
