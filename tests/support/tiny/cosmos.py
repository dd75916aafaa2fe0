"""Cosmos 1, 2 and 2.5."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import unipc_scheduler, wan_vae


class _Guardrail(torch.nn.Module):
    """Stands in for the safety checker, which these pipelines insist on."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True


def _cosmos(**options: Any) -> Any:
    from diffusers import CosmosTransformer3DModel

    return CosmosTransformer3DModel(
        **{"in_channels": 4, **options},
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        mlp_ratio=2.0,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(8, 64, 64),
        concat_padding_mask=False,  # which would need torchvision
    )


def _cosmos_call(**changes: Any) -> dict[str, Any]:
    embeds = embeds_source()
    return {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "guidance_scale": 3.0,
        "height": 112,
        "width": 144,
        "num_frames": 9,
        "num_inference_steps": 8,
        "output_type": "latent",
        **changes,
    }


@tiny_family(resized={"height": 80, "width": 48, "num_frames": 17}, resized_tokens=3 * 5 * 3)
def cosmos() -> Tiny:
    """`CosmosTextToWorldPipeline` at 2 x 7 x 9 tokens: EDM, told apart by timesteps alone."""
    from diffusers import CosmosTextToWorldPipeline, EDMEulerScheduler

    call = _cosmos_call()
    pipe = pipeline_of(
        CosmosTextToWorldPipeline,
        transformer=_cosmos(),
        scheduler=EDMEulerScheduler(
            sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min"
        ),
        safety_checker=_Guardrail(),
    )
    return pipe, call


@tiny_family(variant=True, tokens=7 * 18, steps=8)
def cosmos2() -> Tiny:
    """`Cosmos2TextToImagePipeline`: flow matching's scheduler, and EDM in the pipeline."""
    from diffusers import Cosmos2TextToImagePipeline, FlowMatchEulerDiscreteScheduler

    call = _cosmos_call(width=288)
    del call["num_frames"]
    pipe = pipeline_of(
        Cosmos2TextToImagePipeline,
        transformer=_cosmos(extra_pos_embed_type=None),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=_Guardrail(),
    )
    return pipe, call


@tiny_family(variant=True, tokens=3 * 7 * 9, steps=8)
def cosmos2_v2w() -> Tiny:
    """`Cosmos2VideoToWorldPipeline`: branches are given latents of their own, frames timesteps."""
    from diffusers import Cosmos2VideoToWorldPipeline, FlowMatchEulerDiscreteScheduler

    frames = torch.rand(5, 112, 144, 3, generator=torch.Generator().manual_seed(3))
    call = _cosmos_call(video=list(frames.numpy()))
    pipe = pipeline_of(
        Cosmos2VideoToWorldPipeline,
        transformer=_cosmos(in_channels=5, extra_pos_embed_type=None),
        vae=wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=_Guardrail(),
    )
    return pipe, call


@tiny_family(variant=True, tokens=3 * 7 * 9, steps=8)
def cosmos25() -> Tiny:
    """`Cosmos2_5_PredictBasePipeline`: a timestep for each frame, tiny for the given ones."""
    from diffusers import Cosmos2_5_PredictBasePipeline

    video = torch.rand(5, 3, 112, 144, generator=torch.Generator().manual_seed(3))
    call = _cosmos_call(video=video[None].transpose(1, 2) * 2 - 1)
    pipe = pipeline_of(
        Cosmos2_5_PredictBasePipeline,
        transformer=_cosmos(in_channels=5, extra_pos_embed_type=None),
        vae=wan_vae(),
        scheduler=unipc_scheduler(),
        safety_checker=_Guardrail(),
    )
    return pipe, call
