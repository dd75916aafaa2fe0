"""Cosmos 3."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import (
    Averages,
    Stub,
    flow_scheduler,
    noise_frames,
    unipc_scheduler,
    words_as_numbers,
)


class Chat:
    """In place of a tokenizer with a chat template: a number for each word."""

    eos_token_id = 1

    def convert_tokens_to_ids(self, token: str) -> int:
        """The number of the one token that the pipeline asks for."""
        return 2

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """Numbers of the words of all turns."""
        words = " ".join(turn["content"] for turn in conversation)
        return SimpleNamespace(input_ids=words_as_numbers(words).input_ids[0].tolist())


class Sound(Stub):
    """In place of the decoder of sound: 40 latents a second."""

    _hop_size = 6

    def __init__(self) -> None:
        super().__init__(sampling_rate=240)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """The latents as they are."""
        return latent * self.scale


def _cosmos3(scheduler: Any, **options: Any) -> Tiny:
    from diffusers import Cosmos3OmniPipeline, Cosmos3OmniTransformer

    embeds_source()
    transformer = Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=32,
        intermediate_size=32,
        latent_channel=4,
        patch_latent_dim=16,
        num_attention_heads=2,
        num_hidden_layers=3,
        num_key_value_heads=1,
        rope_axes_dim=(4, 2, 2),
        vocab_size=64,
        timestep_scale=1.0,
        **options,
    )
    pipe = pipeline_of(
        Cosmos3OmniPipeline,
        vae=Averages(8),
        text_tokenizer=Chat(),
        transformer=transformer,
        scheduler=scheduler,
        enable_safety_checker=False,
    )
    return pipe, {
        "prompt": "a red ball rolls",
        "use_system_prompt": False,
        "guidance_scale": 3.0,
        "height": 112,
        "width": 144,
        "num_frames": 5,
        "num_inference_steps": 8,
        "output_type": "latent",
    }


@tiny_family(resized={"height": 80, "width": 48, "num_frames": 17})
def cosmos3() -> Tiny:
    """`Cosmos3OmniPipeline` at 2 x 7 x 9 tokens behind those of the text, guidance in two calls."""
    return _cosmos3(flow_scheduler())


@tiny_family(variant=True, steps=8)
def cosmos3_sound() -> Tiny:
    """The same with an image as its first frame, with sound, and with the model's own scheduler."""
    pipe, call = _cosmos3(unipc_scheduler(), sound_gen=True, sound_dim=4)
    pipe = pipeline_of(
        type(pipe), **{**pipe.components, "sound_tokenizer": Sound()}, enable_safety_checker=False
    )
    return pipe, {**call, "enable_sound": True, "image": noise_frames(1)[0]}
