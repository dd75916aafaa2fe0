"""DenoisingTracker: which generation, step and branch does this transformer call belong to?

Never by call parity: a guidance interval, an interrupt or an exception breaks it. A call is placed
by, in this order, the cache context that the pipeline names, the timestep argument, and the
scheduler's own position. Nothing is patched for that: the scheduler is looked at on every call, so
that one replaced after `accelerate` is followed too.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch

from ._compat import NamedContext

# More calls at one timestep than any guidance has branches: a loop we cannot see the end of.
_MAX_BRANCHES = 8


@dataclass(frozen=True)
class DenoisingStep:
    """Where a transformer call stands.

    Attributes:
        generation: number of the denoising loop since `accelerate`, from 0.
        index: scheduler step within the loop, from 0.
        branch: guidance branch: the pipeline's name for it, else `call0`, `call1`, …
        timestep: timestep as the transformer got it, the largest where tokens have their own.
        sigma: noise level, None where the scheduler has none.
        total: steps of the loop, None where it cannot be known (a bare transformer).
        sigma_next: noise level that the step leads to, where the scheduler has one and takes its
            steps in one stage (not Heun's).
        additive: whether the scheduler's step adds `(sigma_next - sigma) * output` to the latents,
            up to a scale of the latents, and keeps no outputs of earlier steps.
        latent_scale: size of the latents to which that scale applies, by what the transformer is
            given: 1 for flow matching, sqrt(1 + sigma^2) for noise prediction.
    """

    generation: int
    index: int
    branch: str
    timestep: float
    sigma: float | None = None
    total: int | None = None
    sigma_next: float | None = None
    additive: bool = False
    latent_scale: float = 1.0

    @property
    def feedback(self) -> float:
        """Change of the output per change of the latents, for data of unit variance.

        Noise prediction: `sigma / (1 + sigma^2)`, which the long gaps at high noise feel. Flow
        matching: at most one, and gaps are short against sigma's range, so that 0 serves.
        """
        if self.sigma is None or self.latent_scale == 1.0:
            return 0.0
        return self.sigma / (1.0 + self.sigma**2)

    def preconditioned(self) -> DenoisingStep:
        """This step where latents are mixed into the output before the scheduler gets it.

        EDM (arXiv 2206.00364) and its kin divide an output's part in the latents by about
        `sqrt(1 + sigma^2)`, on top of how latents grow.
        """
        scale = 1.0 if self.sigma is None else 1.0 + self.sigma**2
        return replace(self, additive=False, latent_scale=scale)

    @property
    def is_last(self) -> bool:
        """Whether this is known to be the last step."""
        return self.total is not None and self.index >= self.total - 1


def _is_flow(scheduler: Any) -> bool:
    """Whether sigma runs from 1 to 0 and the latents keep their size (flow matching)."""
    options = getattr(scheduler, "config", None) or {}
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or bool(options.get("use_flow_sigmas", False))
        or options.get("prediction_type") == "flow_prediction"
    )


def _is_additive(scheduler: Any) -> bool:
    """Whether a step adds `(sigma_next - sigma) * output` and remembers no earlier output."""
    options = getattr(scheduler, "config", None) or {}
    name = type(scheduler).__name__
    if name == "FlowMatchEulerDiscreteScheduler":
        return not options.get("stochastic_sampling", False)
    if name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        clips = options.get("clip_sample", False) or options.get("thresholding", False)
        # DDIM steps by a fixed stride, which with other spacings is not the next timestep.
        strides = name != "DDIMScheduler" or options.get("timestep_spacing") == "leading"
        return options.get("prediction_type") == "epsilon" and not clips and strides
    return False


@dataclass(frozen=True)
class _Reading:
    """A timestep argument, looked at once.

    Attributes:
        level: the step's timestep. Tokens that are given have a small one or 0 (Wan 2.2 5B), so
            it is the largest.
        progress: what tells steps apart: the mean, which moves on although some frames still wait
            at the largest timestep (diffusion forcing).
        each: timesteps of the tokens or frames of one sample, None where they have none of their
            own.
        moved: the farthest that one of them is from the call before.
        turned_back: whether one of them went back.
    """

    level: float
    progress: float
    each: torch.Tensor | None = None
    moved: float = 0.0
    turned_back: bool = False


def _read(timestep: Any, before: torch.Tensor | None, direction: int) -> _Reading:
    """Read a timestep argument; waits for the device once.

    Args:
        timestep: a number, or a tensor `()`, `(B,)` or `(B, …)`.
        before: `each` of the call before.
        direction: 1 or -1 where timesteps have risen or fallen so far, else 0.
    """
    if not isinstance(timestep, torch.Tensor):
        return _Reading(float(timestep), float(timestep))
    if timestep.ndim < 2:
        level = float(timestep.detach().float().max())
        return _Reading(level, level)
    each = timestep.detach()[0].flatten().float().clone()
    change = torch.zeros_like(each)
    if before is not None and before.shape == each.shape:
        change = each - before
    # more than what schedules lose by rounding to whole timesteps
    back = (change * -direction > 5e-3 * each.abs().max()).any().float()
    figures = [each.max(), each.min(), each.mean(), change.abs().max(), back]
    level, least, mean, moved, turned = torch.stack(figures).tolist()
    return _Reading(level, level if level == least else mean, each, moved, turned > 0)


class DenoisingTracker:
    """Follows the denoising loop of one pipeline; all its transformers share one tracker."""

    def __init__(self, pipe: Any = None) -> None:
        self._pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        self._scheduler: Any = None
        self.generation = -1
        self._forget()

    def _forget(self) -> None:
        self._timesteps: torch.Tensor | None = None
        self._schedule: list[float] = []
        self._sigmas: list[float] = []
        self._scheduler_step: int | None = None
        self._last: float | None = None
        self._level = 0.0
        self._each: torch.Tensor | None = None
        self._direction = 0
        self._index = -1
        self._offset: int | None = None
        self._total: int | None = None
        self._additive = False
        self._flow = False
        self._single_stage = True
        self._branches: set[tuple[str, str]] = set()
        self._calls: dict[str, int] = {}
        self._fresh = True

    def reset(self) -> None:
        """Forget the loop (after an exception): the next call begins a new generation."""
        self._forget()

    def observe(
        self,
        transformer: str,
        timestep: Any,
        context: NamedContext | None = None,
        preconditioned: bool = False,
    ) -> DenoisingStep:
        """Place one transformer call.

        Args:
            transformer: name of the component that is called (`transformer`, `transformer_2`).
            timestep: the timestep argument: a number or a tensor of any shape.
            context: the cache context that the pipeline set, if any.
            preconditioned: `FamilyAdapter.preconditioned`.
        """
        reading = _read(timestep, self._each, self._direction)
        now = reading.progress
        # The scheduler seen last outlives a pipeline that was taken apart (`Pipe(**p.components)`).
        scheduler = self._scheduler = getattr(self._pipe(), "scheduler", self._scheduler)
        timesteps = getattr(scheduler, "timesteps", None)
        scheduler_step = getattr(scheduler, "_step_index", None)
        turned = reading.turned_back
        if turned or self._begins_generation(now, timesteps, context, transformer, scheduler_step):
            self._forget()
            self._fresh = False
            self.generation += 1
            self._read_schedule(scheduler, timesteps, reading.level)
            self._additive = self._offset is not None and _is_additive(scheduler)
            self._flow = _is_flow(scheduler)
            self._single_stage = getattr(scheduler, "order", 1) == 1
        if self._begins_step(now, scheduler_step):
            if self._last is not None and now != self._last:
                if not self._direction:
                    self._direction = 1 if now > self._last else -1
                if 2 * abs(reading.level - self._level) < reading.moved:
                    # Some frames wait: the schedule is that of one frame, and not of this loop.
                    self._offset = self._total = None
                    self._additive = False
            self._index += 1
            self._branches.clear()
            self._calls.clear()
        self._last, self._scheduler_step = now, scheduler_step
        self._level, self._each = reading.level, reading.each
        sigma = self._sigma(self._index)
        if context is not None and context.sigma is not None:
            sigma = context.sigma
        step = DenoisingStep(
            generation=self.generation,
            index=self._index,
            branch=self._branch(transformer, context),
            timestep=reading.level,
            sigma=sigma,
            total=self._total,
            sigma_next=self._sigma(self._index + 1) if self._single_stage else None,
            additive=self._additive,
            latent_scale=1.0 if self._flow or sigma is None else math.hypot(1.0, sigma),
        )
        # noise levels of flow matching end at 1
        beyond = preconditioned and max(self._sigmas, default=0.0) > 1.0
        return step.preconditioned() if beyond else step

    def _begins_generation(
        self,
        now: float,
        timesteps: torch.Tensor | None,
        context: NamedContext | None,
        transformer: str,
        scheduler_step: int | None,
    ) -> bool:
        if self._fresh or self._last is None:
            return True
        # `set_timesteps` makes a new tensor; holding the old one keeps its identity unique.
        if timesteps is not self._timesteps:
            return True
        if self._direction and (now - self._last) * self._direction < 0:
            return True
        if now != self._last or scheduler_step != self._scheduler_step:
            return False
        return self._calls.get(transformer, 0) >= _MAX_BRANCHES

    def _begins_step(self, now: float, scheduler_step: int | None) -> bool:
        if self._last is None or now != self._last:
            return True
        # Heun-type schedulers visit a timestep twice; `scheduler.step` ran between the visits.
        return scheduler_step is not None and scheduler_step != self._scheduler_step

    def _branch(self, transformer: str, context: NamedContext | None) -> str:
        call = self._calls.get(transformer, 0)
        self._calls[transformer] = call + 1
        if context is None:
            return f"call{call}"
        name, repeat = context.name, 1
        while (transformer, name) in self._branches:
            repeat += 1
            name = f"{context.name}#{repeat}"
        self._branches.add((transformer, name))
        return name

    def _read_schedule(self, scheduler: Any, timesteps: torch.Tensor | None, first: float) -> None:
        self._timesteps = timesteps
        if not isinstance(timesteps, torch.Tensor) or timesteps.ndim != 1:
            return
        self._schedule = [float(t) for t in timesteps.tolist()]
        self._sigmas = _sigmas(scheduler, self._schedule)
        begin = getattr(scheduler, "_begin_index", None)
        found = self._matches(first, scheduler, None if begin is None else int(begin))
        # the beginning of the schedule is the likeliest place
        found = [match for match in found if match[0] == 0] or found
        self._offset = found[0][0] if found else None
        if begin is not None:
            self._offset = int(begin)
        signs = {sign for _, sign in found}
        if len(signs) == 1 and self._schedule[0] != self._schedule[-1]:
            # what the transformer gets may rise while noise falls; else the first steps tell
            rises = 1 if self._schedule[-1] > self._schedule[0] else -1
            self._direction = rises * signs.pop()
        if self._offset is not None:
            # image-to-image starts in the middle of the schedule
            self._total = len(self._schedule) - self._offset

    def _matches(self, now: float, scheduler: Any, begin: int | None) -> list[tuple[int, int]]:
        """Places in the schedule that a timestep may stand for, with +1, or -1 if reversed.

        Families hand timesteps over as they are, divided by the training steps, or reversed; half
        precision moves them by up to 0.4 %.
        """
        first = self._sigmas[0] if self._sigmas else 0.0
        if first > 1.0 and not begin and abs(now - first / (1.0 + first)) < 4e-3:
            return [(0, 1)]  # handed over as sigma / (1 + sigma), as Cosmos 2 does
        train_steps = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
        scale = float(train_steps or 1000)
        values = [(now * scale, 1), (scale - now * scale, -1)]
        # 1.0 in a schedule of hundreds is 1000/1000.
        if now > 1.0 or max(self._schedule, default=0.0) <= 1.0:
            values.insert(0, (now, 1))
        found = []
        for value, sign in values:
            distances = [abs(t - value) for t in self._schedule]
            place = distances.index(min(distances)) if begin is None and distances else begin
            if place is None or place >= len(distances):
                continue
            if distances[place] <= max(4e-3 * abs(value), 2e-3):
                found.append((place, sign))
        return found

    def _sigma(self, index: int) -> float | None:
        if self._offset is None:
            return None
        place = self._offset + index
        return self._sigmas[place] if 0 <= place < len(self._sigmas) else None


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
    stride = scheduler.config.num_train_timesteps // (scheduler.num_inference_steps or 1)
    end = int(schedule[-1]) - stride
    levels.append(float(alphas[end] if end >= 0 else getattr(scheduler, "final_alpha_cumprod", 1)))
    return [math.sqrt((1.0 - level) / max(level, 1e-12)) for level in levels]
