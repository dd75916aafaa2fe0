"""The verbs: accelerate, accelerated, restore, reset, report; what is on, and what there is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from . import config as configs
from .config import AccelerationConfig
from .config.attention_presets import attention_presets
from .config.completion import overridden
from .config.published import published_presets
from .config.specs import Setting
from .core.denoising.schedulers import followed_by_hand
from .core.patching import unwrapped
from .core.transformers import modules_of, transformers_of, with_checkpoint
from .errors import ConfigError, UsageError
from .pipelines import FamilyAdapter, adapters
from .reports.report import Report
from .sessions import open_sessions as sessions
from .sessions.session import Session
from .warning import warn

P = TypeVar("P")


class _Default(str):
    """The default of `config`, told apart from the same text given by hand."""


BALANCED = _Default("balanced")


def accelerate(
    pipe: P,
    config: Setting = BALANCED,
    *more: Setting,
    cache: Any = None,
    attention: Any = None,
    calls: Any = None,
    adapter: FamilyAdapter | None = None,
    scheduler: Any = None,
    sigmas: Iterable[float] | None = None,
    steps: Any = None,
    **options: Any,
) -> P:
    """Make a pipeline faster, in place.

    ```python
    ditaccel.accelerate(pipe)                                     # the family's "balanced" preset
    ditaccel.accelerate(pipe, "fast")                             # another one, or a config file
    ditaccel.accelerate(pipe, TaylorSeerConfig(interval=3))       # a method
    ditaccel.accelerate(pipe, "balanced", LiteAttentionConfig())  # one of each kind
    ```

    An earlier setting is replaced, with a warning; it stays where the new one cannot be put on.

    Args:
        pipe: a diffusers pipeline, or a bare transformer. A transformer of an unknown family is
            recognised from its signature and block lists, with a warning.
        config: a preset name, the path of a config file or its address on the Hub
            (`"hf://user/repo/file.yaml"`), an inline spec such as `"taylorseer:interval=3"`, the
            config of a method, an `AccelerationConfig`, or a list of these. None, `"none"` and
            `"dense"` mean a dense run, and are refused here.
        *more: further ones, as in such a list: one method of each kind go together.
        cache: config or text of a caching method, e.g. `TaylorSeerConfig(interval=3)`; replaces
            the one in `config`, and needs no `config`.
        attention: likewise, of an attention method; `"balanced"` and `"fast"` are presets of it.
        calls: likewise, of a call method, e.g. `TokenMergingConfig(ratio=0.4)`.
        adapter: what ditaccel must know of a model of your own; families that it knows need none.
        scheduler: for a bare transformer in a loop of your own: the scheduler whose timesteps the
            loop follows. Without it, one among the local variables of the loop is found.
        sigmas: likewise, for a loop without a scheduler that takes Euler steps: its noise levels,
            falling, such as `[1.0, 0.75, 0.5, 0.25, 0.0]`. With either, gap correction works.
        steps: of a call, by those that it asks for (`AccelerationConfig.steps`): `"auto"`, a share,
            or at most so many; a list is an option of `step_mask`. The report has what was run.
        **options: of the methods, in place of those in `config`: `tolerance=0.02`.

    Returns:
        The same pipeline.

    Raises:
        ConfigError: an unknown preset, option or method, a wrong value, or two methods of a kind.
        UnsupportedError: no transformer, or one that this method cannot be applied to.
        UsageError: it is not a pipeline, or a pipeline was given a scheduler.
    """
    listed = [config, *more] if more else config
    given = _Given(listed, {"cache": cache, "attention": attention, "calls": calls}, options, steps)
    plan = _planned(pipe, given, adapter, scheduler, sigmas)
    former = _sessions(pipe)
    _put_on(pipe, plan, former)
    _warn_of_replaced(pipe, former, plan.config)
    return pipe


def _warn_of_replaced(pipe: Any, former: list[Session], config: AccelerationConfig) -> None:
    if former:
        on = ", ".join(dict.fromkeys(session.config.name for session in former))
        warn(
            f"this {type(pipe).__name__} was accelerated already ({on}): that is off now, and "
            f"{config.name} is on"
        )


@dataclass(frozen=True)
class _Plan:
    """What the arguments of `accelerate` come to: see `Session`."""

    transformers: dict[str, nn.Module]
    config: AccelerationConfig
    adapter: FamilyAdapter | None
    scheduler: Any


@dataclass(frozen=True)
class _Given:
    """The arguments of `accelerate` that make a config; methods by kind, None where not given."""

    config: Setting
    kinds: Mapping[str, Any]
    options: Mapping[str, Any]
    steps: Any


def _planned(
    pipe: Any,
    given: _Given,
    adapter: FamilyAdapter | None,
    scheduler: Any,
    sigmas: Iterable[float] | None,
) -> _Plan:
    transformers, family = transformers_of(pipe, adapter)
    followed = followed_by_hand(scheduler, sigmas)
    if followed is not None and not isinstance(pipe, nn.Module):
        raise UsageError(
            f"scheduler= and sigmas= are for a bare transformer; {type(pipe).__name__} has its own"
        )
    known = with_checkpoint(pipe, transformers, family)
    return _Plan(transformers, _chosen(known, given), adapter, followed)


def _chosen(adapter: FamilyAdapter, given: _Given) -> AccelerationConfig:
    config, options, steps = given.config, dict(given.options), given.steps
    if isinstance(steps, Iterable) and not isinstance(steps, str):
        options["steps"], steps = steps, None  # of a method that names the steps it computes
    by_name = {kind: each for kind, each in given.kinds.items() if each is not None}
    if by_name and (config is None or config is BALANCED):
        chosen = configs.resolve(AccelerationConfig(), adapter, steps)
    elif config is None:
        raise ConfigError(
            "config is None, which means a dense run, so there is nothing to accelerate; leave it "
            "out for the preset 'balanced', or take off what is on with ditaccel.restore(pipe)"
        )
    else:
        chosen = configs.resolve(config, adapter, steps)
    by_name = {kind: configs.resolved_part(kind, each, adapter) for kind, each in by_name.items()}
    chosen = overridden(chosen.changed(**by_name) if by_name else chosen, options)
    if not chosen.methods and chosen.steps in ("keep", "auto"):
        raise ConfigError(
            "this config accelerates nothing: it names neither a caching method (key 'cache') nor "
            "an attention method (key 'attention') nor a call method (key 'calls')"
        )
    return chosen


def _put_on(pipe: Any, plan: _Plan, former: list[Session]) -> Session:
    """Put a setting on in place of those that are on, which come back where it cannot be."""
    for each in former:
        each.restore()
    try:
        session = Session(
            None if isinstance(pipe, nn.Module) else pipe,
            plan.transformers,
            plan.config,
            adapter=plan.adapter,
            scheduler=plan.scheduler,
        )
    except BaseException:
        for each in former:
            each.put_on()
        raise
    sessions.remember(pipe, session)
    return session


def _sessions(pipe: Any) -> list[Session]:
    """The sessions that are on; its components may have been exchanged since."""
    return sessions.sessions_on(pipe, modules_of(pipe).values())


def is_accelerated(pipe: Any) -> bool:
    """Whether `accelerate` is in effect on a pipeline, or on one of its transformers.

    Raises:
        UsageError: it is not a pipeline.
    """
    return bool(_sessions(pipe))


def presets(pipe: Any) -> dict[str, AccelerationConfig]:
    """The presets of a pipeline's family by name, and the config that each is.

    ```python
    list(ditaccel.presets(pipe))        # ['safe', 'balanced', 'fast', 'published:taylorseer', …]
    print(ditaccel.presets(pipe)["fast"].cache)
    ```

    `attention:balanced` and `attention:fast` are those of attention, which go together with one of
    the others. `published:METHOD` are the settings that a method's authors used for the family;
    schedules that were published for the very checkpoint are there too (`published:budcache-13`).
    Nobody has measured these here.

    Raises:
        UnsupportedError: the pipeline has no transformer.
        UsageError: it is not a pipeline.
    """
    transformers, adapter = transformers_of(pipe)
    adapter = with_checkpoint(pipe, transformers, adapter)
    names = [*adapter.presets, *attention_presets(adapter), *published_presets(adapter)]
    return {name: configs.preset(name, adapter) for name in names}


def families() -> dict[str, FamilyAdapter]:
    """The families of pipelines that ditaccel knows, by name, each with what it knows of them.

    A pipeline whose transformer is in none of them is recognised from its signature.
    """
    return adapters()


def restore(pipe: P) -> P:
    """Undo `accelerate`: the pipeline is as it was found, bit for bit, and all state is freed.

    A pipeline on which nothing is on, or never was, stays as it is, so that this can stand in a
    `finally`. `report` still gives what happened until now.

    Raises:
        UsageError: it is not a pipeline.
    """
    for session in _sessions(pipe):
        session.restore()
    return pipe


def reset(pipe: P) -> P:
    """Free at once what the methods remember; the next transformer call begins a new generation.

    Pipelines need no call of this: their state goes with the denoising loop, and every call begins
    with none. A loop of one's own that was left in the middle may say so here.

    Args:
        pipe: a pipeline, any other one that shares its transformer, or a bare transformer; nothing
            happens where none is accelerated.

    Returns:
        The same pipeline.
    """
    for session in _sessions(pipe):
        session.reset()
    return pipe


def report(pipe: Any) -> Report:
    """Return what was skipped since `accelerate`, where, and what it took; print it to see it.

    Where nothing is on any more (`restore`, the end of a `with` block), it is the report of what
    was on last. It holds what has happened until now: a later call gives a newer one.

    Raises:
        UsageError: the pipeline was never accelerated.
    """
    on = _sessions(pipe)
    parts = modules_of(pipe).values()
    if on:
        return _with_exchanged(on[0], parts)
    journal = sessions.last_journal(pipe, parts)
    if journal is None:
        raise UsageError(
            f"this {type(pipe).__name__} is not accelerated; call ditaccel.accelerate(pipe) first"
        )
    return replace(journal.report(), is_on=False)


def _with_exchanged(session: Session, parts: Iterable[nn.Module]) -> Report:
    """A session's report, and a line for each transformer that was exchanged."""
    now = {id(unwrapped(part)) for part in parts}
    gone = [n for n, part in session.transformers.items() if id(unwrapped(part)) not in now]
    lines = (
        f"{name} was exchanged or removed after accelerate(): what took its place runs dense; "
        "call ditaccel.accelerate(pipe) again"
        for name in gone
    )
    found = session.report()
    return replace(found, warnings=(*found.warnings, *lines))


@contextmanager
def accelerated(
    pipe: P,
    config: Setting = BALANCED,
    *more: Setting,
    cache: Any = None,
    attention: Any = None,
    calls: Any = None,
    adapter: FamilyAdapter | None = None,
    scheduler: Any = None,
    sigmas: Iterable[float] | None = None,
    steps: Any = None,
    **options: Any,
) -> Iterator[P]:
    """`accelerate` for the length of a `with` block; for the arguments see there.

    ```python
    with ditaccel.accelerated(pipe, "fast"):
        image = pipe("a red circle").images[0]
    ```

    On every way out the pipeline is as it was when the block began: dense, or with the setting that
    was on, whose report goes on. What the block itself did (`accelerate`, `restore`) is undone.
    """
    listed = [config, *more] if more else config
    given = _Given(listed, {"cache": cache, "attention": attention, "calls": calls}, options, steps)
    plan = _planned(pipe, given, adapter, scheduler, sigmas)
    former = _sessions(pipe)
    session = _put_on(pipe, plan, former)
    try:
        yield pipe
    finally:
        session.restore()
        _put_back(pipe, former)


def _put_back(pipe: Any, former: list[Session]) -> None:
    """Exchange what is on for what was on, whose reports go on."""
    for each in _sessions(pipe):
        each.restore()
    for each in former:
        each.put_on()
        sessions.remember(pipe, each)


@contextmanager
def paused(pipe: P) -> Iterator[P]:
    """The pipeline dense for the length of a `with` block; then what was on is on again."""
    former = _sessions(pipe)
    restore(pipe)
    try:
        yield pipe
    finally:
        _put_back(pipe, former)
