"""Which methods stand on a session's transformers: installed from an adapter, known or learnt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ..attention.engine.planner import Planner, planner_of
from ..attention.engine.runtime import AttentionRuntime
from ..caching.engine.blocks import find_blocks
from ..caching.engine.budget import tensors_per_branch, unit
from ..caching.engine.hooks import BlockCache
from ..caching.engine.policy import policy_of
from ..caching.engine.surroundings import Surroundings
from ..calls.engine.method import CallMethod, Site, call_method_of
from ..config import AccelerationConfig
from ..core._compat import ranks_of, refuse_ring
from ..core.calls import Arguments
from ..core.patching import PatchLedger
from ..errors import UnsupportedError
from ..pipelines import FamilyAdapter
from ..reports.journal import Journal
from .dry_run import WAY_OUT, DryRun
from .front import Front


class Methods:
    """Puts the methods of a config on transformers.

    Args:
        config: what to do, whole.
        planner: of the attention, None for that of the config's method, if any.
        ledger: takes note of every change.
        journal: told what was assumed.
        warn: called with one line, and with what kind it is where it is to be shown once.

    Attributes:
        caches: component name -> what forecasts it.
        attention: component name -> what replaces its attention.
        calls: component name -> what carries its calls out.
        unlearnt: names of transformers that a dry run must show first.
    """

    def __init__(
        self,
        config: AccelerationConfig,
        planner: Planner | None,
        ledger: PatchLedger,
        journal: Journal,
        warn: Callable[..., None],
    ) -> None:
        self._config, self._planner = config, planner
        self._attends = planner is not None or config.attention is not None
        self._ledger, self._journal, self._warn = ledger, journal, warn
        self.caches: dict[str, BlockCache] = {}
        self.attention: dict[str, AttentionRuntime] = {}
        self.calls: dict[str, CallMethod] = {}
        self.unlearnt: set[str] = set()

    @property
    def outside(self) -> bool:
        """Whether nothing inside the transformers is needed."""
        cache = self._config.cache
        if self._sees_attention:
            return False
        return cache is None or policy_of(cache).outside

    @property
    def _sees_attention(self) -> bool:
        """Whether attention layers are needed, and where the text is in their sequences."""
        calls = self._config.calls
        return self._attends or (calls is not None and not call_method_of(calls).outside)

    def install(
        self, name: str, transformer: nn.Module, adapter: FamilyAdapter, front: Front
    ) -> None:
        """Put the methods on one transformer, those that wait for a dry run aside.

        Args:
            name: component name.
            transformer: the transformer, unwrapped.
            adapter: what is known of it.
            front: what stands in front of it.

        Raises:
            UnsupportedError: they cannot be put on, with the reason.
        """
        if not adapter.provisional:
            # (an adapter without blocks says that there is nothing inside to work with)
            inside = bool(adapter.blocks) or not self.outside
            self._put_on(name, transformer, adapter, front, blocks=inside and not front.whole)
            return
        self._warn_of_assumptions(name, transformer, adapter)
        if self.outside:
            self._put_on(name, transformer, adapter, front, blocks=False)
        elif not adapter.blocks:
            raise UnsupportedError(
                f"{type(transformer).__name__} is of no known family, and no list of two or more "
                f"blocks of one class is directly in it{WAY_OUT}"
            )
        else:
            self.unlearnt.add(name)

    def note_ranks(self, name: str, transformer: nn.Module) -> None:
        """Look at which ranks compute a transformer, and whether the methods can work with them."""
        ranks = ranks_of(name, transformer)
        if self._attends:
            refuse_ring(name, ranks)
        if name in self.caches:
            self.caches[name].computed_by(ranks)
        if ranks is not None and self._config.calls is not None:
            raise UnsupportedError(
                f"{name} is split over {ranks.count} ranks (context parallelism), which "
                f"{self._config.calls.method} cannot work with; use a caching or an attention "
                "method"
            )

    def learn(
        self,
        name: str,
        transformer: nn.Module,
        adapter: FamilyAdapter,
        front: Front,
        call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]],
    ) -> None:
        """Put the methods on a transformer of no known family, from what a dry run shows.

        Args:
            name: component name.
            transformer: the transformer, unwrapped.
            adapter: provisional.
            front: what stands in front of it.
            call: what computes the transformer, and the arguments of its first call.

        Raises:
            UnsupportedError: the run did not show enough, or the methods cannot be put on.
        """
        inner, args, kwargs = call
        arguments = Arguments(transformer)
        sample = arguments.get(adapter.sample, args, kwargs)

        def run(latents: Any) -> None:
            changed_args, changed = arguments.exchanged(adapter.sample, latents, args, kwargs)
            inner(*changed_args, **changed)

        with torch.no_grad():
            learnt, line = DryRun(transformer, adapter).learn(run, sample, self._sees_attention)
        before = self._ledger.changes
        try:
            self._put_on(name, transformer, learnt, front)
        except BaseException:
            # the next call must find it as this one did, and give the same reason
            self._ledger.undo(keep=before)
            self.caches.pop(name, None)
            if name in self.attention:
                self._journal.attention.remove(self.attention.pop(name).log)
            if name in self.calls:
                self._journal.call_logs.remove(self.calls.pop(name).log)
            raise
        self.unlearnt.discard(name)
        self._journal.assume(f"{name}: {line}")

    def _put_on(
        self,
        name: str,
        transformer: nn.Module,
        adapter: FamilyAdapter,
        front: Front,
        blocks: bool = True,
    ) -> None:
        if self._config.cache is not None:
            policy = policy_of(self._config.cache)
            found = find_blocks(transformer, adapter.blocks) if blocks else []
            policy.gate.put_on(name, transformer, found)
            why = partial(front.neighbours.why_left_out, [block.module for block in found])
            around = Surroundings(transformer, adapter, policy.gate)
            cache = self.caches[name] = BlockCache(found, policy, self._warn, why, around)
            self._journal.tensors_per_branch = tensors_per_branch(policy, cache.blocks)
            self._journal.tensors = unit(policy)
            self._journal.modules[name] = cache.modules
            cache.install(self._ledger)
        config = self._config.attention
        planner = self._planner or (None if config is None else planner_of(config))
        if planner is not None:
            runtime = AttentionRuntime(name, transformer, adapter, planner, self._warn)
            self.attention[name] = runtime
            logs = {log.transformer: log for log in self._journal.attention}
            if name in logs:
                runtime.log = logs[name]
            else:
                self._journal.attention.append(runtime.log)
            runtime.install(self._ledger)

        if self._config.calls is not None:
            site = Site(name, transformer, adapter, self._warn)
            carried = call_method_of(self._config.calls)
            if self._config.cache is not None:
                carried.check_cache(policy_of(self._config.cache), self._config.cache.method)
            carried.attach(site, self._ledger)
            known = {each.transformer: each for each in self._journal.call_logs}
            carried.log = known.get(name, carried.log)
            self.calls[name] = carried
            if name not in known:
                self._journal.call_logs.append(carried.log)

    def _warn_of_assumptions(
        self, name: str, transformer: nn.Module, adapter: FamilyAdapter
    ) -> None:
        lists = ", ".join(
            f"{b.container} ({len(getattr(transformer, b.container))})" for b in adapter.blocks
        )
        rest = (
            "nothing inside it is touched"
            if self.outside
            else f"a dry run at the first call shows how its blocks work: {lists or 'none found'}"
        )
        names = f"timestep in {adapter.timestep!r}, latents in {adapter.sample!r}"
        self._journal.assume(f"{name}: {names}")
        self._warn(
            f"{type(transformer).__name__} is of no family that ditaccel knows; assumed: its "
            f"{names}; {rest}"
        )
