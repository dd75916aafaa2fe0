"""SeaCache (arXiv 2602.18993): how far have the latents moved at the frequencies that are clear?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..config import Example, method, require
from ..core.denoising.schedule import picture_and_noise
from ..core.denoising.tracker import DenoisingStep
from ..core.reasons import Reason
from ..errors import ConfigError
from .engine.accumulated import Accumulated, AccumulatingGate
from .engine.forecast import relative_l1
from .engine.gate import StepRules
from .engine.options import ForecastOptions, check_threshold
from .engine.policy import CachePolicy
from .engine.state import BranchState, Verdict


@dataclass
class _Filtered(Accumulated):
    """What the gate remembers besides.

    Attributes:
        current: filtered latents of the present call, once they were needed.
        index: step of the last call, -1 for none.
    """

    current: torch.Tensor | None = None
    index: int = -1


@dataclass
class SpectralGate(AccumulatingGate):
    """Adds up how far the latents have moved, filtered by how clear each frequency is."""

    threshold: float
    power: float
    needs_volume = True

    def memory(self) -> _Filtered:
        return _Filtered()

    def check(self, step: DenoisingStep) -> None:
        if step.sigma is None:
            raise ConfigError(
                "seacache needs the noise levels of the steps, and no scheduler that has them is "
                "in sight; call the pipeline itself, or use another caching method"
            )

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        if state.memory.index != step.index - 1:
            state.begin_again()  # guidance paused: what the forecast is made of is too old
            return Verdict(False, Reason.NO_HISTORY)
        return super().before(step, state)

    def moved(self, step: DenoisingStep, state: BranchState) -> float | None:
        memory: _Filtered = state.memory
        memory.current = self._filtered(step, state)
        if memory.previous is None:
            return None
        return float(relative_l1(memory.current, memory.previous))

    def finished(self, step: DenoisingStep, state: BranchState, verdict: Verdict) -> None:
        super().finished(step, state, verdict)
        memory: _Filtered = state.memory
        if memory.current is None:
            memory.current = self._filtered(step, state)
        memory.previous, memory.current, memory.index = memory.current, None, step.index

    def _filtered(self, step: DenoisingStep, state: BranchState) -> torch.Tensor:
        assert state.volume is not None
        return spectral_filter(state.volume, *shares(step), self.power)


def shares(step: DenoisingStep) -> tuple[float, float]:
    """Shares of picture and noise in the latents of a step (`picture_and_noise`)."""
    sigma = step.sigma
    assert sigma is not None
    if not step.flow:
        return picture_and_noise(sigma, False)
    rises = step.sigma_next is not None and step.sigma_next > sigma
    return picture_and_noise(min(max(sigma, 1e-6), 1.0 - 1e-6), True, rises)


def spectral_filter(
    volume: torch.Tensor, picture: float, noise: float, power: float
) -> torch.Tensor:
    """Latents, each frequency weighted by how clear it is at this noise level.

    Along each axis the power of clean latents is taken to fall as `1 / |f|^power`; Wiener's gain
    for it is `g = a P / (a^2 P + b^2)` with the shares a of the picture and b of the noise. The
    gains of the axes are multiplied and divided by their mean.

    Args:
        volume: `(B, …, C)`; the axes between are those of places.
        picture: a.
        noise: b.
        power: falls with that power of the frequency.

    Returns:
        The same shape, float32.
    """
    axes = tuple(range(1, volume.ndim - 1))
    gain = torch.ones((), device=volume.device)
    for axis in axes:
        size = volume.shape[axis]
        frequencies = torch.fft.fftfreq(size, device=volume.device).abs()
        clean = 1.0 / (frequencies.pow(power) + 1e-16)
        along = picture * clean / (picture**2 * clean + noise**2 + 1e-16)
        gain = gain * along.reshape([-1 if i == axis else 1 for i in range(volume.ndim)])
    gain = gain / gain.mean()
    spectrum = torch.fft.fftn(volume.float(), dim=axes)
    return torch.fft.ifftn(spectrum * gain, dim=axes).real


@method("seacache", paper="2602.18993")
@dataclass(frozen=True, kw_only=True)
class SeaCacheConfig(ForecastOptions):
    """The blocks are skipped while the latents have moved little at the frequencies that are clear.

    Latents are filtered by frequency, as a Wiener filter at their noise level does: early steps
    count coarse structure only, late ones details too. The relative L1 distance of the filtered
    latents to those of the step before is added up since the last computed step, and below
    `threshold` the residual of all blocks is forecast. The gate reads nothing of the transformer.

    Args:
        threshold: distance, added up since the last computed step, below which a step is forecast;
            0 is exact. Higher is faster and less accurate.
        order: order of the forecast of the residual, along the step index: 1 continues the line
            through the last two computed steps, 0 holds the last one.
        max_consecutive: forecasts in a row at most; None for no limit.
        warmup: first steps that are computed.
        final: last steps that are computed.
        power: the power of clean latents is taken to fall with this power of the frequency.

    All other options are those of `ForecastOptions`. The defaults are those of diffusers' port, for
    video.

    Where it deviates: diffusers serves Wan's text to video and Cosmos 3, and this every family
    whose latents have a place in the picture. Packed latents are filtered on the grid of their
    tokens, each channel of a token for itself. For noise prediction the shares of picture and noise
    are `sqrt(alpha)` and `sqrt(1 - alpha)`. A second stream of latents (sound) does not decide.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"threshold": 0.25}}

    threshold: float = 0.25
    order: int = 1
    max_consecutive: int | None = 2
    warmup: int = 1
    final: int = 1
    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        require(self.power > 0, f"power is {self.power}; it must be positive")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(threshold=0), cls(threshold=1e9, final=0)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        return self.cache_policy(
            SpectralGate(self.threshold, self.power),
            StepRules(self.warmup, self.final, self.max_consecutive),
            target="residual",
        )
