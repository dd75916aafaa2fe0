"""What a search may vary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from ...attention.engine.options import TileOptions
from ...config import AccelerationConfig, require, resolve
from ...config.option_types import checked
from ...config.specs import Setting
from ...errors import ConfigError
from ...io.given import suggest
from ...pipelines import FamilyAdapter
from ..joint.modes import AttentionMap

# Fewest steps of a loop that is searched.
_FEWEST = 4
_PARTS = ("caches", "schedules", "attention", "densities", "rests", "steps")


@checked(but=("caches", "attention"))
@dataclass(frozen=True, kw_only=True)
class Space:
    """What `tune` may vary. All of it is measured in seconds on this machine.

    Attributes:
        caches: settings that `accelerate` takes, each a candidate as it is: presets (`balanced`),
            specs (`taylorseer:interval=3`), configs.
        schedules: whether the steps to compute are searched.
        attention: attention methods whose maps computed steps may have, as specs or configs.
            Every step has the density that suits it, dense included; one map serves a loop.
        densities: values of the option that sets how much a map keeps; empty for a few of those
            that each method names.
        rests: what may stand for tiles that are not computed (`rest`); empty for the map's own.
        steps: numbers of steps of a call below its own, or shares of them: each is a candidate by
            itself, and its steps are searched as those of the whole loop are.
        runs: folder in which all runs are kept: a search that was killed resumes where it was, and
            another target finds the dense runs there; None for a temporary one.
        minutes: from the beginning of the search, after which nothing further is run and the best
            so far is taken; None for no limit.

    Raises:
        ConfigError: a value is out of range, or nothing may vary.
    """

    caches: Sequence[Setting] = ()
    schedules: bool = True
    attention: Sequence[Setting] = ()
    densities: tuple[float, ...] = ()
    rests: tuple[str, ...] = ()
    steps: tuple[int | float, ...] = ()
    runs: str | PathLike[str] | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("caches", "attention"):
            value = getattr(self, name)
            listed = value if isinstance(value, (list, tuple)) else (value,)
            object.__setattr__(self, name, tuple(listed))
        for step in self.steps:
            require(
                step >= 1 if isinstance(step, int) else 0 < step < 1,
                f"space: steps holds {step}; give whole numbers, or shares between 0 and 1",
            )
        require(
            self.minutes is None or self.minutes > 0,
            f"space: minutes is {self.minutes}; it must be more than 0",
        )
        require(
            self.schedules or bool(self.caches or self.attention or self.steps),
            "nothing may vary in this space; name caches, attention or steps, or turn schedules on",
        )
        for name in ("densities", "rests"):
            require(
                bool(self.attention) or not getattr(self, name),
                f"space: {name} are of attention maps; name attention methods, too",
            )

    @classmethod
    def parse(cls, text: str) -> Space:
        """A space as text: `attention=sla,sol; densities=0.05,0.2; steps=0.5; caches=balanced`.

        Parts are separated by `;`. Settings that hold a comma themselves go into brackets:
        `caches=[taylorseer:interval=3,order=2],balanced`.

        Raises:
            ConfigError: a part is unknown or cannot be read.
        """
        given: dict[str, Any] = {}
        for part in filter(None, map(str.strip, text.split(";"))):
            name, equals, value = part.partition("=")
            name = name.strip()
            if name not in _PARTS or not equals:
                raise ConfigError(
                    f"space: {part!r} is not one of {', '.join(f'{p}=…' for p in _PARTS)}"
                    f"{suggest(name, _PARTS)}"
                )
            require(name not in given, f"space: {name} is given twice; list its values once")
            values = [a or b for a, b in re.findall(r"\[([^\]]*)\]|([^,\[\]]+)", value)]
            values = [each.strip() for each in values if each.strip()]
            require(bool(values), f"space: {name}= has no value; give one, or leave it out")
            given[name] = _read(name, values)
        return cls(**given)

    def maps(self, family: FamilyAdapter | str) -> list[AttentionMap]:
        """The attention maps, each with each rest.

        Raises:
            ConfigError: a setting has no attention method, or one that takes none of the values.
        """
        found = []
        for setting in self.attention:
            config = resolve(setting, family).attention
            if not isinstance(config, TileOptions):
                raise ConfigError(f"space: attention holds {setting!r}, which has no tile map")
            rests: Sequence[Any] = self.rests or (config.rest,)
            values = self.densities if config.scheduled_option() else ()
            found += [AttentionMap.of(replace(config, rest=rest), values) for rest in rests]
        return found

    def settings(self, family: FamilyAdapter | str) -> list[AccelerationConfig]:
        """The caches that are candidates as they are."""
        return [resolve(setting, family) for setting in self.caches]

    def counts(self, total: int) -> list[int]:
        """The numbers of steps below that of the call, falling.

        Raises:
            ConfigError: one is not below it, or too few to search.
        """
        found = {round(s * total) if isinstance(s, float) else s for s in self.steps}
        wrong = sorted(count for count in found if not _FEWEST <= count < total)
        if wrong:
            raise ConfigError(
                f"space: steps comes to {wrong[0]}; give {_FEWEST} to {total - 1}, below the "
                f"{total} of the call"
            )
        return sorted(found, reverse=True)


def _read(name: str, values: list[str]) -> Any:
    if name == "schedules":
        word = values[0].lower() if len(values) == 1 else ""
        if word not in ("true", "false"):
            raise ConfigError("space: schedules is true or false")
        return word == "true"
    if name in ("densities", "steps"):
        try:
            return tuple(
                int(value) if name == "steps" and value.isdigit() else float(value)
                for value in values
            )
        except ValueError:
            raise ConfigError(f"space: {name} takes numbers, not {', '.join(values)}") from None
    return tuple(values)
