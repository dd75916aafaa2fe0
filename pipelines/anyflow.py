"""AnyFlow (text or image to video by a flow map): Wan's blocks, a timestep for each frame.

Its output is the mean velocity from one timestep to the next, so that any number of steps gives a
picture: compare with fewer steps first.
"""

from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets
from .grids import Grid, tokens_on


def _grid(config: Any, shape: tuple[int, ...], named: Any) -> Grid:
    """Of latents `(B, F, C, H, W)` cut into patches of one frame."""
    _, rows, columns = config.patch_size
    return shape[1], shape[3] // rows, shape[4] // columns


ADAPTER = FamilyAdapter(
    name="anyflow",
    transformers=("AnyFlowTransformer3DModel",),
    blocks=(BlockContract("blocks", forecast_modules=("attn1", "attn2", "ffn")),),
    attention=(AttentionContract("blocks"),),
    tokens=tokens_on(_grid),
    grid_rule=_grid,
    guidance="batched",
    presets=adaptive_presets(),
)
