"""The only file that touches blocks: carries a cache policy out on one transformer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..calls import output_form, sample_of, with_sample
from ..denoising import DenoisingStep
from ..errors import ConfigError, UnsupportedError
from ..patching import PatchLedger
from ..pipelines import submodule
from .budget import within_budget
from .forecast import History
from .gate import StepSizeGate, Verdict
from .policy import CachePolicy
from .state import BranchState, Call, Leader

_INSIDE_COMPILED = (
    "granularity='module' cannot look into compiled blocks; use granularity='last_block' or do not "
    "compile"
)
_NOT_ADDITIVE = (
    "correction='always' needs a scheduler that adds its outputs up (flow-matching Euler, Euler, "
    "DDIM without clipping); use correction='auto' or 'never'"
)
_FOLLOWS = Verdict(False, "computed with the first branch")


@dataclass(frozen=True)
class Block:
    """One block with its contract, arguments resolved to positions."""

    module: nn.Module
    contract: Any
    positions: dict[str, int]
    cost: int

    def argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in kwargs:
            return kwargs[name]
        return args[self.positions[name]]

    def hidden_in(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: int | None = None
    ) -> torch.Tensor:
        """The hidden state that goes in; of a fused one the last or first `tokens`, if given."""
        return self._image(self.argument(self.contract.hidden, args, kwargs), tokens)

    def hidden_out(self, output: Any, tokens: int | None = None) -> torch.Tensor:
        """The hidden state that came out; `tokens` as in `hidden_in`."""
        if not isinstance(output, torch.Tensor):
            output = output[self.contract.returns.index("hidden")]
        return self._image(output, tokens)

    def _image(self, joint: torch.Tensor, tokens: int | None) -> torch.Tensor:
        if tokens is None or not self.contract.fused or joint.shape[1] == tokens:
            return joint
        return joint[:, -tokens:] if self.contract.fused == "front" else joint[:, :tokens]

    def passing(self, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a block that does not run: `hidden`, other streams unchanged."""
        if self.contract.fused:
            hidden = self._beside_text(hidden, self.hidden_in(args, kwargs))
        if self.contract.returns == ("hidden",):
            return hidden
        streams = {
            "hidden": hidden,
            "encoder": self.argument(self.contract.encoder, args, kwargs),
        }
        return tuple(streams[name] for name in self.contract.returns)

    def _beside_text(self, image: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
        tokens = image.shape[1]
        if tokens == joint.shape[1]:
            return image
        if self.contract.fused == "front":
            return torch.cat([joint[:, :-tokens], image], dim=1)
        return torch.cat([image, joint[:, tokens:]], dim=1)


def find_blocks(transformer: nn.Module, contracts: tuple[Any, ...]) -> list[Block]:
    """Return the blocks in the order in which they run.

    Raises:
        UnsupportedError: fewer than two blocks, or a block without an argument of its contract.
    """
    blocks = []
    for contract in contracts:
        for module in getattr(transformer, contract.container, None) or ():
            names = list(inspect.signature(module.forward).parameters)
            needed = [n for n in (contract.hidden, contract.encoder) if n is not None]
            missing = [n for n in needed if n not in names]
            if missing:
                raise UnsupportedError(
                    f"{type(module).__name__}.forward has no argument {missing[0]!r}; this version "
                    "of diffusers is not supported for this family"
                )
            cost = sum(p.numel() for p in module.parameters()) or 1
            blocks.append(Block(module, contract, {n: names.index(n) for n in needed}, cost))
    if len(blocks) < 2:
        raise UnsupportedError(
            f"{type(transformer).__name__} has {len(blocks)} block(s); caching needs at least two"
        )
    return blocks


def _placeholder(output: Any) -> Any:
    """Of the right shape and without memory: what an idle module feeds is forecast anyway."""
    if isinstance(output, torch.Tensor):
        return output.new_zeros(1).expand(output.shape)
    return tuple(_placeholder(part) for part in output)


class BlockCache:
    """Carries out a policy on the blocks of one transformer.

    Args:
        blocks: from `find_blocks`.
        policy: what to do.
        warn: called with one line when something needs the user's eye.
    """

    def __init__(
        self, blocks: list[Block], policy: CachePolicy, warn: Callable[[str], None]
    ) -> None:
        self.blocks = blocks
        self.policy = policy
        self.total_cost = sum(b.cost for b in blocks)
        self._configured = policy
        self._warn = warn
        self._states: dict[tuple[str, Any], BranchState] = {}
        self._call: Call | None = None
        self._leader: Leader | None = None
        self._budget_checked = False
        self._finite: torch.Tensor | None = None
        self.peak_bytes = 0

    # -- set-up --

    def install(self, ledger: PatchLedger) -> None:
        """Patch the blocks, and at module granularity the modules inside them."""
        for index, block in enumerate(self.blocks):
            patch = ledger.intercept(block.module, self._around_block(index, block))
            if self.policy.granularity != "module":
                continue
            if patch.compiled is not None:
                raise UnsupportedError(_INSIDE_COMPILED)
            for role, names in (
                ("forecast", block.contract.forecast_modules),
                ("idle", block.contract.idle_modules),
            ):
                for name in names:
                    module = submodule(block.module, name)
                    if module is not None:
                        around = self._around_module(f"{index}.{name}", role)
                        ledger.intercept(module, around)

    def clear(self) -> None:
        """Forget everything: a new generation begins, or the last one broke off."""
        self._states.clear()
        self._leader = None
        self._call = None
        self._finite = None
        self._budget_checked = False
        self.policy = self._configured

    def check_compiled(self) -> None:
        """Refuse what compiling after `accelerate` would make silently wrong."""
        if self.policy.granularity == "module":
            raise UnsupportedError(_INSIDE_COMPILED)

    @property
    def nbytes(self) -> int:
        """Bytes that the histories hold now."""
        return sum(state.nbytes for state in self._states.values())

    # -- one call of the transformer --

    def begin(self, step: DenoisingStep, sample: torch.Tensor) -> Call:
        """Decide, as far as that goes before the first block."""
        fingerprint = (tuple(sample.shape), sample.dtype, sample.device)
        key = (step.branch, fingerprint)
        for stale in [k for k in self._states if k[0] == step.branch and k != key]:
            del self._states[stale]  # another size or batch: nothing old applies
        state = self._states.setdefault(key, BranchState(self.policy))
        if self._watches_gaps:
            state.sample = sample.detach()
        self._call = call = Call(step, state, None)
        self._decide(call)
        return call

    @property
    def _watches_gaps(self) -> bool:
        return self.policy.correction != "never" or isinstance(self.policy.gate, StepSizeGate)

    def _decide(self, call: Call) -> None:
        step, state = call.step, call.state
        leader = self._leader
        leads = leader is None or leader.key != (step.generation, step.index)
        follows = self.policy.guidance != "independent" and leader is not None and not leads
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
            return Verdict(False, "no history yet")
        if self.policy.guidance == "follow":
            return replace(leader.verdict, reason=f"follows {leader.branch}")
        if not leader.verdict.forecast and self._is_due(call, leader):
            return _FOLLOWS
        return Verdict(True, f"difference to {leader.branch}")

    def _is_due(self, call: Call, leader: Leader) -> bool:
        """Whether a branch is computed on a computed step of the first one."""
        if self.policy.guidance_steps is not None:
            return call.step.index in self.policy.guidance_steps
        scratch = call.state.scratch
        skipped = scratch.get("since_computed", 0)
        scratch["since_computed"] = skipped + 1
        forced = leader.verdict.reason in ("warm-up", "last step")
        return forced or skipped >= self.policy.guidance_interval - 1

    def replayed(self, call: Call, return_dict: bool) -> Any:
        """What the transformer would return on a step of which nothing runs, None if it must run.

        Args:
            call: from `begin`.
            return_dict: as the transformer was asked.
        """
        form = call.state.form.get(return_dict)
        if self.policy.target != "output" or not call.forecasting or form is None:
            return None
        return form(call.state.last.newest)

    def finish(self, call: Call, output: Any) -> Any:
        """Book the call once the transformer has returned; returns the output, corrected."""
        self._call = None
        state = call.state
        verdict = call.verdict = call.verdict or Verdict(False, "the first block did not run")
        if not verdict.forecast:
            state.last_index = call.step.index
            state.scratch["since_computed"] = 0
            if not call.reached_end:
                self._warn(
                    "the last block did not run on a computed step (a layer-skipping guidance?): "
                    "nothing can be forecast from it"
                )
        if self.policy.target == "output":
            output = self._through_output(call, verdict, output)
        output = self._correct(call, verdict, output)
        self.peak_bytes = max(self.peak_bytes, self.nbytes)
        if call.step.is_last:
            # state does not outlive the generation
            self._states = {k: s for k, s in self._states.items() if s is not state}
            self._check_finite(call.step)
            if not self._states:
                self._leader = None
        return output

    def _through_output(self, call: Call, verdict: Verdict, output: Any) -> Any:
        """Remember what the transformer returned, or forecast it."""
        if verdict.forecast:
            return with_sample(output, self._forecast(call))
        if call.reached_end:
            sample = sample_of(output)
            self._check_budget(sample)
            self._observe(call, sample)
            if len(output) == 1:
                is_dict = not isinstance(output, tuple)
                call.state.form[is_dict] = output_form(output)
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
        if not self._watches_gaps or step.sigma is None or step.sigma_next is None:
            if self.policy.correction == "always":
                raise ConfigError(_NOT_ADDITIVE)
            return output
        if self.policy.correction == "always" and not step.additive:
            raise ConfigError(_NOT_ADDITIVE)
        sample = sample_of(output)
        leader = self._leader if self.policy.guidance == "difference" else None
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
                    self.policy.gate.gap_ended(step, state, end)
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
        return with_sample(output, (sample + correction).to(sample.dtype))

    # -- one call of a block --

    def _around_block(self, index: int, block: Block) -> Callable[..., Any]:
        last = index == len(self.blocks) - 1

        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            call = self._call
            if call is None:
                return inner(*args, **kwargs)
            through_blocks = self.policy.target != "output"
            if index == 0 and through_blocks:
                self._check_budget(block.hidden_in(args, kwargs))
            if call.forecasting and not self._must_run(index, call):
                hidden = block.hidden_in(args, kwargs)
                if index == 0:
                    call.base, call.tokens = hidden, hidden.shape[1]
                if last and through_blocks:
                    hidden = self._forecast(call)
                return block.passing(hidden, args, kwargs)
            before = block.hidden_in(args, kwargs) if index == 0 else None
            output = inner(*args, **kwargs)
            if not call.forecasting or self.policy.granularity == "last_block":
                call.blocks_run += 1
                call.cost_run += block.cost
            if before is not None:
                call.tokens = before.shape[1]
                self._after_first(call, before, block.hidden_out(output))
            if last:
                call.reached_end = True
                if through_blocks and not call.forecasting:
                    self._observe(call, block.hidden_out(output, call.tokens))
            return output

        return around

    def _must_run(self, index: int, call: Call) -> bool:
        """Whether a block runs although the step is forecast."""
        if self.policy.granularity == "module":
            return True
        # a follower's residual counts from the first block's output, as its leader's does
        return index == 0 and self.policy.target == "residual" and self._first_is_base

    @property
    def _first_is_base(self) -> bool:
        return self.policy.gate.needs_first_block

    def _after_first(self, call: Call, before: torch.Tensor, after: torch.Tensor) -> None:
        policy, state = self.policy, call.state
        if call.verdict is None:
            call.verdict = policy.gate.after_first_block(call.step, state, before, after)
        call.base = after if self._first_is_base else before
        if not call.forecasting and not call.follows and policy.first_feature is not None:
            feature = after if policy.first_feature == "output" else after - before
            state.first.push(state.place(call.step), feature)

    def _observe(self, call: Call, hidden: torch.Tensor) -> None:
        """Remember what the last block, or the transformer, gave on a computed step."""
        policy, state = self.policy, call.state
        finite = torch.isfinite(hidden).all()
        self._finite = finite if self._finite is None else self._finite & finite
        feature = hidden
        if policy.target == "residual" and call.base is not None:
            feature = hidden - call.base
        if not call.remembers:
            return  # of a branch that follows
        lead = feature
        if policy.granularity == "module":
            feature = feature.new_empty(0)  # only its presence counts
        elif call.leader is not None:
            feature = feature - call.leader
        state.last.push(state.place(call.step), feature)
        if not call.follows:
            # the copy in the history: the block's own memory may be written to again
            self._lead(call, lead if policy.granularity == "module" else state.last.newest)

    def _forecast(self, call: Call) -> torch.Tensor:
        feature = call.state.last.forecast(call.state.place(call.step))
        if call.leader is not None:
            feature = feature + call.leader
        if not call.follows:
            self._lead(call, feature)
        if self.policy.target == "residual" and call.base is not None:
            return feature + call.base
        return feature

    def _lead(self, call: Call, feature: torch.Tensor) -> None:
        if self.policy.guidance == "independent":
            return
        assert call.verdict is not None
        kept = feature if self.policy.guidance == "difference" else None
        key = (call.step.generation, call.step.index)
        self._leader = Leader(key, call.step.branch, call.verdict, kept)

    # -- module granularity --

    def _around_module(self, name: str, role: str) -> Callable[..., Any]:
        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            call = self._call
            if call is None or self.policy.granularity != "module":
                return inner(*args, **kwargs)
            state = call.state
            if call.forecasting:
                if role == "idle":
                    return state.idle[name]
                parts = [h.forecast(state.place(call.step)) for h in state.modules[name]]
                return parts[0] if len(parts) == 1 else tuple(parts)
            output = inner(*args, **kwargs)
            if role == "idle":
                state.idle[name] = _placeholder(output)
                return output
            parts = [output] if isinstance(output, torch.Tensor) else list(output)
            histories = state.modules.setdefault(
                name, [History(self.policy.order, self.policy.basis) for _ in parts]
            )
            for history, part in zip(histories, parts, strict=True):
                history.push(state.place(call.step), part)
            return output

        return around

    # -- memory --

    def _check_budget(self, feature: torch.Tensor) -> None:
        if self._budget_checked:
            return
        self._budget_checked = True
        policy = within_budget(self.policy, self.blocks, feature, self._warn)
        if policy is not self.policy:
            self.policy = policy
            for state in self._states.values():
                state.last = History(policy.order, policy.basis)
