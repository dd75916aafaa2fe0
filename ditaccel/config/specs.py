"""Configs as text: presets, inline specs such as `taylorseer:interval=4 & svg2`, file paths.

Each may begin with how many steps a call runs: `steps:26+balanced`, `steps:auto+fast.yaml`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import ConfigError
from ..io.given import parse_yaml, suggest
from .acceleration import AccelerationConfig, Steps, load, method_from_dict, to_dict
from .attention_presets import PREFIX as ATTENTION
from .attention_presets import attention_preset, attention_presets, is_attention_preset
from .checks import require
from .completion import completed, overridden
from .inline import method_spec, parse_options
from .published import is_published, published, published_presets
from .registry import KIND_WORDS, MethodConfig, methods

if TYPE_CHECKING:
    from ..pipelines import FamilyAdapter

# Texts for a dense run, where a command or a batch job takes one.
DENSE = ("none", "dense")
# Whatever says how to accelerate a pipeline: a text, a path, a config of one method or of all, or
# a list of these.
Setting = Any


def parse_spec(spec: str, family: str | FamilyAdapter | None = None) -> AccelerationConfig:
    """Read an inline config: `method` or `method:option=value,option=value`.

    A caching and an attention method go together with `&` between them. Values are read as YAML:
    `0.1`, `true`, `null`, `[0, 1, 5]`.

    Args:
        spec: the text.
        family: whose presets may stand in place of methods: `balanced:tolerance=0.02`; None where
            there are no presets.
    """
    steps, text = _steps_and_rest(spec)
    if steps is not None:
        return with_steps(parse_spec(text, family), steps, text, family)
    made: list[MethodConfig] = []
    for part in map(str.strip, spec.split("&")):
        whole = family is not None and (is_published(part) or is_attention_preset(part))
        name, options = (part, {}) if whole else _parse_part(part)
        if name in methods() or family is None:
            made.append(method_from_dict({"method": name, **options}))
        else:
            made.extend(overridden(preset(name, family), options).methods)
    return AccelerationConfig.of(*made, label=spec)


def _steps_and_rest(text: str) -> tuple[Any, str]:
    """What a text such as `steps:26+balanced` says of the steps (None: nothing), and the rest."""
    name, _, rest = text.partition(":")
    if name.strip() != "steps":
        return None, text
    count, _, rest = rest.partition("+")
    if not rest.strip():
        raise ConfigError(
            f"{text!r}: fewer steps alone are an argument of the pipeline's call, not a method; "
            f"call it with num_inference_steps={count.strip() or 'N'} without accelerating it, or "
            f"write 'steps:{count.strip() or 'N'}+METHOD'"
        )
    return parse_yaml(count.strip()), rest.strip()


def with_steps(
    config: AccelerationConfig, steps: Steps, setting: Setting, family: str | FamilyAdapter | None
) -> AccelerationConfig:
    """A config that decides how many steps a call runs.

    Args:
        config: what `setting` comes to.
        steps: as in `AccelerationConfig`; `auto` takes the share of the preset that is named, where
            it has one.
        setting: as in `resolve`.
        family: whose presets are meant.
    """
    label = f"steps:{steps}+{config.label}" if config.label else ""
    made = replace(config, steps=steps, label=label)
    share = _share_of_preset(setting, family) if steps == "auto" else None
    return made if share is None else replace(made, steps=share)


def _share_of_preset(setting: Setting, family: str | FamilyAdapter | None) -> float | None:
    """The share of the steps that a preset names, of the first one in a setting that does."""
    from ..pipelines import AUTO_STEPS, adapters

    adapter = adapters().get(family) if isinstance(family, str) else family
    if isinstance(setting, (list, tuple)):
        shares = (_share_of_preset(each, adapter) for each in setting)
        return next((share for share in shares if share is not None), None)
    if adapter is None or not isinstance(setting, str):
        return None
    names = [part.partition(":")[0].strip() for part in setting.split("&")]
    found: list[float | None] = [adapter.presets.get(name, {}).get(AUTO_STEPS) for name in names]
    return next((share for share in found if share is not None), None)


def _parse_part(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and options of one method or preset."""
    require(
        bool(spec), "a name is missing next to '&'; write 'balanced & METHOD', or one name alone"
    )
    name, _, rest = spec.partition(":")
    return name.strip(), parse_options(rest, spec)


def spec_of(config: AccelerationConfig) -> str:
    """A config as a user writes it: inline where that says the same, else as YAML.

    Options that have their defaults are left out; `parse_spec` or `from_dict` reads back the same
    methods.
    """
    text = " & ".join(map(method_spec, config.methods))
    if config.steps != "keep":
        text = f"steps:{config.steps}+{text}"
    try:
        read = parse_spec(text)
        same = read.methods == config.methods and read.steps == config.steps
    except ConfigError:
        same = False  # a comma or an ampersand in a path
    return text if same else yaml.safe_dump(to_dict(config), sort_keys=False).strip()


def preset(name: str, family: str | FamilyAdapter) -> AccelerationConfig:
    """Return a family's preset.

    `published:METHOD` is one for each method (`published.py`), `attention:NAME` one of attention
    (`attention_presets.py`).
    """
    from ..pipelines import AUTO_STEPS, adapters

    adapter = adapters().get(family) if isinstance(family, str) else family
    if adapter is None:
        raise ConfigError(f"unknown family {family!r}{suggest(str(family), adapters())}")
    if is_published(name):
        return published(name, adapter)
    if is_attention_preset(name):
        return attention_preset(name, adapter)
    family = adapter.name
    data = adapter.presets.get(name)
    if data is None:
        known = [*adapter.presets, *attention_presets(adapter)]
        known += [*published_presets(adapter), *methods()]
        raise ConfigError(
            f"{family} has no preset {name!r}{suggest(name, known)} (or give the path of a config "
            "file)"
        )
    made = method_from_dict({key: value for key, value in data.items() if key != AUTO_STEPS})
    config = AccelerationConfig.of(made, label=f"{family} {name}")
    return completed(config, adapter)[0]


def _refuse_peers(text: str) -> None:
    """`evaluate` compares more than configs; say what to do with a peer elsewhere."""
    if text.startswith("peer/"):
        raise ConfigError(
            f"{text!r} names a peer, which only an evaluation runs; here give a method or preset"
        )


def combined(configs: Sequence[AccelerationConfig]) -> AccelerationConfig:
    """One config of several, which name at most one method of each kind.

    Raises:
        ConfigError: two of them name methods of one kind.
    """
    if len(configs) == 1:
        return configs[0]
    label = " & ".join(c.name for c in configs) if any(c.label for c in configs) else ""
    made = [method for config in configs for method in config.methods]
    steps = {config.steps for config in configs} - {"keep"}
    require(len(steps) < 2, f"two numbers of steps are given: {' and '.join(map(str, steps))}")
    return replace(
        AccelerationConfig.of(*made, label=label),
        steps=next(iter(steps), "keep"),
        scheduler=next((c.scheduler for c in configs if c.scheduler), ""),
        tuned=next((c.changed().tuned for c in configs if c.tuned is not None), None),
    )


def resolve(
    setting: Setting, family: str | FamilyAdapter, steps: Steps | None = None
) -> AccelerationConfig:
    """Read whatever says how to accelerate a pipeline.

    Args:
        setting: a preset name (`balanced`, `attention:fast`, `published:taylorseer`), the path of a
            config file (`fast.yaml`) or its address on the Hub (`hf://user/repo/fast.yaml`), an
            inline spec (`taylorseer:interval=4`, `balanced:tolerance=0.02`), the config of a
            method, an `AccelerationConfig`, or a list of these that names at most one method of
            each kind. A text may begin with a number of steps: `steps:26+balanced`,
            `steps:auto+fast.yaml`.
        family: whose presets are meant.
        steps: in place of what the setting says of the steps, see `AccelerationConfig`.

    Raises:
        ConfigError: it is none of these, or names something unknown.
        UsageError: a file cannot be read.
    """
    if steps is not None:
        return with_steps(resolve(setting, family), steps, setting, family)
    if isinstance(setting, (list, tuple)):
        return combined([resolve(each, family) for each in setting])
    if isinstance(setting, AccelerationConfig):
        return setting
    if isinstance(setting, (str, os.PathLike)):
        return _resolved_text(setting, family)
    if isinstance(setting, MethodConfig):
        return AccelerationConfig.of(setting)
    if setting in methods().values():
        name = setting.__name__
        raise ConfigError(f"config is the class {name} itself; give an instance of it: {name}(…)")
    raise ConfigError(
        f"config is of type {type(setting).__name__}; give a preset name ('balanced'), the path of "
        "a config file, an inline spec ('method:option=value'), the config of a method or an "
        "AccelerationConfig"
    )


def resolved_part(kind: str, setting: Any, family: str | FamilyAdapter) -> Any:
    """The config of one method that was given for its kind, as `cache=` or `attention=` takes it.

    Args:
        kind: one of `KINDS`.
        setting: a config of a method, which is returned as it is; or a text: a method, an inline
            spec, or a preset of that kind (`attention="fast"` is `attention:fast`).
        family: whose presets are meant.

    Raises:
        ConfigError: the text names no method of that kind.
    """
    if not isinstance(setting, str):
        return setting
    bare = kind == ATTENTION and setting.strip() not in methods() and ":" not in setting
    config = resolve(f"{ATTENTION}:{setting.strip()}" if bare else setting, family)
    require(
        config.steps == "keep",
        f"{kind}={setting!r} names a number of steps, too; give it as the config, not as {kind}=",
    )
    made = [method for method in config.methods if method.kind == kind]
    if len(made) != 1 or len(config.methods) != 1:
        raise ConfigError(
            f"{kind}={setting!r} names {' and '.join(m.method for m in config.methods)}; give the "
            f"name, spec or preset of {KIND_WORDS[kind]} method there"
        )
    return made[0]


def _resolved_text(text: str | os.PathLike[str], family: str | FamilyAdapter) -> AccelerationConfig:
    name = os.fspath(text)
    steps, rest = _steps_and_rest(name)
    if steps is not None and isinstance(text, str):
        return resolve(rest, family, steps)
    if name.endswith((".yaml", ".yml", ".json")) or isinstance(text, os.PathLike):
        return load(name)
    if name.strip() in DENSE:
        raise ConfigError(
            f"{name!r} means a dense run, so there is nothing to accelerate; leave accelerate out, "
            "or take off what is on with ditaccel.restore(pipe)"
        )
    _refuse_peers(name)
    if os.path.isfile(name) and not _is_name(name, family):
        return load(name)  # saved without a suffix
    if ":" in name or "&" in name or name in methods():
        return parse_spec(name, family)
    return preset(name, family)


def _is_name(text: str, family: str | FamilyAdapter) -> bool:
    """Whether a text names a method or a preset."""
    from ..pipelines import adapters

    adapter = adapters().get(family) if isinstance(family, str) else family
    named = text in methods() or text in (adapter.presets if adapter is not None else ())
    return named or is_published(text) or is_attention_preset(text)


def text_of(setting: Setting) -> str:
    """One line of text that says the same, for what passes configs on as text.

    Args:
        setting: as in `resolve`.

    Raises:
        ConfigError: it is not a config, or cannot be written in one line.
    """
    if isinstance(setting, (str, os.PathLike)):
        return os.fspath(setting)
    if isinstance(setting, (list, tuple)):
        return " & ".join(map(text_of, setting))
    text = spec_of(resolve(setting, ""))
    if "\n" in text:
        raise ConfigError("this config cannot be written in one line; save it and give its path")
    return text
