"""A clip that begins with a picture.

python samples/recipes/image_to_video.py Wan-AI/Wan2.1-I2V-14B-480P-Diffusers first.png

The picture reaches the transformer as channels beside the latents and as tokens of the text; both
are conditions like any other, so that another picture is another generation.
"""

from __future__ import annotations

from typing import Any

import shared
from diffusers import WanImageToVideoPipeline
from diffusers.utils import load_image

import ditaccel


def animated(pipe: Any, call: dict[str, Any], image: Any) -> dict[str, Any]:
    """Accelerate an image-to-video pipeline, and complete the arguments of its call."""
    ditaccel.accelerate(pipe, "balanced")
    return {**call, "image": image}


if __name__ == "__main__":
    pipe, call, args = shared.opened(WanImageToVideoPipeline, sample=None)
    shared.show(pipe, animated(pipe, call, load_image(args.more[0])), "image-to-video")
