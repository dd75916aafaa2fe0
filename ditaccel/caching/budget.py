"""What a cache takes in memory, byte for byte, and what becomes of one that takes too much.

What histories hold when they are full follows from one computed step: every part is a number of
tensors of a size that this step shows. So a budget is held against each guidance branch's first
computed step, before its histories grow, and again when a further branch appears.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..core.denoising.tracker import DenoisingStep
from ..errors import ConfigError
from ..pipelines import submodule
from .forecast import features_kept
from .gate import StepSizeGate
from .policy import CachePolicy

if TYPE_CHECKING:
    from .blocks import Block

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
    if policy.granularity == "module":
        return "outputs of modules"
    return "outputs" if policy.target == "output" else "hidden states"


def tensors_per_branch(policy: CachePolicy, blocks: Sequence[Block]) -> int:
    """Places at which a policy remembers by tensors kept of each, per guidance branch."""
    if policy.granularity == "module":
        modules = sum(
            submodule(b.module, n) is not None for b in blocks for n in b.contract.forecast_modules
        )
        return modules * features_kept(policy.order, policy.basis)
    first = policy.first_order + 1 if policy.first_feature is not None else 0
    return features_kept(policy.order, policy.basis) + first


def watches_gaps(policy: CachePolicy) -> bool:
    """Whether outputs are followed from gap to gap, for their correction or for the gate."""
    return policy.correction != "never" or isinstance(policy.gate, StepSizeGate)


@dataclass
class Snapshot:
    """Bytes of what one computed step leaves behind, of one guidance branch.

    Attributes:
        hidden: of the hidden state after the last block, or of the output where that is forecast.
        first: of the first block's feature.
        modules: of all modules' outputs that are forecast.
        output: of what the transformer returns.
        numbers: how many numbers that is.
        hint: of what side blocks give.
        feedback: whether an error in the latents is felt in outputs (`DenoisingStep.feedback`).
        streams: number of streams of latents.
    """

    hidden: int = 0
    first: int = 0
    modules: int = 0
    output: int = 0
    numbers: int = 0
    hint: int = 0
    feedback: bool = False
    streams: int = 1

    def returned(self, sample: torch.Tensor, streams: int, step: DenoisingStep) -> None:
        """Take note of what the transformer returned on a step."""
        self.output, self.numbers = nbytes_of(sample), sample.numel()
        self.streams = streams
        self.feedback = self.feedback or (step.additive and step.feedback > 0.0)

    def forecasts(self, policy: CachePolicy) -> int:
        """Bytes of full histories to forecast from."""
        main = self.modules if policy.granularity == "module" else self.hidden
        first = self.first * (policy.first_order + 1) if policy.first_feature is not None else 0
        return main * features_kept(policy.order, policy.basis) + first + self.hint

    def correction(self, policy: CachePolicy) -> int:
        """Bytes of the outputs at both ends of a gap, its sum, and what outputs have answered."""
        if not watches_gaps(policy):
            return 0
        answers = 2 if self.feedback and policy.correction != "never" else 0
        return 2 * self.output + (1 + answers) * _FLOAT32 * self.numbers

    def leader(self, policy: CachePolicy) -> int:
        """Bytes of the first branch's step, which the others are forecast from.

        On computed steps its correction takes the place of its gap's sum, of the same size; only
        what forecasts are freed from (`GapCorrector.forecast`) comes on top.
        """
        if policy.guidance != "difference":
            return 0
        forecast = self.hidden if policy.target != "output" or self.streams > 1 else 0
        if not watches_gaps(policy):
            return forecast or self.hidden
        return forecast + self.output + self.feedback * _FLOAT32 * self.numbers


def full(policy: CachePolicy, snapshots: Sequence[Snapshot]) -> int:
    """Most bytes that a policy holds at once, over guidance branches."""
    each = sum(s.forecasts(policy) + s.correction(policy) for s in snapshots)
    return each + max((s.leader(policy) for s in snapshots), default=0)


def in_words(policy: CachePolicy, snapshots: Sequence[Snapshot]) -> str:
    """What the bytes of `full` are, for people."""
    forecasts = sum(s.forecasts(policy) for s in snapshots)
    correction = sum(s.correction(policy) for s in snapshots)
    leader = max((s.leader(policy) for s in snapshots), default=0)
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
        policy: what to hold against its own `memory_budget`.
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
    options = "" if policy.granularity == "last_block" else "granularity='last_block', "
    for order in range(policy.order, -1, -1):
        rules = replace(policy.rules, needed=min(policy.rules.needed, order + 1))
        smaller = replace(policy, granularity="last_block", order=order, rules=rules)
        if largest(full(smaller, snapshots)) <= budget:
            return f"{options}order={order}", smaller
    return "", None


def nbytes_of(*tensors: torch.Tensor) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def unique_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of tensors, each memory counted once."""
    found = {t.data_ptr(): nbytes_of(t) for t in tensors if t is not None}
    return sum(found.values())
