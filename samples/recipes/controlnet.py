"""A ControlNet and a cache.

python samples/recipes/controlnet.py black-forest-labs/FLUX.1-dev \\
    InstantX/FLUX.1-dev-Controlnet-Canny edges.png

What the ControlNet adds between the blocks is part of what a computed step remembers. The
ControlNet itself is another module and runs at every step: it costs what it did.
"""

from __future__ import annotations

import sys
from typing import Any

import shared
from diffusers import FluxControlNetModel, FluxControlNetPipeline
from diffusers.utils import load_image

import ditaccel


def controlled(
    pipe: Any, call: dict[str, Any], image: Any, strength: float = 0.6
) -> dict[str, Any]:
    """Accelerate a pipeline with a ControlNet, and complete the arguments of its call."""
    ditaccel.accelerate(pipe, "balanced")
    return {**call, "control_image": image, "controlnet_conditioning_scale": strength}


if __name__ == "__main__":
    control = FluxControlNetModel.from_pretrained(sys.argv[2])
    pipe, call, args = shared.opened(FluxControlNetPipeline, sample=None, controlnet=control)
    shared.show(pipe, controlled(pipe, call, load_image(args.more[1])), "controlnet")
