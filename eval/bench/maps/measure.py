"""What one config gives on recorded attention calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from ditaccel.eval.bench.overhead import Clock
from ditaccel.kernels import tile_attention
from torch import Tensor

from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.planner import Dense, Plan, Planner, State, planner_of

from .records import Call

# Pairs of tokens by which the maps of neighbouring steps are compared: their tiles may differ.
_QUERIES, _KEYS = 64, 256


def kept_mass(plan: Plan, call: Call) -> Tensor:
    """Share of the softmax mass of each query that the tiles of a map hold, `(B, H, L)`."""
    return (_kept_lse(plan, call).double() - call.lse).exp()


def _kept_lse(plan: Plan, call: Call) -> Tensor:
    if plan.heads is not None:
        parts = [_kept_lse(part, call) for part in plan.parts]
        return torch.cat(parts, 1).index_select(1, plan.heads)
    q, k, v, mask = call.q, call.k, call.v, call.context.key_mask
    if plan.order is not None:
        q, k, v = plan.order.queries(q), plan.order.keys(k), plan.order.keys(v)
        mask = plan.order.key_mask(mask)
    lse = tile_attention(q, k, v, plan.tile_map, scale=call.scale, mask=mask, return_lse=True).lse
    assert lse is not None
    return lse if plan.order is None else plan.order.back(lse[..., None])[..., 0]


def kept_pairs(plan: Plan, call: Call, queries: Tensor, keys: Tensor) -> Tensor:
    """Whether a map computes each of some pairs of tokens, bool `(B, H, queries, keys)`."""
    if plan.heads is not None:
        parts = [kept_pairs(part, call, queries, keys) for part in plan.parts]
        return torch.cat(parts, 1).index_select(1, plan.heads)
    q, k = call.q, call.k
    tile_map = plan.tile_map
    rows, columns = _tokens(q), _tokens(k)
    if plan.order is not None:
        rows, columns = plan.order.queries(rows), plan.order.keys(columns)
    q_tiles = tile_map.q_tiling.tile_of_token(q.device)
    k_tiles = tile_map.k_tiling.tile_of_token(q.device)
    heads = rows.shape[1]
    columns = columns.repeat_interleave(heads // columns.shape[1], 1)
    mask = tile_map.to_mask().expand(q.shape[0], heads, -1, -1)
    at_rows = _tile_of(rows, q_tiles, queries)
    at_columns = _tile_of(columns, k_tiles, keys)
    chosen = mask.gather(2, at_rows[..., None].expand(-1, -1, -1, mask.shape[-1]))
    return chosen.gather(3, at_columns[:, :, None].expand(-1, -1, chosen.shape[2], -1))


def _tokens(x: Tensor) -> Tensor:
    """The number of each token, shaped as an order takes it; float32 holds them exactly."""
    numbers = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)
    return numbers[:, None].expand(*x.shape[:3], 1).contiguous()


def _tile_of(placed: Tensor, tiles: Tensor, tokens: Tensor) -> Tensor:
    """Tile of each of some tokens, `(B, H, n)`, where `placed` has the token at each place."""
    order = placed[..., 0].long()
    places = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return tiles.expand(order.shape).gather(-1, places[..., tokens])


class _Layer:
    """Sums over the calls of one layer, per head."""

    def __init__(self) -> None:
        self.error: Tensor | float = 0.0
        self.dense: Tensor | float = 0.0
        self.density: Tensor | float = 0.0
        self.calls = 0

    def plain(self) -> dict[str, Any]:
        """Relative squared errors of the layer's output, and densities, per head."""
        assert isinstance(self.error, Tensor) and isinstance(self.dense, Tensor)
        assert isinstance(self.density, Tensor)
        return {
            "error": (self.error / self.dense.sum()).tolist(),
            "density": (self.density / self.calls).tolist(),
        }


class Figures:
    """Adds up what calls give.

    Args:
        clock: what times are read from.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._planners: dict[str, Planner] = {}
        self._states: dict[tuple[Any, ...], State] = {}
        self._pairs: dict[tuple[Any, ...], Tensor] = {}
        self._generation: int | None = None
        self._layers: dict[tuple[str, int], _Layer] = defaultdict(_Layer)
        self._seconds = {"planning": 0.0, "kernel": 0.0, "dense": 0.0}
        self._values: dict[str, list[float]] = defaultdict(list)
        self.blind = 0

    def add(self, config: Any, call: Call) -> None:
        """One call, after those of the steps before it."""
        context = call.context
        if context.step.generation != self._generation:
            self._generation = context.step.generation
            self._states.clear()
            self._pairs.clear()
        planner = self._planners.get(context.component)
        if planner is None:
            planner = self._planners[context.component] = planner_of(config)
        branch = "" if planner.shares_branches else context.step.branch
        key = (context.component, branch, context.layer, call.number)
        plan, out, seconds = self._run(planner, call, self._states.setdefault(key, {}))
        if isinstance(plan, Plan) and plan.blind:
            self.blind += 1
            return
        for name, took in seconds.items():
            self._seconds[name] += took
        self._compare(plan, out, call, (*key, context.step.branch))

    def _run(
        self, planner: Planner, call: Call, state: State
    ) -> tuple[Plan | Dense, Tensor, dict[str, float]]:
        q, k, v, context = call.q, call.k, call.v, call.context
        mask = None if context.key_mask is None else context.key_mask[:, None, None]
        start = self._now()
        plan = planner.plan(q, k, v, call.scale, context, state)
        planned = self._now()
        if isinstance(plan, Plan):
            kernel = planner.backend, planner.precision
            result = attend(plan, q, k, v, call.scale, context.key_mask, *kernel)
            planner.update(plan, result, state)
        ran = self._now()
        dense = F.scaled_dot_product_attention(
            q, k, v, mask, scale=call.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        end = self._now()
        sparse = isinstance(plan, Plan)
        took = {
            "planning": planned - start,
            "kernel": ran - planned if sparse else end - ran,
            "dense": end - ran,
        }
        return plan, result.output if sparse else dense, took

    def _now(self) -> float:
        return self._clock.read()[0]

    def _compare(self, plan: Plan | Dense, out: Tensor, call: Call, key: tuple[Any, ...]) -> None:
        heads = call.q.shape[1]
        error = (out.double() - call.dense).square().sum((0, 2, 3))
        dense = call.dense.square().sum((0, 2, 3))
        density, mass = torch.ones(heads, dtype=torch.float64), 1.0
        if isinstance(plan, Plan):
            density = plan.tile_map.densities().mean(0).cpu().expand(heads)
            mass = float(kept_mass(plan, call).mean())
            self._overlap(plan, call, key)
        self._values["error"].append(float((error.sum() / dense.sum()).sqrt()))
        self._values["density"].append(float(density.mean()))
        self._values["mass"].append(mass)
        layer = self._layers[call.context.component, call.context.layer]
        layer.error = layer.error + error.cpu()
        layer.dense = layer.dense + dense.cpu()
        layer.density = layer.density + density
        layer.calls += 1

    def _overlap(self, plan: Plan, call: Call, key: tuple[Any, ...]) -> None:
        """Share of a map that was in the map of the step before, by a sample of token pairs."""
        generator = torch.Generator().manual_seed(0)
        length = call.q.shape[2]
        queries, keys = (
            torch.randperm(length, generator=generator)[:n].to(call.q.device)
            for n in (_QUERIES, _KEYS)
        )
        kept = kept_pairs(plan, call, queries, keys)
        last = self._pairs.get(key)
        if last is not None and last.shape == kept.shape and bool(kept.any()):
            self._values["overlap"].append(float((kept & last).sum() / kept.sum()))
        self._pairs[key] = kept

    def plain(self) -> dict[str, Any]:
        """The figures, as they are written down."""
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        dense = self._seconds["dense"]
        return {
            "density": means.get("density"),
            "mass": means.get("mass"),
            "error": means.get("error"),
            "planning": self._seconds["planning"] / dense if dense else None,
            "kernel": self._seconds["kernel"] / dense if dense else None,
            "overlap": means.get("overlap"),
            "calls": len(self._values["error"]),
            "layers": {
                f"{name}/{number}": layer.plain()
                for (name, number), layer in sorted(self._layers.items())
            },
        }


@torch.no_grad()
def measure(config: Any, calls: Iterable[Call], clock: Clock) -> dict[str, Any]:
    """Figures of a config on recorded calls, in their order.

    `density`, softmax `mass` kept, and relative L2 `error` against dense attention in float64 are
    means over calls; `planning` and `kernel` are shares of the time that dense SDPA took on the
    same calls, in turns with them; `overlap` is the share of a map that was in the map of the step
    before. `layers` has relative squared errors and densities of each head. Calls whose map knows
    nothing yet (`Plan.blind`) are left out.

    Raises:
        ConfigError: the config does not suit these calls.
    """
    figures, warm = Figures(clock), False
    for call in calls:
        if not warm:  # what the first call of all costs is nobody's
            Figures(clock).add(config, call)
            warm = True
        figures.add(config, call)
    return figures.plain()
