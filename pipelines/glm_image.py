"""GLM-Image (text and images to image): the blocks of CogView4, two calls a step and no context.

Where images are given, the first branch has their keys too: attention methods leave it dense.
"""

from dataclasses import replace

from . import cogview4

ADAPTER = replace(cogview4.ADAPTER, name="glm_image", transformers=("GlmImageTransformer2DModel",))
