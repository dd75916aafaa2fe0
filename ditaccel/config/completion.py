"""A config made whole for a family: what was left open is the family's, what was given stays.

Options without a value of their own (`method(base=…)`) are None until it is known for which family
they are meant. So `AdaptiveTaylorConfig(tolerance=0.01, few=2)` differs from a family's preset of
these options in nothing that was not said.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..io.given import suggest
from .acceleration import AccelerationConfig, from_text
from .registry import KINDS

if TYPE_CHECKING:
    from ..pipelines import FamilyAdapter


def completed(
    config: AccelerationConfig, adapter: FamilyAdapter
) -> tuple[AccelerationConfig, dict[str, Any]]:
    """Fill in what a config leaves to its family.

    Args:
        config: may have options that are None.
        adapter: of the family that it is meant for.

    Returns:
        The whole config, and what was filled in: option -> value.
    """
    from ..pipelines import AUTO_STEPS

    filled: dict[str, Any] = {}
    made: dict[str, Any] = {}
    for kind in KINDS:
        part = getattr(config, kind)
        base = {} if part is None else {**part.base, **adapter.base.get(part.method, {})}
        missing = {k: v for k, v in base.items() if getattr(part, k) is None}
        if missing:
            filled.update(missing)
            made[kind] = replace(part, **missing)
    if config.steps == "auto":
        share = adapter.presets.get("balanced", {}).get(AUTO_STEPS)
        if share is not None:
            filled["steps"] = made["steps"] = share
    return replace(config, **made), filled


def overridden(config: AccelerationConfig, options: Mapping[str, Any]) -> AccelerationConfig:
    """Change single options of a config's methods.

    Args:
        config: names at least one method.
        options: of them, by name.

    Raises:
        ConfigError: an option that none of the methods has, that both have, or of a wrong type.
    """
    if not options:
        return config
    known = {kind: _fields(getattr(config, kind)) for kind in KINDS}
    changes: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for name, value in options.items():
        owners = [kind for kind in KINDS if name in known[kind]]
        if not owners:
            every = [field for fields in known.values() for field in fields]
            names = " and ".join(m.method for m in config.methods) or "a config without a method"
            hint = suggest(name, every)
            raise ConfigError(f"there is no option {name!r} of {names}{hint}")
        if len(owners) > 1:
            both = " and ".join(getattr(config, kind).method for kind in owners)
            raise ConfigError(
                f"{name!r} is an option of both {both}; "
                f"give each method's own config as {'= and '.join(owners)}="
            )
        (kind,) = owners
        part = getattr(config, kind)
        hint = typing.get_type_hints(type(part))[name]
        changes[kind][name] = from_text(hint, value)
    made = {k: replace(getattr(config, k), **given) for k, given in changes.items() if given}
    written = ",".join(f"{name}={value}" for name, value in options.items())
    label = f"{config.label}:{written}" if config.label else ""
    return config.changed(**made, label=label)


def _fields(part: Any) -> list[str]:
    return [] if part is None else [field.name for field in dataclasses.fields(part)]
