"""ConsisID."""

from __future__ import annotations

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import VIDEO, cogvideox_vae, noise_frames


@tiny_family(
    dispatches=False,
    resized={"height": 80, "width": 48, "num_frames": 9},
    resized_tokens=3 * 5 * 3,
)
def consisid() -> Tiny:
    """`ConsisIDPipeline` at 2 x 7 x 9 tokens: the face is looked at behind every other block."""
    from diffusers import CogVideoXDDIMScheduler, ConsisIDTransformer3DModel
    from diffusers.pipelines.consisid.pipeline_consisid import (
        ConsisIDPipeline,
    )  # (else wants OpenCV)

    embeds = embeds_source()
    transformer = ConsisIDTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=4,
        sample_width=18,
        sample_height=14,
        sample_frames=9,
        max_text_seq_length=6,
        use_rotary_positional_embeddings=True,
        is_train_face=True,
        cross_attn_dim_head=8,
        cross_attn_num_heads=1,
        LFE_id_dim=8,
        LFE_vit_dim=8,
        LFE_depth=5,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=4,
        LFE_output_dim=32,
        LFE_ff_mult=1,
        LFE_num_scale=1,
    )
    pipe = pipeline_of(
        ConsisIDPipeline,
        vae=cogvideox_vae(),
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    )
    return pipe, {
        "prompt_embeds": embeds(1, 6, 16),
        "negative_prompt_embeds": embeds(1, 6, 16),
        "image": noise_frames(1)[0],
        "id_vit_hidden": [embeds(1, 3, 8)],
        "id_cond": torch.ones(1, 8),
        **VIDEO,
        "num_frames": 5,
    }
