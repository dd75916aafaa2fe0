"""Wan Animate 2 (a character moves as in a video): Wan's blocks, which see a reference video.

Each segment is a generation of its own. Before its first step a call keeps the keys and values of
the reference, which every step reads. Without guidance's text, one block of the model is left out.
"""

from collections.abc import Mapping
from typing import Any

from .adapter import BY_DIFFERENCE, BlockContract, FamilyAdapter, adaptive_presets


def _prepares(named: Mapping[str, Any]) -> bool:
    """Whether keys and values of the reference video are kept."""
    return named.get("kv_cache_mode") == "extract"


ADAPTER = FamilyAdapter(
    name="wan_animate2",
    transformers=("WanAnimate2Transformer3DModel",),
    blocks=(
        BlockContract(
            "blocks",
            forecast_modules=("self_attn", "cross_attn", "ffn"),
        ),
    ),
    no_attention_because="its frames also see the keys of the reference video's frames, and tile "
    "maps need as many queries as keys",
    prepares=_prepares,
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
