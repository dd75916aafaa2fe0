"""One generation: a prompt and a seed into uint8 frames, timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ditaccel.core.kinds import decoded, pictures_of
from ditaccel.io.asking import asked
from ditaccel.io.frames import to_uint8
from ditaccel.io.models import execution_device, is_class_pipeline

from ..measure.timing import Stopwatch, Timing


@dataclass(frozen=True)
class Sample:
    """One prompt with one seed.

    Attributes:
        id: such as `p003-s0`.
        prompt: text, or class name.
        seed: seed of the generator that draws the noise.
    """

    id: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Generation:
    """What one pipeline call gave: frames uint8 (F, H, W, 3), and what it took."""

    frames: np.ndarray
    timing: Timing

    @property
    def seconds(self) -> float:
        """Wall-clock."""
        return self.timing.seconds


def make_samples(prompts: list[str], seeds: list[int]) -> list[Sample]:
    """Every prompt with every seed; all prompts of a seed come before the next seed."""
    return [
        Sample(f"p{i:03d}-s{seed}", prompt, seed)
        for seed in seeds
        for i, prompt in enumerate(prompts)
    ]


class Sampler:
    """Calls a pipeline the same way for every row of a comparison.

    Args:
        pipe: the diffusers pipeline.
        call: arguments of the call besides prompt, seed and step count (see `asking`).
        steps: scheduler steps of the dense run.

    Raises:
        UnsupportedError: the pipeline makes no pictures.
    """

    def __init__(self, pipe: Any, call: dict[str, Any], steps: int) -> None:
        self._decoded = decoded(pipe)
        self.pipe = pipe
        self.call = {k: v for k, v in call.items() if k != "num_inference_steps"}
        self.steps = steps
        self.by_class = is_class_pipeline(pipe)

    def subject(self, prompt: str) -> dict[str, Any]:
        """What asks the pipeline for a prompt, where the call itself does not say it.

        Raises:
            UsageError: there is no such class, or the pipeline cannot be asked.
        """
        given = ("class_labels",) if self.by_class else ("prompt_embeds",)
        return {} if any(name in self.call for name in given) else asked(self.pipe, prompt)

    def arguments(self, prompt: str, seed: int, steps: int | None) -> dict[str, Any]:
        """Keyword arguments of the pipeline call."""
        arguments = {**self._decoded, **self.call, **self.subject(prompt)}
        arguments["num_inference_steps"] = steps or self.steps
        # On the CPU on every device: the noise must not depend on the machine.
        arguments["generator"] = torch.Generator("cpu").manual_seed(seed)
        return arguments

    def generate(self, pipe: Any, prompt: str, seed: int, steps: int | None = None) -> Generation:
        """Run one generation.

        Args:
            pipe: the pipeline to call (the sampler's own, or a peer's copy of it).
            prompt: text or class name.
            seed: of the noise.
            steps: scheduler steps, by default the dense run's.

        Raises:
            NonFiniteError: the output is broken.
            UsageError: the output is not a picture.
        """
        arguments = self.arguments(prompt, seed, steps)
        watch = Stopwatch(execution_device(pipe))
        output = pipe(**arguments)
        timing = watch.stop()
        return Generation(to_uint8(pictures_of(pipe, output)), timing)
