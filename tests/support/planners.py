"""Planners that say what a test wants, and write down what they saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ditaccel.attention.lite_attention import LiteAttentionConfig
from ditaccel.attention.planner import Dense, LayerContext, Plan

Answer = Callable[[Tensor, Tensor, LayerContext, dict[str, Any]], "Plan | Dense"]


def _dense(q: Tensor, k: Tensor, context: LayerContext, state: dict[str, Any]) -> Plan | Dense:
    return Dense("asked for")


class RecordingPlanner:
    """Answers Dense, or what `answer(q, k, context, state)` says.

    Attributes:
        seen: `(context, q)` of each call.
    """

    least_tokens = 0
    least_steps = 0
    break_even: float | None = 1.0
    backend = None

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

    def update(self, plan: Plan, result: Any, state: dict[str, Any]) -> None:
        """Nothing is learnt."""


def use(monkeypatch: Any, planner: Any) -> LiteAttentionConfig:
    """A config under which `accelerate` takes `planner`."""
    monkeypatch.setattr(LiteAttentionConfig, "planner", lambda self: planner)
    return LiteAttentionConfig()
