"""Kandinsky 6 (text or image to video with sound): two streams of latents, channels last."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
)
from .grids import channels_last, tokens_on

_VIDEO, _AUDIO = "video_dec_block", "audio_dec_block"
_CROSS = (
    f"{_VIDEO}.cross_attention",
    f"{_AUDIO}.cross_attention",
    "va_cross_attention",
    "av_cross_attention",
)


ADAPTER = FamilyAdapter(
    name="kandinsky6",
    transformers=("Kandinsky6Transformer3DModel",),
    blocks=(
        BlockContract(
            "visual_transformer_blocks",
            hidden="vis",
            second_stream="aud",
            returns=("hidden", "second_stream"),
            forecast_modules=(
                f"{_VIDEO}.self_attention",
                f"{_AUDIO}.self_attention",
                *_CROSS,
                f"{_VIDEO}.feed_forward",
                f"{_AUDIO}.feed_forward",
            ),
            cross=_CROSS,
            modulation=f"{_VIDEO}.self_attention_norm",
        ),
    ),
    # Ten seconds of sound are 430 tokens: too few for tiles.
    attention=(AttentionContract("visual_transformer_blocks", f"{_VIDEO}.self_attention"),),
    tokens=tokens_on(channels_last),
    grid_rule=channels_last,
    second_stream="audio_hidden_states",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
