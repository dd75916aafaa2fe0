"""Planners that say what a test wants, and write down what they saw; what a plan computes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ditaccel.attention.engine.heads import OfHeads
from ditaccel.attention.engine.order import OrderPerHead, SharedOrder
from ditaccel.attention.engine.planner import Dense, DenseReason, LayerContext, Plan, Planner
from ditaccel.config import AccelerationConfig
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.core.ranks import HeadShare
from ditaccel.core.transformers import transformers_of
from ditaccel.sessions.session import Session

Answer = Callable[[Tensor, Tensor, LayerContext, dict[str, Any]], "Plan | Dense"]


def _dense(q: Tensor, k: Tensor, context: LayerContext, state: dict[str, Any]) -> Plan | Dense:
    return Dense(DenseReason.OTHER, "asked for")


class RecordingPlanner(Planner):
    """Answers Dense, or what `answer(q, k, context, state)` says.

    Attributes:
        seen: `(context, q)` of each call.
    """

    break_even = 1.0

    def __init__(self, answer: Answer = _dense) -> None:
        self.seen: list[tuple[LayerContext, Tensor]] = []
        self._answer = answer

    def plan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        context: LayerContext,
        state: dict[str, Any],
    ) -> Plan | Dense:
        self.seen.append((context, q.detach().clone()))
        return self._answer(q, k, context, state)


def use(pipe: Any, planner: Planner) -> Session:
    """Put a planner on a pipeline, as `accelerate` puts that of a config; `restore` undoes it."""
    return Session(pipe, transformers_of(pipe)[0], AccelerationConfig(), planner=planner)


# -- which pairs of tokens a plan computes, from its tiles and orders one by one --


def context_of(length, index=0, total=10, layer=1, **changes):
    """Where a call is: layer 1 of 4, in a loop of 10 steps."""
    step = DenoisingStep(0, index, "cond", 500.0, sigma=0.5, total=total)
    return LayerContext(step, layer, 4, length, **changes)


def heads_of(plan, heads):
    """`(plan, place in it)` of each head: those of parts follow each other."""
    if not plan.parts:
        return [(plan, h) for h in range(heads)]
    every = [(part, h) for part in plan.parts for h in range(len(part.order._heads))]
    return [every[place] for place in plan.heads.tolist()]


def orders_of(plan, b, h, length):
    """Tokens of the queries and of the keys of one head, in the order of the plan."""
    order = plan.order._order if isinstance(plan.order, OfHeads) else plan.order
    if isinstance(order, OrderPerHead):
        group = order.q_order.shape[1] // order.k_order.shape[1]
        return order.q_order[b, h].long(), order.k_order[b, h // group].long()
    if isinstance(order, SharedOrder) and order.tokens is not None:
        return order.tokens, order.tokens
    return torch.arange(length), torch.arange(length)


def of(x, b, h):
    """What `(B|1, H|1, ...)` holds for one head."""
    return x[min(b, len(x) - 1), min(h, x.shape[1] - 1)]


def bounds_of(tiling, b, h):
    """First tokens of the tiles of one head, and the length."""
    return of(tiling.bounds("cpu"), b, h).tolist()


def computed_pairs(plan: Plan, batch: int, heads: int, length: int) -> torch.Tensor:
    """Pairs of tokens that are computed exactly, bool `(B, H, L, L)`, in the order of the model."""
    pairs = torch.zeros(batch, heads, length, length, dtype=torch.bool)
    for b, (h, (own, at)) in itertools.product(range(batch), enumerate(heads_of(plan, heads))):
        mask = of(own.tile_map.to_mask(), b, at)
        rows, columns = orders_of(own, b, at, length)
        q_bounds = list(itertools.pairwise(bounds_of(own.tile_map.q_tiling, b, at)))
        k_bounds = list(itertools.pairwise(bounds_of(own.tile_map.k_tiling, b, at)))
        for i, j in mask.nonzero().tolist():
            (q_start, q_end), (k_start, k_end) = q_bounds[i], k_bounds[j]
            pairs[b, h, rows[q_start:q_end, None], columns[k_start:k_end]] = True
    return pairs


def masked_softmax(q, k, v, scale, pairs):
    """Attention over some pairs of tokens, in float64."""
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double().repeat_interleave(n, 1) for x, n in ((q, 1), (k, group), (v, group)))
    return (q @ k.mT * scale).masked_fill(~pairs, -torch.inf).softmax(-1) @ v


# -- ranks that share heads, each a thread --


class _ThreadRanks:
    """Two ranks in one process, as far as planners ask them for anything."""

    count = 2

    def __init__(self, here: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.here, self._slots, self._barrier = here, slots, barrier

    def gathered(self, x: Tensor, sizes: Any, dim: int) -> list[Tensor]:
        self._slots[self.here] = x
        self._barrier.wait()
        parts = list(self._slots)
        self._barrier.wait()
        return parts

    def total(self, values: Tensor) -> Tensor:
        first, second = self.gathered(values, (1, 1), 0)
        return first + second


def on_two_ranks(run: Callable[[HeadShare], Any], counts: tuple[int, int]) -> list[Any]:
    """What `run(share)` gives on each of two ranks that have so many heads."""
    slots, barrier = [None, None], threading.Barrier(2, timeout=60)
    shares = [HeadShare(_ThreadRanks(here, slots, barrier), counts) for here in range(2)]  # type: ignore[arg-type]

    def on_one(share: HeadShare) -> Any:
        try:
            with torch.no_grad():
                return run(share)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(on_one, shares))
