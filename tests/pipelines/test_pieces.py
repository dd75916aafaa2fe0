"""Models that work piece by piece: each piece is a generation; calls between them are no step."""

import pytest
import torch
from inspection import traces
from tiny import generate, offered
from tiny.anyflow_far import chunks
from tiny.kandinsky6_sr import two_tiles
from tiny.minimax_music3 import windows
from tiny.sana_wm_refiner import frames
from tiny.wan_animate2 import segment

import ditaccel

STEPS = 5
# Family -> pipeline, pieces of its call, calls of a step, whether keys and values are kept between.
# One block of Wan Animate 2, the tenth, is left out of the unguided branch.
PIECES = {
    "kandinsky6_sr": (two_tiles, 2, 1, False),
    "minimax_music3": (lambda: windows([0, 100], 160), 2, 2, False),
    "anyflow_far": (lambda: chunks([2, 2]), 2, 1, True),
    "sana_wm_refiner": (lambda: frames(7), 2, 1, True),
    "wan_animate2": (lambda: segment(layers=11), 1, 2, True),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "wan_animate2")) for n in PIECES]
)
def test_pieces_are_generations_of_their_own(name):
    if not offered(name):
        pytest.skip(f"this diffusers has no {name}")
    make, pieces, branches, keeps = PIECES[name]
    pipe, call = make()
    call = {**call, "num_inference_steps": STEPS}
    count = []
    pipe.transformer.register_forward_hook(lambda *_: count.append(1))
    dense, clean = generate(pipe, call), traces(pipe)
    steps = pieces * STEPS * branches
    assert (len(count) > steps) == keeps
    beside = len(count) - steps
    with ditaccel.accelerated(pipe, "confidence_gated_taylor:threshold=0"):
        assert torch.equal(generate(pipe, call), dense)
    for target in ("hidden", "output"):
        count.clear()
        spec = f"taylorseer:interval=2,granularity=last_block,target={target}"
        with ditaccel.accelerated(pipe, spec):
            result = generate(pipe, call)
            calls = ditaccel.report(pipe).calls
            ran = len(count)
            assert torch.isfinite(result).all() and not torch.equal(result, dense)
            assert torch.equal(generate(pipe, call), result)
        assert len(calls) == steps and {c.generation for c in calls} == set(range(pieces))
        for piece in range(pieces):
            own = [c for c in calls if c.generation == piece]
            assert {c.step for c in own} == set(range(STEPS))
            assert any(c.action == "forecast" for c in own) and own[0].action == "compute"
        # a call that keeps keys and values runs, whatever the steps do
        forecast = sum(c.action == "forecast" for c in calls)
        assert ran == beside + steps - (forecast if target == "output" else 0)
    assert traces(pipe) == clean and torch.equal(generate(pipe, call), dense)
