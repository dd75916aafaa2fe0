"""The adaptive forecast: its gaps follow the tolerance and the rule of the step size."""

import pytest
import torch
from inspection import computed
from tiny import generate, tiny_wan

import ditaccel


def test_adaptive_gap_follows_the_tolerance():
    pipe, call = tiny_wan()
    counts = []
    for tolerance in (0.0, 0.02, 0.2, 1e9):
        config = ditaccel.AdaptiveTaylorConfig(tolerance=tolerance)
        with ditaccel.accelerated(pipe, cache=config):
            generate(pipe, call, num_inference_steps=30)
            counts.append(len(computed(pipe, "cond")))
    assert counts[0] == 30
    assert counts == sorted(counts, reverse=True) and counts[-1] < counts[1]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("error", "growth"), [(0.001, 2.0), (0.02, 1.0), (0.5, 0.5)])
def test_step_size_rule(order, error, growth):
    """gap = 0.9 length (tolerance / error)^(1 / (order + 2)), half more at most, worst sample."""
    from ditaccel.caching.adaptive_taylor import StepSizeGate
    from ditaccel.caching.engine.correction import left_in_latents
    from ditaccel.caching.engine.gaps import GapEnd
    from ditaccel.core.denoising.tracker import DenoisingStep

    gate = StepSizeGate(tolerance=0.02, order=order, max_interval=50)
    state = ditaccel.AdaptiveTaylorConfig(order=order, warmup=4).policy().branch_state()
    state.samples = [torch.full((2, 4, 3), 2.0)]
    state.shapes = [torch.Size((2, 4, 3))]
    left = torch.zeros(2, 8, 3)  # four channels of latents, four of learned variance
    left[1, :4] = error * 2.0 * 3.0  # by the sample's size and the latents' scale
    left[:, 4:] = 1e6
    step = DenoisingStep(0, 20, "cond", 500.0, latent_scale=3.0)
    end = GapEnd(left, -0.1, 10, False)
    gate.gap_ended(state, end, left_in_latents(step, state, end))
    ideal = 0.9 * 10 * (0.02 / error) ** (1 / (order + 2))
    assert state.memory.error == pytest.approx(error, rel=1e-4)
    assert state.memory.gap == int(min(max(ideal, 1), 15))


def test_adaptive_refuses_schedulers_that_step_in_stages():
    from diffusers import FlowMatchHeunDiscreteScheduler

    pipe, call = tiny_wan(scheduler=FlowMatchHeunDiscreteScheduler())
    with (
        ditaccel.accelerated(pipe, cache=ditaccel.AdaptiveTaylorConfig(coordinate="timestep")),
        pytest.raises(ditaccel.ConfigError, match=r"in stages \(Heun\)"),
    ):
        generate(pipe, call)
