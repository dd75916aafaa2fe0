"""AnyFlow FAR (video by a flow map, chunk by chunk): AnyFlow's blocks, which see earlier chunks.

Each chunk is a generation of its own. When it is finished, a call keeps its keys and values, which
the next chunks read. Few steps are what the model is made for: compare with fewer steps first.
"""

from collections.abc import Mapping
from typing import Any

from .adapter import BlockContract, FamilyAdapter, adaptive_presets


def _prepares(named: Mapping[str, Any]) -> bool:
    """Whether keys and values of a finished chunk are kept."""
    return bool((named.get("kv_cache_flag") or {}).get("is_cache_step"))


ADAPTER = FamilyAdapter(
    name="anyflow_far",
    transformers=("AnyFlowFARTransformer3DModel",),
    blocks=(BlockContract("blocks", forecast_modules=("attn1", "attn2", "ffn")),),
    no_attention_because="its video tokens also see the keys of earlier chunks, and tile maps need "
    "as many queries as keys",
    prepares=_prepares,
    guidance="batched",
    presets=adaptive_presets(),
)
