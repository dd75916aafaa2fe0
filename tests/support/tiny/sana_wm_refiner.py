"""The refiner of SANA-WM."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import Stub, WordEmbeddings, words_as_numbers


class Connectors(Stub):
    """In place of LTX 2's: the embeddings of the text as they are."""


def frames(count: int) -> Tiny:
    """`SanaWMLTX2Refiner` over latents of 6 x 6 tokens per frame, three frames at a time.

    Args:
        count: latent frames, the first of which stays as it is.
    """
    import diffusers

    class SanaWMLTX2Refiner(diffusers.SanaWMLTX2Refiner):
        """Takes a number of steps, where the original takes noise levels."""

        def __call__(self, *args: Any, num_inference_steps: int, **kwargs: Any) -> torch.Tensor:
            levels = torch.linspace(0.9, 0.0, num_inference_steps + 1).tolist()
            return super().__call__(*args, sigmas=tuple(levels), **kwargs)

        def _encode_prompt(self, prompt: str, **options: Any) -> Any:
            given = words_as_numbers(prompt)
            return self.text_encoder(given.input_ids).last_hidden_state, given.attention_mask

    embeds = embeds_source()
    transformer = diffusers.SanaWMLTX2RefinerTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=16,
    )
    pipe = pipeline_of(
        SanaWMLTX2Refiner,
        text_encoder=WordEmbeddings(16),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    return pipe, {
        "sana_latent": embeds(1, 4, count, 6, 6),
        "prompt": "a walk through a wood",
        "fps": 16.0,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family()
def sana_wm_refiner() -> Tiny:
    """`SanaWMLTX2Refiner`: one group of 3 x 6 x 6 tokens behind the first frame."""
    return frames(4)
