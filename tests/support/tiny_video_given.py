"""Tiny random image to video pipelines that give tokens timesteps of their own."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from tiny_registry import Tiny, quiet, tiny_family
from tiny_video import wan_vae
from tiny_video_joint import sana_video
from tiny_video_more import ltx2


def _image(width: int, height: int) -> Image.Image:
    pixels = torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(3)) * 255
    return Image.fromarray(pixels.byte().numpy()).resize((width, height))


def _with_image(pipe: Any, call: dict[str, Any], kind: Any, **parts: Any) -> Tiny:
    image = _image(call["width"], call["height"])
    return quiet(kind(**{**pipe.components, **parts})), {**call, "image": image}


@tiny_family("ltx", variant=True, tokens=2 * 7 * 9, steps=7)
def ltx_i2v() -> Tiny:
    """`LTXImageToVideoPipeline`: 0 for the tokens of the image."""
    from diffusers import AutoencoderKLLTXVideo, LTXImageToVideoPipeline
    from tiny_families import ltx

    pipe, call = ltx()
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(4,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )
    return _with_image(pipe, call, LTXImageToVideoPipeline, vae=vae)


@tiny_family("ltx2", variant=True, tokens=2 * 7 * 9, steps=7)
def ltx2_i2v() -> Tiny:
    """`LTX2ImageToVideoPipeline`: 0 for the tokens of the image, and none for the sound."""
    from diffusers import LTX2ImageToVideoPipeline

    return _with_image(*ltx2(), LTX2ImageToVideoPipeline)


@tiny_family("sana_video", variant=True, steps=7)
def sana_video_i2v() -> Tiny:
    """`SanaImageToVideoPipeline`: a grid of timesteps, 0 for the image."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaImageToVideoPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _with_image(*sana_video(), SanaImageToVideoPipeline, vae=wan_vae(), scheduler=scheduler)
