"""The step mask is followed, and checked against the run."""

import diffusers
import pytest
import torch
from inspection import computed
from tiny import generate, tiny_flux

import ditaccel
from ditaccel.caching.engine.forecast import History
from ditaccel.caching.engine.gate import resampled
from ditaccel.caching.engine.policy import computed_steps


def test_step_mask_is_followed_and_checked():
    pipe, call = tiny_flux()
    config = ditaccel.StepMaskConfig(steps=(0, 1, 4, 7), total=8)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        assert computed(pipe, "cond") == [0, 1, 4, 7]
        skipped = [c for c in ditaccel.report(pipe).calls if c.action == "forecast"]
        assert {c.blocks_run for c in skipped} == {0}
        with pytest.raises(ditaccel.ConfigError, match="made for 8 steps, this run has 6"):
            generate(pipe, call, num_inference_steps=6)


def _outputs(**options):
    pipe, call = tiny_flux()
    with ditaccel.accelerated(pipe, cache=ditaccel.StepMaskConfig(steps=(0, 1, 3, 6), **options)):
        return generate(pipe, call)


def test_every_gap_may_have_an_order_of_its_own():
    linear, reuse = _outputs(order=1), _outputs(order=0)
    assert torch.equal(_outputs(order=0, orders=(1, 1, 1, 1)), linear)
    assert torch.equal(_outputs(orders=(0, 0, 0, 0)), reuse)
    # nothing is forecast between steps 0 and 1
    assert torch.equal(_outputs(orders=(0, 1, 1, 1)), linear)
    mixed = [_outputs(orders=(1, 1, *rest)) for rest in ((0, 1), (1, 0), (2, 1))]
    for i, one in enumerate(mixed):
        assert not any(torch.equal(one, other) for other in (linear, reuse, *mixed[:i]))


def test_the_difference_has_orders_of_its_own():
    both = {"guidance": "difference", "guidance_steps": (0, 1, 6)}
    linear = _outputs(**both)
    assert torch.equal(_outputs(**both, guidance_orders=(1, 1, 1)), linear)
    # in the gap of the others from 1 to 6 the first branch keeps its order
    assert not torch.equal(_outputs(**both, guidance_orders=(1, 0, 1)), linear)
    assert not torch.equal(_outputs(**both, guidance_orders=(1, 0, 1)), _outputs(**both, order=0))


def test_orders_are_forecasts_of_that_order():
    history = History(2)
    for place in (0.0, 1.0, 2.0):
        history.push(place, torch.tensor([place**2]))
    expected = {0: 4.0, 1: 7.0, None: history.forecast(3.0).item()}
    for order, value in expected.items():
        assert history.forecast(3.0, order).item() == pytest.approx(value)
    assert history.forecast(3.0, 5).item() == expected[None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": (1, 1)}, "orders has 2 entries, and steps has 3; give one order per step"),
        ({"orders": (1, 9, 1)}, r"orders holds \[9\]; an order is 0 \(reuse\) to 6"),
        ({"guidance_orders": (1,)}, "guidance_orders has 1 entries, and guidance_steps has 0"),
    ],
)
def test_wrong_orders_are_refused(options, message):
    with pytest.raises(ditaccel.ConfigError, match=message):
        ditaccel.StepMaskConfig(steps=(0, 1, 4), **options)


@pytest.mark.parametrize("new", [20, 28, 40, 100])
@pytest.mark.parametrize("kind", ["euler", "unipc"])
def test_resampled_steps_are_at_the_nearest_noise_levels(kind, new):
    steps, total = (0, 1, 2, 3, 4, 6, 11, 15, 21, 29, 39, 45, 49), 50
    old, levels = noise_levels(kind, total), noise_levels(kind, new)
    nearest = {min(range(new), key=lambda i: abs(levels[i] - old[s])) for s in steps[:-1]}
    found = resampled(steps, total, new)
    assert {0, new - 1} <= found and len(found) <= len(steps)
    # a level that lies between two may be rounded the other way
    assert all(min(abs(f - n) for n in nearest) <= 1 for f in found - {new - 1})
    assert len(found & nearest) >= 0.7 * len(nearest)
    assert resampled(steps, total, total) == frozenset(steps)


def noise_levels(kind, steps):
    if kind == "euler":  # as FluxPipeline sets it
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    else:
        scheduler = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        )
        scheduler.set_timesteps(steps)
    return scheduler.sigmas.tolist()


def test_what_resampling_needs_is_checked():
    with pytest.raises(ditaccel.ConfigError, match="resample needs total"):
        ditaccel.StepMaskConfig(steps=(0, 2), resample=True)
    with pytest.raises(ditaccel.ConfigError, match="resample moves steps alone"):
        ditaccel.StepMaskConfig(
            steps=(0, 2), total=4, resample=True, guidance="difference", guidance_steps=(0,)
        )


def test_steps_are_known_before_a_run_where_their_place_decides():
    mask = ditaccel.StepMaskConfig(steps=(0, 3), total=6).policy()
    assert computed_steps(mask, 6) == (0, 3)
    interval = ditaccel.TaylorSeerConfig(interval=3, warmup=2, final=1).policy()
    assert computed_steps(interval, 9) == (0, 1, 4, 7, 8)
    assert computed_steps(ditaccel.AdaptiveTaylorConfig(tolerance=0.01).policy(), 9) is None
