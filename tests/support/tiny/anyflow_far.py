"""AnyFlow FAR."""

from __future__ import annotations

from tiny.builder import Tiny, pipeline_of, tiny_family
from tiny.parts import WAN, WAN_CALL, two_prompts, wan_vae


def chunks(partition: list[int]) -> Tiny:
    """`AnyFlowFARPipeline`, chunk by chunk, at 4 x 4 tokens per frame.

    Args:
        partition: latent frames of each chunk.
    """
    from diffusers import (
        AnyFlowFARPipeline,
        AnyFlowFARTransformer3DModel,
        FlowMapEulerDiscreteScheduler,
    )

    two = two_prompts()
    transformer = AnyFlowFARTransformer3DModel(
        **{**WAN, "attention_head_dim": 16, "num_layers": 3},
        chunk_partition=partition,
        full_chunk_limit=2,
        compressed_patch_size=(1, 4, 4),
    )
    pipe = pipeline_of(
        AnyFlowFARPipeline,
        vae=wan_vae(),
        transformer=transformer,
        scheduler=FlowMapEulerDiscreteScheduler(shift=3.0),
    )
    size = {"height": 64, "width": 64, "num_frames": 4 * sum(partition) - 3}
    return pipe, {**two, **WAN_CALL, **size}


@tiny_family()
def anyflow_far() -> Tiny:
    """`AnyFlowFARPipeline`: one chunk of 2 x 4 x 4 tokens."""
    return chunks([2])
