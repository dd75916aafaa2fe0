"""The verbs: accelerate, accelerated, restore, report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from . import config as configs
from .completion import overridden
from .config import AccelerationConfig
from .errors import ConfigError, UnsupportedError, UsageError
from .families import family_of, known_family
from .pipelines import FamilyAdapter, adapters
from .report import Report
from .session import Session, session_of

P = TypeVar("P")
Setting = str | os.PathLike[str] | AccelerationConfig | None


def _components(pipe: Any) -> dict[str, nn.Module]:
    """All modules of a pipeline by name; a bare transformer is its own only component."""
    if isinstance(pipe, nn.Module):
        return {"transformer": pipe}
    components = getattr(pipe, "components", None)
    if not isinstance(components, dict):
        raise UsageError(
            f"{type(pipe).__name__} is neither a diffusers pipeline nor a transformer module"
        )
    return {name: part for name, part in components.items() if isinstance(part, nn.Module)}


def _transformers(pipe: Any) -> tuple[dict[str, nn.Module], FamilyAdapter]:
    parts = _components(pipe)
    found = {n: p for n, p in parts.items() if known_family(p) is not None}
    if not found:
        found = {
            n: p
            for n, p in parts.items()
            if n.startswith("transformer") or isinstance(pipe, nn.Module)
        }
    if not found:
        has = "a UNet and no transformer" if "unet" in parts else "no transformer"
        raise UnsupportedError(
            f"{type(pipe).__name__} has {has}; ditaccel accelerates diffusion transformers: "
            f"{', '.join(adapters())}, and others whose component is called 'transformer'"
        )
    return found, family_of(next(iter(found.values())))


def accelerate(
    pipe: P, config: Setting = None, *, cache: Any = None, attention: Any = None, **options: Any
) -> P:
    """Make a pipeline faster, in place.

    Args:
        pipe: a diffusers pipeline, or a bare transformer. One of no known family is recognised by
            its signature and block lists, which a warning says.
        config: a preset name (`"balanced"` when nothing is given), the path of a config file, an
            inline spec such as `"taylorseer:interval=3"`, or an `AccelerationConfig`.
        cache: config of a caching method, e.g. `TaylorSeerConfig(interval=3)`; replaces the one in
            `config`, and needs no `config`.
        attention: config of an attention method, e.g. `LiteAttentionConfig(threshold=-8)`,
            likewise. Both together work.
        **options: of the methods, in place of those in `config`: `tolerance=0.02`.

    Returns:
        The same pipeline.

    Raises:
        ConfigError: an unknown preset, option or method, or a value out of range.
        UnsupportedError: no transformer, or one that this method cannot be applied to, with the
            reason.
        UsageError: it is accelerated already.
    """
    transformers, adapter = _transformers(pipe)
    if session_of(transformers) is not None:
        raise UsageError(
            f"this {type(pipe).__name__} is accelerated already; call ditaccel.restore(pipe) first"
        )
    if isinstance(config, AccelerationConfig):
        chosen = config
    elif config is None and (cache is not None or attention is not None):
        chosen = AccelerationConfig()
    else:
        chosen = configs.resolve("balanced" if config is None else config, adapter)
    if cache is not None:
        chosen = replace(chosen, cache=cache)
    if attention is not None:
        chosen = replace(chosen, attention=attention)
    chosen = overridden(chosen, options)
    if not chosen.methods:
        raise ConfigError(
            "this config accelerates nothing: it names neither a caching method (key 'cache') nor "
            "an attention method (key 'attention')"
        )
    Session(None if isinstance(pipe, nn.Module) else pipe, transformers, chosen)
    return pipe


def _session(pipe: Any) -> Session:
    session = session_of(_components(pipe))
    if session is None:
        raise UsageError(
            f"this {type(pipe).__name__} is not accelerated; call ditaccel.accelerate(pipe) first"
        )
    return session


def restore(pipe: P) -> P:
    """Undo `accelerate`: the pipeline is as it was found, bit for bit, and all state is freed.

    Raises:
        UsageError: it is not accelerated.
    """
    _session(pipe).restore()
    return pipe


def report(pipe: Any) -> Report:
    """Return what was skipped since `accelerate`, where, and what it took; print it to see it.

    Raises:
        UsageError: the pipeline is not accelerated.
    """
    return _session(pipe).report()


@contextmanager
def accelerated(
    pipe: P, config: Setting = None, *, cache: Any = None, attention: Any = None, **options: Any
) -> Iterator[P]:
    """`accelerate` for the length of a `with` block, restored on every way out."""
    accelerate(pipe, config, cache=cache, attention=attention, **options)
    transformers, _ = _transformers(pipe)
    session = session_of(transformers)
    try:
        yield pipe
    finally:
        if session is not None:
            session.restore()
