"""Ideogram 4."""

from __future__ import annotations

from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


class Words:
    """In place of a tokenizer: a token for each word."""

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        """The prompt alone."""
        return messages[0]["content"][0]["text"]

    def __call__(self, text: str, **options: Any) -> dict[str, torch.Tensor]:
        ids = [3 + sum(map(ord, word)) % 60 for word in text.split()]
        return {"input_ids": torch.tensor([ids])}


class Embedding(torch.nn.Embedding):
    """In place of a language model."""

    device = torch.device("cpu")


def _one_layer(encoder: Embedding, ids: torch.Tensor, *others: Any) -> list[torch.Tensor]:
    """In place of the outputs of 13 layers of the language model."""
    return [encoder(ids)]


def _transformer() -> Any:
    from diffusers import Ideogram4Transformer2DModel

    return Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=32,
        adaln_dim=16,
        llm_features_dim=16,
        mrope_section=(4, 2, 2),
    )


@tiny_family(masked=True, resized=SMALL, resized_tokens=5 * 3)
def ideogram4() -> Tiny:
    """`Ideogram4Pipeline` at 11 x 11 tokens, 8 of text in front (2 of padding) in one branch."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Ideogram4Pipeline

    embeds_source()
    pipe = pipeline_of(
        Ideogram4Pipeline,
        _transformer(),
        FlowMatchEulerDiscreteScheduler(),
        text_encoder=Embedding(64, 16),
        tokenizer=Words(),
        unconditional_transformer=_transformer(),
    )
    pipe._get_text_encoder_hidden_states = _one_layer
    return pipe, {
        "prompt": "a red circle over a square",
        "max_sequence_length": 8,
        "guidance_scale": 4.0,
        "guidance_schedule": None,
        **SQUARE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }
