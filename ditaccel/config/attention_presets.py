"""Presets of attention: `attention:balanced` and `attention:fast`.

A family's presets such as `balanced` are caches. Those of attention can be used alone, or together
with one of them: `accelerate(pipe, "balanced & attention:fast")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..io.given import suggest
from .acceleration import AccelerationConfig, method_from_dict
from .completion import completed
from .inline import parse_options

if TYPE_CHECKING:
    from ..pipelines import FamilyAdapter

PREFIX = "attention"


def attention_presets(adapter: FamilyAdapter) -> list[str]:
    """Names of a family's presets of attention, such as `attention:fast`."""
    return [f"{PREFIX}:{name}" for name in adapter.attention_presets if adapter.attention]


def is_attention_preset(text: str) -> bool:
    """Whether a text names a preset of attention."""
    return text.partition(":")[0].strip() == PREFIX


def attention_preset(text: str, adapter: FamilyAdapter) -> AccelerationConfig:
    """Read `attention:NAME` or `attention:NAME:option=value,…` for a family.

    Raises:
        ConfigError: the family has no such preset, or its method no such option.
    """
    name, _, changes = text.partition(":")[2].partition(":")
    name = name.strip()
    options = adapter.attention_presets.get(name)
    if options is None:
        hint = suggest(name, adapter.attention_presets)
        raise ConfigError(f"{text!r}: {adapter.name} has no preset of attention {name!r}{hint}")
    made = method_from_dict({**options, **parse_options(changes, text)})
    config = AccelerationConfig.of(made, label=f"{adapter.name} {text}")
    return completed(config, adapter)[0]
