"""Weights in 8 bits (torchao) and a cache.

pip install torchao
python samples/recipes/quantized.py samples/models/shapes-flux fp8

Weights shrink by half and computed steps get a little faster or slower, depending on the GPU; the
cache saves whole steps as before. Where both are judged, judge them against the 16-bit pipeline:
`ditaccel eval --pipeline` measures the cache alone, since its dense run is quantized too.
"""

from __future__ import annotations

from typing import Any

import shared
from diffusers import FluxPipeline

import ditaccel


def quantized(pipe: Any, kind: str = "int8") -> None:
    """Quantize a pipeline's transformer and accelerate it.

    Args:
        pipe: a pipeline.
        kind: `int8` or `fp8`; the weights alone, activations keep their dtype.
    """
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    configs = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}
    quantize_(pipe.transformer, configs[kind]())
    ditaccel.accelerate(pipe, "balanced")


if __name__ == "__main__":
    pipe, call, args = shared.opened(FluxPipeline)
    kind = args.more[0] if args.more else "int8"
    quantized(pipe, kind)
    shared.show(pipe, call, kind)
