"""AccelerationConfig: what `accelerate` does, and its strict round trip through YAML and JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import yaml

from ..errors import ConfigError, UsageError
from ..io import given
from ..io.files import plain, write_atomically
from ..io.given import suggest
from . import hub
from .checks import require
from .option_types import arms_of, checked
from .registry import (
    KIND_WORDS,
    KINDS,
    AttentionConfig,
    CacheConfig,
    CallConfig,
    MethodConfig,
    check_kind,
    methods,
)
from .tuned import Tuned

FORMAT = 1
# Keys of a file beside those of methods.
_OTHERS = ("label", "steps", "scheduler", "tuned")

# How many steps a call runs; see `AccelerationConfig.steps`.
Steps = int | float | Literal["keep", "auto"]
_KEEP: Literal["keep"] = "keep"


@checked(but=(*KINDS, "tuned"))
@dataclass(frozen=True, kw_only=True)
class AccelerationConfig:
    """All that `accelerate` does to a pipeline: at most one method of each kind.

    ```python
    config = AccelerationConfig(cache=TaylorSeerConfig(interval=3), attention=SVG2Config())
    config.save("mine.yaml")
    ditaccel.accelerate(pipe, AccelerationConfig.load("mine.yaml"))  # or "mine.yaml" itself
    ```

    Attributes:
        cache: config of a caching method, None for no caching.
        attention: config of an attention method, None for dense attention.
        calls: config of a call method (merged tokens, kept condition tokens, several steps side by
            side), None for plain calls.
        label: a name for reports.
        steps: scheduler steps of a pipeline call, by those that it asks for: `"keep"` runs them; a
            whole number, at most so many; a share between 0 and 1, that part of them; `"auto"`, the
            share that was measured to be best with the family's preset, where there is one. Neither
            leaves fewer than 20 steps, and both keep the steps where the call gives its own noise
            levels, and where the method was made for a number of steps.

        scheduler: what it was tuned with (`core.denoising.schedulers.described`), empty for any;
            with another one, `accelerate` warns.
        tuned: what else it was tuned on, None where that is not known. Two configs that differ in
            this alone are equal.

    Raises:
        ConfigError: a value is not a config of a method of its kind, or not a number of steps, or
            two of the methods cannot be combined.
    """

    cache: CacheConfig | None = None
    attention: AttentionConfig | None = None
    calls: CallConfig | None = None
    label: str = ""
    steps: Steps = _KEEP
    scheduler: str = ""
    tuned: Tuned | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for kind in KINDS:
            check_kind(kind, getattr(self, kind))
        if self.calls is not None:
            self._check_combined(self.calls)
        steps = self.steps
        require(
            isinstance(steps, str) or (steps >= 1 if isinstance(steps, int) else 0 < steps <= 1),
            f"steps is {steps}; it must be a whole number from 1, a share between 0 and 1, 'keep' "
            "or 'auto'",
        )

    def _check_combined(self, calls: CallConfig) -> None:
        for kind, why in calls.excludes.items():
            other = getattr(self, kind)
            if other is not None:
                raise ConfigError(
                    f"{calls.method} and {other.method} cannot be combined: {why}; give one of the "
                    "two"
                )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AccelerationConfig:
        """Read a config from a `.yaml`, `.yml` or `.json` file.

        Args:
            path: of the file, or its address on the Hugging Face Hub: `hf://user/repo/file.yaml`,
                with `@revision` behind the repository if need be.

        Raises:
            UsageError: the file cannot be read.
            ConfigError: it does not hold a config that this version knows.
        """
        return load(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the config to a `.yaml`, `.yml` or `.json` file, whole or not at all.

        Raises:
            UsageError: the file cannot be written.
        """
        dump(self, path)

    @classmethod
    def of(cls, *methods: MethodConfig, label: str = "") -> AccelerationConfig:
        """A config of these methods; the type of each says where it belongs.

        Raises:
            ConfigError: two are of one kind, or one is not a method's config.
        """
        made: dict[str, Any] = {}
        for each in methods:
            kind = getattr(each, "kind", KINDS[0])
            check_kind(kind, each)
            if kind in made:
                what = KIND_WORDS[kind].partition(" ")[2]
                where = f"{label!r}: " if label else ""
                raise ConfigError(
                    f"{where}{made[kind].method} and {each.method} are both {what} methods, and a "
                    "pipeline can have one of each kind; give one of the two"
                )
            made[kind] = each
        return cls(**made, label=label)

    def changed(self, **parts: Any) -> AccelerationConfig:
        """This config with other parts: what its tuning measured is not true of the new one.

        Args:
            **parts: fields, by name.
        """
        tuned = None if self.tuned is None else replace(self.tuned, figures={}, profile=())
        return replace(self, **{"tuned": tuned, **parts})

    @property
    def methods(self) -> tuple[MethodConfig, ...]:
        """The configs of the methods that are on."""
        given = (getattr(self, kind) for kind in KINDS)
        return tuple(method for method in given if method is not None)

    @property
    def name(self) -> str:
        """Its label, else the names of its methods, else its number of steps."""
        steps = "" if self.steps == _KEEP else f"steps:{self.steps}"
        return self.label or " & ".join(method.method for method in self.methods) or steps


def from_text(hint: Any, value: Any) -> Any:
    """A number that YAML 1.1 reads as text (1e-3); everything else as it is."""
    arms = arms_of(hint)
    if isinstance(value, str) and str not in arms and float in arms:
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def method_from_dict(data: Mapping[str, Any]) -> MethodConfig:
    """Build a method's config from `{"method": name, option: value, …}`."""
    options = dict(data)
    name = options.pop("method", None)
    cls = methods().get(str(name))
    if cls is None:
        raise ConfigError(f"unknown method {name!r}{suggest(str(name), methods())}")
    check_old = getattr(cls, "check_old", None)  # of a method whose options have changed
    if check_old is not None:
        check_old(options)
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
    label, steps = options.pop("label", ""), options.pop("steps", _KEEP)
    scheduler, tuned = options.pop("scheduler", ""), options.pop("tuned", None)
    if options:
        unknown = next(iter(options))
        raise ConfigError(
            f"a config has no key {unknown!r}{suggest(str(unknown), [*KINDS, *_OTHERS])}"
        )
    for kind, part in parts.items():
        require(
            part is None or isinstance(part, Mapping), f"{kind!r} must be a mapping with 'method'"
        )
    made: dict[str, Any] = {
        kind: method_from_dict(part) for kind, part in parts.items() if part is not None
    }
    made["tuned"] = None if tuned is None else Tuned.from_dict(tuned)
    return AccelerationConfig(**made, label=str(label), steps=steps, scheduler=scheduler)


def what_decides(data: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config's plain data that decides what it does: no name, no provenance."""
    return {key: value for key, value in data.items() if key not in ("label", "tuned")}


def to_dict(config: AccelerationConfig) -> dict[str, Any]:
    """Return a config as plain data; `from_dict` reads it back to an equal config."""
    data: dict[str, Any] = {"ditaccel": FORMAT}
    if config.label:
        data["label"] = config.label
    if config.steps != _KEEP:
        data["steps"] = config.steps
    if config.scheduler:
        data["scheduler"] = config.scheduler
    for part in config.methods:
        options = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        data[part.kind] = {"method": part.method, **{k: plain(v) for k, v in options.items()}}
    if config.tuned is not None:
        data["tuned"] = config.tuned.to_dict()
    return data


def load(path: str | os.PathLike[str]) -> AccelerationConfig:
    """Read a config from a `.yaml`, `.yml` or `.json` file, here or on the Hub (`hf://…`)."""
    address = os.fspath(path)
    path = hub.fetched(address) if hub.is_address(address) else given.path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the config {path}: {error}") from None
    try:
        data = given.parse_json(text) if path.suffix == ".json" else given.parse_yaml(text)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} is not a valid {path.suffix[1:] or 'YAML'} file: {first}"
        ) from None
    try:
        return from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def dump(config: AccelerationConfig, path: str | os.PathLike[str]) -> None:
    """Write a config to a `.yaml`, `.yml` or `.json` file, whole or not at all."""
    target = given.path(path)
    if target.suffix == ".json":
        text = json.dumps(to_dict(config), indent=2) + "\n"
    else:
        text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write_atomically(target, lambda file: file.write(text.encode()))
