"""LTX 2 (text or image to video with sound): two streams of latents, guidance partly batched."""

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    ScaleShift,
    adaptive_presets,
    packed_tokens,
)
from .grids import from_sizes

_PARTS = ("attn1", "audio_attn1", "attn2", "audio_attn2")
_CROSS = ("audio_to_video_attn", "video_to_audio_attn")

ADAPTER = FamilyAdapter(
    name="ltx2",
    transformers=("LTX2VideoTransformer3DModel",),
    blocks=(
        BlockContract(
            "transformer_blocks",
            second_stream="audio_hidden_states",
            returns=("hidden", "second_stream"),
            forecast_modules=(*_PARTS, *_CROSS, "ff", "audio_ff"),
            cross=("attn2", "audio_attn2", *_CROSS),
            modulation=ScaleShift(),
        ),
    ),
    # 20 seconds of sound are 500 tokens: too few for tiles.
    attention=(AttentionContract("transformer_blocks"),),
    tokens=packed_tokens,
    grid_rule=from_sizes,
    second_stream="audio_hidden_states",
    guidance="batched",
    presets=adaptive_presets(),
)
