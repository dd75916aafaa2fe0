"""Cosmos 3 (text, image, video or actions to video with sound): text and video packed in a row.

Text runs through the same layers with weights of its own, and sees nothing of the video. Batches
have one item: tensors in the layers are `(L, C)`. Actions are a third output: on such calls only
what is forecast inside the transformer works.
"""

from .adapter import BY_DIFFERENCE, BlockContract, FamilyAdapter, adaptive_presets

ADAPTER = FamilyAdapter(
    name="cosmos3",
    transformers=("Cosmos3OmniTransformer",),
    blocks=(
        BlockContract(
            "layers",
            hidden="gen_seq",
            encoder="und_seq",
            returns=("encoder", "hidden"),
            forecast_modules=("self_attn", "mlp", "mlp_moe_gen"),
            modulation="input_layernorm_moe_gen",
        ),
    ),
    no_attention_because="its text tokens are keys without queries, and tile maps need as many "
    "queries as keys",
    timestep="vision_timesteps",
    sample="vision_tokens",
    second_stream="sound_tokens",
    presets=adaptive_presets(),
    base=BY_DIFFERENCE,
)
