"""The step mask is followed, and checked against the run."""

import pytest
import torch
from inspection import computed
from tiny import generate, tiny_flux

import ditaccel
from ditaccel.caching.engine.forecast import History


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
