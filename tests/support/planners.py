"""Planners that say what a test wants, and write down what they saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ditaccel.attention.engine.planner import Dense, DenseReason, LayerContext, Plan, Planner
from ditaccel.config import AccelerationConfig
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
