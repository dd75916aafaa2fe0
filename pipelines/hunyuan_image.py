"""HunyuanImage 2.1 (text to image, refiner): HunyuanVideo's blocks, text behind the image."""

from dataclasses import replace

from .hunyuan_video import ADAPTER as _HUNYUAN_VIDEO

ADAPTER = replace(
    _HUNYUAN_VIDEO,
    name="hunyuan_image",
    transformers=("HunyuanImageTransformer2DModel",),
)
