"""EasyCache (arXiv 2507.02860): hold what the transformer adds to its latents, at a known rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..config import Example, method
from ..core.denoising.tracker import DenoisingStep
from .engine.accumulated import Accumulated, AccumulatingGate
from .engine.gate import StepRules
from .engine.options import ForecastOptions, Guidance, check_threshold
from .engine.policy import CachePolicy
from .engine.state import BranchState, Verdict


@dataclass
class _Rate(Accumulated):
    """What the gate remembers besides.

    Attributes:
        computed: latents and outputs of the last computed step.
        rate: relative change of the output per change of the latents, from the last two computed
            steps; on the device, so that a step waits for it once.
    """

    computed: list[torch.Tensor] = field(default_factory=list)
    rate: torch.Tensor | None = None


@dataclass
class RateGate(AccumulatingGate):
    """Adds up how far the output should have moved, judged by how far the latents did."""

    threshold: float
    needs_samples = True

    def memory(self) -> _Rate:
        return _Rate()

    def moved(self, step: DenoisingStep, state: BranchState) -> float | None:
        memory: _Rate = state.memory
        if memory.rate is None or memory.previous is None:
            return None
        return float(memory.rate * _mean_abs(_flat(state.samples) - memory.previous))

    def finished(self, step: DenoisingStep, state: BranchState, verdict: Verdict) -> None:
        super().finished(step, state, verdict)
        memory: _Rate = state.memory
        latents = memory.previous = _flat(state.samples)
        if verdict.forecast:
            return
        output = _flat(state.outputs)
        if memory.computed:
            before, returned = memory.computed
            change = _mean_abs(latents - before).clamp_min(1e-12)
            size = _mean_abs(output).clamp_min(1e-12)
            memory.rate = _mean_abs(output - returned) / change / size
        memory.computed = [latents, output]


def _flat(streams: list[torch.Tensor]) -> torch.Tensor:
    """All numbers of a call, `(N,)`, copied: means are taken over every one of them."""
    return torch.cat([stream.flatten() for stream in streams])


def _mean_abs(values: torch.Tensor) -> torch.Tensor:
    return values.abs().mean(dtype=torch.float32)


@method("easycache", paper="2507.02860")
@dataclass(frozen=True, kw_only=True)
class EasyCacheConfig(ForecastOptions):
    """Nothing of the transformer runs while its output should have moved little.

    The output changes at a rate `k` with the latents, which changes slowly: it is measured on the
    last two computed steps. `k |x - x_previous| / |output|` (means of absolute values) is added up
    from step to step since the last computed one, and below `threshold` the output is taken to be
    `x + (output - x)` with the difference of the last computed step. Everything is read off the
    latents and the output, so a forecast step runs no part of the transformer, and a transformer
    that is compiled as a whole is served too. The first guidance branch of a step (the conditional
    one, in most pipelines) decides for the others, each of which holds its own difference.

    Args:
        threshold: estimated relative L1 change of the output, added up since the last computed
            step, below which a step is forecast; 0 is exact. Higher is faster and less accurate.
        warmup: first steps that are computed.
        final: last steps that are computed.
        order: order of the forecast of the difference; 0 holds it (published).

    All other options are those of `ForecastOptions`. As published: `guidance="follow"`,
    `coordinate="index"`.

    Where it deviates: with two transformers that take turns (Wan 2.2), the rate is measured again
    after the switch, on two computed steps, as in the authors' variant with a state per expert,
    which computes the ends of each expert's part as well. Means over a list of latents are those
    over all its numbers, here and there.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"threshold": 0.05, "warmup": 7},
        "hunyuan_video": {"threshold": 0.025, "warmup": 5},
    }

    threshold: float = 0.05
    warmup: int = 7
    final: int = 1
    order: int = 0
    guidance: Guidance = "follow"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(threshold=0), cls(threshold=1e9, warmup=2, final=0)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return self.cache_policy(
            RateGate(self.threshold), StepRules(self.warmup, self.final), target="output_residual"
        )
