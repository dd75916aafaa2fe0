"""HiDream (text to image): text behind the image, other text tokens for each block, batched.

Latents that are no squares are padded to the largest number of tokens.
"""

from collections.abc import Mapping
from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets
from .grids import Grid


def _tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Image tokens and their padding; the latents are `(B, C, H, W)`, or packed."""
    if len(shape) == 3:
        return shape[1]
    size = shape[2:] if shape[2] == shape[3] else config.max_resolution
    return size[0] * size[1] // config.patch_size**2


def _grid(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
    """Of latents `(B, C, H, W)`, padding behind it; None where they come packed."""
    if len(shape) == 3:
        return None
    return 1, shape[2] // config.patch_size, shape[3] // config.patch_size


ADAPTER = FamilyAdapter(
    name="hidream",
    transformers=("HiDreamImageTransformer2DModel",),
    blocks=(
        BlockContract(
            "double_stream_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("block.attn1", "block.ff_i", "block.ff_t"),
        ),
        BlockContract(
            "single_stream_blocks",
            joint_text="back",
            forecast_modules=("block.attn1", "block.ff_i"),
        ),
    ),
    attention=(
        AttentionContract("double_stream_blocks", "block.attn1"),
        AttentionContract("single_stream_blocks", "block.attn1"),
    ),
    tokens=_tokens,
    grid_rule=_grid,
    text="back",
    timestep="timesteps",
    embedding="t_embedder",
    guidance="batched",
    presets=adaptive_presets(),
)
