"""What a scheduler says of a denoising loop: its timesteps, its noise levels, and where it stands.

Schedulers are judged by the classes that they descend from, and one that wraps another by the
wrapped one. Whether a transformer call follows the schedule at all is checked at every step: a
scheduler that somebody else steps, or that was never set, must not decide anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch


class Known(Enum):
    """What is known of a loop's schedule.

    Attributes:
        FOLLOWED: the calls follow the scheduler's timesteps.
        NO_SCHEDULER: none is in sight: a bare transformer in a loop of one's own.
        NOT_SET: there is one, and nobody has called its `set_timesteps`.
        OTHER: the calls are at other timesteps than the scheduler's.
    """

    FOLLOWED = "followed"
    NO_SCHEDULER = "no scheduler"
    NOT_SET = "not set"
    OTHER = "other timesteps"


def wrapped(scheduler: Any) -> Any:
    """What a wrapper of a scheduler stands for; the scheduler itself where it is none."""
    seen: list[Any] = []
    while not hasattr(type(scheduler), "set_timesteps") and all(scheduler is not s for s in seen):
        seen.append(scheduler)
        inner = [v for v in getattr(scheduler, "__dict__", {}).values() if is_scheduler(v)]
        if not inner:
            break
        scheduler = inner[0]
    return scheduler


def is_scheduler(value: Any) -> bool:
    """Whether an object is a diffusion scheduler, or passes one's attributes on."""
    kind = type(value)
    if hasattr(kind, "set_timesteps"):
        return hasattr(kind, "step")
    own = getattr(value, "__dict__", None)
    if not isinstance(own, dict) or not hasattr(kind, "__getattr__"):
        return False
    return any(hasattr(type(v), "set_timesteps") and hasattr(type(v), "step") for v in own.values())


def position(scheduler: Any) -> int | None:
    """Where the scheduler stands: a number that moves with each of its steps; None if unknown."""
    for name in ("_step_index", "counter"):  # (PNDM counts)
        value = getattr(scheduler, name, None)
        if isinstance(value, int):
            return value
    return None


def _options(scheduler: Any) -> Any:
    return getattr(scheduler, "config", None) or {}


def _is_flow(scheduler: Any) -> bool:
    """Whether sigma runs from 1 to 0 and the latents keep their size (flow matching)."""
    options = _options(scheduler)
    return (
        any(c.__name__.startswith("FlowMatch") for c in type(wrapped(scheduler)).__mro__)
        or bool(options.get("use_flow_sigmas", False))
        or options.get("prediction_type") == "flow_prediction"
    )


def _is_additive(scheduler: Any) -> bool:
    """Whether a step adds `(sigma_next - sigma) * output` and remembers no earlier output."""
    options = _options(scheduler)
    # a subclass with a step of its own may do anything
    kinds = type(wrapped(scheduler)).__mro__
    name = next((kind.__name__ for kind in kinds if "step" in vars(kind)), "")
    if name == "FlowMatchEulerDiscreteScheduler":
        return not options.get("stochastic_sampling", False)
    if name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        clips = options.get("clip_sample", False) or options.get("thresholding", False)
        # DDIM steps by a fixed stride, which with other spacings is not the next timestep.
        strides = name != "DDIMScheduler" or options.get("timestep_spacing") == "leading"
        return options.get("prediction_type") == "epsilon" and not clips and strides
    return False


def in_use(scheduler: Any) -> bool:
    """Whether somebody has called `set_timesteps`."""
    if getattr(scheduler, "num_inference_steps", None) is not None:
        return True
    timesteps = getattr(scheduler, "timesteps", None)
    if not isinstance(timesteps, torch.Tensor):
        return False
    return len(timesteps) != _options(scheduler).get("num_train_timesteps", 1000)


@dataclass(frozen=True)
class _Match:
    """A reading of a timestep, `shift + scale * timestep`, and the place that it has then.

    Attributes:
        place: in the schedule.
        sign: -1 if reversed.
        scale: of the reading.
        shift: of the reading.
    """

    place: int
    sign: int
    scale: float
    shift: float


class Schedule:
    """The schedule of one generation.

    Args:
        scheduler: of the pipeline that calls, None where there is none in sight.
        first: the first timestep that the transformer got.

    Attributes:
        known: whether the loop follows it.
        timesteps: the scheduler's tensor; held, so that its identity stays unique.
        direction: 1 or -1 where timesteps, as the transformer gets them, rise or fall; else 0.
        additive: `DenoisingStep.additive`.
        flow: whether sigma runs from 1 to 0 and the latents keep their size.
        single_stage: whether a step calls the transformer once (not Heun's).
        sure: whether the loop begins where the schedule does, or where the scheduler was told to.
        anew: whether the scheduler tells its position, and had not moved when the loop began.
    """

    def __init__(self, scheduler: Any = None, first: float = 0.0) -> None:
        self.timesteps = getattr(scheduler, "timesteps", None)
        self.direction = 0
        self.flow = scheduler is not None and _is_flow(scheduler)
        self.single_stage = getattr(scheduler, "order", 1) == 1
        self.additive = False
        self.sure = False
        self.anew = getattr(scheduler, "_step_index", 0) is None
        self._values: list[float] = []
        self._sigmas: list[float] = []
        self._offset: int | None = None
        self._readings: list[_Match] = []
        self.known = Known.NO_SCHEDULER if scheduler is None else Known.OTHER
        if not isinstance(self.timesteps, torch.Tensor) or self.timesteps.ndim != 1:
            return
        self._values = [float(t) for t in self.timesteps.tolist()]
        self._sigmas = _sigmas(scheduler, self._values)
        if not in_use(scheduler):
            self.known = Known.NOT_SET
            return
        self._find(first, scheduler)
        self.additive = self._offset is not None and _is_additive(scheduler)

    @property
    def total(self) -> int | None:
        """Steps of the loop; image-to-image starts in the middle of the schedule."""
        return None if self._offset is None else len(self._values) - self._offset

    @property
    def highest_sigma(self) -> float:
        """The highest noise level, 0 where there are none."""
        return max(self._sigmas, default=0.0)

    @property
    def has_sigmas(self) -> bool:
        """Whether the scheduler has noise levels."""
        return bool(self._sigmas)

    def sigma(self, index: int) -> float | None:
        """Noise level before a step of the loop."""
        if self._offset is None:
            return None
        place = self._offset + index
        return self._sigmas[place] if 0 <= place < len(self._sigmas) else None

    def agrees(self, index: int, level: float) -> bool:
        """Whether a step of the loop is at the timestep that the schedule has there."""
        fits = self._fitting(index, level)
        # what the first timestep left open, the later ones show
        self._readings = fits or self._readings
        return bool(fits)

    def _fitting(self, index: int, level: float) -> list[_Match]:
        if self._offset is None or not 0 <= self._offset + index < len(self._values):
            return []
        value = self._values[self._offset + index]
        most = max(1e-2 * max(map(abs, self._values)), 2e-3)
        # (a scale of 0: handed over as a function of sigma)
        return [
            match
            for match in self._readings
            if match.place == self._offset
            and (not match.scale or abs(match.shift + match.scale * level - value) <= most)
        ]

    def runs_reversed(self, index: int, level: float) -> bool:
        """Whether a loop that began at the schedule's end goes back through it."""
        if index != 1 or self._offset is None or self._offset != len(self._values) - 1:
            return False
        return self._offset > 0 and not self.sure and bool(self._fitting(-1, level))

    def continues(self, scheduler: Any, index: int) -> bool:
        """Whether new timesteps of a scheduler are those of this loop, made once more.

        Args:
            scheduler: that has another tensor now.
            index: of the step that begins.
        """
        timesteps = getattr(scheduler, "timesteps", None)
        if self._offset is None or not isinstance(timesteps, torch.Tensor) or timesteps.ndim != 1:
            return False
        values = [float(t) for t in timesteps.tolist()]
        if values not in (self._values, self._values[self._offset + index :]):
            return False
        self.timesteps = timesteps
        return True

    def lose(self) -> None:
        """The loop does not follow the schedule."""
        self._offset = None
        self.additive = False
        if self.known is Known.FOLLOWED:
            self.known = Known.OTHER

    def _find(self, first: float, scheduler: Any) -> None:
        begin = getattr(scheduler, "_begin_index", None)
        found = self._matches(first, scheduler, None if begin is None else int(begin))
        # the beginning of the schedule is the likeliest place
        found = [match for match in found if match.place == 0] or found
        if found:
            self._offset = found[0].place
            self.known = Known.FOLLOWED
        if begin is not None:
            self._offset = int(begin)
            self.known = Known.FOLLOWED
        self._readings = found
        self.sure = begin is not None or self._offset == 0
        signs = {match.sign for match in found}
        if len(signs) == 1 and self._values[0] != self._values[-1]:
            # what the transformer gets may rise while noise falls; else the first steps tell
            rises = 1 if self._values[-1] > self._values[0] else -1
            self.direction = rises * signs.pop()

    def _matches(self, now: float, scheduler: Any, begin: int | None) -> list[_Match]:
        """Places in the schedule that a timestep may stand for, the likeliest reading first.

        Families hand timesteps over as they are, divided by the training steps, or reversed; half
        precision moves them by up to 0.4 %.
        """
        first = self._sigmas[0] if self._sigmas else 0.0
        if first > 1.0 and not begin and abs(now - first / (1.0 + first)) < 4e-3:
            return [_Match(0, 1, 0.0, 0.0)]  # handed over as sigma / (1 + sigma), as Cosmos 2 does
        train_steps = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
        scale = float(train_steps or 1000)
        readings = [(1, scale, 0.0), (-1, -scale, scale)]
        # 1.0 in a schedule of hundreds is 1000/1000.
        plain = now > 1.0 or max(self._values, default=0.0) <= 1.0
        readings.insert(0 if plain else 2, (1, 1.0, 0.0))
        found = []
        for sign, factor, shift in readings:
            value = shift + factor * now
            distances = [abs(t - value) for t in self._values]
            place = distances.index(min(distances)) if begin is None and distances else begin
            if place is None or place >= len(distances):
                continue
            if distances[place] <= max(4e-3 * abs(value), 2e-3):
                found.append(_Match(place, sign, factor, shift))
        return found


def _sigmas(scheduler: Any, schedule: list[float]) -> list[float]:
    """Noise levels before each step and after the last; empty where the scheduler has none."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) >= len(schedule):
        return [float(s) for s in torch.as_tensor(sigmas).tolist()]
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or not schedule:
        return []
    levels = [float(alphas[int(t)]) for t in schedule]
    # DDIM's last step leads to the alpha of one stride further on, or to its final one.
    steps = getattr(scheduler, "num_inference_steps", None) or 1
    end = int(schedule[-1]) - scheduler.config.num_train_timesteps // steps
    levels.append(float(alphas[end] if end >= 0 else getattr(scheduler, "final_alpha_cumprod", 1)))
    return [math.sqrt((1.0 - level) / max(level, 1e-12)) for level in levels]
