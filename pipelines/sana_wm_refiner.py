"""SANA-WM's refiner (a video refined, a few frames after another): LTX 2's blocks over a window.

Each group of frames is a generation of its own. Its queries see keys and values of earlier frames,
which calls between the generations keep; three distilled steps leave a cache next to nothing.
"""

from collections.abc import Mapping
from typing import Any

from .adapter import BlockContract, FamilyAdapter, adaptive_presets


def _prepares(named: Mapping[str, Any]) -> bool:
    """Whether keys and values of frames that are finished are kept."""
    return named.get("kv_cache_mode") not in (None, "inject")


ADAPTER = FamilyAdapter(
    name="sana_wm_refiner",
    transformers=("SanaWMLTX2RefinerTransformer3DModel",),
    blocks=(BlockContract("transformer_blocks", forecast_modules=("attn1", "attn2", "ff")),),
    no_attention_because="its video tokens also see the keys of earlier frames, and tile maps need "
    "as many queries as keys",
    prepares=_prepares,
    presets=adaptive_presets(),
)
