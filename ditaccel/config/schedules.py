"""`published:NAME` where NAME is a schedule that was published for one checkpoint.

The schedules themselves are data (`pipelines/schedules/`). One of them is refused for another
checkpoint, and in a loop of another number of steps, unless its options say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..io.given import suggest
from .acceleration import AccelerationConfig, method_from_dict
from .completion import completed
from .inline import parse_options

if TYPE_CHECKING:
    from ..pipelines import FamilyAdapter
    from ..pipelines.schedules import PublishedSchedule

_PREFIX = "published:"
_OPTION = "checkpoint"


def is_schedule(name: str) -> bool:
    """Whether a published schedule has this name."""
    from ..pipelines.schedules import schedules

    return any(each.name == name for each in schedules())


def schedules_of(adapter: FamilyAdapter) -> list[str]:
    """Names of the schedules that are published for any checkpoint of a family."""
    from ..pipelines.schedules import checkpoints, schedules

    families = {key: each.family for key, each in checkpoints().items()}
    named = (s.name for s in schedules() if families.get(s.checkpoint) in (adapter.name, None))
    return list(dict.fromkeys(named))


def family_of_schedule(text: str) -> FamilyAdapter | None:
    """The family of a text such as `published:gph-9`, where it names one without a model.

    Args:
        text: of a config.

    Returns:
        None for other texts.

    Raises:
        ConfigError: the schedule is for several checkpoints, and the text says none of them.
    """
    from ..pipelines import adapters
    from ..pipelines.schedules import ANY, checkpoints, schedules

    prefix, _, rest = text.partition(":")
    name, _, changes = rest.partition(":")
    keys = [each.checkpoint for each in schedules() if each.name == name]
    if prefix + ":" != _PREFIX or not keys:
        return None
    known = checkpoints()
    key = str(parse_options(changes, text).get(_OPTION, keys[0] if len(keys) == 1 else ""))
    if key == ANY:
        return next(iter(adapters().values()))  # it is the same for all
    if key not in known:
        named = " or ".join(f"{_OPTION}={each}" for each in keys)
        raise ConfigError(f"{text}: say which checkpoint is meant ({named}), or give the model")
    return adapters()[known[key].family]


def schedule_presets(adapter: FamilyAdapter) -> list[str]:
    """Names of the presets that are schedules for the checkpoint of an adapter, if it knows one."""
    from ..pipelines.schedules import schedules_for

    if not adapter.checkpoint:
        return []
    return [_PREFIX + name for name in schedules_for(adapter.checkpoint)]


def scheduled(name: str, options: Mapping[str, Any], adapter: FamilyAdapter) -> AccelerationConfig:
    """The config of a published schedule.

    Args:
        name: of the schedule.
        options: `checkpoint`, key of the checkpoint that the model is to be taken for, and options
            of the method.
        adapter: of the pipeline's family.

    Raises:
        ConfigError: it was published for other checkpoints.
    """
    options = dict(options)
    found = _chosen(name, options.pop(_OPTION, None), adapter)
    made = method_from_dict({**found.options, **options})
    config = AccelerationConfig.of(made, label=f"{adapter.name} {_PREFIX}{name}")
    return completed(config, adapter)[0]


def _chosen(name: str, given: Any, adapter: FamilyAdapter) -> PublishedSchedule:
    """The schedule of a name that fits the checkpoint: the one given, else the pipeline's own."""
    from ..pipelines.schedules import ANY, checkpoints, schedules

    every = {each.checkpoint: each for each in schedules() if each.name == name}
    if ANY in every:
        return every[ANY]
    known = checkpoints()
    here = {key: s for key, s in every.items() if known[key].family == adapter.name}
    if given is not None:
        if given not in here:
            raise ConfigError(
                f"{_PREFIX}{name} is not for the checkpoint {given!r} of "
                f"{adapter.name}{suggest(str(given), here)}"
            )
        return here[given]
    if adapter.checkpoint in here:
        return here[adapter.checkpoint]
    if adapter.checkpoint is None and len(here) == 1:
        return next(iter(here.values()))
    titles = ", ".join(known[key].title for key in every)
    if not here:
        raise ConfigError(
            f"{_PREFIX}{name} is for {titles}; this model is of the family {adapter.name}, for "
            "which it was not published"
        )
    mine = known.get(adapter.checkpoint or "")
    this = f"is {mine.title}" if mine else "is not recognised as one of them"
    keys = " or ".join(f"{_OPTION}={key}" for key in here)
    raise ConfigError(
        f"{_PREFIX}{name} is for {titles}, and this model {this}; for a model that was made from "
        f"one of them write '{_PREFIX}{name}:{_OPTION}={next(iter(here))}' (here: {keys})"
    )
