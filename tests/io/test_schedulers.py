"""`--scheduler`: another scheduler by its short name, with the model's own noise levels."""

from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from tiny import FAMILIES, tiny_dit

from ditaccel.core.denoising.schedulers import is_flow
from ditaccel.errors import UnsupportedError
from ditaccel.io.schedulers import SCHEDULERS, put_scheduler

FLOW = [name for name, choice in SCHEDULERS.items() if choice.flow]
NOISE = [name for name, choice in SCHEDULERS.items() if choice.noise]


def sigmas(scheduler, steps=20):
    scheduler.set_timesteps(steps)
    return scheduler.sigmas


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize(
    "own",
    [
        FlowMatchEulerDiscreteScheduler(shift=5.0),
        UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        ),
    ],
    ids=["euler", "unipc"],
)
def test_flow_matching_keeps_its_shift(name, own):
    pipe = SimpleNamespace(scheduler=own)
    put_scheduler(pipe, name)
    kind = SCHEDULERS[name].flow
    assert type(pipe.scheduler).__name__ == kind and is_flow(pipe.scheduler)
    levels = sigmas(pipe.scheduler)
    assert levels[0] > 0.999 and levels[-1] == 0.0
    # half of the schedule lies above 5 / 6 with a shift of 5, above 1 / 2 without one
    steps = 2 * 20 - 1 if name == "heun" else 20
    assert levels[steps // 2] == pytest.approx(5 / 6, abs=0.02)


@pytest.mark.parametrize("name", NOISE)
def test_noise_prediction_keeps_its_betas(name):
    own = DDIMScheduler(beta_schedule="scaled_linear", beta_start=1e-3, clip_sample=False)
    pipe = SimpleNamespace(scheduler=own)
    put_scheduler(pipe, name)
    assert type(pipe.scheduler).__name__ == SCHEDULERS[name].noise
    config = pipe.scheduler.config
    assert (config.beta_schedule, config.beta_start) == ("scaled_linear", 1e-3)
    assert config.prediction_type == "epsilon"
    pipe.scheduler.set_timesteps(10)


def test_none_keeps_the_scheduler_and_mistakes_are_one_line():
    own = FlowMatchEulerDiscreteScheduler()
    pipe = SimpleNamespace(scheduler=own)
    put_scheduler(pipe, None)
    assert pipe.scheduler is own
    with pytest.raises(UnsupportedError, match=r"no scheduler 'unipcc'.*unipc.*a function that"):
        put_scheduler(pipe, "unipcc")
    with pytest.raises(UnsupportedError, match="no scheduler ddim for flow-matching models"):
        put_scheduler(pipe, "ddim")
    assert pipe.scheduler is own


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_a_pipeline_that_starts_from_other_noise_is_refused(name):
    """DiT's gives `step` the scaled latents: pictures under Euler are not those under DDIM."""
    pipe, _ = tiny_dit(scheduler=DDIMScheduler())
    own = pipe.scheduler
    with pytest.raises(UnsupportedError, match="DiTPipeline starts from noise of size 1"):
        put_scheduler(pipe, name)
    assert pipe.scheduler is own
    other, _ = FAMILIES["pixart"]()
    put_scheduler(other, name)
    assert type(other.scheduler).__name__ == SCHEDULERS[name].noise
