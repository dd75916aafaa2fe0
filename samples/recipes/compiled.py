"""Compiled blocks and a cache.

python samples/recipes/compiled.py

Skipped blocks are skipped from outside their graphs, so no graph breaks and none is compiled twice.
The first call compiles: time the second one. `torch.compile(pipe.transformer)` works too, with
methods that forecast outputs, as the presets do.
"""

from __future__ import annotations

from typing import Any

import shared
from diffusers import FluxPipeline

import ditaccel


def compiled(pipe: Any, **options: Any) -> None:
    """Compile the repeated blocks of a pipeline's transformer and accelerate it.

    Args:
        pipe: a pipeline.
        **options: for `torch.compile`, such as `mode="max-autotune-no-cudagraphs"`.
    """
    pipe.transformer.compile_repeated_blocks(fullgraph=True, **options)
    ditaccel.accelerate(pipe, "balanced")


if __name__ == "__main__":
    pipe, call, _ = shared.opened(FluxPipeline)
    compiled(pipe)
    shared.show(pipe, call, "compiled-first-call")
    shared.show(pipe, call, "compiled")
