"""Which branch of a step is a call? By its name, its conditioning, its place, and its order last.

A branch is a guidance branch, or one window or tile of it. Names are the pipeline's, else `call0`,
`call1` in the order in which conditionings were first seen; windows add `#2`, `#3` … Any number of
calls in a step keeps apart.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from .conditions import Traits

Slot = tuple[Hashable, int]

# Relative change of the latents below which they are the next step's, not another window's.
_SAME_PICTURE = 0.1


@dataclass(eq=False)
class _Branch:
    """A guidance branch: one conditioning, as far as that stays the same."""

    name: str
    condition: Hashable
    first: int
    moves: bool = False
    slots: dict[Slot, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where in its step a call is.

    Attributes:
        branch: its name.
        window: what tells it from calls of the same guidance branch.
    """

    branch: str
    window: Hashable


class Branches:
    """The branches of one generation."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str | None], list[_Branch]] = {}
        self._orders: list[dict[tuple[str, str | None], list[_Branch]]] = []
        self._used: dict[tuple[_Branch, Hashable], int] = {}
        self._samples: dict[_Branch, torch.Tensor] = {}
        self._index = -1
        self.calls = 0

    def begin_step(self) -> None:
        """The next calls are those of another step."""
        self._index += 1
        self._orders = [*self._orders[-2:], {}]
        self._used.clear()
        self.calls = 0

    def place(self, transformer: str, context: str | None, traits: Traits | None) -> Place:
        """Place a call of the present step."""
        self.calls += 1
        group = (transformer, context)
        order = self._orders[-1].setdefault(group, [])
        condition = None if traits is None else traits.condition
        if condition is None and context is None:
            condition = ("order", len(order))
        branch = self._find(group, condition) or self._moved(group, condition, len(order))
        if branch is None:
            branch = self._made(group, condition)
        order.append(branch)
        place = None if traits is None else traits.place
        if traits is not None and traits.sample is not None:
            self._samples[branch] = traits.sample.detach()
        count = self._used.get((branch, place), 0) + 1
        first = not any(used is branch for used, _ in self._used)
        self._used[branch, place] = count
        slot = (place, count)
        if slot not in branch.slots and first and len(branch.slots) == 1:
            branch.slots = {slot: 1}  # alone, it needs no place
        number = branch.slots.setdefault(slot, len(branch.slots) + 1)
        name = branch.name if number == 1 else f"{branch.name}#{number}"
        # a branch that is alone is the same window as others that are
        window = (None, 1) if len(branch.slots) == 1 and number == 1 and first else slot
        return Place(name, window)

    def is_next_step(self, transformer: str, context: str | None, traits: Traits | None) -> bool:
        """Whether a call at the timestep of the last one is of the next step, by its latents.

        In half precision, neighbouring timesteps may be one number. Then the same branch comes
        again, with latents that have hardly changed, while every step before had it once.
        """
        if traits is None or traits.sample is None or traits.place is not None or not self._orders:
            return False
        group = (transformer, context)
        branch = self._find(group, traits.condition)
        if branch is None or not self._used.get((branch, None)):
            return False
        before = self._orders[-2].get(group, []) if len(self._orders) > 1 else None
        now = self._orders[-1].get(group, [])
        if before is not None and before.count(branch) > now.count(branch):
            return False  # the step before had more of them
        known, sample = self._samples.get(branch), traits.sample
        if known is None or known.shape != sample.shape or known.device != sample.device:
            return False
        if known.data_ptr() == sample.data_ptr():
            return False
        change = torch.linalg.vector_norm((sample - known).float())
        share = float(change / torch.linalg.vector_norm(known.float()).clamp_min(1e-12))
        return 0.0 < share < _SAME_PICTURE

    def _find(self, group: tuple[str, str | None], condition: Hashable) -> _Branch | None:
        for branch in self._groups.get(group, []):
            if branch.condition == condition:
                return branch
        return None

    def _moved(
        self, group: tuple[str, str | None], condition: Hashable, order: int
    ) -> _Branch | None:
        """The branch whose conditioning changes at every step (a prompt that travels)."""
        if len(self._orders) < 3:
            return None
        earlier, last, now = (step.get(group, []) for step in self._orders)
        if order >= min(len(earlier), len(last)):
            return None
        branch = last[order]
        if branch in now or branch.condition is None:
            return None
        changed = branch.first == self._index - 1 and earlier[order] not in last
        if not branch.moves and not changed:
            return None
        branch.condition, branch.moves = condition, True
        return branch

    def _made(self, group: tuple[str, str | None], condition: Hashable) -> _Branch:
        branches = self._groups.setdefault(group, [])
        _, context = group
        number = len(branches)
        if context is None:
            name = f"call{number}"
        else:
            name = context if not number else f"{context}~{number + 1}"
        branches.append(_Branch(name, condition, self._index))
        return branches[-1]
