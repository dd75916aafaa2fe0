"""What a cache holds at a moment, the most it has held, and whether its budget will do."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from ..core.ranks import Ranks
from .budget import Snapshot, unique_bytes, within_budget
from .policy import CachePolicy
from .state import BranchState, Leader


class Memory:
    """Counts the bytes of one transformer's cache.

    Args:
        warn: called with one line when a policy is made smaller.

    Attributes:
        peak: most bytes held at once, by what they were for.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._checked: list[Snapshot] = []
        self.peak: dict[str, int] = {}

    def clear(self) -> None:
        """A new generation begins: its budget is looked at anew."""
        self._checked = []

    @staticmethod
    def held(states: Collection[BranchState], leaders: Collection[Leader]) -> dict[str, int]:
        """Bytes that are held now, by what they are for."""
        kept = {id(state.last.newest) for state in states if len(state.last)}
        tensors = [tensor for leader in leaders for tensor in leader.tensors]
        return {
            "to forecast from": sum(state.history_bytes for state in states),
            "for gap correction": sum(state.corrector.nbytes for state in states),
            "for the branches that follow": unique_bytes(t for t in tensors if id(t) not in kept),
        }

    def book(self, states: Collection[BranchState], leaders: Collection[Leader]) -> None:
        """Take note of what is held after a call."""
        held = self.held(states, leaders)
        if sum(held.values()) > sum(self.peak.values()):
            self.peak = held

    def within(
        self,
        policy: CachePolicy,
        states: Collection[BranchState],
        ranks: Ranks | None,
        device: torch.device,
    ) -> CachePolicy:
        """The policy, or a smaller one that the states go on with.

        Args:
            policy: in force.
            states: of the guidance branches so far, with what their computed steps have shown.
            ranks: that compute together, and must decide alike: parts may differ by a token.
            device: of the latents.

        Raises:
            ConfigError: over the budget, and not to be made smaller.
        """
        snapshots = [state.snapshot for state in states]
        if policy.memory_budget is None or snapshots == self._checked:
            return policy
        self._checked = [replace(snapshot) for snapshot in snapshots]

        def largest(count: int) -> int:
            if ranks is None:
                return count
            return int(
                ranks.largest(torch.tensor(float(count), dtype=torch.float64, device=device))
            )

        smaller = within_budget(policy, snapshots, self._warn, largest)
        if smaller is not policy:
            for state in states:
                state.shrink(smaller)
        return smaller
