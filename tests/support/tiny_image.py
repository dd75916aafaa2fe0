"""Tiny random image pipelines whose first blocks have text and image apart, or no text at all."""

from __future__ import annotations

from typing import Any

import torch
from tiny_registry import Tiny, embeds_source, quiet, tiny_family

# 11 x 11 tokens, and 5 x 3
_SIZE = {"height": 176, "width": 176}
_OTHER = {"height": 80, "width": 48}


@tiny_family(dispatches=False, resized=_OTHER, resized_tokens=5 * 3)
def pixart() -> Tiny:
    """`PixArtAlphaPipeline`: learned variance, text by cross-attention, guidance batched."""
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        cross_attention_dim=32,
        sample_size=22,
        caption_channels=16,
        use_additional_conditions=False,
    )
    pipe = PixArtAlphaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "negative_prompt": None,
        "use_resolution_binning": False,
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


def _flux2_transformer(guidance: bool) -> Any:
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )


@tiny_family(resized=_OTHER, resized_tokens=5 * 3)
def flux2() -> Tiny:
    """`Flux2Pipeline`: guidance distilled, no context; text and image fused in single blocks."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline

    embeds = embeds_source()
    pipe = Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=_flux2_transformer(guidance=True),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family("flux2", resized=_OTHER, resized_tokens=5 * 3)
def klein() -> Tiny:
    """`Flux2KleinPipeline`: two branches, whose texts have different lengths."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
    )

    embeds = embeds_source()
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=_flux2_transformer(guidance=False),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 4, 16),
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(masked=True, resized=_OTHER, resized_tokens=5 * 3)
def chroma() -> Tiny:
    """`ChromaPipeline`: two calls a step without a context, and a mask of `(B, 1, L, L)`."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    embeds = embeds_source()
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    pipe = ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool(),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]).bool(),
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(dispatches=False, resized=_OTHER, resized_tokens=5 * 3)
def aura_flow() -> Tiny:
    """`AuraFlowPipeline`: joint blocks, then single ones on `[registers, text, image]`, batched."""
    from diffusers import (
        AuraFlowPipeline,
        AuraFlowTransformer2DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    embeds = embeds_source()
    transformer = AuraFlowTransformer2DModel(
        sample_size=22,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    pipe = AuraFlowPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(dispatches=False, resized=_OTHER, resized_tokens=5 * 3)
def cogview4() -> Tiny:
    """`CogView4Pipeline`: two branches, whose texts have different lengths."""
    from diffusers import (
        CogView4Pipeline,
        CogView4Transformer2DModel,
        FlowMatchEulerDiscreteScheduler,
    )

    embeds = embeds_source()
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(32, 32),
        sample_size=22,
    )
    pipe = CogView4Pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 4, 16),
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(dispatches=False, resized=_OTHER, resized_tokens=5 * 3)
def cogview3() -> Tiny:
    """`CogView3PlusPipeline`: text in front, guidance batched."""
    from diffusers import (
        CogVideoXDDIMScheduler,
        CogView3PlusPipeline,
        CogView3PlusTransformer2DModel,
    )

    embeds = embeds_source()
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=22,
    )
    pipe = CogView3PlusPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        **_SIZE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
