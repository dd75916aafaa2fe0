"""Module schedule: each attention and MLP is computed at steps of its own, and rests between."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Self

from ..config import CacheConfig, Example, method, require
from .engine.gate import StepRules
from .engine.modules.gate import ModuleGate, TableGate
from .engine.modules.sites import Site
from .engine.modules.table import ModuleTable
from .engine.options import Bytes, MemoryBudget, check_options
from .engine.policy import CachePolicy

# Options that say nothing where every module's steps are named.
_OF_RANGES = ("interval", "blocks", "boundary")


class RangeGate(ModuleGate):
    """A range of blocks rests between computed steps: rear blocks first, then the front ones.

    Args:
        interval: distance of computed steps, counted back from the last one.
        blocks: share of the blocks that rest.
        boundary: share of the steps at which the rear blocks rest; behind them, the front ones do.
        order: of the forecasts.
    """

    def __init__(self, interval: int, blocks: float, boundary: float, order: int = 0) -> None:
        super().__init__(order)
        self._interval, self._blocks, self._boundary = interval, blocks, boundary

    @property
    def needs_total(self) -> bool:  # type: ignore[override]
        return self._blocks < 1.0

    def skips_nothing(self, total: int | None) -> bool:
        return self._interval == 1 or self._resting == 0

    @property
    def _depth(self) -> int:
        return 1 + max((site.block for site in self.modules), default=-1)

    @property
    def _resting(self) -> int:
        """How many blocks rest."""
        return round(self._blocks * self._depth)

    def ever_rests(self, module: Site) -> bool:
        rear = module.block >= self._depth - self._resting and self._boundary > 0.0
        front = module.block < self._resting and self._boundary < 1.0
        return self._interval > 1 and (rear or front)

    def computes(self, module: Site, index: int, total: int | None) -> bool:
        # a loop of unknown length can only be counted from its beginning
        left = index if total is None else total - 1 - index
        if left % self._interval == 0:
            return True
        if total is not None and index < self._boundary * total:
            return module.block < self._depth - self._resting
        return module.block >= self._resting


@method("module_schedule")
@dataclass(frozen=True, kw_only=True)
class ModuleScheduleConfig(CacheConfig):
    """Each attention and MLP module of each block is computed at steps of its own.

    Between them its output is reused, or forecast; norms, gates and the modulation by the timestep
    run on every step. No gate looks at anything. Which module is computed when comes from

    * a file (`schedule`), as `ModuleTable.save` writes it: YAML with a word per module, what it was
      made for, and whether it may be moved to another number of steps;
    * `rules`, the same in Python or in a spec: lines of a pattern and a word, such as
      `("*.attn1 C-C-C-", "*.ff C--C--")`, the first pattern that fits a module counting;
    * else an `interval`, over all blocks (`ModuleScheduleConfig.fora`) or over a range of them
      (`ModuleScheduleConfig.delta_dit`).

    A word has one sign per step: `C` computes, `-` rests. Use it where a search or a training gave
    a schedule, or to hold attention longer than MLPs, or some blocks longer than others. The steps
    at which DiTFastAttn (arXiv 2406.08552) shares the output of attention between steps are `-` in
    the word of the attention module.

    Args:
        schedule: file of a table of steps by modules; None for `rules` or `interval`.
        rules: lines of a pattern of module names and a word.
        resample: in a loop of another number of steps, compute each module at the noise levels
            where its word does; a file may allow it by itself. Else such a loop is refused.
        interval: distance of computed steps, counted back from the last one, >= 1; 1 is exact.
        blocks: share of the blocks that rest in between, 0 to 1.
        boundary: share of the steps, from the first one on, at which it is the rear blocks that
            rest; at the others it is the front ones. Where all blocks rest it changes nothing.
        order: of the forecast of a module that rests; 0 reuses its newest output.
        memory_budget: bytes, or text like `2GB`, that the cache may take; None for no limit.
    """

    schedule: str | os.PathLike[str] | None = None
    rules: tuple[str, ...] = ()
    resample: bool = False
    interval: int = 2
    blocks: float = 1.0
    boundary: float = 0.5
    order: int = 0
    memory_budget: Bytes | None = None

    def __post_init__(self) -> None:
        check_options(self)
        require(
            self.schedule is None or not self.rules,
            "schedule is a file and rules are lines; give only one of them",
        )
        if self.rules:
            ModuleTable.of_lines(self.rules)
        for name in ("blocks", "boundary"):
            share = getattr(self, name)
            require(0.0 <= share <= 1.0, f"{name} is {share}; it is a share, from 0 to 1")
        named = self.schedule is not None or bool(self.rules)
        ranges = {f.name: f.default for f in fields(self) if f.name in _OF_RANGES}
        unused = [name for name, default in ranges.items() if getattr(self, name) != default]
        require(
            not (named and unused),
            f"{' and '.join(unused)} change nothing of a schedule or rules; give either",
        )
        require(named or not self.resample, "resample moves a schedule or rules; give one of them")

    @classmethod
    def fora(cls, interval: int = 3) -> Self:
        """The schedule of FORA (arXiv 2407.01425): all modules rest between computed steps."""
        return cls(interval=interval)

    @classmethod
    def delta_dit(cls, interval: int = 2, blocks: float = 0.5, boundary: float = 0.5) -> Self:
        """In the manner of Delta-DiT (arXiv 2406.01125): rear blocks rest early, front ones late.

        The paper keeps the difference between the input and the output of a range of blocks; here
        what each module gave is kept, and blocks gate it by the timestep of the step itself.
        """
        return cls(interval=interval, blocks=blocks, boundary=boundary)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (
            Example(cls(interval=1), cls.fora(3)),
            Example(cls(blocks=0.0), cls.delta_dit(), variant="ranges"),
        )

    def policy(self) -> CachePolicy:
        """What the hooks carry out.

        Raises:
            UsageError: the file of `schedule` cannot be read.
        """
        return CachePolicy(
            gate=self._gate(),
            rules=StepRules(exact=True),
            order=self.order,
            granularity="module",
            memory_budget=MemoryBudget.parse(self.memory_budget),
        )

    def _gate(self) -> ModuleGate:
        if self.schedule is None and not self.rules:
            return RangeGate(self.interval, self.blocks, self.boundary, self.order)
        if self.schedule is None:
            table = ModuleTable.of_lines(self.rules)
        else:
            table = ModuleTable.load(self.schedule)
        return TableGate(replace(table, resample=self.resample or table.resample), self.order)
