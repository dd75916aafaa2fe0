"""CachePolicy: what every caching method comes down to, and the hooks carry out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from ...config import CacheConfig
from ...config.checks import made
from ...core.denoising.tracker import DenoisingStep
from ...core.ranks import Ranks
from ...errors import ConfigError
from .few_steps import LEAST, MOST, FewStepsGate, skipped_of_few
from .gate import Gate, StepRules
from .modules.target import ModuleTarget
from .state import BranchState
from .targets import TARGETS, Target


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """What all caching methods come down to.

    Attributes:
        gate: decides between computing and forecasting.
        rules: warm-up, last steps and the like, asked before the gate.
        order: order of the forecast of the last block.
        basis: basis of the forecasts (`forecast.BASES`).
        coordinate: what a forecast runs along (`ForecastOptions`).
        target: what is forecast, a name of `targets.TARGETS`: the `hidden` state after the last
            block, the `residual` since the output of the gate's first blocks (since the first
            block's input where the gate runs none), or the transformer's `output`, or what it adds
            to its latents (`output_residual`): with these two, nothing of it runs on a step decided
            before its blocks.
        first_feature: what of the first blocks the gate compares: `output`, `residual` or None.
        first_order: order of the forecast of the first blocks.
        remembers_from: first step whose features are remembered; computed steps before it feed no
            forecast.
        first_remembers_from: the same for the first blocks.
        granularity: `last_block`, or `module` (attention and MLP outputs of every block).
        guidance: `independent` branches; `follow` the first branch's decision; `difference`:
            follow, and forecast only the difference to the first branch.
        guidance_interval: with `difference`, computed steps of the first branch per computed step
            of the others.
        guidance_steps: with `difference`, computed steps of the others, instead of an interval.
        correction: `auto` corrects the latents after a gap where the scheduler allows it
            (`correction.py`), `always` insists on it, `never` does not.
        memory_budget: bytes that histories may take, None for no limit.
        on_budget: `refuse` or `downgrade` when they would take more.
        few: steps that a loop of at most `few_steps.MOST` skips at most, in place of what the gate
            would decide; 0 leaves it to the gate.

    Raises:
        ConfigError: there is no such target, or the gate decides for modules where they are not
            forecast.
    """

    gate: Gate
    rules: StepRules = field(default_factory=StepRules)
    order: int = 1
    basis: str = "taylor"
    coordinate: str = "index"
    target: str = "hidden"
    first_feature: str | None = None
    first_order: int = 0
    remembers_from: int = 0
    first_remembers_from: int = 0
    granularity: str = "last_block"
    guidance: str = "independent"
    guidance_interval: int = 1
    guidance_steps: frozenset[int] | None = None
    correction: str = "never"
    memory_budget: int | None = None
    on_budget: str = "refuse"
    few: int = 0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ConfigError(f"unknown target {self.target!r}; known: {', '.join(TARGETS)}")
        if self.gate.by_module and self.granularity != "module":
            raise ConfigError(
                f"{type(self.gate).__name__} decides for each module or kind of module; give "
                "granularity='module'"
            )

    @property
    def target_class(self) -> type[Target]:
        """What is forecast."""
        return ModuleTarget if self.granularity == "module" else TARGETS[self.target]

    @property
    def outside(self) -> bool:
        """Whether whole calls of the transformer are skipped, and nothing inside it is needed."""
        return self.target_class.whole_call and not self.gate.looks_inside

    @property
    def watches_gaps(self) -> bool:
        """Whether outputs are followed from gap to gap, for their correction or for the gate."""
        return self.correction != "never" or self.gate.needs_gaps

    def guards(self, step: DenoisingStep) -> bool:
        """Whether a step is computed because of its weight in the end.

        Multistep solvers end with a step of order one, and the output before it counts double.
        """
        if not self.watches_gaps or self.rules.exact or step.index + 2 != step.total:
            return False
        return step.tangent is not None and step.tangent.keeps_outputs

    def in_loop(self, total: int | None) -> CachePolicy:
        """What is carried out in a loop of so many steps: this policy, or its mask for few."""
        if not skipped_of_few(total, self.few) or self.target != "output":
            return self
        return replace(
            self,
            gate=FewStepsGate(self.few, self.gate),
            rules=StepRules(exact=True),
            order=0,
            correction="never",
            few=0,
        )

    @property
    def needs_samples(self) -> bool:
        """Whether the latents of a call are kept until it ends."""
        return self.watches_gaps or self.gate.needs_samples or self.target_class.needs_samples

    def branch_state(self, ranks: Ranks | None = None) -> BranchState:
        """Nothing remembered yet of a guidance branch.

        Args:
            ranks: that compute the transformer together.
        """
        memory = self.gate.memory()
        return BranchState(self.order, self.basis, self.first_order, self.coordinate, memory, ranks)


def policy_of(config: CacheConfig) -> CachePolicy:
    """The policy of a method's config.

    Raises:
        ConfigError: its `policy()` raises something, or returns something else.
    """
    hint = " (self.cache_policy(gate, rules) makes one)"
    return made(config, "policy", CachePolicy, hint)


def computed_steps(policy: CachePolicy, total: int) -> tuple[int, ...] | None:
    """The steps that a policy computes in a loop, where its gate decides by their place alone.

    Args:
        policy: of a method.
        total: steps of the loop.

    Returns:
        Their indices, from 0; None where what is seen in the run decides.
    """
    if not policy.gate.by_place:
        return None
    state, found = policy.branch_state(), []
    for index in range(total):
        step = DenoisingStep(0, index, "", float(total - index), total=total)
        verdict = policy.rules.verdict(step, state) or policy.gate.before(step, state)
        if verdict.forecast:
            continue
        found.append(index)
        state.last_index = index
        if index >= policy.remembers_from:
            state.last.push(float(index), torch.zeros(1))
    return tuple(found)


def few_steps_line(policy: CachePolicy, total: int | None) -> str:
    """What a policy can gain in a loop of few steps, in one line; empty in other loops."""
    if total is None or not LEAST <= total <= MOST:
        return ""
    steps = computed_steps(policy.in_loop(total), total)
    if steps is None or len(steps) == total:
        return ""
    left = ", ".join(str(step) for step in range(total) if step not in steps)
    return (
        f"{total} steps are few: {total - len(steps)} of them ({left}) are skipped, which makes "
        f"the transformer at most {total / len(steps):.2f}x as fast"
    )


def too_few_steps(method: str, policy: CachePolicy, total: int | None) -> str | None:
    """Say that a loop is too short for a method, None where it is not or its length is unknown."""
    rules = policy.in_loop(total).rules
    first = rules.first(total)
    if total is None or total > first + rules.final:
        return None
    return (
        f"{total} steps are too few for {method}: its first {first} and last {rules.final} "
        "steps are always computed, so nothing is skipped; use more steps or a smaller warmup"
    )
