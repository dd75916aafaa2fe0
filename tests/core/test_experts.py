"""Two transformers in one loop (Wan 2.2): which steps are whose is known before the switch."""

from types import SimpleNamespace

import pytest
import torch

from ditaccel.core.denoising.experts import boundary_of, switch_of
from ditaccel.core.denoising.tracker import DenoisingStep, DenoisingTracker


class Pipe(SimpleNamespace):
    """(a plain namespace cannot be held weakly)"""


def pipe_with(boundary, timesteps=(900.0, 700.0, 500.0, 300.0), second=True):
    scheduler = SimpleNamespace(
        timesteps=torch.tensor(timesteps),
        sigmas=torch.tensor([*timesteps, 0.0]) / 1000,
        num_inference_steps=len(timesteps),
        config={"num_train_timesteps": 1000},
        order=1,
        _step_index=None,
        _begin_index=0,
    )
    return Pipe(
        scheduler=scheduler,
        config=SimpleNamespace(boundary_ratio=boundary),
        transformer=object(),
        transformer_2=object() if second else None,
    )


@pytest.mark.parametrize(
    ("boundary", "expected"),
    # at the boundary itself the first transformer still makes the step, as in WanPipeline
    [(0.6, 2), (0.5, 3), (0.501, 2), (0.95, None), (0.1, None), (None, None)],
)
def test_the_switch_is_where_the_pipeline_makes_it(boundary, expected):
    pipe = pipe_with(boundary)
    assert switch_of(pipe, pipe.scheduler.timesteps.tolist()) == expected


def test_a_pipeline_without_a_second_transformer_has_no_boundary():
    assert boundary_of(pipe_with(0.5, second=False)) is None
    assert boundary_of(None) is None and boundary_of(SimpleNamespace()) is None
    assert boundary_of(pipe_with(0.9)) == 900.0


def walk(pipe, names):
    tracker = DenoisingTracker(pipe)
    return [
        tracker.observe(name, timestep)
        for name, timestep in zip(names, pipe.scheduler.timesteps, strict=True)
    ]


def test_every_step_knows_the_part_of_its_transformer():
    pipe = pipe_with(0.6)
    steps = walk(pipe, ["transformer"] * 2 + ["transformer_2"] * 2)
    assert [(s.first, s.end) for s in steps] == [(0, 2), (0, 2), (2, 4), (2, 4)]
    assert {s.parts for s in steps} == {(range(0, 2), range(2, 4))}


def test_a_switch_that_was_not_announced_is_seen_when_it_happens():
    pipe = pipe_with(None)
    steps = walk(pipe, ["transformer"] * 3 + ["transformer_2"])
    assert [(s.first, s.end) for s in steps] == [(0, 4)] * 3 + [(3, 4)]
    assert [s.parts for s in steps] == [()] * 3 + [(range(0, 3), range(3, 4))]


def test_a_transformer_that_goes_on_past_the_boundary_has_the_rest():
    pipe = pipe_with(0.6)
    steps = walk(pipe, ["transformer"] * 4)
    assert [(s.first, s.end) for s in steps] == [(0, 2), (0, 2), (0, 4), (0, 4)]
    assert steps[-1].parts == ()


def test_without_a_known_length_there_are_no_parts():
    assert DenoisingStep(0, 3, "cond", 500.0, first=2).parts == ()
