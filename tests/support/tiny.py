"""Tiny random pipelines, built offline: they prove mechanics, never quality."""

from __future__ import annotations

from typing import Any

import torch


def _seeded() -> None:
    torch.manual_seed(0)


def tiny_dit(layers: int = 4, scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    """`DiTPipeline`, guidance batched, no cache context. Returns (pipe, call arguments)."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    _seeded()
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipe = DiTPipeline(transformer.eval(), vae.eval(), scheduler or DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe, {
        "class_labels": [1, 2],
        "guidance_scale": 3.0,
        "num_inference_steps": 8,
        "output_type": "np",
    }


def _wan_transformer(layers: int) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=layers,
        rope_max_seq_len=32,
    ).eval()


def _wan_call(steps: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "prompt_embeds": torch.randn(1, 6, 16, generator=generator),
        "negative_prompt_embeds": torch.randn(1, 6, 16, generator=generator),
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
        "output_type": "latent",
    }


def tiny_wan(layers: int = 4, scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    """`WanPipeline` 2.1, guidance in two calls with named contexts, latents out."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    _seeded()
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=_wan_transformer(layers),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, _wan_call(8)


def tiny_wan22(layers: int = 4) -> tuple[Any, dict[str, Any]]:
    """`WanPipeline` 2.2: two transformers, the second below half of the noise."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    _seeded()
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=_wan_transformer(layers),
        transformer_2=_wan_transformer(layers),
        boundary_ratio=0.5,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, _wan_call(12)


def tiny_flux(layers: int = 2, single_layers: int = 3) -> tuple[Any, dict[str, Any]]:
    """`FluxPipeline` with true guidance in two calls, latents out."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    _seeded()
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
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)

    def embeds(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

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


def generate(pipe: Any, call: dict[str, Any], seed: int = 0, **changes: Any) -> torch.Tensor:
    """Run a pipeline with a fresh generator; returns its images, frames or latents as a tensor."""
    arguments = {**call, **changes}
    output = pipe(**arguments, generator=torch.Generator().manual_seed(seed))
    result = output[0]
    if isinstance(result, list) and torch.is_tensor(result[0]):
        result = result[-1]  # FramePack: what there was after each section
    return torch.as_tensor(result)
