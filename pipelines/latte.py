"""Latte (text to video): blocks within frames take turns with blocks across frames."""

from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, ScaleShift, adaptive_presets


def _tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Tokens of one frame: those that attend to each other."""
    return (shape[3] // config.patch_size) * (shape[4] // config.patch_size)


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
    tokens=_tokens,
    guidance="batched",
    presets=adaptive_presets(),
)
