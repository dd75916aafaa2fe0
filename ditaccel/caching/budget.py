"""What a policy's histories take in memory, and what becomes of one that takes too much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..errors import ConfigError
from ..pipelines import submodule
from .forecast import features_kept
from .policy import CachePolicy

if TYPE_CHECKING:
    from .blocks import Block


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def unit(policy: CachePolicy) -> str:
    """What one remembered tensor is."""
    return "outputs" if policy.target == "output" else "hidden states"


def tensors_per_branch(policy: CachePolicy, blocks: Sequence[Block]) -> int:
    """Tensors that a policy keeps per guidance branch when its histories are full."""
    if policy.granularity == "module":
        modules = sum(
            submodule(b.module, n) is not None for b in blocks for n in b.contract.forecast_modules
        )
        return modules * features_kept(policy.order, policy.basis)
    first = policy.first_order + 1 if policy.first_feature is not None else 0
    return features_kept(policy.order, policy.basis) + first


def within_budget(
    policy: CachePolicy,
    blocks: Sequence[Block],
    feature: torch.Tensor,
    warn: Callable[[str], None],
) -> CachePolicy:
    """Return the policy, or a smaller one where it would exceed its budget and may be downgraded.

    Args:
        policy: what to hold against its own `memory_budget`.
        blocks: of the transformer.
        feature: one tensor of the size that the histories hold.
        warn: called with one line when the policy is made smaller.

    Raises:
        ConfigError: over the budget, and not to be downgraded or still over it then.
    """
    budget = policy.memory_budget
    if budget is None:
        return policy
    one = feature.numel() * feature.element_size() * 2  # two guidance branches
    count = tensors_per_branch(policy, blocks)
    if one * count <= budget:
        return policy
    line = (
        f"the cache would take {size(one * count)} ({count} {unit(policy)} for each of two "
        f"branches), over the budget of {size(budget)}"
    )
    smaller = replace(policy, granularity="last_block")
    while one * tensors_per_branch(smaller, blocks) > budget and smaller.order > 0:
        order = smaller.order - 1
        rules = replace(smaller.rules, needed=min(smaller.rules.needed, order + 1))
        smaller = replace(smaller, order=order, rules=rules)
    fits = one * tensors_per_branch(smaller, blocks) <= budget
    if policy.on_budget == "refuse" or not fits:
        hint = (
            f"; granularity='last_block', order={smaller.order} would fit, "
            "on_budget='downgrade' takes it"
            if fits
            else "; raise memory_budget or make the output smaller"
        )
        raise ConfigError(line + hint)
    warn(f"{line}: going on with granularity='last_block', order={smaller.order}")
    return smaller
