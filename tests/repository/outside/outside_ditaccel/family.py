"""A family: what ditaccel must know of its transformer, as data."""

from ditaccel.pipelines import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
    register_family,
)

ADAPTER = register_family(
    FamilyAdapter(
        name="outside",
        transformers=("OutsideTransformer2DModel",),
        blocks=(
            BlockContract(
                "transformer_blocks",
                encoder="encoder_hidden_states",
                returns=("encoder", "hidden"),
                forecast_modules=("attn", "ff", "ff_context"),
            ),
            BlockContract(
                "single_transformer_blocks",
                encoder="encoder_hidden_states",
                returns=("encoder", "hidden"),
                forecast_modules=("proj_out",),
                idle_modules=("attn", "proj_mlp"),
            ),
        ),
        attention=(
            AttentionContract("transformer_blocks", "attn"),
            AttentionContract("single_transformer_blocks", "attn"),
        ),
        tokens=packed_tokens,
        text="front",
        presets=adaptive_presets(),
    )
)
