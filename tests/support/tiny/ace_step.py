"""ACE-Step."""

from __future__ import annotations

from typing import Any

from tiny.builder import Tiny, embeds_source, pipeline_of, tiny_family
from tiny.parts import WordEmbeddings, words_as_numbers

LAYERS = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "sliding_window": 20,
}


@tiny_family(resized={"audio_duration": 5.0}, resized_tokens=63)
def ace_step() -> Tiny:
    """`AceStepPipeline`: 125 tokens, all of which every layer looks at."""
    return _ace_step(layer_types=["full_attention"] * 4)


@tiny_family(variant=True, tokens=125, steps=8)
def ace_step_windows() -> Tiny:
    """The same with a window of 41 tokens in the first and third layer, as released models have."""
    return _ace_step()


def _ace_step(**options: Any) -> Tiny:
    from diffusers import (
        AceStepPipeline,
        AceStepTransformer1DModel,
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.pipelines.ace_step import AceStepConditionEncoder

    embeds = embeds_source()
    condition_encoder = AceStepConditionEncoder(
        **LAYERS,
        text_hidden_dim=16,
        timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
    )
    condition_encoder.silence_latent = embeds(1, 300, 4)
    pipe = pipeline_of(
        AceStepPipeline,
        tokenizer=words_as_numbers,
        text_encoder=WordEmbeddings(16),
        condition_encoder=condition_encoder,
        transformer=AceStepTransformer1DModel(
            **LAYERS, num_hidden_layers=4, in_channels=12, audio_acoustic_hidden_dim=4, **options
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
    call: dict[str, Any] = {
        "prompt": "a slow song",
        "lyrics": "we sing",
        "audio_duration": 10.0,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
    return pipe, call
