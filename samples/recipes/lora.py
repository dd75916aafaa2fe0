"""A LoRA on an accelerated pipeline.

python samples/recipes/lora.py black-forest-labs/FLUX.1-dev my-style.safetensors

It may be put on before `accelerate` or after it, weighted, exchanged and taken off in between:
each generation forecasts from its own computed steps, so nothing of the former weights is left.
"""

from __future__ import annotations

from typing import Any

import shared
from diffusers import FluxPipeline

import ditaccel


def with_lora(pipe: Any, weights: str, strength: float = 1.0) -> None:
    """Accelerate a pipeline and put a LoRA on it."""
    ditaccel.accelerate(pipe, "balanced")
    pipe.load_lora_weights(weights, adapter_name="style")
    pipe.set_adapters("style", strength)


if __name__ == "__main__":
    pipe, call, args = shared.opened(FluxPipeline, sample=None)
    with_lora(pipe, args.more[0])
    shared.show(pipe, call, "lora")
    pipe.set_adapters("style", 0.5)
    shared.show(pipe, call, "lora-half")
    pipe.unload_lora_weights()
    shared.show(pipe, call, "lora-off")
