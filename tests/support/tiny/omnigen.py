"""OmniGen."""

from __future__ import annotations

from typing import Any
from unittest import mock

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


class WordsAsNumbers:
    """In place of OmniGen's processor, which needs torchvision: a token for each word."""

    max_image_size = 1024

    def __init__(self, tokenizer: Any, max_image_size: int = 1024) -> None:
        from diffusers.pipelines.omnigen.processor_omnigen import OmniGenCollator

        self._collate = OmniGenCollator()

    def __call__(
        self, prompts: list[str], images: Any, height: int, width: int, **kwargs: Any
    ) -> dict[str, Any]:
        def tokens(text: str) -> dict[str, Any]:
            ids = [3 + sum(map(ord, word)) % 60 for word in text.split()]
            return {"input_ids": ids, "pixel_values": None, "image_sizes": None}

        parts = [(tokens(p), tokens("low quality"), None, [height, width]) for p in prompts]
        return self._collate(parts)


@tiny_family(resized=SMALL, resized_tokens=5 * 3)
def omnigen() -> Tiny:
    """`OmniGenPipeline`: text that is causal, timesteps that rise from 0 to 1, guidance batched."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        OmniGenPipeline,
        OmniGenTransformer2DModel,
    )

    embeds_source()
    transformer = OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=4,
        pad_token_id=2,
        vocab_size=64,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
        pos_embed_max_size=16,
        time_step_dim=16,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    )
    processor = "diffusers.pipelines.omnigen.pipeline_omnigen.OmniGenMultiModalProcessor"
    with mock.patch(processor, WordsAsNumbers, create=True):
        pipe = pipeline_of(
            OmniGenPipeline,
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
            vae=vae,
        )
    return pipe, {
        "prompt": "a red circle over a square",
        **SQUARE,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
