"""TeaCache (arXiv 2411.19108): a polynomial tells from the input how much the output moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from ..config import Example, method, require
from ..core.denoising.tracker import DenoisingStep
from ..core.outputs import join
from .engine.accumulated import Accumulated, AccumulatingGate
from .engine.fitted import Fit, FittedConfig, Recorder
from .engine.forecast import relative_l1
from .engine.gate import StepRules
from .engine.options import ForecastOptions, check_threshold
from .engine.policy import CachePolicy
from .engine.state import BranchState, Verdict

Signal = Literal["modulated", "embedding"]
Coefficients = tuple[float, ...]
Published = Literal[
    "flux",
    "hunyuan",
    "ltx",
    "mochi",
    "lumina",
    "cosmos",
    "cogvideox_2b",
    "cogvideox",
    "cogvideox_1.5",
    "cogvideox_1.5_i2v",
    "hidream",
    "wan_1.3b",
    "wan_14b",
    "wan_i2v_480",
    "wan_i2v_720",
]

# Coefficients that the authors fitted (github.com/ali-vilab/TeaCache, Apache-2.0), the highest
# power first, each with the signal that it was fitted to: for FLUX.1-dev, HunyuanVideo, LTX-Video,
# Mochi, Lumina-Next, Cosmos 1, CogVideoX (5B, 2B, 1.5), HiDream-I1 and Wan 2.1. Those for Wan are
# of the projected embedding (`use_ret_steps`); the authors' others there take the one before its
# projection, which is not looked at here.
POLYNOMIALS: Mapping[Published, tuple[Signal, Coefficients]] = {
    "flux": ("modulated", (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)),
    "hunyuan": (
        "modulated",
        (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896),
    ),
    "ltx": ("modulated", (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326)),
    "mochi": ("modulated", (-3512.41319, 811.675948, -60.9400215, 2.42429681, 0.00305291719)),
    "lumina": (
        "modulated",
        (393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344),
    ),
    "cosmos": ("modulated", (271.156237, -91.9775607, 2.2443725, 2.08355751, 0.14177633)),
    "cogvideox_2b": (
        "embedding",
        (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434),
    ),
    "cogvideox": (
        "embedding",
        (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
    ),
    "cogvideox_1.5": (
        "embedding",
        (250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703),
    ),
    "cogvideox_1.5_i2v": (
        "embedding",
        (122.842302, -104.088754, 26.2981677, -0.306009921, 0.037121322),
    ),
    "hidream": ("embedding", (-31360.5009, -712.425503, 49.1363285, 8.2651549, 0.108053901)),
    "wan_1.3b": (
        "embedding",
        (-52186.2437, 9230.41404, -528.275948, 13.6987616, -0.0499875664),
    ),
    "wan_14b": (
        "embedding",
        (-303318.725, 49053.7029, -2655.30556, 58.7365115, -0.315583525),
    ),
    "wan_i2v_480": (
        "embedding",
        (257151.496, -35422.9917, 1402.86849, -13.5890334, 0.132517977),
    ),
    "wan_i2v_720": (
        "embedding",
        (8107.0546, 2133.93892, -372.934672, 16.6203073, -0.0417769401),
    ),
}
# Below this share of the variance explained, an input says little about the output.
_LEAST_R2 = 0.3
_DEGREE = 4
_BEYOND = 2.0  # how far beyond the largest input a fit has to stay positive


@dataclass
class InputGate(AccumulatingGate):
    """Adds up how far the output should have moved, judged by the input of the first block."""

    threshold: float
    coefficients: Coefficients
    signal: Signal

    def __post_init__(self) -> None:
        self.needs_modulated = self.signal == "modulated"
        self.needs_embedding = self.signal == "embedding"

    def moved(self, step: DenoisingStep, state: BranchState) -> float | None:
        change = change_of(self.signal, state)
        return None if change is None else value_at(self.coefficients, change)

    def finished(self, step: DenoisingStep, state: BranchState, verdict: Verdict) -> None:
        super().finished(step, state, verdict)
        keep(self.signal, state)


def change_of(signal: Signal, state: BranchState) -> float | None:
    """Change of the signal since the step before, relative to that step's; None at the first."""
    now, before = getattr(state, signal), state.memory.previous
    if now is None or before is None:
        return None
    return float(relative_l1(now, before, ranks=state.ranks if signal == "modulated" else None))


def keep(signal: Signal, state: BranchState) -> None:
    """Remember the signal of a call that ends, for the next step."""
    now = getattr(state, signal)
    if now is not None:
        state.memory.previous = now.clone()


def value_at(coefficients: Coefficients, x: float) -> float:
    """The polynomial's value."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


@dataclass
class _Pair(Accumulated):
    """What the recorder remembers besides: the output of the step before."""

    output: torch.Tensor | None = None


class InputRecorder(Recorder):
    """Measures how far the signal and the output move from step to step."""

    needs_samples = True

    def __init__(self, signal: Signal) -> None:
        super().__init__()
        self._signal = signal
        self.needs_modulated = signal == "modulated"
        self.needs_embedding = signal == "embedding"

    def memory(self) -> _Pair:
        return _Pair()

    def measured(self, step: DenoisingStep, state: BranchState) -> tuple[float, float] | None:
        memory: _Pair = state.memory
        change, output = change_of(self._signal, state), join(state.outputs)
        moved = None if memory.output is None else float(relative_l1(output, memory.output))
        keep(self._signal, state)
        memory.output = output.clone()
        return None if change is None or moved is None else (change, moved)


def polynomial_through(pairs: Sequence[tuple[float, float]]) -> tuple[Coefficients, float]:
    """Fit a polynomial by least squares: of degree 4, or the highest one below that stays positive.

    What is added up at run time is a distance. A polynomial that turns negative next to the inputs
    that it was fitted to lets a run with such inputs skip all that is left of it. So it has to be
    positive from 0 to twice the largest input; the last resort is a multiple of the input.

    Args:
        pairs: input and output.

    Returns:
        Its coefficients, the highest power first, and R2: the share of the outputs' variance that
        it explains.
    """
    x, y = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    largest = float(x.abs().max().clamp_min(1e-12))
    domain = torch.linspace(0, _BEYOND * largest, 257, dtype=torch.float64)[1:]
    spread = float((y - y.mean()).square().sum())
    for degree in range(min(_DEGREE, len(set(x.tolist())) - 1), -1, -1):
        lowest = 0 if degree else 1  # degree 0 stands for the last resort
        exponents = torch.arange(max(degree, 1), lowest - 1, -1)
        powers = (x[:, None] / largest) ** exponents
        found = torch.linalg.lstsq(powers, y[:, None]).solution[:, 0]
        if degree == 0 or bool(((domain[:, None] / largest) ** exponents @ found > 0).all()):
            break
    left = float((y - powers @ found).square().sum())
    coefficients = [float(c) / largest ** int(n) for c, n in zip(found, exponents, strict=True)]
    return (*coefficients, *[0.0] * lowest), 1.0 - left / spread if spread > 0 else 0.0


@method("teacache", paper="2411.19108")
@dataclass(frozen=True, kw_only=True)
class TeaCacheConfig(ForecastOptions, FittedConfig):
    """The blocks are skipped while the first one's input says that their output moves little.

    The relative L1 change of the first block's modulated input since the step before is rescaled by
    a polynomial to that of the output, and added up since the last computed step; below `threshold`
    the residual of all blocks is held. The authors fitted polynomials for some models; for another
    one, or with other steps, `ditaccel.fit(pipe, TeaCacheConfig(), prompts)` fits it on dense runs,
    and warns where the input hardly predicts the output.

    Args:
        threshold: estimated relative L1 change of the output, added up since the last computed
            step, below which a step is forecast; 0 is exact. Higher is faster and less accurate.
        polynomial: name of one of the authors' (`POLYNOMIALS`), or coefficients of one's own, the
            highest power first; the default takes the input's change itself.
        signal: what is looked at: the `modulated` input of the first block, or the `embedding` of
            the timestep, which knows nothing of the picture, as the authors do for Wan, CogVideoX
            and HiDream. A named polynomial goes with its own.
        warmup: first steps that are computed.
        final: last steps that are computed.
        order: order of the forecast of the residual; 0 holds it (published).

    All other options are those of `ForecastOptions`; `guidance` is `independent` as published.

    `published` has the settings of the authors' scripts, for the model named there. Where it
    deviates: a threshold of 0 skips nothing, though some polynomials are negative somewhere; and
    the residual ends at the last block everywhere, so that the final norm is that of the step,
    where the authors' scripts for LTX-Video and Mochi hold what the final norm has made of it.
    """

    # Of several thresholds in a script, the one that it sets. LTX-Video (teacache_ltx.py): 0.03 for
    # 1.6x, 0.05 for 2.1x; Mochi (teacache_mochi.py): 0.06 for 1.5x, 0.09 for 2.1x; CogVideoX 1.5
    # (teacache_sample_video.py): 0.1 for 1.3x, 0.2 for 1.8x, 0.3 for 2.1x, and CogVideoX in the
    # paper's evaluation (experiments/cogvideox.py): 0.1 (slow) and 0.2 (fast). All of 50 steps but
    # Mochi's 64. Read from a copy of the repository (github.com/zhajingjing/cse585, 470d4403).

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "flux": {"polynomial": "flux", "threshold": 0.6},
        "hunyuan_video": {"polynomial": "hunyuan", "threshold": 0.15},
        "ltx": {"polynomial": "ltx", "threshold": 0.05},
        "mochi": {"polynomial": "mochi", "threshold": 0.09},
        "lumina2": {"polynomial": "lumina", "threshold": 0.3},
        "cosmos": {"polynomial": "cosmos", "threshold": 0.3},
        "cogvideox": {"polynomial": "cogvideox", "signal": "embedding", "threshold": 0.2},
        "hidream": {
            "polynomial": "hidream",
            "signal": "embedding",
            "threshold": 0.3,
            "warmup": 5,  # a tenth of 50 steps
            "final": 0,
        },
        "wan": {
            "polynomial": "wan_1.3b",
            "signal": "embedding",
            "threshold": 0.1,
            "warmup": 5,
            "final": 0,
        },
    }
    fits: ClassVar[str] = "a polynomial"

    threshold: float = 0.1
    polynomial: Published | Coefficients = (1.0, 0.0)
    signal: Signal = "modulated"
    warmup: int = 1
    final: int = 1
    order: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        require(bool(self.polynomial), "polynomial is empty; give a name or coefficients")
        if not isinstance(self.polynomial, str):
            return
        signal, _ = POLYNOMIALS[self.polynomial]
        require(
            signal == self.signal,
            f"the polynomial {self.polynomial!r} was fitted to the {signal}; give signal={signal}",
        )

    @property
    def coefficients(self) -> Coefficients:
        """Of the polynomial, the highest power first."""
        if isinstance(self.polynomial, str):
            return POLYNOMIALS[self.polynomial][1]
        return self.polynomial

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(threshold=0), cls(threshold=1e9, final=0)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out."""
        gate = InputGate(self.threshold, self.coefficients, self.signal)
        return self.cache_policy(gate, StepRules(self.warmup, self.final), target="residual")

    def recording(self) -> CachePolicy:
        """See `FittedConfig`."""
        return CachePolicy(gate=InputRecorder(self.signal), order=0, target="residual")

    def fitted(self, seen: Recorder) -> Fit:
        """See `FittedConfig`."""
        pairs = [pair for steps in seen.seen.values() for each in steps.values() for pair in each]
        require(len(pairs) > 1, "too few steps to fit a polynomial to; use more of them")
        coefficients, r2 = polynomial_through(pairs)
        note = f"R2 {r2:.2f} over {len(pairs)} pairs of steps"
        weak = (
            f"the input hardly predicts how much the output moves here (R2 {r2:.2f}); use another "
            "caching method",
        )
        config = replace(self, polynomial=tuple(float(f"{c:.9g}") for c in coefficients))
        return Fit(config, (note,), weak if r2 < _LEAST_R2 else ())
