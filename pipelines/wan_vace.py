"""Wan VACE (video editing): Wan's blocks, and side blocks that give hints to some of them."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    ScaleShift,
    adaptive_presets,
    patch_tokens,
)

_MODULES = ("attn1", "attn2", "ffn")

ADAPTER = FamilyAdapter(
    name="wan_vace",
    transformers=("WanVACETransformer3DModel",),
    blocks=(
        BlockContract(
            "vace_blocks",
            hidden="control_hidden_states",
            returns=("hint", "hidden"),
            gives_hints=True,
            forecast_modules=_MODULES,
        ),
        BlockContract("blocks", forecast_modules=_MODULES, modulation=ScaleShift()),
    ),
    attention=(AttentionContract("vace_blocks"), AttentionContract("blocks")),
    tokens=patch_tokens,
    embedding="condition_embedder.time_proj",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
