"""MagCache (arXiv 2506.09045): how much shorter or longer do residuals become from step to step?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

import torch

from ..config import Example, method, require
from ..core.denoising.tracker import DenoisingStep
from ..core.reasons import Reason
from .engine.accumulated import Accumulated, AccumulatingGate
from .engine.fitted import Fit, FittedConfig, Recorder
from .engine.gate import COMPUTE_WARMUP, StepRules
from .engine.options import ForecastOptions, check_threshold
from .engine.policy import CachePolicy
from .engine.state import BranchState, Verdict

Ratios = tuple[float, ...]


@dataclass
class _Magnitude(Accumulated):
    """What the gate remembers besides.

    Attributes:
        ratio: length of the residual by that of the last computed step's, as far as is known.
    """

    ratio: float = 1.0


@dataclass
class MagnitudeGate(AccumulatingGate):
    """Adds up by how much the length of the residual differs from that of the one that is held."""

    threshold: float
    retention: float
    ratios: tuple[Ratios, ...]
    branches: tuple[str, ...]
    needs_total = True

    def memory(self) -> _Magnitude:
        return _Magnitude()

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        if step.index < self.first(step):
            return COMPUTE_WARMUP
        memory: _Magnitude = state.memory
        memory.ratio *= self.ratio(step)
        memory.error += abs(1.0 - memory.ratio)
        if memory.error <= self.threshold and self.threshold > 0.0:
            return Verdict(True, Reason.BELOW_THRESHOLD, memory.error)
        return Verdict(False, Reason.ABOVE_THRESHOLD, memory.error)

    def finished(self, step: DenoisingStep, state: BranchState, verdict: Verdict) -> None:
        super().finished(step, state, verdict)
        if not verdict.forecast:
            state.memory.ratio = 1.0

    def first(self, step: DenoisingStep) -> int:
        """First step that may be forecast: a share of those that this transformer makes."""
        assert step.total is not None
        end = step.total if step.end is None else step.end
        return step.first + int(self.retention * (end - step.first) + 0.5)

    def ratio(self, step: DenoisingStep) -> float:
        """The ratio of a step; of another number of steps, that of the nearest one."""
        assert step.total is not None
        known = step.branch in self.branches
        ratios = self.ratios[self.branches.index(step.branch) if known else 0]
        if step.total <= 1:
            return ratios[-1]
        # (halves go to the even number, as torch rounds them in diffusers)
        return ratios[round(step.index * (len(ratios) - 1) / (step.total - 1))]


class ResidualRecorder(Recorder):
    """Measures by how much residuals are longer than those of the step before."""

    def memory(self) -> Accumulated:
        return Accumulated()

    def measured(self, step: DenoisingStep, state: BranchState) -> float | None:
        if not len(state.last):
            return None
        length = torch.linalg.vector_norm(state.last.newest.float(), dim=-1)
        before, state.memory.previous = state.memory.previous, length
        if before is None:
            return 1.0
        return float((length / (before + 1e-8)).mean())


@method("magcache", paper="2506.09045")
@dataclass(frozen=True, kw_only=True)
class MagCacheConfig(ForecastOptions, FittedConfig):
    """The blocks are skipped as long as their residual should keep its length.

    The lengths of the blocks' residuals change from step to step by ratios that hardly depend on
    the prompt: they are measured once per model, on one dense generation (`ditaccel.fit`, or
    `ditaccel tune --fit`). Since the last computed step the ratios are multiplied, and
    `|1 - product|` is added up from step to step; up to `threshold` the last residual is held.
    Nothing is measured during a run, so which steps are computed is known beforehand.

    Args:
        threshold: sum of the errors up to which a step is forecast; 0 is exact. Higher is faster
            and less accurate.
        max_consecutive: forecasts in a row at most; None for no limit.
        retention: share of the steps that is computed first, between 0 and 1; where two
            transformers take turns (Wan 2.2), of each one's own steps.
        ratios: ratios per step, as they were measured: one list for all guidance branches, or one
            per branch; for another number of steps, that of the nearest step counts. A method
            without ratios is refused.
        branches: the names of the branches, in the order of `ratios`; a branch that is not among
            them has the first one's ratios.
        order: order of the forecast of the residual; 0 holds it (published).
        final: last steps that are computed; 0 as published.

    All other options are those of `ForecastOptions`; `guidance` is `independent` as published.

    `published` has the authors' thresholds, which are looser than the defaults here (those of
    diffusers). Where it deviates: the authors never skip step 11 of 28 of FLUX.1-dev, which is not
    done here; a threshold of 0 skips nothing even where a ratio is exactly 1. The authors' lists
    for Wan have ratios of their own for each guidance branch; `fit` gives all branches their mean:
    where they compute different steps, what guidance adds is a difference of two steps, and the
    samples came out clearly worse.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"threshold": 0.06, "max_consecutive": 3, "retention": 0.2},
        "flux": {"threshold": 0.24, "max_consecutive": 5, "retention": 0.1},
        "qwen_image": {"threshold": 0.06, "max_consecutive": 2, "retention": 0.2},
        "hunyuan_video": {"threshold": 0.24, "max_consecutive": 6, "retention": 0.2},
        "hunyuan_video15": {"threshold": 0.24, "max_consecutive": 6, "retention": 0.2},
        "framepack": {"threshold": 0.1, "max_consecutive": 3, "retention": 0.2},
        "wan": {"threshold": 0.12, "max_consecutive": 4, "retention": 0.2},  # 2.1, 1.3B
        "wan_vace": {"threshold": 0.02, "max_consecutive": 3, "retention": 0.2},
    }
    fits: ClassVar[str] = "magnitude ratios"

    threshold: float = 0.06
    max_consecutive: int | None = 3
    retention: float = 0.2
    ratios: tuple[Ratios, ...] = ()
    branches: tuple[str, ...] = ()
    order: int = 0
    final: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        require(0 <= self.retention < 1, f"retention is {self.retention}; give a share below 1")
        require(
            all(ratios and min(ratios) > 0 for ratios in self.ratios),
            "ratios holds an empty list or one with a ratio that is not positive; measure them "
            "again",
        )
        require(
            len(self.branches) in (0, len(self.ratios)),
            f"branches names {len(self.branches)} guidance branches, and ratios has "
            f"{len(self.ratios)}; give a list of ratios for each",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        ratios = ((1.0, 1.01),)
        exact = cls(threshold=0, ratios=ratios)
        return (Example(exact, cls(threshold=1e9, ratios=ratios)),)

    @property
    def is_fitted(self) -> bool:
        """See `FittedConfig`."""
        return bool(self.ratios)

    def policy(self) -> CachePolicy:
        """What the hooks carry out.

        Raises:
            ConfigError: there are no ratios.
        """
        require(
            self.is_fitted,
            "magcache has no ratios, which are measured once per model: config = ditaccel.fit(pipe,"
            " MagCacheConfig(), prompts)",
        )
        gate = MagnitudeGate(self.threshold, self.retention, self.ratios, self.branches)
        rules = StepRules(final=self.final, max_consecutive=self.max_consecutive)
        return self.cache_policy(gate, rules, target="residual")

    def recording(self) -> CachePolicy:
        """See `FittedConfig`."""
        return CachePolicy(gate=ResidualRecorder(), order=0, target="residual")

    def fitted(self, seen: Recorder) -> Fit:
        """See `FittedConfig`."""
        steps: dict[int, list[float]] = defaultdict(list)
        for branch in seen.seen.values():
            for index, found in branch.items():
                steps[index] += found
        require(bool(steps), "no residual was seen, as the last block never ran")
        ratios = tuple(round(fmean(steps.get(i, [1.0])), 5) for i in range(seen.total))
        note = (
            f"{len(ratios)} ratios, {fmean(abs(1 - r) for r in ratios):.3f} from 1 in the mean, "
            f"{min(ratios):.3f} to {max(ratios):.3f}"
        )
        return Fit(replace(self, ratios=(ratios,), branches=()), (note,))
