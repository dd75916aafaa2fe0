"""The methods by name, and what a method's config class offers.

A method is one module with one config class:

    @method("every_other_step")
    @dataclass(frozen=True)
    class EveryOtherStepConfig(CacheConfig):
        offset: int = 0

        def policy(self) -> CachePolicy: ...

Importing the module registers the method. The modules of `ditaccel/caching`, `ditaccel/attention`
and `ditaccel/calls` are found by themselves, installed plugins by their entry point (`plugins.py`),
and a class that a script or a notebook defines counts from there on.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from ..errors import ConfigError
from ..plugins import load_plugins
from .option_types import checked

# Kind -> what a method of it is called in messages.
KIND_WORDS = {"cache": "a caching", "attention": "an attention", "calls": "a call"}
KINDS = tuple(KIND_WORDS)
# What other words of a config's grammar stand for (`published.py`; rows of `ditaccel eval`).
_RESERVED = ("attention", "dense", "none", "peer", "published", "steps")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_METHODS: dict[str, type[MethodConfig]] = {}


@dataclass(frozen=True)
class Example:
    """Two settings of a method that suit a small model; the conformance checks run both.

    Attributes:
        exact: one under which nothing may be skipped.
        skipping: one under which much is.
        variant: how it differs from the method's other examples; empty for the first.
    """

    exact: MethodConfig
    skipping: MethodConfig
    variant: str = ""


class MethodConfig:
    """What every method's config class has; derive from the config class of one of the kinds.

    Such a class is a frozen dataclass under `@method`, and each of its options has a default.

    Attributes:
        method: name of the method, set by `@method`.
        kind: one of `KINDS`.
        paper: arXiv number of the paper, or the address of the code where there is no paper; empty
            where there is neither. Set by `@method`.
        base: options that may be None, which stands for the family's own value
            (`FamilyAdapter.base`), and what they are where the family has none; set by `@method`.
        baseline: whether the method is only there to be compared with.
        published: family -> options that the method's authors used for it; "" for every family
            that they did not name.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    method: ClassVar[str]
    kind: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    base: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    baseline: ClassVar[bool] = False
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Settings for the conformance checks; a second one where the method has two ways."""
        return ()


class CacheConfig(MethodConfig, ABC):
    """Config of a caching method: some steps are forecast from others."""

    kind = "cache"

    @abstractmethod
    def policy(self) -> Any:
        """What the hooks carry out, a `caching.engine.policy.CachePolicy`."""


class AttentionConfig(MethodConfig, ABC):
    """Config of an attention method: some tiles of the attention matrix are skipped."""

    kind = "attention"

    @abstractmethod
    def planner(self) -> Any:
        """What makes the tile maps, an `attention.engine.planner.Planner`."""


class CallConfig(MethodConfig, ABC):
    """Config of a call method: what a transformer call computes, or when, is changed as a whole.

    Attributes:
        excludes: kind of another method that this one cannot be combined with -> why, for people.
    """

    kind = "calls"
    excludes: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @abstractmethod
    def call_method(self) -> Any:
        """What carries the calls out, a `calls.engine.method.CallMethod`; one per transformer."""


_VERBS: tuple[tuple[type[MethodConfig], str], ...] = (
    (CacheConfig, "policy"),
    (AttentionConfig, "planner"),
    (CallConfig, "call_method"),
)
T = TypeVar("T", bound=MethodConfig)


def method(
    name: str,
    *,
    paper: str = "",
    base: Mapping[str, Any] | None = None,
    baseline: bool = False,
) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass as the config of the method `name`.

    Args:
        name: of the method: small letters, digits and underscores.
        paper: arXiv number, such as `2503.06923`; see `MethodConfig`.
        base: see `MethodConfig`.
        baseline: see `MethodConfig`.

    Its options are checked against their annotations before its own `__post_init__` runs.

    Raises:
        ConfigError: the name is taken or cannot be written in a config, or the class lacks
            something. A class that is defined again (a notebook's cell) takes the former's place.
    """

    def register(cls: type[T]) -> type[T]:
        _check(name, cls)
        cls.method = name
        cls.paper = paper
        cls.base = dict(base or {})
        cls.baseline = baseline
        cls.__dataclass_fields__ = _own_first(cls)
        _METHODS[name] = checked(name)(cls)
        return cls

    return register


def _check(name: str, cls: type[MethodConfig]) -> None:
    """Refuse a class that could not be used as the config of a method."""
    said = f"method {name!r}, {cls.__name__}"
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise ConfigError(
            f"{said}: choose another name, of small letters, digits and underscores "
            f"(and none of: {', '.join(_RESERVED)})"
        )
    former = _METHODS.get(name)
    if former is not None and _place(former) != _place(cls):
        raise ConfigError(
            f"{said}: this name is taken by {_place(former)}; give the method another name"
        )
    for parent, verb in _VERBS:
        if isinstance(cls, type) and issubclass(cls, parent):
            if getattr(cls, verb) is not getattr(parent, verb):
                break
            raise ConfigError(f"{said}: the class has no method {verb}(); define it")
    else:
        raise ConfigError(
            f"{said}: derive the class from ditaccel.config.CacheConfig (and define policy()), "
            "AttentionConfig (and define planner()) or CallConfig (and define call_method())"
        )
    params = cls.__dict__.get("__dataclass_params__")
    if params is None or not params.frozen:
        raise ConfigError(f"{said}: write @dataclass(frozen=True) between @method and the class")
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{said}: the option {field.name!r} has no default; give it one")


def _own_first(cls: type[MethodConfig]) -> dict[str, Any]:
    """The fields of a class, its own before inherited ones: so they stand in files and specs."""
    fields = cls.__dataclass_fields__
    own = {name: fields[name] for name in inspect.get_annotations(cls) if name in fields}
    return own | fields


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@cache
def _import_own() -> None:
    """Import the rooms of methods; most of their modules are loaded with `ditaccel` itself."""
    for room in ("ditaccel.caching", "ditaccel.attention", "ditaccel.calls"):
        for module in pkgutil.iter_modules(importlib.import_module(room).__path__):
            importlib.import_module(f"{room}.{module.name}")


def methods() -> dict[str, type[MethodConfig]]:
    """Return the config classes of all methods by name, those registered just now included."""
    _import_own()
    load_plugins()
    return dict(sorted(_METHODS.items()))


def check_kind(kind: str, value: Any) -> None:
    """Check that a value is a config of a method of this kind, or None.

    Raises:
        ConfigError: it is something else; with the classes to choose from.
    """
    if value is None or (getattr(value, "kind", "") == kind and "method" in vars(type(value))):
        return
    raise ConfigError(_wrong_kind(kind, value))


def _wrong_kind(kind: str, value: Any) -> str:
    """Why a value is not a config of a method of this kind, and what to write."""
    name = type(value).__name__
    if isinstance(value, str):
        return (
            f"{kind}={value!r} is a text; give the text itself as the config, as in accelerate("
            f"pipe, {value!r}), or the config of a method, as in {kind}={_example(kind)}"
        )
    if isinstance(value, type) and issubclass(value, MethodConfig):
        return f"{kind}= is the class {value.__name__} itself; give an instance: {value.__name__}()"
    if isinstance(value, MethodConfig):
        if "method" not in vars(type(value)):
            return (
                f"{name} is not registered as a method: write @method('a_name') and "
                "@dataclass(frozen=True) above the class (ditaccel.config.method)"
            )
        what = KIND_WORDS[value.kind]
        return f"{name} is the config of {what} method: write {value.kind}={name}(…)"
    what = KIND_WORDS[kind]
    known = ", ".join(c.__name__ for c in methods().values() if c.kind == kind)
    return (
        f"{kind}= is of type {name}, which is not a config of {what} method; give an instance of "
        f"one of: {known}"
    )


def _example(kind: str) -> str:
    return next(f"{c.__name__}()" for c in methods().values() if c.kind == kind)
