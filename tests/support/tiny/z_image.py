"""Z-Image."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE, flux_vae, ramp


@tiny_family(resized=SMALL, resized_tokens=32)
def z_image() -> Tiny:
    """`ZImagePipeline`: latents as a list, timesteps that rise, a schedule that ends at 0."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    embeds = embeds_source()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )
    with torch.no_grad():  # diffusers leaves them empty
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    pipe = pipeline_of(
        ZImagePipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformer,
    )
    return pipe, {
        "prompt_embeds": [embeds(6, 16)],
        "negative_prompt_embeds": [embeds(4, 16)],
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(variant=True, tokens=128, steps=5)
def z_image_img2img() -> Tiny:
    """`ZImageImg2ImgPipeline`: timesteps that rise from the middle, the last 5 of 10 steps."""
    from diffusers import ZImageImg2ImgPipeline

    made, call = z_image()
    embeds_source()
    vae = flux_vae()
    pipe = pipeline_of(ZImageImg2ImgPipeline, **{**made.components, "vae": vae})
    image = {"image": ramp(), "strength": 0.5, "height": 22, "width": 22}
    return pipe, {**call, **image, "num_inference_steps": 10}
