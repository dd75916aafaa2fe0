"""ACE-Step 1.5 (text and lyrics to music): every other layer looks at a window, guidance batched.

The windows are masks over whole rows of the attention matrix: attention methods leave these layers
dense, and serve the others. Turbo models run 8 steps without guidance.
"""

from typing import Any

from .adapter import AttentionContract, BlockContract, FamilyAdapter, adaptive_presets


def _tokens(config: Any, shape: tuple[int, ...]) -> int:
    """Audio tokens; the latents are `(B, L, C)`, padded to whole patches."""
    return -(-shape[1] // config.patch_size)


ADAPTER = FamilyAdapter(
    name="ace_step",
    transformers=("AceStepTransformer1DModel",),
    blocks=(
        BlockContract(
            "layers",
            forecast_modules=("self_attn", "cross_attn", "mlp"),
            cross=("cross_attn",),
            modulation="self_attn_norm",
        ),
    ),
    attention=(AttentionContract("layers", "self_attn"),),
    tokens=_tokens,
    guidance="batched",
    presets=adaptive_presets(),
)
