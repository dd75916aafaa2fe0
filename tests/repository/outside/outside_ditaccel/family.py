"""A family: what ditaccel must know of its transformer, as data."""

from ditaccel.pipelines import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    adaptive_presets,
    packed_tokens,
    register_family,
)


def tokens_in(config, shape, named):
    """Frames, rows and columns of the tokens, for methods that look at neighbours."""
    rows, columns = (int(n) + 1 for n in named["img_ids"].amax(0)[1:])
    return 1, rows, columns


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
        grid_rule=tokens_in,
        text="front",
        presets=adaptive_presets(),
    )
)
