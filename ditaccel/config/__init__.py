"""Versioned, frozen configs; strict round trip through YAML and JSON; presets; inline specs.

A method registers its config class with `@method("name")`; the class then selects the method, in
code (`cache=TaylorSeerConfig(interval=4)`), in a file, and on a command line
(`taylorseer:interval=4`, `taylorseer:interval=4 & lite_attention:threshold=-5`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from ..errors import ConfigError, UsageError
from ..io import given
from ..io.given import suggest
from .option_types import arms_of, checked

if TYPE_CHECKING:
    from ..pipelines import FamilyAdapter

FORMAT = 1
KINDS = ("cache", "attention")
_METHODS: dict[str, type] = {}
T = TypeVar("T", bound=type)


def method(
    name: str, kind: str = "cache", base: Mapping[str, Any] | None = None
) -> Callable[[T], T]:
    """Register a frozen dataclass as the config of the method `name`.

    Args:
        name: of the method.
        kind: one of `KINDS`.
        base: options that may be None, which stands for the family's own value
            (`FamilyAdapter.base`), and what they are where the family has none.

    Its options are checked against their annotations before its own `__post_init__` runs.
    """

    def register(cls: T) -> T:
        cls.method = name  # type: ignore[attr-defined]
        cls.kind = kind  # type: ignore[attr-defined]
        cls.base = dict(base or {})  # type: ignore[attr-defined]
        _METHODS[name] = checked(name)(cls)
        return cls

    return register


@cache
def methods() -> dict[str, type]:
    """Return the config classes of all methods by name."""
    from .. import attention, caching

    for room in (caching, attention):
        for module in pkgutil.iter_modules(room.__path__):
            importlib.import_module(f"{room.__name__}.{module.name}")
    return dict(sorted(_METHODS.items()))


def require(condition: bool, line: str) -> None:
    """Raise ConfigError with `line` unless `condition` holds."""
    if not condition:
        raise ConfigError(line)


def choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `allowed`."""
    require(
        value in allowed, f"{name} is {value!r}; it must be one of: {', '.join(map(repr, allowed))}"
    )


@checked()
@dataclass(frozen=True)
class AccelerationConfig:
    """All that `accelerate` does to a pipeline.

    Attributes:
        cache: config of a caching method, None for no caching.
        attention: config of an attention method, None for dense attention.
        label: a name for reports.
    """

    cache: Any = None
    attention: Any = None
    label: str = ""

    def __post_init__(self) -> None:
        for kind in KINDS:
            value = getattr(self, kind)
            known = [c for c in methods().values() if c.kind == kind]  # type: ignore[attr-defined]
            if value is not None and type(value) not in known:
                what = "a caching" if kind == "cache" else "an attention"
                raise ConfigError(
                    f"{kind}= is of type {type(value).__name__}, no config of {what} method; give "
                    f"one of: {', '.join(c.__name__ for c in known)}"
                )

    @property
    def methods(self) -> tuple[Any, ...]:
        """The configs of the methods that are on."""
        return tuple(m for m in (self.cache, self.attention) if m is not None)


def from_text(hint: Any, value: Any) -> Any:
    """A number that YAML 1.1 reads as text (1e-3); everything else as it is."""
    arms = arms_of(hint)
    if isinstance(value, str) and str not in arms and float in arms:
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def method_from_dict(data: Mapping[str, Any]) -> Any:
    """Build a method's config from `{"method": name, option: value, …}`."""
    options = dict(data)
    name = options.pop("method", None)
    cls = methods().get(str(name))
    if cls is None:
        raise ConfigError(f"unknown method {name!r}{suggest(str(name), methods())}")
    hints = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]
    for key in options:
        if key not in fields:
            raise ConfigError(f"{name} has no option {key!r}{suggest(str(key), fields)}")
    return cls(**{k: from_text(hints[k], v) for k, v in options.items()})


def from_dict(data: Any) -> AccelerationConfig:
    """Read what `to_dict` wrote; unknown keys, versions and wrong types are errors."""
    require(isinstance(data, Mapping), "a config must be a mapping with the key 'ditaccel'")
    options = dict(data)
    version = options.pop("ditaccel", None)
    require(
        version == FORMAT,
        f"config format is {version!r}; this version reads 'ditaccel: {FORMAT}' as the first key",
    )
    parts = {kind: options.pop(kind, None) for kind in KINDS}
    label = options.pop("label", "")
    if options:
        unknown = next(iter(options))
        raise ConfigError(
            f"a config has no key {unknown!r}{suggest(str(unknown), [*KINDS, 'label'])}"
        )
    for kind, part in parts.items():
        require(
            part is None or isinstance(part, Mapping), f"{kind!r} must be a mapping with 'method'"
        )
    made = {k: method_from_dict(part) for k, part in parts.items() if part is not None}
    return AccelerationConfig(**made, label=str(label))


def to_dict(config: AccelerationConfig) -> dict[str, Any]:
    """Return a config as plain data; `from_dict` reads it back to an equal config."""
    data: dict[str, Any] = {"ditaccel": FORMAT}
    if config.label:
        data["label"] = config.label
    for part in config.methods:
        options = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        plain = {k: _plain(v) for k, v in options.items()}
        data[part.kind] = {"method": part.method, **plain}
    return data


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def load(path: str | os.PathLike[str]) -> AccelerationConfig:
    """Read a config from a `.yaml`, `.yml` or `.json` file."""
    path = given.path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the config {path}: {error}") from None
    try:
        data = given.parse_json(text) if path.suffix == ".json" else given.parse_yaml(text)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"{path} is no valid {path.suffix[1:] or 'YAML'} file: {first}") from None
    try:
        return from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def dump(config: AccelerationConfig, path: str | os.PathLike[str]) -> None:
    """Write a config to a `.yaml`, `.yml` or `.json` file, whole or not at all."""
    path = Path(path)
    data = to_dict(config)
    if path.suffix == ".json":
        text = json.dumps(data, indent=2) + "\n"
    else:
        text = yaml.safe_dump(data, sort_keys=False)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write the config {path}: {error}") from None


def parse_spec(spec: str, family: str | FamilyAdapter | None = None) -> AccelerationConfig:
    """Read an inline config: `method` or `method:option=value,option=value`.

    A caching and an attention method go together with `&` between them. Values are read as YAML:
    `0.1`, `true`, `null`, `[0, 1, 5]`.

    Args:
        spec: the text.
        family: whose presets may stand in place of methods: `balanced:tolerance=0.02`; None where
            there are no presets.
    """
    from .completion import overridden
    from .published import is_published

    made: dict[str, Any] = {}
    for part in map(str.strip, spec.split("&")):
        published = family is not None and is_published(part)
        name, options = (part, {}) if published else _parse_part(part)
        if name in methods() or family is None:
            chosen: tuple[Any, ...] = (method_from_dict({"method": name, **options}),)
        else:
            chosen = overridden(preset(name, family), options).methods
        for each in chosen:
            require(each.kind not in made, f"{spec!r} names two methods of the kind {each.kind!r}")
            made[each.kind] = each
    return AccelerationConfig(**made, label=spec)


def _parse_part(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and options of one method or preset."""
    require(bool(spec), "a name is missing beside '&'; write 'balanced & svg2', or one name alone")
    name, _, rest = spec.partition(":")
    return name.strip(), parse_options(rest, spec)


def parse_options(text: str, spec: str) -> dict[str, Any]:
    """Read `option=value,option=value`; `spec` is the whole, for messages."""
    options: dict[str, Any] = {}
    for item in _split(text):
        key, equals, value = (part.strip() for part in item.partition("="))
        require(bool(equals), f"{spec!r}: {item!r} is not option=value")
        require(key not in options, f"{spec!r} gives {key!r} twice; give each option once")
        try:
            options[key] = given.parse_yaml(value)
        except ValueError:
            raise ConfigError(f"{spec!r}: cannot read the value {value!r}") from None
    return options


def spec_of(config: AccelerationConfig) -> str:
    """A config as a user writes it: inline where that says the same, else as YAML.

    Options that have their defaults are left out; `parse_spec` or `from_dict` reads back the same
    methods.
    """
    text = " & ".join(map(method_spec, config.methods))
    try:
        same = parse_spec(text).methods == config.methods
    except ConfigError:
        same = False  # a comma or an ampersand in a path
    return text if same else yaml.safe_dump(to_dict(config), sort_keys=False).strip()


def method_spec(method: Any) -> str:
    """A method's config as a user writes it, without options that have their defaults."""
    options = {
        f.name: getattr(method, f.name)
        for f in dataclasses.fields(method)
        if getattr(method, f.name) != f.default
    }
    written = (f"{name}={_written(value)}" for name, value in options.items())
    return ":".join(filter(None, (method.method, ",".join(written))))


def _written(value: Any) -> str:
    """A value in YAML, on one line."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=float("inf"))
    return str(text).removesuffix("\n").removesuffix("\n...")


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    items, depth, item = [], 0, ""
    for character in text:
        depth += character in "[({"
        depth -= character in "])}"
        if character == "," and depth == 0:
            items.append(item)
            item = ""
        else:
            item += character
    return [i for i in (*items, item) if i.strip()]


def preset(name: str, family: str | FamilyAdapter) -> AccelerationConfig:
    """Return a family's preset; `published:METHOD` is one for each method (`published.py`)."""
    from ..pipelines import adapters
    from .completion import completed
    from .published import is_published, published, published_presets

    adapter = adapters().get(family) if isinstance(family, str) else family
    if adapter is None:
        raise ConfigError(f"unknown family {family!r}{suggest(str(family), adapters())}")
    if is_published(name):
        return published(name, adapter)
    family = adapter.name
    data = adapter.presets.get(name)
    if data is None:
        known = [*adapter.presets, *published_presets(family), *methods()]
        raise ConfigError(
            f"{family} has no preset {name!r}{suggest(name, known)} (or give the path of a config "
            "file)"
        )
    made = method_from_dict(data)
    config = AccelerationConfig(**{made.kind: made}, label=f"{family} {name}")
    return completed(config, adapter)[0]


def _refuse_rows_of_eval(text: str) -> None:
    """`ditaccel eval` compares more than configs; say what to do with such a row elsewhere."""
    if text.startswith("peer/"):
        raise ConfigError(
            f"{text!r} names a peer, which ditaccel eval alone runs; here give a method or preset"
        )
    head, _, rest = text.partition("+")
    name, _, steps = head.partition(":")
    if name.strip() != "steps":
        return
    then = "do not accelerate it (ditaccel generate: --config none)"
    if rest:
        then = f"give {rest.strip()!r} as the config"
    raise ConfigError(
        f"{text!r}: fewer steps are an argument of the call and no method; call the pipeline with "
        f"num_inference_steps={steps.strip() or 'N'} (ditaccel generate: --steps), and {then}"
    )


def _no_config(value: Any) -> str:
    """What to do in place of handing `value` over as a config."""
    for known in methods().values():
        kind, name = getattr(known, "kind", ""), known.__name__
        if type(value) is known:
            return f"config is a method's own; give it as {kind}={name}(…)"
        if value is known:
            return f"config is a class; give one of it, as {kind}={name}(…)"
    return (
        f"config is of type {type(value).__name__}; give a preset name ('balanced'), the path of a "
        "config file, an inline spec ('taylorseer:interval=3') or an AccelerationConfig"
    )


def resolve(text: str | os.PathLike[str], family: str | FamilyAdapter) -> AccelerationConfig:
    """Read a preset name, the path of a config file, or an inline spec.

    Args:
        text: `balanced`, `fast.yaml`, `taylorseer:interval=4`, `balanced:tolerance=0.02` or
            `published:taylorseer`.
        family: whose presets are meant.
    """
    try:
        name = os.fspath(text)
    except TypeError:
        raise ConfigError(_no_config(text)) from None
    if name.endswith((".yaml", ".yml", ".json")) or isinstance(text, os.PathLike):
        return load(name)
    _refuse_rows_of_eval(name)
    if ":" in name or "&" in name or name in methods():
        return parse_spec(name, family)
    return preset(name, family)
