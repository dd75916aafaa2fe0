"""Tiny random pipelines of all families, long enough (121 tokens and more) for attention tiles.

Like `tiny.py`: built offline, and they prove mechanics, never quality.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_flux, tiny_wan, tiny_wan22
from tiny_registry import REGISTRY, Tiny, TinyFamily, embeds_source, quiet, tiny_family


@tiny_family(images=2, dispatches=False, resized_tokens=11 * 11)
def dit() -> Tiny:
    """`DiTPipeline` at 11 x 11 tokens: guidance batched, no text."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    embeds_source()
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        sample_size=22,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    call = {"class_labels": [1, 2], "num_inference_steps": 8, "output_type": "np"}
    return quiet(DiTPipeline(transformer, vae.eval(), DDIMScheduler())), call


@tiny_family(resized={"height": 80, "width": 48}, resized_tokens=5 * 3)
def flux() -> Tiny:
    """`FluxPipeline` at 11 x 11 tokens and 6 of text in front."""
    pipe, call = tiny_flux()
    return pipe, {**call, "height": 176, "width": 176}


@tiny_family(resized={"height": 64, "width": 112, "num_frames": 9}, resized_tokens=3 * 4 * 7)
def wan() -> Tiny:
    """`WanPipeline` 2.1 at 4 x 6 x 6 tokens, text by cross-attention."""
    pipe, call = tiny_wan()
    return pipe, {**call, "height": 96, "width": 96, "num_frames": 13}


@tiny_family("wan", resized={"height": 64, "width": 112, "num_frames": 9}, resized_tokens=3 * 4 * 7)
def wan22() -> Tiny:
    """`WanPipeline` 2.2, two transformers, at 4 x 6 x 6 tokens."""
    pipe, call = tiny_wan22(layers=2)
    return pipe, {**call, "height": 96, "width": 96, "num_frames": 13, "num_inference_steps": 10}


@tiny_family(
    masked=True,
    resized={"height": 80, "width": 48, "num_frames": 13},
    resized_tokens=4 * 5 * 3,
)
def hunyuan_video() -> Tiny:
    """`HunyuanVideoPipeline` at 2 x 7 x 9 tokens, text behind them (padding at its end)."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )

    embeds = embeds_source()
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    pipe = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 8, 16),
        "pooled_prompt_embeds": embeds(1, 8),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_pooled_prompt_embeds": embeds(1, 8),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]]),
        "true_cfg_scale": 3.0,
        "height": 112,
        "width": 144,
        "num_frames": 5,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


def _cogvideox(patch_size_t: int | None) -> Tiny:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    embeds = embeds_source()
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=4,
        sample_width=18,
        sample_height=14,
        sample_frames=9,
        patch_size_t=patch_size_t,
        patch_bias=patch_size_t is None,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    )
    pipe = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "height": 112,
        "width": 144,
        "num_frames": 5 if patch_size_t is None else 9,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


@tiny_family(
    dispatches=False,
    resized={"height": 80, "width": 48, "num_frames": 9},
    resized_tokens=3 * 5 * 3,
)
def cogvideox() -> Tiny:
    """`CogVideoXPipeline` at 2 x 7 x 9 tokens, 6 of text in front, guidance batched."""
    return _cogvideox(patch_size_t=None)


@tiny_family(
    "cogvideox",
    dispatches=False,
    resized={"height": 80, "width": 48, "num_frames": 17},
    resized_tokens=3 * 5 * 3,
)
def cogvideox15() -> Tiny:
    """`CogVideoXPipeline` as in 1.5: patches of two frames, one latent frame padded on."""
    return _cogvideox(patch_size_t=2)


@tiny_family(resized={"height": 96, "width": 160, "num_frames": 17}, resized_tokens=3 * 3 * 5)
def ltx() -> Tiny:
    """`LTXPipeline` at 2 x 7 x 9 tokens, text by cross-attention, guidance batched."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    embeds = embeds_source()
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=4,
        caption_channels=16,
    )
    pipe = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "height": 224,
        "width": 288,
        "num_frames": 9,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


@tiny_family(
    dispatches=False,
    calls_a_layer=2,  # one for each item of the batch
    resized={"height": 80, "width": 48, "num_frames": 13},
    resized_tokens=3 * 5 * 3,
)
def mochi() -> Tiny:
    """`MochiPipeline` at 2 x 7 x 9 tokens, valid text behind them, guidance batched.

    Both prompts have the same number of tokens, so that nothing but their place in the batch tells
    the branches apart.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

    embeds = embeds_source()
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        max_sequence_length=8,
    )
    pipe = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool(),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool(),
        "height": 112,
        "width": 144,
        "num_frames": 7,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


@tiny_family(dispatches=False, resized={"height": 80, "width": 48}, resized_tokens=5 * 3)
def sd3() -> Tiny:
    """`StableDiffusion3Pipeline` at 11 x 11 tokens, 6 of text behind, guidance batched.

    Its first block has a second attention of the image alone, as in 3.5 medium.
    """
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    embeds = embeds_source()
    transformer = SD3Transformer2DModel(
        sample_size=22,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 6, 16),
        "pooled_prompt_embeds": embeds(1, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "negative_pooled_prompt_embeds": embeds(1, 16),
        "height": 176,
        "width": 176,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


@tiny_family(masked=True, resized={"height": 80, "width": 48}, resized_tokens=5 * 3)
def qwen_image() -> Tiny:
    """`QwenImagePipeline` at 11 x 11 tokens, text in front (padding at its end), two branches."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
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
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    return quiet(pipe), {
        "prompt_embeds": embeds(1, 8, 16),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]),
        "negative_prompt_embeds": embeds(1, 8, 16),
        "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]),
        "true_cfg_scale": 3.0,
        "height": 176,
        "width": 176,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


def _collected() -> dict[str, TinyFamily]:
    """All pipelines that the files `tiny_*.py` beside this one register, by name."""
    for path in sorted(Path(__file__).parent.glob("tiny_*.py")):
        importlib.import_module(path.stem)
    return dict(sorted(REGISTRY.items()))


_ALL = _collected()
FAMILIES = {name: tiny for name, tiny in _ALL.items() if not tiny.variant}
VARIANTS = {name: tiny for name, tiny in _ALL.items() if tiny.variant}
ATTENTION_FAMILIES = [name for name, tiny in FAMILIES.items() if tiny.attention]


def families_tested() -> set[str]:
    """Families of `FAMILIES`, and those of `VARIANTS` with the very contracts of one of them."""
    from ditaccel.pipelines import adapters

    def contracts(family: str) -> tuple[Any, ...]:
        adapter = adapters()[family]
        return adapter.blocks, adapter.attention, adapter.tokens, adapter.text

    tested = {tiny.family for tiny in FAMILIES.values()}
    known = [contracts(family) for family in tested]
    twins = {tiny.family for tiny in VARIANTS.values() if contracts(tiny.family) in known}
    return tested | twins


def family_of(name: str) -> str:
    """The adapter's name for a key of `FAMILIES`."""
    return FAMILIES[name].family


def peaked(name: str) -> Tiny:
    """A pipeline of `FAMILIES` that normalizes queries, with peaked attention: much to skip.

    Queries are all but reduced to one channel of each head: each looks at the keys at either end of
    that channel, so that whole tiles of queries have no use for a tile of keys.
    """
    pipe, call = FAMILIES[name]()
    found = 0
    with torch.no_grad():
        for part in (pipe.transformer, getattr(pipe, "transformer_2", None)):
            for path, weight in () if part is None else part.named_parameters():
                if not path.endswith(("norm_q.weight", "norm_added_q.weight")):
                    continue
                if "attn2" in path and name.startswith(("wan", "ltx")):
                    continue  # cross-attention
                head_dim = weight.numel() // (2 if name.startswith(("wan", "ltx")) else 1)
                weight.mul_(0.01)
                weight[::head_dim] = 200.0
                found += 1
    assert found
    return pipe, call
