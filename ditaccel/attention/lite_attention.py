"""LiteAttention: what attention skipped at one step, it may skip at the next.

Attention maps of neighbouring steps are alike. While a query tile visits its key tiles, the kernel
marks those whose scores lie so far below the running maximum that they add nothing; the next step
leaves them out and never looks at them. Marking costs a comparison, and no map is predicted.
Paper: arXiv 2511.11062. Beyond it (ours; `published:lite_attention` switches all of it off): state
per guidance branch, a rotating share of the skipped tiles is tested again, maps that grow old are
made again, layers that stay nearly dense rest, and thresholds per layer and part of the loop can be
calibrated against dense outputs (`tuning/calibration.py`). State always ends with the generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Example, method, require
from ..kernels import Marking, TileAttentionOutput, TileMap, keep_keys, pack_mask, unpack_mask
from .engine.options import (
    Calibrated,
    FixedTileOptions,
    Ranges,
    Swept,
    check_ranges,
    check_within,
    share_of,
    touched_tiles,
    whole_tiles,
)
from .engine.planner import LayerContext, Plan, State
from .engine.scores import grouped_product
from .engine.tile_planner import TilePlanner

_LOG2_E = 1.4426950408889634
# One query tile in so many tells what a map would keep, of a long sequence no more than so many.
_SAMPLED, _MOST = 8, 4


@method("lite_attention", paper="2511.11062")
@dataclass(frozen=True, kw_only=True)
class LiteAttentionConfig(FixedTileOptions):
    """Skip the tiles that did not matter at the step before.

    Options that all methods share are described in `TileOptions`; here `rest` is `nothing` by
    default, and one step stays dense.

    Args:
        threshold: a tile is dropped when, for every query of its query tile, its largest score
            lies at least this many powers of two (softmax scale included) below the largest so
            far: -10 drops what weighs less than 1/1024 of the strongest key. Below 0; nearer to 0
            is faster. The original's default is -10; its authors show settings up to -3, and 0,
            which only its debug mode takes.
        thresholds: one per layer, or per layer one for each equal part of the denoising loop, as
            calibration writes them; replaces `threshold` where given.
        least_steps: loops with fewer steps are computed in full: marks need steps to serve.
        retest: every dropped tile is computed and tested again once in this many steps, a share of
            them at each step; 0 never takes a tile back, as the original.
        max_age: steps that a map may be old (a cache forecasts some steps); then it is made again.
        skip_now: leave a tile that fails the test out of this very step too (BLASST, arXiv
            2512.12087): faster, less exact.
        alternate: visit the tiles in turn from either end, so that both ends meet a mature maximum.
        share_branches: one list per layer for all guidance branches, as in the original, where a
            module sees both in turn; False (ours) keeps a list per branch.
        must_keep: key tokens `[[start, end], …]` that are never dropped.
        must_skip: key tokens that are never computed, where they fill whole tiles.
        must_skip_touched: drop every tile that `must_skip` touches, as the original does, which
            takes keys outside the ranges too; False drops only those that lie inside as a whole.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {
            "threshold": -10.0,
            "dense_steps": 0,
            "least_steps": 1,
            "retest": 0,
            "max_age": 1000,
            "share_branches": True,
            "must_skip_touched": True,
            "q_tile": 128,
            "k_tile": 176,
            "min_tokens": 0,
            "break_even": 1.0,
        }
    }

    calibrated: ClassVar[Calibrated] = Calibrated(
        option="threshold",
        per_layer="thresholds",
        candidates=(
            -20.0, -14.0, -10.0, -8.0, -6.5, -5.0, -4.0, -3.0, -2.2, -1.6, -1.0, -0.5
        ),
        never=-1000.0,  # drops nothing that has any weight in float32
    )  # fmt: skip

    swept: ClassVar[Swept] = Swept(
        "threshold",
        (-0.02, -0.1, -0.25, -0.5, -1.0, -1.6, -3.0, -6.5),
        {"retest": 0},  # which takes a share of the tiles back, whatever the threshold is
    )

    threshold: float = -10.0
    thresholds: tuple[float | tuple[float, ...], ...] = ()
    dense_steps: int | float = 1
    least_steps: int = 5
    retest: int = 8
    max_age: int = 8
    skip_now: bool = False
    alternate: bool = True
    share_branches: bool = False
    must_keep: Ranges = ()
    must_skip: Ranges = ()
    must_skip_touched: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_threshold("threshold", self.threshold)
        for item in self.thresholds:
            for value in item if isinstance(item, tuple) else (item,):
                _check_threshold("thresholds", value)
        require(
            not (self.schedule and self.thresholds),
            "schedule and thresholds both set the threshold along the loop; give one of them",
        )
        require(self.retest >= 0, f"retest is {self.retest}; it must be 0 (never) or more")
        require(self.least_steps >= 1, f"least_steps is {self.least_steps}; give 1 or more")
        require(self.max_age >= 1, f"max_age is {self.max_age}; it must be 1 or more")
        check_ranges("must_keep", self.must_keep)
        check_ranges("must_skip", self.must_skip)
        for start, end in self.must_keep:
            clash = [r for r in self.must_skip if r[0] < end and start < r[1]]
            require(not clash, f"must_keep and must_skip overlap at {clash[:1]}; keep them apart")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        tiles = cls(q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0)
        return (
            Example(replace(tiles, threshold=-1e9), replace(tiles, threshold=-0.02, skip_now=True)),
        )

    def planner(self) -> LiteAttentionPlanner:
        """What the seam carries out."""
        return LiteAttentionPlanner(self)


def _check_threshold(name: str, value: float) -> None:
    require(
        value < 0,
        f"{name} is {value}; give powers of two below 0 (-10 is mild, -3 fast)",
    )


class LiteAttentionPlanner(TilePlanner):
    """Keeps one bit per tile, layer and branch between steps."""

    def __init__(self, config: LiteAttentionConfig) -> None:
        super().__init__(config)
        self.least_steps, self.max_age = config.least_steps, config.max_age
        self.shares_branches = config.share_branches

    def sparse(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan:
        """See `TilePlanner`: the tiles that the last step could not drop, and some tested again."""
        config = self.config
        q_tiling, k_tiling = self.tilings(q, k, context)
        fresh = "kept" not in state
        if fresh:
            shape = (q.shape[0], q.shape[1], q_tiling.tiles, k_tiling.tiles)
            mask = torch.ones(shape, dtype=torch.bool, device=q.device)
            state["turn"] = 0
        else:
            mask = unpack_mask(state["kept"], k_tiling.tiles)
            if config.retest:
                mask = mask | _due(mask, state["turn"], config.retest)
        if config.must_skip:
            tiles = touched_tiles if config.must_skip_touched else whole_tiles
            skipped = tiles("must_skip", config.must_skip, k_tiling, q.device)
            mask = mask & ~skipped[..., None, :]
        if config.must_keep:
            check_within("must_keep", config.must_keep, k_tiling.length)
            mask = keep_keys(mask, config.must_keep, k_tiling)
        mask = self.with_sinks(mask, context, (q_tiling, k_tiling))
        turn = state["turn"]
        marking = Marking(
            self.threshold(context),
            reverse=config.alternate and turn % 2 == 1,
            skip_now=config.skip_now,
        )
        tile_map = TileMap.from_mask(mask, q_tiling, k_tiling)
        return Plan(
            tile_map,
            "first map" if fresh else "carried map",
            marking=marking,
            rest=self.rest,
            # marks of one direction see little before the largest key: two make a map
            blind=turn < (2 if config.alternate else 1),
        )

    def threshold(self, context: LayerContext) -> float:
        """The threshold of a layer at a step."""
        thresholds = self.config.thresholds
        if not thresholds:
            return self.density_setting(context)
        require(
            len(thresholds) == context.layers,
            f"thresholds has {len(thresholds)} entries, but the transformer has {context.layers} "
            "attention layers; calibrate for this model",
        )
        own: float | tuple[float, ...] = thresholds[context.layer]
        if not isinstance(own, tuple):
            return own
        return own[min(int(context.fraction * len(own)), len(own) - 1)]

    def promise(
        self, q: Tensor, k: Tensor, scale: float, context: LayerContext, ahead: int = 0
    ) -> Tensor | float | None:
        """See `Planner`: marks of a few query tiles against their mature maximum."""
        config, step = self.config, context.step
        first = share_of(config.dense_steps, step.total)
        if step.index + ahead < first or self._in_dense_layers(context):
            return None
        tiles = -(-q.shape[2] // config.q_tile)
        count = min(tiles, max(2, min(_MOST, tiles // _SAMPLED)))
        kept = []
        for tile in torch.linspace(0, tiles - 1, count).round().int().tolist():
            rows = q[:, :, tile * config.q_tile : (tile + 1) * config.q_tile].float()
            scores = grouped_product(rows * (scale * _LOG2_E), k.float())
            if context.key_mask is not None:
                scores.masked_fill_(~context.key_mask[:, None, None, : k.shape[2]], -torch.inf)
            short = -k.shape[2] % config.k_tile
            if short:
                scores = F.pad(scores, (0, short), value=-torch.inf)
            largest = scores.unflatten(-1, (-1, config.k_tile)).amax(-1)
            near = largest - largest.amax(-1, keepdim=True) > self.threshold(context)
            kept.append(near.any(2).float().mean())
        return torch.stack(kept).mean()

    def update(self, plan: Plan, result: TileAttentionOutput, state: State) -> None:
        """Remember the tiles that may not be dropped."""
        assert result.keep is not None
        state["kept"] = pack_mask(result.keep)
        state["turn"] += 1


def _due(mask: Tensor, turn: int, period: int) -> Tensor:
    """Tiles whose turn it is to be tested again: a diagonal pattern that moves on by one a step."""
    rows = torch.arange(mask.shape[-2], device=mask.device)[:, None]
    columns = torch.arange(mask.shape[-1], device=mask.device)
    return (rows + columns + turn) % period == 0
