"""JoyImage Edit Plus."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.joyimage import FACTOR, TRANSFORMER, awake
from tiny.parts import Averages, Stub, noise_image, words_as_numbers


class LastLayer(Stub):
    """In place of Qwen3-VL: its last layer, to which the pipeline listens, has word embeddings."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.language_model = torch.nn.Module()
        self.model.language_model.layers = torch.nn.ModuleList([torch.nn.Embedding(64, channels)])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeddings of numbers."""
        return self.model.language_model.layers[-1](input_ids)


def processor(text: list[str], images: Any, **options: Any) -> Any:
    """In place of Qwen3-VL's: words behind as many as its system prompt has, which are cut off."""
    return words_as_numbers(["system " * 34 + each.rpartition("user")[2] for each in text])


@tiny_family(masked=True, resized={"height": 512, "width": 768}, resized_tokens=64 + 4 * 6)
def joyimage_plus() -> Tiny:
    """`JoyImageEditPlusPipeline` at 8 x 8 tokens and as many of an image, guidance batched."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        JoyImageEditPlusPipeline,
        JoyImageEditPlusTransformer3DModel,
    )

    embeds_source()
    pipe = pipeline_of(
        JoyImageEditPlusPipeline,
        vae=Averages(FACTOR),
        text_encoder=LastLayer(16),
        processor=processor,
        transformer=awake(JoyImageEditPlusTransformer3DModel(**TRANSFORMER)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.5),
    )
    return pipe, {
        "images": [[noise_image()]],
        "prompt": "make the sky in this picture a little darker",
        "negative_prompt": "a bad picture",
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
