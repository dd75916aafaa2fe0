"""DiTFastAttn: attention within a window, and what the window lacks from the last full step.

At a full step (F), attention is computed in full and within a window, a band around the diagonal;
their difference, the residual, is kept. A window step (W) computes the window alone and adds the
residual. A shared step (S) takes the output of the step before. With two guidance branches, the
second may take the output of the first, of the window (C) or in full (B). The first step of a
generation is full. Paper: arXiv 2406.08552; as in its successor (arXiv 2503.22796), text attends to
all, and all attend to it.

Which layer does what at which step is a plan. Without one, every `interval`-th step is full and the
others are window steps (ours). `save_plan` searches for one:

    search = DiTFastAttnConfig(save_plan="flux.json", limit=0.02)
    with ditaccel.accelerated(pipe, attention=search):
        pipe(prompt)                       # dense; of several prompts, the mildest choice counts
    ditaccel.accelerate(pipe, attention=DiTFastAttnConfig(plan="flux.json"))

It takes the cheapest of S, C, W, B and F whose error in the layer's own output is small enough, as
the successor does; the first paper runs the whole transformer for each choice, which a planner of
attention layers cannot. Sharing between branches needs a pipeline that calls the transformer once
per branch: in a batch of two, nothing tells branches from samples. A residual takes as much memory
as the output of a layer, and each layer and branch has one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Example, method, require
from ..kernels import Precision, TileAttentionOutput, TileMap
from .engine.attend import attend
from .engine.boxes import with_others
from .engine.head_classes import band
from .engine.options import FixedTileOptions
from .engine.plan_files import SavedPlan
from .engine.planner import Dense, DenseReason, LayerContext, Plan, State
from .engine.tile_planner import TilePlanner

# What a call may do, the cheapest first.
_WORDS = "SCWBF"
_NAMES = {
    "S": "output of the step before",
    "C": "window, of another branch",
    "W": "window and residual",
    "B": "output of another branch",
    "F": "full, for the residual",
}
_PUBLISHED: dict[str, Any] = {"dense_steps": 0, "min_tokens": 0, "break_even": 1.0}


@method("ditfastattn", paper="2406.08552")
@dataclass(frozen=True, kw_only=True)
class DiTFastAttnConfig(FixedTileOptions):
    """Attention within a window plus a kept residual; outputs shared between steps and branches.

    Options that all methods share are described in `TileOptions`.

    Args:
        window: how far apart in the sequence a query and a key may be: tokens, or a share of the
            sequence below 1. Wider is slower and more exact. Published: 128 for DiT at 512 pixels,
            512 for PixArt at 1024.
        interval: without a plan, one step in so many is full. Lower is slower and more exact.
        plan: file of a plan that a search saved; None for `interval`.
        save_plan: file for the plan that is found. Every call is then dense, and the file is
            written at the end of each generation, by the first of several ranks.
        limit: for the search, the largest squared error of a layer's output, as a share of the
            squared output.
        share_steps: whether the search may choose S.
        share_branches: whether the search may choose C and B.
        max_age: steps that a residual may be old (a cache forecasts some steps); then the next one
            is full.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dit": {**_PUBLISHED, "window": 128},
        "pixart": {**_PUBLISHED, "window": 512},
    }
    window: int | float = 0.125
    interval: int = 4
    plan: str | os.PathLike[str] | None = None
    save_plan: str | os.PathLike[str] | None = None
    limit: float = 0.05
    share_steps: bool = True
    share_branches: bool = False
    max_age: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.window >= 0 and (isinstance(self.window, int) or self.window < 1),
            f"window is {self.window}; give a number of tokens, or a share of them below 1",
        )
        require(self.limit >= 0, f"limit is {self.limit}; it must be 0 or more")
        for name in ("interval", "max_age"):
            value = getattr(self, name)
            require(value >= 1, f"{name} is {value}; it must be 1 or more")
        require(
            self.plan is None or self.save_plan is None,
            "plan uses a file and save_plan makes one; give only one of them",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        tiles = cls(q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(tiles, window=10**9), replace(tiles, window=8)),)

    def planner(self) -> DiTFastAttnPlanner:
        """What the seam carries out.

        Raises:
            UsageError: the file of `plan` cannot be read.
        """
        return DiTFastAttnPlanner(self)


@dataclass(frozen=True, eq=False)
class _Kept:
    """Runs a call by its word; see `planner.Branch`.

    Attributes:
        word: what to do.
        within: the plan of the window.
        state: of this layer and branch; holds the residual, and the output where it is shared.
        step: index of the step.
        shared: where the branches of this layer find each other's output; None for no sharing.
        keeps_output: whether a later step may take this output.
    """

    word: str
    within: Plan
    state: State
    step: int
    shared: State | None
    keeps_output: bool

    def run(
        self,
        plan: Plan,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        key_mask: Tensor | None,
        backend: str | None,
        precision: Precision,
    ) -> tuple[TileAttentionOutput, Tensor | None]:
        """The output of the call; nothing is added to it."""
        call = (q, k, v, scale, key_mask, backend, precision)
        if self.word == "S":
            out = self.state["output"]
        elif self.word in "CB":
            assert self.shared is not None
            out = self.shared["output"]
        elif self.word == "W":
            out = attend(self.within, *call).output + self.state["residual"]
        else:
            out = attend(replace(plan, branch=None), *call).output
            self.state["residual"] = out - attend(self.within, *call).output
        if self.keeps_output:
            self.state["output"] = out
        if self.shared is not None:
            self.shared.update(step=self.step, output=out)
        return TileAttentionOutput(out, None, None), None

    def add(self, out: Tensor, extra: Tensor) -> Tensor:
        """See `planner.Branch`; never asked for."""
        return out + extra


class DiTFastAttnPlanner(TilePlanner):
    """Keeps a residual per layer and branch, and outputs where a plan shares them."""

    def __init__(self, config: DiTFastAttnConfig) -> None:
        super().__init__(config)
        self.max_age = config.max_age
        self._saved: SavedPlan | None = None
        if config.plan is not None:
            self._saved = SavedPlan.load(config.plan, config.method)
        every = "".join(
            word for layers in (self._saved.words if self._saved else {}).values()
            for steps in layers for word in steps
        )  # fmt: skip
        require(
            set(every) <= set(_WORDS),
            f"{config.plan} has the words {sorted(set(every) - set(_WORDS))}; a plan is made of "
            f"the letters {_WORDS}",
        )
        searches = config.save_plan is not None
        self._shares_steps = "S" in every or (searches and config.share_steps)
        self.shares_branches = bool(set(every) & set("CB")) or (searches and config.share_branches)
        self._found: dict[tuple[str, int, int], str] = {}  # by component, layer and step
        self._at: LayerContext | None = None

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan | Dense:
        """See `Planner`; a search leaves every call dense."""
        if self.config.save_plan is None:
            return super().plan(q, k, v, scale, context, state)
        with torch.no_grad():
            self._search(q, k, v, scale, context, state)
        return Dense(DenseReason.WATCHED)

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`."""
        own = state.setdefault(context.step.branch, {})
        shared = state.setdefault("shared", {}) if self.shares_branches else None
        if "window" not in own:
            own["window"] = self._window(q, k, context)
        word = self._word(context, own, shared)
        if word == "F":
            own["full at"] = context.step.index
        return self._plan_of(word, context, own, shared, q, k)

    def _plan_of(
        self, word: str, context: LayerContext, own: State, shared: State | None, q: Tensor,
        k: Tensor,
    ) -> Plan:  # fmt: skip
        within: Plan = own["window"]
        tilings = within.tile_map.q_tiling, within.tile_map.k_tiling
        tile_map = within.tile_map
        if word == "F":
            tile_map = TileMap.dense(*tilings, device=q.device)
        elif word in "SCB":
            none = torch.zeros((1, 1, *(t.tiles for t in tilings)), dtype=torch.bool)
            tile_map = TileMap.from_mask(none.to(q.device), *tilings)
        kept = _Kept(word, within, own, context.step.index, shared, self._shares_steps)
        return Plan(tile_map, _NAMES[word], branch=kept, blind=word == "F")

    def _word(self, context: LayerContext, own: State, shared: State | None) -> str:
        """What to do, or the next cheapest that can be done."""
        index = context.step.index
        if self._saved is None:
            due = index - own.get("full at", -self.config.interval) >= self.config.interval
            word = "F" if due else "W"
        else:
            word = self._saved.word(context, self._settings(context.length))
        if word in "CB" and (shared is None or shared.get("step") != index):
            word = "W" if word == "C" else "F"  # the first branch of a step
        if (word == "S" and "output" not in own) or (word == "W" and "residual" not in own):
            word = "F"
        return word

    def _settings(self, length: int) -> dict[str, float]:
        return {"window": self._tokens(length)}

    def _tokens(self, length: int) -> int:
        window = self.config.window
        return window if isinstance(window, int) else int(window * length)

    def _window(self, q: Tensor, k: Tensor, context: LayerContext) -> Plan:
        """The plan of the window."""
        tilings = self.tilings(q, k, context)
        mask = band(self._tokens(context.length), *tilings)[None, None].to(q.device)
        mask = self.with_sinks(mask, context, tilings)
        if context.conditions is not None and context.conditions[0] < context.conditions[1]:
            others = torch.zeros(context.length, dtype=torch.bool)
            others[slice(*context.conditions)] = True
            mask = with_others(mask, others, *tilings)
        return Plan(TileMap.from_mask(mask, *tilings), "window", rest=self.rest)

    def _search(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """Take the cheapest word whose error is small enough, and go on from its output."""
        config, index = self.config, context.step.index
        own = state.setdefault(context.step.branch, {})
        shared = state.setdefault("shared", {})
        within = own.setdefault("window", self._window(q, k, context))
        tilings = within.tile_map.q_tiling, within.tile_map.k_tiling
        full = Plan(TileMap.dense(*tilings, device=q.device), "full")
        call = (q, k, v, scale, context.key_mask, self.backend, self.precision)
        dense, window = attend(full, *call).output, attend(within, *call).output
        outputs: dict[str, Tensor] = {}
        if config.share_steps and "output" in own:
            outputs["S"] = own["output"]
        if config.share_branches and shared.get("step") == index:
            outputs["C" if shared["word"] in "CW" else "B"] = shared["output"]
        if "residual" in own:
            outputs["W"] = window + own["residual"]
        errors = {word: (out - dense).float().square().sum() for word, out in outputs.items()}
        # all heads of the layer do the same
        sums = context.share.sum(torch.stack([dense.float().square().sum(), *errors.values()]))
        size, *found = sums.tolist()
        small = {
            word for word, off in zip(errors, found, strict=True) if off <= config.limit * size
        }
        word = next((word for word in _WORDS if word in small), "F")
        if word == "F":
            own["residual"] = dense - window
        own["output"] = outputs.get(word, dense)
        if shared.get("step") != index:
            shared.update(step=index, output=own["output"], word=word)
        where = context.component, context.layer, index
        # of several branches and prompts, the mildest
        self._found[where] = max(word, self._found.get(where, "S"), key=_WORDS.index)
        self._at = context

    def end(self, name: str) -> None:
        """See `Planner`; behind the last step, what was found is saved."""
        at, self._at = self._at, None
        if at is None or not at.step.is_last or not at.share.writes:
            return
        words: dict[str, list[list[str]]] = {}
        for (component, layer, step), word in sorted(self._found.items()):
            steps = words.setdefault(component, [[] for _ in range(at.layers)])[layer]
            # (a step that a cache has left out does as the one before)
            steps += [steps[-1] if steps else "F"] * (step - len(steps))
            steps.append(word)
        plan = SavedPlan(self.config.method, at.length, words, dict(self._settings(at.length)))
        plan.save(self.config.save_plan)
