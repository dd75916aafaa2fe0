"""What a cache takes in memory, byte for byte, and what becomes of one that takes too much.

What histories hold when they are full follows from one computed step: every part is a number of
tensors of a size that this step shows. So a budget is compared with each guidance branch's
first computed step, before its histories grow, and again when a further branch appears.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import torch

from ...core.ranks import Ranks
from ...errors import ConfigError
from .blocks import Block
from .forecast import features_kept
from .policy import CachePolicy
from .state import BranchState, Snapshot, unique_bytes

_FLOAT32 = 4


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def unit(policy: CachePolicy) -> str:
    """What one remembered tensor is."""
    return policy.target_class.unit


def tensors_per_branch(policy: CachePolicy, blocks: Sequence[Block]) -> int:
    """Places at which a policy remembers by tensors kept of each, per guidance branch."""
    first = policy.first_order + 1 if policy.first_feature is not None else 0
    kept = features_kept(policy.order, policy.basis)
    return policy.target_class.places(blocks, policy.gate) * kept + first


def _forecasts(policy: CachePolicy, branch: Snapshot) -> int:
    """Bytes of full histories to forecast from."""
    main = branch.modules if policy.target_class.every_block else branch.hidden
    first = branch.first * (policy.first_order + 1) if policy.first_feature is not None else 0
    return main * features_kept(policy.order, policy.basis) + first + branch.hint + branch.gate


def _correction(policy: CachePolicy, branch: Snapshot) -> int:
    """Bytes of the outputs at both ends of a gap, its sum, and what outputs have answered."""
    if not policy.watches_gaps:
        return 0
    answers = 2 if branch.feedback and policy.correction != "never" else 0
    return 2 * branch.output + (1 + answers) * _FLOAT32 * branch.numbers


def for_followers(policy: CachePolicy, branch: Snapshot) -> int:
    """Bytes of the first branch's step, which the others are forecast from.

    On computed steps its correction takes the place of its gap's sum, of the same size; only what
    forecasts are freed from (`GapCorrector.forecast`) comes on top.
    """
    if policy.guidance != "difference":
        return 0
    forecast = branch.hidden if not policy.target_class.whole_call or branch.streams > 1 else 0
    if not policy.watches_gaps:
        return forecast or branch.hidden
    return forecast + branch.output + branch.feedback * _FLOAT32 * branch.numbers


def full(policy: CachePolicy, snapshots: Sequence[Snapshot]) -> int:
    """Most bytes that a policy holds at once, over guidance branches."""
    each = sum(_forecasts(policy, s) + _correction(policy, s) for s in snapshots)
    return each + max((for_followers(policy, s) for s in snapshots), default=0)


def in_words(policy: CachePolicy, snapshots: Sequence[Snapshot]) -> str:
    """What the bytes of `full` are, for people."""
    forecasts = sum(_forecasts(policy, s) for s in snapshots)
    correction = sum(_correction(policy, s) for s in snapshots)
    leader = max((for_followers(policy, s) for s in snapshots), default=0)
    parts = [f"{size(forecasts)} of {unit(policy)} to forecast from"]
    parts += [f"{size(correction)} for gap correction"] * bool(correction)
    parts += [f"{size(leader)} for the branches that follow"] * bool(leader)
    return ", ".join(parts)


def within_budget(
    policy: CachePolicy,
    snapshots: Sequence[Snapshot],
    warn: Callable[[str], None],
    largest: Callable[[int], int] = lambda count: count,
) -> CachePolicy:
    """Return the policy, or a smaller one where it would exceed its budget and may be downgraded.

    Args:
        policy: compared with its own `memory_budget`.
        snapshots: of the guidance branches so far.
        warn: called with one line when the policy is made smaller.
        largest: over the ranks that compute together, which must decide alike.

    Raises:
        ConfigError: over the budget, and not to be downgraded or still over it then.
    """
    budget = policy.memory_budget
    if budget is None:
        return policy
    total = largest(full(policy, snapshots))
    if total <= budget:
        return policy
    branches = "one branch" if len(snapshots) == 1 else f"{len(snapshots)} branches"
    line = (
        f"the cache would take at least {size(total)} ({in_words(policy, snapshots)}; {branches}), "
        f"over the budget of {size(budget)}"
    )
    options, smaller = _smaller(policy, snapshots, budget, largest)
    if policy.on_budget == "refuse" or smaller is None:
        hint = (
            f"; {options} would fit, on_budget='downgrade' takes it"
            if smaller is not None
            else "; raise memory_budget or make the output smaller"
        )
        raise ConfigError(line + hint)
    warn(f"{line}: going on with {options}")
    return smaller


def _smaller(
    policy: CachePolicy, snapshots: Sequence[Snapshot], budget: int, largest: Callable[[int], int]
) -> tuple[str, CachePolicy | None]:
    """The largest policy within the budget that does less, and its options; None for none."""
    if policy.gate.by_module:
        return "", None  # there is nothing that decides for a whole step
    options = "" if policy.granularity == "last_block" else "granularity='last_block', "
    for order in range(policy.order, -1, -1):
        rules = replace(policy.rules, needed=min(policy.rules.needed, order + 1))
        smaller = replace(policy, granularity="last_block", order=order, rules=rules)
        if largest(full(smaller, snapshots)) <= budget:
            return f"{options}order={order}", smaller
    return "", None


class Memory:
    """Counts the bytes of one transformer's cache.

    Args:
        warn: called with one line when a policy is made smaller.

    Attributes:
        peak: most bytes held at once, by what they were for.
        device: of the latents.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._checked: list[Snapshot] = []
        self.peak: dict[str, int] = {}
        self.device = torch.device("cpu")

    def clear(self) -> None:
        """A new generation begins: its budget is checked again."""
        self._checked = []

    @staticmethod
    def held(
        states: Collection[BranchState], leading: Iterable[torch.Tensor | None]
    ) -> dict[str, int]:
        """Bytes that are held now, by what they are for.

        Args:
            states: of the guidance branches.
            leading: what is held of first branches.
        """
        kept = {id(state.last.newest) for state in states if len(state.last)}
        return {
            "to forecast from": sum(state.history_bytes for state in states),
            "for gap correction": sum(state.corrector.nbytes for state in states),
            "for the branches that follow": unique_bytes(t for t in leading if id(t) not in kept),
        }

    def book(self, states: Collection[BranchState], leading: Iterable[torch.Tensor | None]) -> None:
        """Take note of what is held after a call; arguments as of `held`."""
        held = self.held(states, leading)
        if sum(held.values()) > sum(self.peak.values()):
            self.peak = held

    def within(
        self,
        policy: CachePolicy,
        states: Collection[BranchState],
        ranks: Ranks | None,
    ) -> CachePolicy:
        """The policy, or a smaller one that the states go on with.

        Args:
            policy: in force.
            states: of the guidance branches so far, with what their computed steps have shown.
            ranks: that compute together, and must decide alike: parts may differ by a token.

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
                ranks.largest(torch.tensor(float(count), dtype=torch.float64, device=self.device))
            )

        smaller = within_budget(policy, snapshots, self._warn, largest)
        if smaller is not policy:
            for state in states:
                state.shrink(smaller.order)
        return smaller
