"""AnyFlow."""

from __future__ import annotations

from tiny.builder import Tiny, pipeline_of, tiny_family
from tiny.parts import WAN, WAN_CALL, WAN_RESIZED, two_prompts, wan_vae


@tiny_family(resized=WAN_RESIZED, resized_tokens=3 * 4 * 7)
def anyflow() -> Tiny:
    """`AnyFlowPipeline` at 4 x 6 x 6 tokens: both timesteps of a step, guidance batched."""
    from diffusers import AnyFlowPipeline, AnyFlowTransformer3DModel, FlowMapEulerDiscreteScheduler

    call = {**two_prompts(), **WAN_CALL}
    pipe = pipeline_of(
        AnyFlowPipeline,
        vae=wan_vae(),
        transformer=AnyFlowTransformer3DModel(**WAN),
        scheduler=FlowMapEulerDiscreteScheduler(shift=3.0),
    )
    return pipe, call
