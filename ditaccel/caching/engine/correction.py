"""Gap correction: the error that forecasts left in the latents is taken out again (`gaps.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...core.denoising.response import Probed
from ...core.denoising.schedule import Known
from ...core.denoising.tracker import DenoisingStep
from ...core.outputs import join, split, tensors_of, with_tensors
from ...errors import ConfigError
from .gaps import GapEnd
from .guidance import Guidance, Leader
from .policy import CachePolicy
from .state import BranchState, Call

# Why nothing can be corrected, as the report and errors have it.
_NOT_FOLLOWED = {
    Known.NO_SCHEDULER: "no scheduler is in sight",
    Known.NOT_SET: "the scheduler in sight is not in use (set_timesteps was not called)",
    Known.OTHER: "the calls are at other timesteps than the scheduler's",
    Known.FOLLOWED: "its timesteps are set again at each step",
}
_NOT_GIVEN = "the noise levels given as sigmas= do not match the timesteps of this loop"
_CONVERTED = "not all that the transformer returns reaches this scheduler as it is"
_NOT_LINEAR = {
    Probed.STOCHASTIC: "this scheduler draws noise in its steps",
    Probed.NONLINEAR: "this scheduler clips or thresholds the latents",
    Probed.FAILED: "this scheduler cannot be stepped as pipelines step theirs",
}


def why_not(step: DenoisingStep) -> str:
    """Why nothing is corrected in a loop; empty where it can be."""
    if step.response is not None:
        return ""
    if not_as_given(step):
        return _NOT_GIVEN
    if step.schedule is not None and step.schedule.converted:
        return _CONVERTED
    probed = None if step.schedule is None else step.schedule.probed
    return _NOT_FOLLOWED[step.known] if probed is None else _NOT_LINEAR[probed]


def not_as_given(step: DenoisingStep) -> str:
    """One line where noise levels were given for a loop that runs at other ones, else empty."""
    if step.schedule is None or not step.schedule.given or step.known is not Known.OTHER:
        return ""
    return (
        f"{_NOT_GIVEN}, which is at {step.timestep:g} in step {step.index}: give those before each "
        "step and the one that the last step leads to"
    )


def check_correction(policy: CachePolicy, step: DenoisingStep) -> None:
    """Refuse a loop in which nothing can be corrected where the policy insists on it.

    Raises:
        ConfigError: it does, and the scheduler is not linear, or not in sight.
    """
    if policy.correction == "always" and why_not(step):
        raise ConfigError(
            f"correction='always' needs a deterministic scheduler, and {why_not(step)}; use "
            "correction='auto' or 'never'"
        )


def corrected(
    call: Call, output: Any, policy: CachePolicy, guidance: Guidance, check: Callable[[], None]
) -> Any:
    """Learn from the gap that a computed step ends, and take its error out of the output.

    Args:
        call: decided, its samples at hand.
        output: what the transformer returned, or was forecast to return.
        policy: in force.
        guidance: holds the outputs of first branches.
        check: called once the sizes of outputs are known.

    Returns:
        The output, or one of the same form that brings the latents where exact outputs would.
    """
    step, state = call.step, call.state
    if not policy.watches_gaps or step.tangent is None:
        return output
    tensors = tensors_of(output, call.streams)
    state.shapes = [tensor.shape for tensor in tensors]
    sample = join(tensors)
    state.snapshot.returned(sample, len(tensors), step)
    check()
    correction = _correction(call, sample, policy, guidance.leader_of_output(call))
    if correction is None:
        return output
    return with_tensors(output, split((sample + correction).to(sample.dtype), state.shapes))


def _correction(
    call: Call, sample: torch.Tensor, policy: CachePolicy, leader: Leader | None
) -> torch.Tensor | None:
    """Book an output; return what to add to it."""
    if leader is not None and not call.follows:
        leader.output, leader.correction = sample, _booked(call, sample, policy)
        return leader.correction
    if leader is None or leader.output is None:
        return _booked(call, sample, policy)
    # the difference is tracked: the first branch's correction holds for this one too
    own, shared = _booked(call, sample - leader.output, policy), leader.correction
    return own if shared is None else shared if own is None else own + shared


def _booked(call: Call, tracked: torch.Tensor, policy: CachePolicy) -> torch.Tensor | None:
    """Book what is followed, an output or its difference to the leader's; return its correction."""
    step, state = call.step, call.state
    assert step.tangent is not None
    place, weight = state.distinct_place(step), step.tangent.end(step.index)
    linear = step.response is not None and step.response.lasts(step.index)
    corrects = policy.correction != "never" and linear
    if call.forecasting or not call.remembers:
        # (a difference to a forecast is one too, even where this branch was computed)
        order = policy.order if call.order is None else call.order
        correction = state.corrector.forecast(place, weight, tracked, order)
        return correction if corrects else None
    end = state.corrector.computed(place, weight, tracked, step.feedback, corrects, step.index)
    if end is None:
        return None
    asks = policy.gate.needs_gaps
    if not call.follows and (asks or not end.hypothetical):
        left = left_in_latents(state, end, step.tangent.share(step.index))
        if asks:
            policy.gate.gap_ended(state, end, left)
        call.left = None if end.hypothetical else (left, step.index - end.length)
    return end.correction if corrects else None


def left_in_latents(state: BranchState, end: GapEnd, share: float = 1.0) -> torch.Tensor:
    """Error of a gap relative to the latents: mean absolute values, worst sample, 0-d.

    Args:
        state: of the branch.
        end: of the gap.
        share: how large an error of the last latents is in what the transformer is given now
            (`Response.share`).
    """
    errors = split(end.error, state.shapes)
    relative = [_relative_size(e, s) for e, s in zip(errors, state.samples, strict=True)]
    # the worst sample decides, and of a video and its sound the worse one
    worst = torch.stack(relative).max() * abs(share)
    return worst if state.ranks is None else state.ranks.largest(worst)


def _relative_size(error: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """Size of an error in latents relative to the size of the latents, `(B,)`."""
    # Outputs may carry a learned variance, inputs conditions: what both have is the latents.
    # Channels are the second axis, or the last one of packed latents.
    common = tuple(slice(min(pair)) for pair in zip(error.shape, sample.shape, strict=True))
    size = sample[common].abs().flatten(1).mean(1, dtype=torch.float32)
    return error[common].abs().flatten(1).mean(1) / size
