"""Bria Fibo, also with an image to edit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import SMALL, SQUARE


class Words:
    """In place of a tokenizer: a token for each word."""

    def __call__(self, prompts: list[str], **options: Any) -> Any:
        rows = [[3 + sum(map(ord, word)) % 60 for word in text.split()] for text in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return SimpleNamespace(input_ids=ids, attention_mask=(ids > 0).long())


class Layers(torch.nn.Module):
    """In place of a language model: embeddings as the outputs of three layers."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.embeds = torch.nn.ModuleList(torch.nn.Embedding(64, 16) for _ in range(3))

    def forward(self, ids: torch.Tensor, **options: Any) -> Any:
        """The hidden states `(B, L, 16)` of all layers."""
        return SimpleNamespace(hidden_states=tuple(embed(ids) for embed in self.embeds))


def _fibo(pipeline: str) -> Tiny:
    import diffusers

    embeds_source()
    transformer = diffusers.BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=16,
    )
    pipe = pipeline_of(
        getattr(diffusers, pipeline),
        transformer,
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=Layers(),
        tokenizer=Words(),
    )
    return pipe, {
        "prompt": "a red circle over a square",
        "negative_prompt": "low quality",
        **SQUARE,
        "num_inference_steps": 7,
        "output_type": "latent",
    }


@tiny_family(masked=True, resized=SMALL, resized_tokens=5 * 3)
def bria_fibo() -> Tiny:
    """`BriaFiboPipeline` at 11 x 11 tokens, text in front (of two lengths), guidance batched."""
    return _fibo("BriaFiboPipeline")
