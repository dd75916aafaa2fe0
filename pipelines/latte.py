"""Latte (text to video): blocks within frames take turns with blocks across frames."""

from collections.abc import Mapping
from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, ScaleShift, adaptive_presets
from .grids import Grid, tokens_on


def _grid(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid:
    """Of one frame, whose tokens attend to each other; latents are `(B, C, F, H, W)`."""
    return 1, shape[3] // config.patch_size, shape[4] // config.patch_size


ADAPTER = FamilyAdapter(
    name="latte",
    transformers=("LatteTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            forecast_modules=("attn1", "attn2", "ff"),
            modulation=ScaleShift(timestep="timestep"),
        ),
        BlockContract(
            "temporal_transformer_blocks",
            takes_turns=True,
            regrouped=True,
            forecast_modules=("attn1", "ff"),
        ),
    ),
    # Across frames a sequence has 16 tokens: no tiles to skip.
    attention=(AttentionContract("transformer_blocks"),),
    tokens=tokens_on(_grid),
    grid_rule=_grid,
    guidance="batched",
    presets=adaptive_presets(),
)
