"""How a computed step may be computed: dense, or with one attention map at one density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...attention.engine.options import TileOptions
from ...config import AccelerationConfig
from ...config.inline import method_spec
from ...errors import ConfigError
from ..masks import Steps
from ..schedule_search import Plan

# Values of a map's option that are tried where none are named.
_VALUES = 3


@dataclass(frozen=True)
class AttentionMap:
    """An attention method, and values of the option that sets how much it keeps.

    A step in mode 0 is dense, in mode k it has the value k - 1.

    Attributes:
        config: of the method.
        values: of its swept option, the sparsest first; empty for the config as it is, the one
            sparse mode of a method without such an option.
    """

    config: TileOptions
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, config: Any, values: Sequence[float] = ()) -> AttentionMap:
        """A map with the values given, or with a few of those that its method names.

        Raises:
            ConfigError: the method has no map of tiles, or no option that takes these values.
        """
        if not isinstance(config, TileOptions):
            raise ConfigError(f"{config!r} is not the config of an attention method with tiles")
        option, swept = config.scheduled_option(), type(config).swept
        if values and not option:
            raise ConfigError(f"{config.method} has no option whose values could be searched")
        if not values and option and swept is not None:
            every, most = swept.values, len(swept.values) - 1
            places = {round(i * most / (_VALUES - 1)) for i in range(_VALUES)}
            values = [every[place] for place in sorted(places)]
            # What else holds for a sweep, such as a floor of the density that is in the way.
            config = replace(config, **swept.options)
        always: dict[str, Any] = {
            "dense_steps": 0,
            "dense_parts": (),
            "break_even": 1.0,
            "schedule": (),
        }
        return cls(replace(config, **always), tuple(values))

    @property
    def name(self) -> str:
        """The method, with the options that differ from its defaults."""
        return method_spec(self.config)

    @property
    def modes(self) -> tuple[TileOptions, ...]:
        """The config of each sparse mode, the same at all steps."""
        option = self.config.scheduled_option()
        made: list[dict[str, Any]] = [{option: value} for value in self.values]
        return tuple(replace(self.config, **one) for one in made) or (self.config,)

    def along(self, steps: Steps, modes: Steps, total: int) -> TileOptions | None:
        """The config that computes each step of a loop in its mode; None where all are dense.

        Args:
            steps: computed steps, rising.
            modes: one per computed step.
            total: steps of the loop.
        """
        if not any(modes):
            return None
        dense: list[tuple[float, float]] = []
        points: list[tuple[float, float]] = []
        for place, (step, mode) in enumerate(zip(steps, modes, strict=True)):
            if mode:
                points.append((step / total, self.values[mode - 1] if self.values else 0.0))
                continue
            # Half a step further on either side: rounding must not matter.
            start, end = max(step - 0.5, 0) / total, min(step + 0.5, total) / total
            if place and not modes[place - 1]:
                start = dense.pop()[0]
            dense.append((start, end))
        common: dict[str, Any] = {"dense_parts": tuple(dense)}
        if not self.values:
            return replace(self.config, **common)
        if len({value for _, value in points}) == 1:
            common[self.config.scheduled_option()] = points[0][1]
            return replace(self.config, **common)
        return replace(self.config, **common, schedule=_corners(points))


def _corners(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The points between which a schedule is not level."""
    last = len(points) - 1
    return tuple(
        point
        for i, point in enumerate(points)
        if i in (0, last) or not points[i - 1][1] == point[1] == points[i + 1][1]
    )


@dataclass(frozen=True)
class JointPlan:
    """Computed steps, and the mode of each.

    Attributes:
        plan: computed steps of the branches; its cost is the expected squared error in the latents,
            that of sparse attention included.
        modes: one per computed step of the first branch; other branches have the same.
        map: that the modes are of; None where all steps are dense.
        seconds: that a generation is expected to take.
    """

    plan: Plan
    modes: Steps
    map: AttentionMap | None
    seconds: float

    @property
    def cost(self) -> float:
        """Expected squared error in the latents."""
        return self.plan.cost

    def config(self, total: int) -> AccelerationConfig:
        """The config that carries it out.

        Args:
            total: steps of the loop.
        """
        steps, made = self.plan.steps, AccelerationConfig()
        everything = len(steps) == total and self.plan.others in (None, steps)
        if not everything:
            made = self.plan.mask.config(total)
        attention = None if self.map is None else self.map.along(steps, self.modes, total)
        sparse = sum(mode > 0 for mode in self.modes)
        label = f"tuned {len(steps)} of {total} steps"
        if attention is not None:
            label = f"{label}, {sparse} of them {attention.method}"
        return replace(made, attention=attention, label=label)
