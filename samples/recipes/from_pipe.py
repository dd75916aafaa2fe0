"""Two pipelines that share one transformer.

python samples/recipes/from_pipe.py

`from_pipe` gives another pipeline with the same components, so it is accelerated as well, and
takes no more memory. Each generation goes by the scheduler of the pipeline that makes it, and
their states keep apart.
"""

from __future__ import annotations

from typing import Any

import shared
from diffusers import FluxImg2ImgPipeline, FluxPipeline

import ditaccel


def with_refiner(pipe: Any) -> Any:
    """Accelerate a text-to-image pipeline; returns an image-to-image one with the same weights."""
    ditaccel.accelerate(pipe, "balanced")
    return FluxImg2ImgPipeline.from_pipe(pipe)


if __name__ == "__main__":
    pipe, call, _ = shared.opened(FluxPipeline)
    refiner = with_refiner(pipe)
    draft = shared.made(pipe, call)
    shared.show(refiner, {**call, "image": draft, "strength": 0.6}, "refined")
    ditaccel.restore(refiner)  # of either: the transformer is one
    assert not ditaccel.is_accelerated(pipe)
