"""The schedule of one denoising loop: its timesteps and noise levels, and whether it is followed.

Whether the transformer's calls follow the scheduler at all is checked at every step: a scheduler
that somebody else steps, or that was never set, must not decide anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch

from .probing import Probe
from .response import (
    Probed,
    Response,
    in_closed_form,
    preconditioned,
    predicts_noise,
)
from .schedulers import GivenSigmas, in_use, sigmas_of

# Kept in a logarithm of picture by noise, which has no end.
_LEAST = 1e-3


def picture_and_noise(sigma: float, flow: bool, rises: bool = False) -> tuple[float, float]:
    """Shares of picture and noise in the latents at a noise level.

    Args:
        sigma: the level.
        flow: flow matching: `1 - sigma` and `sigma`; else noise prediction: `sqrt(alpha)` and
            `sqrt(1 - alpha)` of the cumulative alpha, that is `1` and `sigma` by their length.
        rises: whether the schedule counts from noise to picture (Mochi, OmniGen).
    """
    if not flow:
        length = math.hypot(1.0, sigma)
        return 1.0 / length, sigma / length
    return (sigma, 1.0 - sigma) if rises else (1.0 - sigma, sigma)


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


@dataclass(frozen=True)
class _Match:
    """A reading of a timestep, `shift + scale * timestep`, and the place that it has then.

    Attributes:
        place: in the schedule.
        sign: -1 if reversed.
        scale: of the reading; 0 where the timestep tells nothing, so that steps are counted.
        shift: of the reading.
    """

    place: int
    sign: int
    scale: float
    shift: float


@dataclass(frozen=True, eq=False)
class Schedule:
    """The schedule of one generation; `Schedule()` where there is no scheduler.

    Attributes:
        known: whether the loop follows it.
        timesteps: the scheduler's tensor; held, so that its identity stays unique.
        values: the timesteps as numbers.
        sigmas: noise levels before each step and after the last; empty where there are none.
        offset: where in the schedule the loop begins, None where it does not follow it.
        readings: what the transformer's timesteps may be of the scheduler's.
        direction: 1 or -1 where timesteps, as the transformer gets them, rise or fall; else 0.
        stages: transformer calls of a step: 2 for Heun's and its kin.
        sure: whether the loop begins where the schedule does, or where the scheduler was told to.
        anew: whether the scheduler tells its position, and had not moved when the loop began.
        given: whether noise levels were given instead of a scheduler.
        mixes: whether the family's pipelines, at noise levels beyond 1, may mix the latents into
            the output (`FamilyAdapter.preconditioned`).
        converted: whether not all that the transformer returns reaches the scheduler as it is
            (`FamilyAdapter.converted`): its response tells how large errors are, not more.
        probe: gives the response, None where the loop does not follow the schedule.
    """

    known: Known = Known.NO_SCHEDULER
    timesteps: Any = None
    values: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()
    offset: int | None = None
    readings: tuple[_Match, ...] = ()
    direction: int = 0
    stages: int = 1
    sure: bool = False
    anew: bool = False
    given: bool = False
    mixes: bool = False
    converted: bool = False
    probe: Probe | None = None

    @classmethod
    def of(
        cls,
        scheduler: Any,
        first: float,
        mixes: bool = False,
        options: Mapping[str, float] | None = None,
    ) -> Schedule:
        """The schedule of a loop that begins now.

        Args:
            scheduler: of the pipeline that calls, None where there is none in sight.
            first: the first timestep that the transformer got.
            mixes: see the attribute.
            options: further arguments of the scheduler's `step` (`Caller.step_options`).
        """
        if scheduler is None:
            return cls()
        timesteps = getattr(scheduler, "timesteps", None)
        found = cls(
            known=Known.OTHER,
            timesteps=timesteps,
            stages=max(int(getattr(scheduler, "order", 1)), 1),
            given=isinstance(scheduler, GivenSigmas),
            mixes=mixes,
            anew=getattr(scheduler, "_step_index", 0) is None,
        )
        if not isinstance(timesteps, torch.Tensor) or timesteps.ndim != 1:
            return found
        values = [float(t) for t in timesteps.tolist()]
        sigmas = sigmas_of(scheduler, values)
        found = replace(found, values=tuple(values), sigmas=tuple(sigmas))
        if not in_use(scheduler):
            return replace(found, known=Known.NOT_SET)
        return found._begun(first, scheduler, options)

    @property
    def total(self) -> int | None:
        """Steps of the loop; image-to-image starts in the middle of the schedule."""
        return None if self.offset is None else len(self.values) - self.offset

    @property
    def response(self) -> Response | None:
        """How the latents answer to the outputs; None where that is not known, or not linear.

        The scheduler is probed when somebody asks for the first time.
        """
        linear = self.probe is not None and self.probe.probed is Probed.LINEAR
        return self.tangent if linear and not self.converted else None

    @cached_property
    def tangent(self) -> Response | None:
        """The response to small changes of outputs, also of a scheduler that is not linear.

        It serves to measure errors. None where the schedule or the scheduler is not known.
        """
        found = None if self.probe is None else self.probe.tangent
        if found is None or not self.sigmas:
            return found
        if self.mixed:
            return preconditioned(found, self._levels())
        return in_closed_form(found, self._levels())

    @cached_property
    def mixed(self) -> bool:
        """Whether the pipeline mixes latents into outputs: their response is not the scheduler's.

        A scheduler that does so itself (EDM) does not leave latents as they are.
        """
        if not self.mixes or self.highest_sigma <= 1.0 or self.probe is None:
            return False
        return self.probe.tangent is not None and self.probe.tangent.is_plain

    @property
    def probed(self) -> Probed | None:
        """What probing shows of the scheduler, None where the loop does not follow one."""
        return None if self.probe is None else self.probe.probed

    def _levels(self) -> tuple[float, ...]:
        """Noise levels before each step of the loop, and after the last one."""
        return self.sigmas[self.offset or 0 : len(self.values) + 1]

    def feedback(self, index: int) -> float:
        """Change of the output per change of the latents, for data of unit variance.

        The latents are `data + sigma * noise` here. Noise prediction: `sigma / (1 + sigma^2)`,
        which the long gaps at high noise feel. Flow matching: at most one, and gaps are short
        against sigma's range, so that 0 serves; for predictions of the velocity, and EDM, it is 0.
        """
        response, sigma = self.tangent, self.sigma(index)
        if response is None or sigma is None or not predicts_noise(response, self._levels()):
            return 0.0
        return sigma / (1.0 + sigma**2)

    @cached_property
    def highest_sigma(self) -> float:
        """The highest noise level, 0 where there are none."""
        return max(self.sigmas, default=0.0)

    def sigma(self, index: int) -> float | None:
        """Noise level before a step of the loop."""
        if self.offset is None:
            return None
        place = self.offset + index
        return self.sigmas[place] if 0 <= place < len(self.sigmas) else None

    def log_snr(self, index: int) -> float | None:
        """Logarithm of picture by noise in the latents before a step of the loop.

        Half the logarithm of the signal-to-noise ratio, the time of DPM-Solver (arXiv 2206.00927),
        kept finite at both ends. None where it is not known, or does not rise from call to call
        (several stages per step).
        """
        return self._log_snrs[index] if 0 <= index < len(self._log_snrs) else None

    @cached_property
    def _log_snrs(self) -> tuple[float, ...]:
        levels = self._levels()[:-1] if self.offset is not None and self.stages == 1 else ()
        flow = self.highest_sigma <= 1.0
        rises = len(levels) > 1 and levels[-1] > levels[0]  # from noise to picture (Mochi, OmniGen)
        found = []
        for sigma in levels:
            picture, noise = picture_and_noise(sigma, flow, rises)
            found.append(math.log((max(picture, 0.0) + _LEAST) / (max(noise, 0.0) + _LEAST)))
        return tuple(found) if all(a < b for a, b in pairwise(found)) else ()

    def stands(self, index: int) -> bool:
        """Whether the call after a call of the loop is at the same timestep."""
        place = (self.offset or 0) + index
        return self.values[place : place + 1] == self.values[place + 1 : place + 2]

    def at(self, index: int, level: float) -> Schedule:
        """The schedule after a step of the loop: lost where the step is not at its timestep.

        Args:
            index: of the step.
            level: its timestep, as the transformer gets it.
        """
        fits = self._fitting(index, level)
        if not fits:
            return self.lost()
        # what the first timestep left open, the later ones show
        return self if fits == self.readings else replace(self, readings=fits)

    def lost(self) -> Schedule:
        """The schedule of a loop that does not follow it."""
        if self.offset is None and self.known is not Known.FOLLOWED:
            return self
        known = Known.OTHER if self.known is Known.FOLLOWED else self.known
        return replace(self, offset=None, probe=None, known=known)

    def runs_reversed(self, index: int, level: float) -> bool:
        """Whether a loop that began at the schedule's end goes back through it."""
        if index != 1 or self.offset is None or self.offset != len(self.values) - 1:
            return False
        return self.offset > 0 and not self.sure and bool(self._fitting(-1, level))

    def made_again(self, scheduler: Any, index: int) -> Schedule | None:
        """The schedule with a scheduler's new timesteps, None where they are of another loop.

        Args:
            scheduler: that has another tensor now.
            index: of the step that begins.
        """
        timesteps = getattr(scheduler, "timesteps", None)
        if self.offset is None or not isinstance(timesteps, torch.Tensor) or timesteps.ndim != 1:
            return None
        values = tuple(float(t) for t in timesteps.tolist())
        if values not in (self.values, self.values[self.offset + index :]):
            return None
        response = self.response
        # whoever sets the timesteps again makes the scheduler forget the outputs that it keeps
        kept = None if response is not None and response.keeps_outputs else self.probe
        return replace(self, timesteps=timesteps, probe=kept)

    def _fitting(self, index: int, level: float) -> tuple[_Match, ...]:
        if self.offset is None or not 0 <= self.offset + index < len(self.values):
            return ()
        value = self.values[self.offset + index]
        most = max(1e-2 * max(map(abs, self.values)), 2e-3)
        return tuple(
            match
            for match in self.readings
            if match.place == self.offset
            and (not match.scale or abs(match.shift + match.scale * level - value) <= most)
        )

    def _begun(self, first: float, scheduler: Any, options: Mapping[str, float] | None) -> Schedule:
        """The schedule, and where in it the loop begins."""
        begin = getattr(scheduler, "_begin_index", None)
        begin = None if begin is None else int(begin)
        found = self._matches(first, scheduler, begin)
        # the beginning of the schedule is the likeliest place
        found = [match for match in found if match.place == 0] or found
        offset = begin if begin is not None else found[0].place if found else None
        direction, signs = 0, {match.sign for match in found}
        if len(signs) == 1 and self.values[0] != self.values[-1]:
            # what the transformer gets may rise while noise falls; else the first steps tell
            rises = 1 if self.values[-1] > self.values[0] else -1
            direction = rises * signs.pop()
        return replace(
            self,
            offset=offset,
            known=self.known if offset is None else Known.FOLLOWED,
            readings=tuple(found),
            direction=direction,
            sure=begin is not None or offset == 0,
            probe=None if offset is None else Probe.of(scheduler, offset, options),
        )

    def _matches(self, now: float, scheduler: Any, begin: int | None) -> list[_Match]:
        """Places in the schedule that a timestep may stand for, the likeliest reading first.

        Families hand timesteps over as they are, divided by the training steps, or reversed; half
        precision moves them by up to 0.4 %.
        """
        first = self.sigmas[0] if self.sigmas else 0.0
        if first > 1.0 and not begin and abs(now - first / (1.0 + first)) < 4e-3:
            return [_Match(0, 1, 0.0, 0.0)]  # handed over as sigma / (1 + sigma), as Cosmos 2 does
        if isinstance(scheduler, GivenSigmas) and not scheduler.flow:
            return [_Match(0, 0, 0.0, 0.0)]  # the timesteps of noise levels beyond 1 are not known
        train_steps = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
        scale = float(train_steps or 1000)
        readings = [(1, scale, 0.0), (-1, -scale, scale)]
        # 1.0 in a schedule of hundreds is 1000/1000.
        plain = now > 1.0 or max(self.values, default=0.0) <= 1.0
        readings.insert(0 if plain else 2, (1, 1.0, 0.0))
        found = []
        for sign, factor, shift in readings:
            value = shift + factor * now
            distances = [abs(t - value) for t in self.values]
            place = distances.index(min(distances)) if begin is None and distances else begin
            if place is None or place >= len(distances):
                continue
            if distances[place] <= max(4e-3 * abs(value), 2e-3):
                found.append(_Match(place, sign, factor, shift))
        return found
