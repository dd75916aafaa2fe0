"""Wan 2.1 and 2.2 (text to video): one or two transformers, guidance in two calls."""

from .adapter import (
    BY_DIFFERENCE,
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    ScaleShift,
    adaptive_presets,
    patch_tokens,
)

# Wan's timesteps are shifted so far that a third of the steps lies above 0.9 of the noise, where
# outputs hardly change: fewer of them need to be computed first than elsewhere. Chosen on four
# clips of shapes-wan (UniPC, 40 and 20 steps); `eval/bench/tables/schedulers.sh` compares them with
# fewer steps.
LEVELS = {"safe": (0.003, 0.2, 0), "balanced": (0.006, 0.2, 2), "fast": (0.012, 0.12, 3)}
# UniPC loses little from 40 steps to 26: `balanced` on these is closer to dense than `fast` on all,
# at equal time.
SHARES = {"balanced": 26 / 40}

ADAPTER = FamilyAdapter(
    name="wan",
    transformers=("WanTransformer3DModel",),
    blocks=(
        BlockContract(
            "blocks",
            forecast_modules=("attn1", "attn2", "ffn"),
            token_axes={"rotary_emb": 1, "temb": 1},
            modulation=ScaleShift(),
        ),
    ),
    attention=(AttentionContract("blocks"),),
    tokens=patch_tokens,
    embedding="condition_embedder.time_proj",
    presets=adaptive_presets(LEVELS, SHARES),
    base={"adaptive_taylor": {**BY_DIFFERENCE["adaptive_taylor"], "warmup": 0.2}},
)
