"""Authors' settings: `published:METHOD` gives what a method's paper or code used for a family.

Each config class carries its own settings as data (`published`, family -> options, `""` for
families that its authors did not name), so a method stays one file. They reproduce the decisions
of the authors' code; what the class adds beyond it is switched off there.

`published:NAME` may also be a schedule that was published for one checkpoint (`schedules.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..io.given import suggest
from .acceleration import AccelerationConfig, method_from_dict
from .completion import completed
from .inline import parse_options
from .registry import MethodConfig, methods
from .schedules import is_schedule, schedule_presets, scheduled, schedules_of

if TYPE_CHECKING:
    from ..pipelines import FamilyAdapter

PREFIX = "published"
# What the bare word stands for: the method whose authors set constants per model.
_BARE = "confidence_gated_taylor"


def settings(cls: type[MethodConfig], family: str) -> Mapping[str, Any] | None:
    """Options that a method's authors use for a family, None where they give none."""
    return cls.published.get(family, cls.published.get(""))


def published_presets(adapter: FamilyAdapter) -> list[str]:
    """Names of published presets, such as `published:taylorseer`.

    Args:
        adapter: of the family; if it knows the checkpoint, the schedules that were published for
            that one are among them.
    """
    names = [f"{PREFIX}:{name}" for name, cls in methods().items() if settings(cls, adapter.name)]
    bare = [PREFIX] if settings(methods()[_BARE], adapter.name) else []
    return [*bare, *names, *schedule_presets(adapter)]


def is_published(text: str) -> bool:
    """Whether a text names a published preset."""
    return text.partition(":")[0].strip() == PREFIX


def published(text: str, adapter: FamilyAdapter) -> AccelerationConfig:
    """Read `published:NAME` or `published:NAME:option=value,…` for a family.

    Args:
        text: names a method or a schedule; the bare word `published` stands for
            `published:confidence_gated_taylor`.
        adapter: the family.

    Raises:
        ConfigError: the authors of that method give no settings for this family, or the schedule
            is for another checkpoint.
    """
    _, _, rest = text.partition(":")
    name, _, changes = rest.partition(":")
    name = name.strip() or _BARE
    if is_schedule(name):
        return scheduled(name, parse_options(changes, text), adapter)
    cls = methods().get(name)
    known = [p.partition(":")[2] or _BARE for p in published_presets(adapter)]
    known = list(dict.fromkeys(known))
    if cls is None:
        names = [*methods(), *schedules_of(adapter)]
        raise ConfigError(f"{text!r}: unknown method or schedule {name!r}{suggest(name, names)}")
    options = settings(cls, adapter.name)
    if options is None:
        raise ConfigError(
            f"the authors of {name} give no settings for {adapter.name} (published ones there: "
            f"{', '.join(known)}); name the options yourself, as in '{name}:option=value'"
        )
    made = method_from_dict({"method": name, **options, **parse_options(changes, text)})
    config = AccelerationConfig.of(made, label=f"{adapter.name} {text}")
    return completed(config, adapter)[0]
