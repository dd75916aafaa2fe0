"""All that depends on the version of diffusers: the cache context, and who splits a transformer.

diffusers >= 0.41 hands `transformer.cache_context(name, …)` to every stateful hook in the
transformer's hook registry. We listen there without registering a forward hook: registering one
rewrites `forward`, which does not survive a deepcopy, nor offloading that is switched on later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import UnsupportedError
from .ranks import Ranks

_NAME = "ditaccel_context"


@dataclass(frozen=True)
class NamedContext:
    """What a pipeline said of the present transformer call.

    Attributes:
        name: the branch, e.g. `cond`.
        step_index: index of the scheduler step, where the pipeline tells it.
        sigma: noise level of the step, where the pipeline tells it.
    """

    name: str
    step_index: int | None = None
    sigma: float | None = None


def _drop(registry: Any) -> None:
    """Take our listener out of a hook registry, if it holds one."""
    if registry.hooks.pop(_NAME, None) is not None:
        index = registry._hook_order.index(_NAME)
        registry._hook_order.pop(index)
        registry._fn_refs.pop(index)


class ContextListener:
    """Reads the named cache context of one transformer, if its pipeline sets one."""

    def __init__(self, module: nn.Module) -> None:
        self._read: Callable[[], Any] = lambda: None
        self._undo: Callable[[], None] = lambda: None
        if hasattr(module, "cache_context"):
            self._attach(module)

    def _attach(self, module: nn.Module) -> None:
        from diffusers.hooks.hooks import HookRegistry

        from ._context_hook import ContextHook

        had_registry = "_diffusers_hook" in module.__dict__
        registry = HookRegistry.check_if_exists_or_initialize(module)
        _drop(registry)  # a deepcopy of an accelerated transformer brings its listener along
        listener = ContextHook()
        # Place 0 of the order: removing any other hook then never rewires ours (see remove_hook).
        registry.hooks[_NAME] = listener
        registry._hook_order.insert(0, _NAME)
        registry._fn_refs.insert(0, None)
        registry.invalidate_child_registries_cache()

        def undo() -> None:
            if registry.hooks.get(_NAME) is listener:
                _drop(registry)
            if not had_registry and not registry.hooks:
                module.__dict__.pop("_diffusers_hook", None)

        self._read = lambda: listener.manager._context
        self._undo = undo

    def current(self) -> NamedContext | None:
        """Return the context of the present call, or None."""
        context = self._read()
        if context is None:
            return None
        sigma = context.sigma
        return NamedContext(
            context.name, context.step_index, None if sigma is None else float(sigma)
        )

    def detach(self) -> None:
        """Stop listening and leave the registry as it was."""
        self._undo()
        self._read = lambda: None


def skipping_hook(module: nn.Module) -> str | None:
    """The class of a diffusers hook on a module that may leave its computation out, if any.

    Such a hook remembers something, and has a forward of its own; what the exact cache of text keys
    and values remembers changes nothing.
    """
    registry = vars(module).get("_diffusers_hook")
    for hook in getattr(registry, "hooks", {}).values():
        kind = type(hook)
        if hook._is_stateful and hasattr(kind, "new_forward"):
            if kind.__module__.endswith("text_kv_cache"):
                continue
            return kind.__name__
    return None


def is_skipped_layer(module: nn.Module) -> bool:
    """Whether a guidance has told diffusers to leave a module out (skip-layer, PAG)."""
    registry = vars(module).get("_diffusers_hook")
    hooks = getattr(registry, "hooks", {}).values()
    return any(type(hook).__module__.endswith("layer_skip") for hook in hooks)


def forward_is_hooked(module: nn.Module) -> bool:
    """Whether the `forward` of an instance is the one that a hook of diffusers or accelerate set.

    Both keep the one before, and call it.
    """
    hooks = dict(getattr(vars(module).get("_diffusers_hook"), "hooks", {}))
    hooks.pop(_NAME, None)
    return bool(hooks) or "_hf_hook" in vars(module)


def loads_from_copies(module: nn.Module) -> bool:
    """Whether a module's weights are put in place from copies of them as it runs.

    Group offloading does so with a stream or a disk: what is written to a weight is lost then.
    """
    hooks = getattr(vars(module).get("_diffusers_hook"), "hooks", {})
    groups = (getattr(hook, "group", None) for hook in hooks.values())
    return any(
        getattr(group, "stream", None) is not None
        or getattr(group, "offload_to_disk_path", None) is not None
        for group in groups
    )


def _split_configs(transformer: nn.Module) -> Iterator[Any]:
    """Whatever says that several ranks compute a transformer together."""
    if getattr(transformer, "_parallel_config", None) is not None:
        yield transformer._parallel_config
    for module in transformer.modules():
        own = vars(module)
        # not by getattr: of what a module lacks, torch makes an exception at some length
        processor = own.get("processor", own["_modules"].get("processor"))
        config = getattr(processor, "_parallel_config", None)
        if config is not None:
            yield config
        hooks = getattr(own.get("_diffusers_hook"), "hooks", {})
        for name, hook in hooks.items():
            if name.startswith(("cp_input---", "cp_output---")):
                yield getattr(hook, "parallel_config", None)


def ranks_of(name: str, transformer: nn.Module) -> Ranks | None:
    """The ranks that compute a transformer together by context parallelism, None for a whole one.

    Args:
        name: component name, for the message.
        transformer: the transformer.

    Raises:
        UnsupportedError: it is split in another way.
    """
    split = False
    for config in _split_configs(transformer):
        split = True
        config = getattr(config, "context_parallel_config", config)
        mesh = getattr(config, "_flattened_mesh", None)
        if mesh is not None:
            return Ranks(mesh.get_group(), config.ring_degree)
    if split:
        raise UnsupportedError(
            f"{name} is split over several ranks, and not by context parallelism that is set up "
            "(enable_parallelism(config=ContextParallelConfig(...)) in an initialised process "
            "group): ranks could decide differently which steps to compute; run one whole pipeline "
            "per rank instead"
        )
    return None


def ulysses(config: Any) -> tuple[Ranks, bool] | None:
    """The ranks that share the heads of an attention call.

    Args:
        config: what an attention function of diffusers is handed as `parallel_config`.

    Returns:
        The ranks, and whether their parts may differ in size; None for ring attention.
    """
    config = getattr(config, "context_parallel_config", config)
    if config.ring_degree > 1:
        return None
    # (versions before 0.37 cut into equal parts only)
    uneven = getattr(config, "ulysses_anything", False)
    return Ranks(config._ulysses_mesh.get_group()), uneven


def refuse_ring(name: str, ranks: Ranks | None) -> None:
    """Refuse an attention method where keys and values are passed around.

    Args:
        name: component name, for the message.
        ranks: that compute the transformer together, if there are several.

    Raises:
        UnsupportedError: they do.
    """
    if ranks is not None and ranks.ring > 1:
        raise UnsupportedError(
            f"{name} has ring attention (ring_degree={ranks.ring}), where a rank never sees all "
            "keys, from which a tile map is made: give attention methods "
            "ContextParallelConfig(ulysses_degree=...), or use a caching method alone"
        )


def refuse_split(name: str, transformer: nn.Module, what: str) -> None:
    """Refuse a transformer that several ranks compute together.

    Args:
        name: component name, for the message.
        transformer: the transformer.
        what: that cannot work with parts of a sequence.

    Raises:
        UnsupportedError: it is split.
    """
    if ranks_of(name, transformer) is not None:
        raise UnsupportedError(
            f"{name} is split over several ranks (enable_parallelism), where {what} cannot work: "
            "each rank sees a part of the sequence. Use a caching method alone, or run one whole "
            "pipeline per rank"
        )
