"""ConsisID (image of a person to video): CogVideoX's blocks, with attention to the face between."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets
from .grids import frames_first, tokens_on

ADAPTER = FamilyAdapter(
    name="consisid",
    transformers=("ConsisIDTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("attn1", "ff"),
        ),
    ),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=tokens_on(frames_first),
    grid_rule=frames_first,
    text="front",
    guidance="batched",
    presets=adaptive_presets(),
)
