"""The only file that touches blocks: carries a cache policy out on one transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..core.denoising.per_loop import PerLoop
from ..core.denoising.tracker import DenoisingStep
from ..core.outputs import all_finite, form_of, join, split, tensors_of, with_tensors
from ..core.patching import PatchLedger, patch_of
from ..core.ranks import Ranks
from ..core.reasons import Reason
from ..errors import ConfigError, UnsupportedError
from ..pipelines import submodule
from .blocks import Block, placeholder, regrouped
from .budget import nbytes_of, watches_gaps
from .forecast import History
from .gate import StepSizeGate, Verdict, left_in_latents
from .memory import Memory
from .policy import CachePolicy
from .refusals import INSIDE_COMPILED, NOT_ADDITIVE, OTHER_LENGTH
from .state import BranchState, Call, Leader

_WITH_FIRST = "computed with the first branch"


class BlockCache(PerLoop):
    """Carries out a policy on the blocks of one transformer.

    Args:
        blocks: from `find_blocks`; none where the policy works from `outside` alone.
        policy: what to do.
        warn: called with one line when something needs the user's eye.
        why_left_out: says why blocks did not run, given how many did.
    """

    of_a_loop = ("_states", "_leaders", "_finite", "policy")
    of_a_call = "_call"

    def __init__(
        self,
        blocks: list[Block],
        policy: CachePolicy,
        warn: Callable[[str], None],
        why_left_out: Callable[[int], str] = lambda ran: f"{ran} blocks ran",
    ) -> None:
        self.blocks = blocks
        self._why_left_out = why_left_out
        self.policy = policy
        self.total_cost = sum(b.cost for b in blocks) or 1
        main = [index for index, block in enumerate(blocks) if not block.contract.gives_hints]
        self._first, self._last = (main[0], main[-1]) if main else (-1, -1)
        self._last_side = max(
            (i for i, b in enumerate(blocks) if b.contract.gives_hints), default=-1
        )
        self._configured = policy
        self._warn = warn
        self._call: Call | None = None
        self._device = torch.device("cpu")
        self.memory = Memory(warn)
        self.ranks: Ranks | None = None
        self._fresh()

    def _fresh(self) -> None:
        self._states: dict[tuple[str, Any], BranchState] = {}
        self._leaders: dict[Any, Leader] = {}  # by window
        self._finite: torch.Tensor | None = None
        self.memory.clear()
        self.policy = self._configured

    # -- set-up --

    def install(self, ledger: PatchLedger) -> None:
        """Patch the blocks, and at module granularity modules inside them."""
        for index, block in enumerate(self.blocks):
            patch = ledger.intercept(block.module, self._around_block(index, block))
            if self.policy.granularity != "module":
                continue
            if patch.compiled is not None:
                raise UnsupportedError(INSIDE_COMPILED)
            if not block.contract.forecast_modules and not block.contract.gives_hints:
                raise UnsupportedError(
                    f"granularity='module' has no module to forecast in {block.contract.container}"
                    "; use granularity='last_block'"
                )
            for role, names in (
                ("forecast", block.contract.forecast_modules),
                ("idle", block.contract.idle_modules),
            ):
                for name in dict.fromkeys(names):
                    module = submodule(block.module, name)
                    if module is not None:
                        around = self._around_module(f"{index}.{name}", role)
                        ledger.intercept(module, around)

    def computed_by(self, ranks: Ranks | None) -> None:
        """Take note of the ranks that compute the transformer together, None for one alone.

        Raises:
            ConfigError: ranks would choose different bases.
        """
        if ranks is not None and self.policy.basis == "auto" and self.policy.target != "output":
            raise ConfigError(
                "basis='auto' chooses by what each rank sees, and several compute this transformer "
                "together; use basis='taylor', or target='output'"
            )
        self.ranks = ranks

    def check_compiled(self) -> None:
        """Refuse what compiling after `accelerate` would make silently wrong."""
        if self.policy.granularity != "module":
            return
        patches = [patch_of(block.module) for block in self.blocks]
        if any(patch is not None and patch.compiled is not None for patch in patches):
            raise UnsupportedError(INSIDE_COMPILED)

    def compiled_as_a_whole(self) -> None:
        """Blocks are inside a graph from now on, where none of them is seen; whole calls are."""
        self.blocks, self.total_cost = [], 1

    @property
    def nbytes(self) -> int:
        """Bytes that are held now."""
        return sum(self.memory.held(self._states.values(), self._leaders.values()).values())

    # -- one call of the transformer --

    def begin(
        self, step: DenoisingStep, samples: Sequence[torch.Tensor], return_dict: bool = True
    ) -> Call:
        """Decide, as far as that goes before the first block.

        Args:
            step: where the call stands.
            samples: the latents that the transformer is given, one tensor or more.
            return_dict: as the transformer was asked.
        """
        self._device = samples[0].device
        fingerprint = tuple((tuple(s.shape), s.dtype, s.device) for s in samples)
        key = (step.branch, fingerprint)
        for stale in [k for k in self._states if k[0] == step.branch and k != key]:
            del self._states[stale]  # another size or batch: nothing old applies
        state = self._states.setdefault(key, BranchState(self.policy, self.ranks))
        if isinstance(self.policy.gate, StepSizeGate) and not step.is_last:
            self.policy.gate.check(step)  # at once, not after a costly warm-up
        if watches_gaps(self.policy):
            state.samples = [sample.detach() for sample in samples]
        self._call = call = Call(step, state, None, len(samples), return_dict, fingerprint)
        self._decide(call)
        return call

    def _decide(self, call: Call) -> None:
        step, state = call.step, call.state
        leader = self._leaders.get(step.window)
        leads = leader is None or leader.key != (step.generation, step.index)
        follows = self.policy.guidance != "independent" and leader is not None and not leads
        if follows and leader is not None and leader.fingerprint != call.fingerprint:
            # Two branches in one call, then another one alone (LTX 2): nothing to subtract.
            call.alone, follows = True, False
        by_difference = follows and self.policy.guidance == "difference"
        if state.holds_differences != by_difference and len(state.last):
            # the branch that leads has changed: what it remembers is of another kind
            fresh = BranchState(self.policy)
            state.last, state.corrector = fresh.last, fresh.corrector
        state.holds_differences = by_difference
        if follows and leader is not None:
            call.verdict = self._follow(call, leader)
            return
        call.verdict = self.policy.rules.verdict(step, state)
        if call.verdict is None and not self.policy.gate.needs_first_block:
            call.verdict = self.policy.gate.before(step, state)

    def _follow(self, call: Call, leader: Leader) -> Verdict:
        """What the branches after the first one do."""
        call.follows = True
        state = call.state
        call.leader = leader.feature
        if self.policy.guidance == "difference" and leader.verdict.forecast:
            call.remembers = False  # a difference to a forecast would carry its error on
        if len(state.last) < self.policy.rules.needed:
            why = Reason.NO_HISTORY if leader.verdict.forecast else leader.verdict.reason
            return Verdict(False, why)
        if self.policy.guidance == "follow":
            return replace(leader.verdict, detail=f"follows {leader.branch}")
        if not leader.verdict.forecast and self._is_due(call, leader):
            return Verdict(False, leader.verdict.reason, detail=_WITH_FIRST)
        why = leader.verdict.reason if leader.verdict.forecast else Reason.DIFFERENCE
        return Verdict(True, why, detail=f"difference to {leader.branch}")

    def _is_due(self, call: Call, leader: Leader) -> bool:
        """Whether a branch is computed on a computed step of the first one."""
        if self.policy.guidance_steps is not None:
            return call.step.index in self.policy.guidance_steps
        scratch = call.state.scratch
        skipped = scratch.get("since_computed", 0)
        scratch["since_computed"] = skipped + 1
        if self.policy.gate.skips_nothing(None):
            return True  # threshold 0 and its like: exact, in all branches
        return leader.verdict.reason.forced or skipped >= self.policy.guidance_interval - 1

    def replayed(self, call: Call) -> Any:
        """What the transformer returns on a step of which nothing runs, None if it must run."""
        form = call.state.form.get(call.return_dict)
        if self.policy.target != "output" or not call.forecasting:
            return None
        if form is None:
            if not self.blocks:
                call.verdict = Verdict(False, Reason.MORE_THAN_LATENTS)
                self._warn(
                    "the transformer returns more than latents, or not in the form it did before, "
                    "so no call of it can be left out; use target='hidden'"
                )
            return None
        return form(split(call.state.last.newest, call.state.shapes))

    def finish(self, call: Call, output: Any) -> Any:
        """Book the call once the transformer has returned; returns the output, corrected."""
        self._call = None
        state = call.state
        verdict = call.verdict = call.verdict or Verdict(False, Reason.FIRST_BLOCK_LEFT_OUT)
        if not self.blocks and not verdict.forecast:
            call.reached_end, call.cost_run = True, self.total_cost
        if not verdict.forecast:
            state.last_index = call.step.index
            state.scratch["since_computed"] = 0
            if not call.reached_end:
                why = self._why_left_out(call.blocks_run)
                self._warn(
                    "the last block did not run on a computed step, so nothing can be forecast "
                    f"from it: {why}"
                )
        if self.policy.target == "output":
            output = self._through_output(call, verdict, output)
        output = self._correct(call, verdict, output)
        state.samples = []  # not ours to keep between calls
        self.memory.book(self._states.values(), self._leaders.values())
        if call.step.is_last:
            # state does not outlive the generation
            self._states = {k: s for k, s in self._states.items() if s is not state}
            self._check_finite(call.step)
            if not self._states:
                self._leaders.clear()
        return output

    def _through_output(self, call: Call, verdict: Verdict, output: Any) -> Any:
        """Remember what the transformer returned, or forecast it."""
        state = call.state
        if verdict.forecast:
            return with_tensors(output, split(self._forecast(call), state.shapes))
        if call.reached_end:
            tensors = tensors_of(output, call.streams)
            state.shapes = [tensor.shape for tensor in tensors]
            joined = join(tensors)
            state.snapshot.hidden = nbytes_of(joined)
            self._check_budget()
            self._observe(call, joined)
            form = form_of(output, call.streams)
            if form is not None:
                state.form[call.return_dict] = form
        return output

    def _check_finite(self, step: DenoisingStep) -> None:
        """Read, once a generation, the flag that the computed steps kept on the device."""
        if self._finite is not None and not bool(self._finite):
            self._warn(
                f"non-finite features in generation {step.generation}: forecasts carry them on; "
                "check weights and dtype"
            )
        self._finite = None

    def _correct(self, call: Call, verdict: Verdict, output: Any) -> Any:
        """Learn from the gap that a computed step ends, and take its error out of the latents."""
        step, state = call.step, call.state
        if not watches_gaps(self.policy) or step.sigma is None or step.sigma_next is None:
            if self.policy.correction == "always":
                raise ConfigError(NOT_ADDITIVE)
            return output
        if self.policy.correction == "always" and not step.additive:
            raise ConfigError(NOT_ADDITIVE)
        tensors = tensors_of(output, call.streams)
        state.shapes = [tensor.shape for tensor in tensors]
        sample = join(tensors)
        state.snapshot.returned(sample, len(tensors), step)
        self._check_budget()
        by_difference = self.policy.guidance == "difference" and not call.alone
        leader = self._leaders.get(step.window) if by_difference else None
        base = leader.output if call.follows and leader is not None else None
        tracked = sample if base is None else sample - base
        place, width = float(step.index), step.sigma_next - step.sigma
        corrects = self.policy.correction != "never" and step.additive
        correction = None
        if verdict.forecast or not call.remembers:
            # (a difference to a forecast is one too, even where this branch was computed)
            correction = state.corrector.forecast(place, width, tracked, self.policy.order)
        else:
            end = state.corrector.computed(place, width, tracked, step.feedback, corrects)
            if end is not None:
                if not call.follows:
                    left = left_in_latents(step, state, end)
                    self.policy.gate.gap_ended(state, end, left)
                    call.left = None if end.hypothetical else (left, step.index - end.length)
                correction = end.correction
        if not corrects:
            correction = None
        if leader is not None and not call.follows:
            leader.output, leader.correction = sample, correction
        elif base is not None and leader is not None and leader.correction is not None:
            # the difference was tracked: the first branch's correction holds for this one too
            own = correction
            correction = leader.correction if own is None else own + leader.correction
        if correction is None:
            return output
        corrected = (sample + correction).to(sample.dtype)
        return with_tensors(output, split(corrected, state.shapes))

    # -- one call of a block --

    def _around_block(self, index: int, block: Block) -> Callable[..., Any]:
        first, last = index == self._first, index == self._last
        if self.policy.outside:
            return self._around_counted_block(block, last)

        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            call = self._call
            if call is None:
                return inner(*args, **kwargs)
            through_blocks = self.policy.target != "output"
            if first and through_blocks and not len(call.state.last):
                call.state.snapshot.hidden = nbytes_of(block.hidden_in(args, kwargs))
                self._check_budget()
            if call.forecasting and not self._must_run(index, call):
                if index == self._last_side and call.state.hint is not None:
                    return call.state.hint
                hidden = None
                if first:
                    call.base = block.hidden_in(args, kwargs)
                    call.tokens = call.base.shape[1]
                if last and through_blocks:
                    hidden = self._forecast(call, block.hidden_in(args, kwargs, call.tokens).shape)
                return block.passing(hidden, args, kwargs)
            before = block.hidden_in(args, kwargs) if first else None
            if first:
                call.state.hidden_shapes = [s.shape for s in block.streams_in(args, kwargs)]
            output = inner(*args, **kwargs)
            if index == self._last_side and through_blocks:
                # the last block may take it up, behind which nothing is forecast any more
                call.state.hint = output
                call.state.snapshot.hint = nbytes_of(*output)
            if not call.forecasting or self.policy.granularity == "last_block":
                call.blocks_run += 1
                call.cost_run += block.cost
            if before is not None:
                after = block.hidden_out(output)
                before = self._part(before, after)
                call.tokens = before.shape[1]
                self._after_first(call, before, after)
            if last:
                call.reached_end = True
                if through_blocks and not call.forecasting:
                    self._observe(call, block.hidden_out(output, call.tokens))
            return output

        return around

    def _around_counted_block(self, block: Block, last: bool) -> Callable[..., Any]:
        """For a policy that needs nothing of the blocks: they are counted, or passed by."""

        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            call = self._call
            if call is not None and call.forecasting:
                # the transformer returns more than can be put together without it
                return block.passing(None, args, kwargs)
            output = inner(*args, **kwargs)
            if call is not None:
                call.blocks_run += 1
                call.cost_run += block.cost
                call.reached_end = call.reached_end or last
            return output

        return around

    def _must_run(self, index: int, call: Call) -> bool:
        """Whether a block runs although the step is forecast."""
        if self.policy.granularity == "module":
            return True
        # a follower's residual counts from the first block's output, as its leader's does
        return index == self._first and self.policy.target == "residual" and self._first_is_base

    @property
    def _first_is_base(self) -> bool:
        return self.policy.gate.needs_first_block

    def _after_first(self, call: Call, before: torch.Tensor, after: torch.Tensor) -> None:
        policy, state = self.policy, call.state
        if call.verdict is None:
            call.verdict = policy.gate.after_first_block(call.step, state, before, after)
        call.base = after if self._first_is_base else before
        early = call.step.index < policy.first_remembers_from
        if policy.first_feature is not None and not (call.forecasting or call.follows or early):
            feature = after if policy.first_feature == "output" else after - before
            state.snapshot.first = nbytes_of(feature)
            self._check_budget()
            state.first.push(state.place(call.step), feature)

    def _observe(self, call: Call, hidden: torch.Tensor) -> None:
        """Remember what the last block, or the transformer, gave on a computed step."""
        policy, state = self.policy, call.state
        finite = all_finite(hidden.detach())
        self._finite = finite if self._finite is None else self._finite & finite
        feature = hidden
        if policy.target == "residual" and call.base is not None:
            feature = hidden - self._as_last(call.base, hidden.shape)
        if not call.remembers or call.step.index < policy.remembers_from:
            return  # of a branch that follows, or a step of the warm-up
        lead = feature
        if policy.granularity == "module":
            feature = feature.new_empty(0)  # only its presence counts
        elif call.leader is not None:
            if call.leader.shape != feature.shape:
                raise ConfigError(OTHER_LENGTH)
            feature = feature - call.leader
        if policy.granularity != "module":
            state.snapshot.hidden = nbytes_of(feature)
        state.last.push(state.place(call.step), feature)
        if not call.follows:
            # the copy in the history: the block's own memory may be written to again
            self._lead(call, lead if policy.granularity == "module" else state.last.newest)

    def _as_last(self, base: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """What the first block had, in the layout of the last one."""
        first, last = self.blocks[self._first].contract, self.blocks[self._last].contract
        return base if first.regrouped == last.regrouped else regrouped(base, shape)

    def _forecast(self, call: Call, shape: torch.Size | None = None) -> torch.Tensor:
        feature = call.state.last.forecast(call.state.place(call.step))
        if call.leader is not None:
            feature = feature + call.leader
        if not call.follows:
            self._lead(call, feature)
        if self.policy.target == "residual" and call.base is not None and shape is not None:
            return feature + self._as_last(self._part(call.base, feature), shape)
        return feature

    def _part(self, tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """This rank's part, where the first block is the one in which tokens are shared out."""
        if self.ranks is None or tokens.shape == like.shape:
            return tokens
        return self.ranks.part(tokens)

    def _lead(self, call: Call, feature: torch.Tensor) -> None:
        if self.policy.guidance == "independent" or call.alone:
            return
        assert call.verdict is not None
        kept = feature if self.policy.guidance == "difference" else None
        key = (call.step.generation, call.step.index)
        made = Leader(key, call.step.branch, call.fingerprint, call.verdict, kept)
        self._leaders[call.step.window] = made

    # -- module granularity --

    def _around_module(self, name: str, role: str) -> Callable[..., Any]:
        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            call = self._call
            if call is None or self.policy.granularity != "module":
                return inner(*args, **kwargs)
            state, visit = call.state, (name, call.visits[name])  # CogView4's MLP: once a stream
            call.visits[name] += 1
            if call.forecasting:
                if role == "idle":
                    return state.idle[visit]
                parts = [h.forecast(state.place(call.step)) for h in state.modules[visit]]
                return parts[0] if len(parts) == 1 else tuple(parts)
            output = inner(*args, **kwargs)
            if role == "idle":
                state.idle[visit] = placeholder(output, state.idle.get(visit))
                return output
            if call.step.index < self.policy.remembers_from:
                return output
            parts = [output] if isinstance(output, torch.Tensor) else list(output)
            if visit not in state.modules:
                state.snapshot.modules += nbytes_of(*parts)
                self._check_budget()
            if self.policy.granularity != "module":
                return output  # made smaller just now
            histories = state.modules.setdefault(
                visit, [History(self.policy.order, self.policy.basis) for _ in parts]
            )
            for history, part in zip(histories, parts, strict=True):
                history.push(state.place(call.step), part)
            return output

        return around

    def _check_budget(self) -> None:
        """Refuse, or do less, once it shows that the budget will not do."""
        states = self._states.values()
        self.policy = self.memory.within(self.policy, states, self.ranks, self._device)
