"""BlockCache wraps the calls of one transformer's blocks, and counts those that run.

What is forecast is up to the target (`targets.py`), when is up to the gate (`gate.py`), and what
guidance branches have to do with each other is up to the guidance (`guidance.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from ...core.denoising.per_loop import PerLoop
from ...core.denoising.tracker import DenoisingStep
from ...core.outputs import all_finite, tensors_of
from ...core.patching import PatchLedger
from ...core.ranks import Ranks
from ...core.reasons import Reason
from ...errors import ConfigError
from .blocks import Block, Blocks
from .budget import Memory
from .correction import check_correction, corrected
from .first_blocks import FirstBlocks
from .gate import COMPUTE_LAST
from .guidance import guidance_of
from .policy import CachePolicy
from .state import BranchState, Call, Verdict, nbytes_of
from .surroundings import Surroundings
from .targets import Target

_NO_TOTAL = (
    "this method goes by how far the loop has come, and its number of steps is not known here; "
    "call the pipeline itself, or use another caching method"
)


class BlockCache(PerLoop):
    """Carries out a policy on the blocks of one transformer.

    Args:
        blocks: from `find_blocks`; none where the policy works from `outside` alone.
        policy: what to do.
        warn: called with one line when something needs the user's eye.
        why_left_out: says why blocks did not run, given how many did.
        surroundings: shows the gate what is outside the blocks; None where it asks for nothing.

    Raises:
        UnsupportedError: the gate needs what these blocks do not have.
    """

    of_a_loop = ("_states", "guidance", "_finite", "policy", "target")
    of_a_call = "_call"

    def __init__(
        self,
        blocks: Sequence[Block],
        policy: CachePolicy,
        warn: Callable[[str], None],
        why_left_out: Callable[[int], str] = lambda ran: f"{ran} blocks ran",
        surroundings: Surroundings | None = None,
    ) -> None:
        self.blocks = Blocks(blocks)
        self._why_left_out, self._warn = why_left_out, warn
        self._surroundings = surroundings
        self._first = FirstBlocks(self.blocks, policy, self._check_budget)
        self._configured = policy, self._target_of(policy)
        self._call: Call | None = None
        self.memory = Memory(warn)
        # module -> its calls, and those that were computed, since this was made
        self.modules: dict[str, tuple[int, int]] = {}
        self._fresh()

    def _target_of(self, policy: CachePolicy) -> Target:
        gate, check = policy.gate, self._check_budget
        return policy.target_class(self.blocks, policy.order, policy.basis, gate, check)

    def _fresh(self) -> None:
        self._states: dict[tuple[str, Any], BranchState] = {}
        self._finite: torch.Tensor | None = None
        self.memory.clear()
        self.policy, self.target = self._configured
        self.guidance = guidance_of(self.policy)

    def install(self, ledger: PatchLedger) -> None:
        """Patch the blocks, and what is watched or forecast inside them."""
        for index, block in enumerate(self.blocks):
            ledger.intercept(block.module, self._around(index, block))
        target = self.target
        target.install(ledger, lambda: self._call if self.target is target else None)
        self._first.install(ledger, lambda: self._call)
        if self._surroundings is not None:
            self._surroundings.install(ledger, lambda: self._call)

    def computed_by(self, ranks: Ranks | None) -> None:
        """Take note of the ranks that compute the transformer together, None for one alone.

        Raises:
            ConfigError: ranks would choose different bases.
        """
        if ranks is not None:
            self.target.check_ranks()
        self.blocks.ranks = ranks

    def check_compiled(self) -> None:
        """Refuse what compiling after `accelerate` would make silently wrong."""
        self.target.check_compiled()
        self._first.check_compiled()

    def compiled_as_a_whole(self) -> None:
        """Blocks are inside a graph from now on, where none of them is seen; whole calls are."""
        self.blocks = Blocks(ranks=self.blocks.ranks)

    @property
    def nbytes(self) -> int:
        """Bytes that are held now."""
        return sum(self.memory.held(self._states.values(), self.guidance.tensors).values())

    # -- one call of the transformer --

    def begin(
        self,
        step: DenoisingStep,
        samples: Sequence[torch.Tensor],
        return_dict: bool = True,
        kind: Any = None,
        named: Mapping[str, Any] = MappingProxyType({}),
    ) -> Call:
        """Decide, as far as that goes before the first block.

        Args:
            step: the call's place in the loop.
            samples: the latents that the transformer is given, one tensor or more.
            return_dict: as the transformer was asked.
            kind: what tells calls apart that have nothing in common but the branch.
            named: all arguments of the transformer by name.

        Raises:
            ConfigError: the gate cannot work in this loop.
            UnsupportedError: the gate needs what this call does not have.
        """
        if not self._states:
            self._follow(self.policy.in_loop(step.total))
        policy, gate = self.policy, self.policy.gate
        self.memory.device = samples[0].device
        fingerprint = (kind, *((tuple(s.shape), s.dtype, s.device) for s in samples))
        state = self._state_of(step.branch, fingerprint)
        if gate.needs_total and step.total is None:
            raise ConfigError(_NO_TOTAL)
        gate.check(step)
        check_correction(policy, step)
        state.beside = self._states.values()
        if policy.needs_samples:
            state.samples = [sample.detach() for sample in samples]
        if gate.needs_volume and self._surroundings is not None:
            state.volume = self._surroundings.volume(samples[0], named)
        self._call = call = Call(step, state, None, len(samples), return_dict, fingerprint)
        call.early = step.index < policy.remembers_from
        call.verdict = self.guidance.verdict(call, policy)
        if not call.follows:
            call.verdict = policy.rules.verdict(step, state)
            if call.verdict is None and policy.guards(step):
                call.verdict = COMPUTE_LAST
            if call.verdict is None and not gate.looks_inside:
                call.verdict = gate.before(step, state)
        call.order = gate.order_at(step, call.follows)
        return call

    def _follow(self, policy: CachePolicy) -> None:
        """Carry out another policy from here on, until the generation ends."""
        if policy is not self.policy:
            self.policy, self.target = policy, self._target_of(policy)
            self.guidance = guidance_of(policy)

    def _state_of(self, branch: str, fingerprint: Any) -> BranchState:
        key = (branch, fingerprint)
        for stale in [k for k in self._states if k[0] == branch and k != key]:
            del self._states[stale]  # another size or batch: nothing old applies
        if key not in self._states:
            self._states[key] = self.policy.branch_state(self.blocks.ranks)
        return self._states[key]

    def replayed(self, call: Call) -> Any:
        """What the transformer returns on a step of which nothing runs, None if it must run."""
        if not call.forecasting:
            return None
        output = self.target.stand_in(call)
        if output is None and self.target.whole_call and not self.blocks:
            call.verdict = Verdict(False, Reason.MORE_THAN_LATENTS)
            self._warn(
                "the transformer returns more than latents, or not in the form it did before, "
                "so no call of it can be left out; use target='hidden'"
            )
        return output

    def finish(self, call: Call, output: Any) -> Any:
        """Book the call once the transformer has returned; returns the output, corrected."""
        self._call = None
        state, step, gate = call.state, call.step, self.policy.gate
        call.verdict = call.verdict or Verdict(False, Reason.FIRST_BLOCK_LEFT_OUT)
        if not call.forecasting:
            self._computed(call, output)
        if self.target.whole_call and call.forecasting:
            output = self.target.replaced(call, output, self.guidance.predict(call, self.target))
        elif self.target.whole_call and call.reached_end:
            self._observe(call, self.target.joined(call, output))
        for name, visits in call.visits.items():
            seen, ran = self.modules.get(name, (0, 0))
            self.modules[name] = seen + visits, ran + call.ran[name]
        output = corrected(call, output, self.policy, self.guidance, self._check_budget)
        if not call.follows:
            gate.finished(step, state, call.verdict)
        if state.end_call():
            self._check_budget()
        self.memory.book(self._states.values(), self.guidance.tensors)
        if step.is_last:
            self._end_generation(call)
        return output

    def _computed(self, call: Call, output: Any) -> None:
        """Book a step that was computed."""
        state = call.state
        state.last_index, state.since_computed = call.step.index, 0
        if not self.blocks:
            call.reached_end, call.cost_run = True, self.blocks.total_cost
        if not call.reached_end:
            self._warn(
                "the last block did not run on a computed step, so nothing can be forecast from "
                f"it: {self._why_left_out(call.blocks_run)}"
            )
        if self.policy.gate.needs_samples:
            state.outputs = [each.detach() for each in tensors_of(output, call.streams)]

    def _end_generation(self, call: Call) -> None:
        """State does not outlive the generation; the flag on the device is read here."""
        self._states = {k: s for k, s in self._states.items() if s is not call.state}
        if self._finite is not None and not bool(self._finite):
            self._warn(
                f"non-finite features in generation {call.step.generation}: forecasts carry them "
                "on; check weights and dtype"
            )
        self._finite = None
        if not self._states:
            self.guidance.leaders.clear()

    def _around(self, index: int, block: Block) -> Callable[..., Any]:
        main, behind = self.blocks.main, self.policy.gate.last_blocks
        first, last = index == main[0], index == main[-1 - behind]
        runs = index in main[len(main) - behind :]
        last_side = index == self.blocks.last_side

        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            call = self._call
            if call is None:
                return inner(*args, **kwargs)
            inside = not self.target.whole_call
            if first:
                self._first.enter(call, block, args, kwargs, inside)
            if call.forecasting and not (runs or self.target.runs(index)):
                if last_side and call.state.hint is not None:
                    return call.state.hint
                if not (last and inside):
                    return block.passing(None, args, kwargs)
                shape = block.hidden_in(args, kwargs, call.tokens).shape
                hidden = self.guidance.predict(call, self.target, shape)
                return block.passing(hidden, args, kwargs, _text_of(call))
            output = inner(*args, **kwargs)
            if last_side and inside:
                # the last block may take it up, behind which nothing is forecast any more
                call.state.hint = output
                call.state.snapshot.hint = nbytes_of(*output)
            if not (call.forecasting and self.target.every_block):
                call.count(block.cost)
            self._first.leave(call, index, block, output)
            if last:
                call.reached_end = True
                if inside and not call.forecasting:
                    self._observe(call, block.hidden_out(output, call.tokens))
                    _remember_text(call, block.text_out(output, call.tokens))
            return output

        return around

    def _observe(self, call: Call, hidden: torch.Tensor) -> None:
        """Remember what the last block, or the transformer, gave on a computed step."""
        finite = all_finite(hidden.detach())
        self._finite = finite if self._finite is None else self._finite & finite
        if call.remembers and not call.early:
            self.guidance.remember(call, self.target, hidden)

    def _check_budget(self) -> None:
        """Refuse, or do less, once it shows that the budget will not do."""
        states, ranks = self._states.values(), self.blocks.ranks
        policy = self.memory.within(self.policy, states, ranks)
        if policy is not self.policy:
            self.policy, self.target = policy, self._target_of(policy)


def _remember_text(call: Call, text: torch.Tensor | None) -> None:
    """Take up what the blocks have added to the text, where last blocks are to run on it."""
    if call.text is not None and text is not None and text.shape == call.text.shape:
        call.state.text.push(call.place, text - call.text)


def _text_of(call: Call) -> torch.Tensor | None:
    """The text that goes into the last blocks; None for what comes along."""
    if call.text is None or not len(call.state.text):
        return None
    return call.text + call.state.text.forecast(call.place)
