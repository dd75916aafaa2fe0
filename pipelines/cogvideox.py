"""CogVideoX (text, image or video to video): joint attention, text in front, guidance batched."""

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets
from .grids import frames_first, tokens_on

ADAPTER = FamilyAdapter(
    name="cogvideox",
    transformers=("CogVideoXTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            encoder="encoder_hidden_states",
            returns=("hidden", "encoder"),
            forecast_modules=("attn1", "ff"),
            token_axes={"image_rotary_emb": 0},
        ),
    ),
    attention=(AttentionContract("transformer_blocks"),),
    tokens=tokens_on(frames_first),
    grid_rule=frames_first,
    text="front",
    embedding="time_embedding",
    guidance="batched",
    presets=adaptive_presets(),
)
