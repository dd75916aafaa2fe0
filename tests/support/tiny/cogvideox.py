"""CogVideoX, 1.5 and with images or videos given among it."""

from __future__ import annotations

from typing import Any

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import VIDEO, cogvideox_vae, noise_frames


def _transformer(**options: Any) -> Any:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        **{"in_channels": 4, **options},
        num_attention_heads=2,
        attention_head_dim=16,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=4,
        sample_width=18,
        sample_height=14,
        sample_frames=9,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
    )


def _cogvideox(patch_size_t: int | None) -> Tiny:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    embeds = embeds_source()
    transformer = _transformer(patch_size_t=patch_size_t, patch_bias=patch_size_t is None)
    pipe = pipeline_of(
        CogVideoXPipeline, transformer=transformer, scheduler=CogVideoXDDIMScheduler()
    )
    return pipe, {
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
    dispatches=False,
    resized={"height": 80, "width": 48, "num_frames": 17},
    resized_tokens=3 * 5 * 3,
)
def cogvideox15() -> Tiny:
    """`CogVideoXPipeline` as in 1.5: patches of two frames, one latent frame padded on."""
    return _cogvideox(patch_size_t=2)


def _parts(in_channels: int) -> dict[str, Any]:
    from diffusers import CogVideoXDDIMScheduler

    return {
        "vae": cogvideox_vae(),
        "transformer": _transformer(in_channels=in_channels),
        "scheduler": CogVideoXDDIMScheduler(),
    }


@tiny_family(variant=True, tokens=126, steps=7)
def cogvideox_i2v() -> Tiny:
    """`CogVideoXImageToVideoPipeline`: the image as channels."""
    from diffusers import CogVideoXImageToVideoPipeline

    embeds = embeds_source()
    return pipeline_of(CogVideoXImageToVideoPipeline, **_parts(8)), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "image": noise_frames(1)[0],
        **VIDEO,
        "num_frames": 5,
    }


@tiny_family(variant=True, tokens=126, steps=7)
def cogvideox_v2v() -> Tiny:
    """`CogVideoXVideoToVideoPipeline`: starts in the middle of the schedule."""
    from diffusers import CogVideoXVideoToVideoPipeline

    embeds = embeds_source()
    return pipeline_of(CogVideoXVideoToVideoPipeline, **_parts(4)), {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "video": noise_frames(5),
        **VIDEO,
        "num_inference_steps": 9,
        "strength": 0.8,
    }
