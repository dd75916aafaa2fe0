"""Guidance branches of one step: each for itself, after the first one, or as a difference to it.

The first branch of a step that decides for itself is the leader of those that follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...core.reasons import Reason
from ...errors import ConfigError
from .policy import CachePolicy
from .state import Call, Verdict
from .targets import Target

OTHER_LENGTH = (
    "guidance='difference' compares the hidden states of the guidance branches, whose sequences "
    "differ in length here (their texts do); use target='output', or guidance='follow'"
)
_WITH_FIRST = "computed with the first branch"


@dataclass
class Leader:
    """The first branch of the present step.

    Attributes:
        key: generation and step.
        branch: its name.
        fingerprint: of its latents.
        verdict: what was decided for it.
        feature: what it was forecast from or gave, where differences are taken to it.
        output: what the transformer returned for it, where gaps are watched.
        correction: what was added to that.
    """

    key: tuple[int, int]
    branch: str
    fingerprint: Any
    verdict: Verdict
    feature: torch.Tensor | None
    output: torch.Tensor | None = None
    correction: torch.Tensor | None = None


class Guidance:
    """Every branch decides for itself, and is forecast from its own features."""

    by_difference = False

    def __init__(self) -> None:
        self.leaders: dict[Any, Leader] = {}  # by window

    @property
    def tensors(self) -> Iterator[torch.Tensor | None]:
        """What is held for the branches that follow."""
        for leader in self.leaders.values():
            yield from (leader.feature, leader.output, leader.correction)

    def verdict(self, call: Call, policy: CachePolicy) -> Verdict | None:
        """What the leader's decision means for this call, None where the call leads itself."""
        return None

    def leader_of_output(self, call: Call) -> Leader | None:
        """The leader, or the one that the call is, to whose output differences are taken."""
        return None

    def remember(self, call: Call, target: Target, hidden: torch.Tensor) -> None:
        """Take up what a computed step gave: a hidden state or an output."""
        kept = target.remember(call, self._relative(call, target.feature(call, hidden)))
        if not call.follows:
            self._lead(call, kept)

    def predict(self, call: Call, target: Target, shape: torch.Size | None = None) -> torch.Tensor:
        """What a step that is not computed would give.

        Args:
            call: the call.
            target: what is forecast.
            shape: of the hidden state that is wanted, None for an output.
        """
        feature = self._absolute(call, target.predict(call))
        if not call.follows:
            self._lead(call, feature)
        return target.whole(call, feature, shape)

    def _lead(self, call: Call, feature: torch.Tensor) -> None:
        """Note what the first branch was given, for those that follow on this step."""

    def _relative(self, call: Call, feature: torch.Tensor) -> torch.Tensor:
        """What is remembered of a feature."""
        return feature

    def _absolute(self, call: Call, feature: torch.Tensor) -> torch.Tensor:
        """The feature, from what was remembered."""
        return feature


class Follow(Guidance):
    """The first branch of a step decides for all."""

    def verdict(self, call: Call, policy: CachePolicy) -> Verdict | None:
        leader, state = self._leader_of(call), call.state
        differences = self.by_difference and leader is not None
        if state.holds_differences != differences and len(state.last):
            state.begin_again()  # the branch that leads has changed
        state.holds_differences = differences
        if leader is None:
            return None
        call.follows = True
        return self._after(leader, call, policy)

    def _leader_of(self, call: Call) -> Leader | None:
        step = call.step
        leader = self.leaders.get(step.window)
        if leader is None or leader.key != (step.generation, step.index):
            return None
        if leader.fingerprint != call.fingerprint:
            # Two branches in one call, then another one alone (LTX 2): nothing to subtract.
            call.alone = True
            return None
        return leader

    def _after(self, leader: Leader, call: Call, policy: CachePolicy) -> Verdict:
        if len(call.state.last) < policy.rules.needed:
            why = Reason.NO_HISTORY if leader.verdict.forecast else leader.verdict.reason
            return Verdict(False, why)
        return replace(leader.verdict, detail=f"follows {leader.branch}")

    def _lead(self, call: Call, feature: torch.Tensor) -> None:
        if call.alone:
            return
        assert call.verdict is not None
        step, kept = call.step, feature if self.by_difference else None
        key = (step.generation, step.index)
        made = Leader(key, step.branch, call.fingerprint, call.verdict, kept)
        self.leaders[step.window] = made


class Difference(Follow):
    """The others follow the first branch, and only their difference to it is forecast."""

    by_difference = True

    def _after(self, leader: Leader, call: Call, policy: CachePolicy) -> Verdict:
        call.leader = leader.feature
        if leader.verdict.forecast:
            call.remembers = False  # a difference to a forecast would carry its error on
        if len(call.state.last) < policy.rules.needed:
            return super()._after(leader, call, policy)
        if not leader.verdict.forecast and _is_due(leader, call, policy):
            return Verdict(False, leader.verdict.reason, detail=_WITH_FIRST)
        why = leader.verdict.reason if leader.verdict.forecast else Reason.DIFFERENCE
        return Verdict(True, why, detail=f"difference to {leader.branch}")

    def leader_of_output(self, call: Call) -> Leader | None:
        return None if call.alone else self.leaders.get(call.step.window)

    def _relative(self, call: Call, feature: torch.Tensor) -> torch.Tensor:
        if call.leader is None:
            return feature
        if call.leader.shape != feature.shape:
            raise ConfigError(OTHER_LENGTH)
        return feature - call.leader

    def _absolute(self, call: Call, feature: torch.Tensor) -> torch.Tensor:
        return feature if call.leader is None else feature + call.leader


_KINDS = {"independent": Guidance, "follow": Follow, "difference": Difference}


def guidance_of(policy: CachePolicy) -> Guidance:
    """The guidance that a policy names, without a leader yet."""
    return _KINDS[policy.guidance]()


def _is_due(leader: Leader, call: Call, policy: CachePolicy) -> bool:
    """Whether a branch that follows is computed on a computed step of the first one."""
    if policy.guidance_steps is not None:
        return call.step.index in policy.guidance_steps
    skipped = call.state.since_computed
    call.state.since_computed += 1
    if policy.gate.skips_nothing(None):
        return True  # threshold 0 and its like: exact, in all branches
    return leader.verdict.reason.forced or skipped >= policy.guidance_interval - 1
