"""Kandinsky 6 SR."""

from __future__ import annotations

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import Averages, noise_frames


@tiny_family()
def kandinsky6_sr() -> Tiny:
    """`Kandinsky6SRPipeline`: one tile of 2 x 8 x 8 tokens."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Kandinsky6SRPipeline,
        Kandinsky6SRTransformer3DModel,
    )

    embeds_source()
    transformer = Kandinsky6SRTransformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_visual_blocks=3,
        axes_dims=(4, 6, 6),
        tile_sizes=((64, 64),),
    )
    pipe = pipeline_of(
        Kandinsky6SRPipeline,
        vae=Averages(8),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    return pipe, {
        "video": noise_frames(5, 32, 32),
        "resolution_scale": 2,
        "num_inference_steps": 8,
        "output_type": "pt",
    }


def two_tiles() -> Tiny:
    """The same with two tiles, one after the other."""
    pipe, call = kandinsky6_sr()
    return pipe, {**call, "video": noise_frames(5, 48, 32)}
