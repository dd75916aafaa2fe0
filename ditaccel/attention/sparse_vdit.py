"""Sparse-vDiT: five patterns, and for each head, layer and step the one that is cheap enough.

A head is full (F), skipped (S: its output is 0), diagonal (D: a band), multi-diagonal (M: a band,
once tokens are ordered by their position in the frame), or vertical (V: some columns of tiles that
all queries attend to). Pattern i costs E_i + `trade` (1 - sparsity_i), with the error E_i of its
output; the cheapest wins, unless all but F cost more than `limit`. Text attends to all, and all
attend to it. Paper: arXiv 2506.03065, whose authors search once, on a few samples, and save what
they found: patterns hardly depend on the prompt. Their code was not released.

In the manner of the paper, not a reimplementation: it does not give the width of bands, nor how
columns are chosen (here: those of most softmax mass), nor the unit of its errors. Here E is the
squared error as a share of the squared output, so that `trade` and `limit` mean the same in every
model; both have other values than the paper's (0.5 and 1). Errors are measured on some queries.

    search = SparseVDiTConfig(save_plan="wan.json")
    with ditaccel.accelerated(pipe, attention=search):
        pipe(prompt)                       # dense; a few prompts make a better plan
    ditaccel.accelerate(pipe, attention=SparseVDiTConfig(plan="wan.json"))

Without a plan, heads choose while they run (ours), again every few steps.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Example, method, require
from .engine.head_classes import HeadClass, HeadClassPlanner, band, by_position
from .engine.options import FixedTileOptions, Swept
from .engine.plan_files import SavedPlan
from .engine.planner import Dense, DenseReason, LayerContext, Plan, State

_NAMES = {"F": "full", "S": "skipped", "D": "diagonal", "M": "multi-diagonal", "V": "vertical"}
_SETTINGS = ("bandwidth", "columns", "q_tile", "k_tile")


@method("sparse_vdit", paper="2506.03065")
@dataclass(frozen=True, kw_only=True)
class SparseVDiTConfig(FixedTileOptions):
    """One of five patterns for each head: full, skipped, a band, a band over frames, or columns.

    Options that all methods share are described in `TileOptions`.

    Args:
        plan: file of patterns that a search saved; None to choose them while running.
        save_plan: file for the patterns that are found. Every call is then dense, and the file is
            written at the end of each generation, from all generations so far. Where ranks share
            the heads (Ulysses), the first one writes it, for all heads.
        limit: largest cost of a pattern that is not full: squared error of its output, as a share,
            plus `trade` times its density. Larger is faster and less exact.
        trade: what a density of 1 costs, in units of the error. Published: 0.5, in another unit.
        bandwidth: half the width of bands, as a share of the sequence; they keep
            1 - (1 - bandwidth)^2 of the attention matrix.
        columns: share of the columns that a vertical head attends to.
        refresh: steps that one choice serves, without a plan.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"trade": 0.5, "dense_steps": 0, "min_tokens": 0, "break_even": 1.0}
    }
    density_option: ClassVar[str] = "limit"
    swept: ClassVar[Swept] = Swept("limit", (2.0, 1.4, 1.0, 0.8, 0.5, 0.3))

    plan: str | os.PathLike[str] | None = None
    save_plan: str | os.PathLike[str] | None = None
    limit: float = 0.2
    trade: float = 0.5
    bandwidth: float = 0.1
    columns: float = 0.2
    refresh: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("limit", "trade"):
            value = getattr(self, name)
            require(value >= 0, f"{name} is {value}; it must be 0 or more")
        for name in ("bandwidth", "columns"):
            value = getattr(self, name)
            require(0.0 < value <= 1.0, f"{name} is {value}; it is a share in (0, 1]")
        require(self.refresh >= 1, f"refresh is {self.refresh}; it must be 1 or more")
        require(
            self.plan is None or self.save_plan is None,
            "plan uses a file of patterns and save_plan makes one; give only one of them",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        tiles = cls(q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(tiles, limit=0.0), replace(tiles, limit=2.0)),)

    def planner(self) -> SparseVDiTPlanner:
        """What the seam carries out.

        Raises:
            UsageError: the file of `plan` cannot be read.
        """
        return SparseVDiTPlanner(self)


class SparseVDiTPlanner(HeadClassPlanner):
    """Keeps the pattern of each head, and what a search has measured."""

    def __init__(self, config: SparseVDiTConfig) -> None:
        super().__init__(config)
        self._saved: SavedPlan | None = None
        if config.plan is not None:
            self._saved = SavedPlan.load(config.plan, config.method)
        self._costs: dict[tuple[str, int, int], list[Tensor]] = {}  # component, layer, step
        self._columns: dict[tuple[str, int], Tensor] = {}
        self._at: LayerContext | None = None
        self.refresh = 1 if config.plan is not None else config.refresh

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan | Dense:
        """See `Planner`; a search leaves every call dense."""
        if self.config.save_plan is None:
            return super().plan(q, k, v, scale, context, state)
        with torch.no_grad():
            self._measure(q, k, v, scale, context)
        return Dense(DenseReason.WATCHED)

    def end(self, name: str) -> None:
        """See `Planner`; behind the last step, what was found is saved."""
        at, self._at = self._at, None
        if at is not None and at.step.is_last and at.share.writes:
            self._save(at)

    def _measure(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext
    ) -> None:
        where = context.component, context.layer
        mass = self.column_mass(q, k, scale, context, self.tilings(q, k, context)[1])
        mass = context.share.every(mass, 0).cpu()
        self._columns[where] = mass + self._columns.get(where, torch.zeros(()))
        classes = self.classes(q, k, scale, context)
        costs = context.share.every(self._cost(classes, q, k, v, scale, context), 1).cpu()
        self._costs.setdefault((*where, context.step.index), []).append(costs)
        self._at = context

    def _save(self, at: LayerContext) -> None:
        """Write the patterns by the mean of all that was measured."""
        words: dict[str, list[list[str]]] = {}
        extra: dict[str, list[Any]] = {}
        for (name, layer, step), costs in sorted(self._costs.items()):
            steps = words.setdefault(name, [[] for _ in range(at.layers)])[layer]
            # (a step that a cache has left out has the pattern of the one before)
            steps += [steps[-1] if steps else ""] * (step - len(steps))
            chosen = _cheapest(torch.stack(costs).mean(0), self.config.limit)
            steps.append("".join("FSDMV"[number] for number in chosen.tolist()))
        for name, layer in self._columns:
            extra.setdefault(name, [[] for _ in range(at.layers)])
            extra[name][layer] = self._columns[name, layer].tolist()
        assert self.config.save_plan is not None
        settings = self._settings()
        SavedPlan(self.config.method, at.length, words, settings, extra).save(self.config.save_plan)

    def _settings(self) -> dict[str, float]:
        return {name: getattr(self.config, name) for name in _SETTINGS}

    def classes(self, q: Tensor, k: Tensor, scale: float, context: LayerContext) -> list[HeadClass]:
        """See `HeadClassPlanner`: the five patterns, in the order of `FSDMV`."""
        config, tilings = self.config, self.tilings(q, k, context)
        full = torch.ones([tiling.tiles for tiling in tilings], dtype=torch.bool)
        narrow = band(config.bandwidth * context.length, *tilings)
        order = by_position(context, q.device, "first_frame" in config.sinks)
        mass = self._column_mass(q, k, scale, context)
        count = max(1, round(config.columns * tilings[1].tiles))
        top = torch.zeros_like(mass, dtype=torch.bool).scatter_(1, mass.topk(count).indices, True)
        masks = {
            "F": (full, None),
            "S": (torch.zeros_like(full), None),
            "D": (narrow, None),
            # (without frames there is nothing to order: such heads are diagonal)
            "M": (narrow, order),
            "V": (top[:, None].expand(-1, tilings[0].tiles, -1), None),
        }
        return [self.head_class(_NAMES[key], *mask, q, k, context) for key, mask in masks.items()]

    def _column_mass(self, q: Tensor, k: Tensor, scale: float, context: LayerContext) -> Tensor:
        """Softmax mass in each column, `(H, Tk)`: of the search, or of this very call."""
        found = self._columns.get((context.component, context.layer))
        if self._saved is not None:
            found = torch.tensor(self._saved.extra[context.component][context.layer])
        if found is not None:
            numbers = context.share.numbers(q.shape[1])
            return found[numbers.start : numbers.stop].to(q.device)
        return self.column_mass(q, k, scale, context, self.tilings(q, k, context)[1])

    def _cost(
        self,
        classes: list[HeadClass],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context: LayerContext,
    ) -> Tensor:
        """What each pattern costs, `(5, H)`."""
        errors = self.look(classes, q, k, v, scale, context).errors
        density = torch.stack([one.density.expand(q.shape[1]) for one in classes])
        group = q.shape[1] // k.shape[1]
        density = density.unflatten(1, (-1, group)).mean(2).repeat_interleave(group, 1)
        return errors + self.config.trade * density

    def choose(
        self,
        classes: list[HeadClass],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context: LayerContext,
    ) -> Tensor:
        """See `HeadClassPlanner`."""
        if self._saved is None:
            costs = self._cost(classes, q, k, v, scale, context)
            return _cheapest(costs, self.density_setting(context))
        word = self._saved.word(context, self._settings())
        heads = context.share.total(q.shape[1])
        require(
            len(word) == heads and set(word) <= set(_NAMES),
            f"the plan has the patterns {word!r} for {heads} heads; search again with save_plan",
        )
        own = context.share.own(word, q.shape[1])
        return torch.tensor(["FSDMV".index(letter) for letter in own])


def _cheapest(costs: Tensor, limit: float) -> Tensor:
    """The pattern of each head, int64 `(H,)`: the cheapest, or the first where none is cheap.

    Args:
        costs: of the patterns, the full one first, `(5, H)`.
        limit: see `SparseVDiTConfig`.
    """
    cheapest = costs[1:].min(0)
    return torch.where(cheapest.values > limit, 0, cheapest.indices + 1)
