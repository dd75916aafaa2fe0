"""MeanCache: skipped outputs by the published formula, from latents, worked out in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ditaccel.pipelines import adapters
from inspection import computed
from tiny import FAMILIES, generate, tiny_dit, tiny_wan
from tiny.parts import unipc_scheduler

import ditaccel
from ditaccel import config as configs
from ditaccel.caching.meancache import Past
from ditaccel.core.denoising.tracker import DenoisingStep

FLUX = "flux.1-dev"
STEPS = (0, 1, 2, 3, 6, 9, 11)
SPANS = (1, 1, 1, 3, 1, 2)
TOTAL = 12


def stepped(pipe, call, **changes):
    """Latents before each step of a run and the last ones, guided outputs, noise levels."""
    latents, outputs = [], []
    inner = pipe.scheduler.step

    def step(output, time, sample, *args, **kwargs):
        outputs.append(output.double().numpy())
        latents.append(sample.double().numpy())
        return inner(output, time, sample, *args, **kwargs)

    pipe.scheduler.step = step
    result = generate(pipe, call, num_inference_steps=TOTAL, **changes)
    latents.append(result.double().numpy())
    return latents, outputs, pipe.scheduler.sigmas.double().numpy()


def span_at(step):
    """K of the gap that a skipped step lies in."""
    return SPANS[max(i for i, computed in enumerate(STEPS) if computed < step)]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_skipped_outputs_are_the_published_ones(guidance_scale):
    """From latents, and on the guided output, as the authors have it."""
    pipe, call = tiny_wan()
    config = ditaccel.MeanCacheConfig(steps=STEPS, spans=SPANS, total=TOTAL)
    with ditaccel.accelerated(pipe, cache=config):
        x, v, sigma = stepped(pipe, call, guidance_scale=guidance_scale)
        assert computed(pipe, "cond") == list(STEPS)
    moved = 0
    for i in set(range(TOTAL)) - set(STEPS):
        first = i - span_at(i)
        mean = (x[i] - x[first]) / (sigma[i] - sigma[first])
        turn = (v[first] - mean) / (sigma[i] - sigma[first])
        expected = v[i - 1] - turn * (sigma[i + 1] - sigma[i])
        np.testing.assert_allclose(v[i], expected, rtol=2e-3, atol=2e-4)
        moved += np.abs(expected - v[i - 1]).mean() > 1e-3
    assert moved == 3  # in the gaps of spans beyond 1


def test_a_span_of_one_reuses():
    pipe, call = tiny_wan()
    with ditaccel.accelerated(pipe, cache=ditaccel.MeanCacheConfig(steps=(0, 1, 5))):
        _, v, _ = stepped(pipe, call, guidance_scale=1.0)
    for i in (2, 3, 4):
        np.testing.assert_allclose(v[i], v[1], rtol=1e-6, atol=1e-7)


def test_under_multistep_schedulers_the_mean_is_that_of_the_outputs():
    pipe, call = tiny_wan(scheduler=unipc_scheduler())
    config = ditaccel.MeanCacheConfig(steps=STEPS, spans=SPANS)
    with ditaccel.accelerated(pipe, cache=config):
        _, v, sigma = stepped(pipe, call, guidance_scale=1.0)
    for i in set(range(TOTAL)) - set(STEPS):
        first = i - span_at(i)
        widths = np.diff(sigma)[first:i]
        mean = sum(width * v[j] for width, j in zip(widths, range(first, i), strict=True))
        mean = mean / widths.sum()
        expected = v[i - 1] - (v[first] - mean) / widths.sum() * (sigma[i + 1] - sigma[i])
        np.testing.assert_allclose(v[i], expected, rtol=1e-4, atol=1e-5)


def test_weights_by_hand():
    """Outputs 2 and 5 with steps of -0.1 and -0.3: mean 4.25, 5 - (2 - 4.25) / -0.4 * -0.2."""
    past = Past()
    for value, sigma, width in ((2.0, 1.0, -0.1), (5.0, 0.9, -0.3)):
        step = DenoisingStep(0, 0, "", 0.0, sigma=sigma, sigma_next=sigma + width)
        past.add(torch.tensor([[value]]), step)
    newest, oldest = past.weights(-0.2, 2)
    assert newest * 5.0 + oldest * 2.0 == pytest.approx(5.0 - (2.0 - 4.25) / -0.4 * -0.2)
    assert past.weights(-0.2, 1) == pytest.approx([1.0, 0.0])
    assert past.weights(-0.2, 6) == pytest.approx([newest, oldest])  # no more than there are


def test_published_schedules_are_whole():
    own = ditaccel.MeanCacheConfig(**ditaccel.MeanCacheConfig.published["qwen_image"])
    adapter = adapters()["qwen_image"]
    found = {}
    for checkpoint in ("qwen-image", "qwen-image-2512"):
        for number in (25, 17, 10):
            config = configs.preset(
                f"published:meancache-{number}", replace(adapter, checkpoint=checkpoint)
            ).cache
            assert config.steps[-1] == config.total - 1 == 49 and len(config.steps) == number
            found[checkpoint, number] = config
    assert found["qwen-image", 25] == own
    # as in the authors' code: behind 1 over 2 steps, behind 42 over 4
    assert found["qwen-image", 10].spans == (1, 2, *[1] * 6, 4)
    assert found["qwen-image-2512", 25].spans == (*[1] * 15, 2, 2, 2, 1, 1, 1, 5, 5, 1)
    other = configs.preset("published:meancache-9", replace(adapters()["flux"], checkpoint=FLUX))
    assert other.cache.method == "step_mask" and other.cache.order == 0


def test_a_published_schedule_runs_and_keeps_no_more_outputs_than_it_needs():
    pipe, call = FAMILIES["qwen_image"]()
    pipe.transformer.register_to_config(_name_or_path="Qwen/Qwen-Image")
    call["num_inference_steps"] = 50
    with ditaccel.accelerated(pipe, "published:meancache-10"):
        generate(pipe, call)
        assert computed(pipe, "cond") == [0, 1, 3, 7, 14, 21, 28, 35, 42, 49]
    gate = ditaccel.MeanCacheConfig(steps=(0, 3, 6), spans=(1, 3)).policy().gate
    past = gate.memory()
    for index in range(5):
        past.add(torch.zeros(1), DenoisingStep(index, 0, "", 0.0, sigma=1.0, sigma_next=0.9))
    assert len(past.outputs) == len(past.widths) == 3


def test_a_schedule_that_does_not_fit_is_refused_in_one_line():
    pipe, call = tiny_dit()
    for options, words in (
        ({"steps": (1, 2)}, "step indices that include 0"),
        ({"steps": (0, 2, 1)}, "in rising order"),
        ({"steps": (0, 1, 2), "spans": (1,)}, "spans has 1 numbers for 3 steps"),
        ({"steps": (0, 1), "spans": (7,)}, "each must be from 1 to 6"),
        ({"steps": (0, 9), "total": 8}, r"steps holds \[9\], but total is 8"),
    ):
        with pytest.raises(ditaccel.ConfigError, match=words):
            ditaccel.MeanCacheConfig(**options)
    with (
        ditaccel.accelerated(pipe, cache=ditaccel.MeanCacheConfig(total=50)),
        pytest.raises(ditaccel.ConfigError, match="made for 50 steps, this run has 4"),
    ):
        generate(pipe, call, num_inference_steps=4)
