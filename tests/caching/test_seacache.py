"""SeaCache: filter, decisions and forecasts, compared with the published rule in float64."""

import itertools

import numpy as np
import pytest
import torch
from inspection import Watched, computed
from tiny import generate, tiny_dit, tiny_wan

import ditaccel
from ditaccel import ConfigError, SeaCacheConfig
from ditaccel.caching.seacache import shares, spectral_filter
from ditaccel.core.denoising.schedule import Schedule
from ditaccel.core.denoising.tracker import DenoisingStep


def published_filter(volume, picture, noise, power=3.0):
    """Of one sample `(T, H, W, C)`."""
    spectrum = np.fft.fftn(volume, axes=(0, 1, 2))
    gain = np.ones(volume.shape[:3])
    for place in itertools.product(*map(range, volume.shape[:3])):
        for axis, k in enumerate(place):
            size = volume.shape[axis]
            frequency = min(k, size - k) / size
            clean = 1 / (frequency**power + 1e-16)
            gain[place] *= picture * clean / (picture**2 * clean + noise**2 + 1e-16)
    spectrum *= (gain / gain.mean())[..., None]
    return np.fft.ifftn(spectrum, axes=(0, 1, 2)).real


@pytest.mark.parametrize(("picture", "noise"), [(0.1, 0.9), (0.5, 0.5), (0.999, 0.001)])
def test_the_filter_is_the_published_one(picture, noise):
    volume = torch.randn(2, 3, 4, 5, 2, generator=torch.Generator().manual_seed(0))
    found = spectral_filter(volume, picture, noise, 3.0)
    for ours, sample in zip(found, volume.double().numpy(), strict=True):
        expected = published_filter(sample, picture, noise)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=2e-5)


def test_shares_of_picture_and_noise():
    def of(highest=1.0, **known):
        schedule = Schedule(sigmas=(highest, 0.0))
        return shares(DenoisingStep(0, 0, "cond", 0.0, schedule=schedule, **known))

    assert of(sigma=0.25, sigma_next=0.1) == (0.75, 0.25)
    assert of(sigma=0.25, sigma_next=0.5) == (0.25, 0.75)  # counted from noise to picture
    assert of(sigma=1.0) == (pytest.approx(1e-6, rel=1e-6), 1 - 1e-6)
    # alpha = .8: sigma^2 = .2 / .8
    assert of(sigma=0.5, highest=14.6) == pytest.approx((0.8**0.5, 0.2**0.5))


@pytest.mark.parametrize("limit", [2, None])
@pytest.mark.parametrize("threshold", [0.15, 0.4])
def test_decisions_follow_the_published_rule(threshold, limit):
    pipe, call = tiny_wan()
    plain = Watched()
    plain.inputs("in", pipe.transformer.patch_embedding, "input")
    config = SeaCacheConfig(threshold=threshold, max_consecutive=limit)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=14)
        calls = ditaccel.report(pipe).calls
        steps = computed(pipe)
    assert len(plain.seen["in"]) == 14
    filtered = [
        published_filter(x[0].double().movedim(0, -1).numpy(), 1 - s, s)
        for x, s in (
            (x, min(max(c.sigma, 1e-6), 1 - 1e-6))
            for x, c in zip(plain.seen["in"], calls, strict=True)
        )
    ]
    expected, total = [], 0.0
    for i, now in enumerate(filtered):
        before = filtered[i - 1]
        total += np.abs(now - before).mean() / np.abs(before).mean() if i else 0
        run = i - expected[-1] - 1 if expected else 0
        if i in (0, 13) or total >= threshold or (limit is not None and run >= limit):
            expected.append(i)
            total = 0.0
    assert steps == expected and 2 < len(steps) < 14


def test_residuals_continue_the_line_through_the_last_two_computed_steps():
    pipe, call = tiny_wan()
    blocks, plain = pipe.transformer.blocks, Watched()
    plain.inputs("end", pipe.transformer.norm_out, "x")
    plain.outputs("in", pipe.transformer.patch_embedding)
    with ditaccel.accelerated(pipe, cache=SeaCacheConfig(threshold=1e9)):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=9)
        assert computed(pipe) == [0, 3, 6, 8]
    tokens = [x.double().flatten(2).transpose(1, 2) for x in plain.seen["in"]]
    residual = [end.double() - x for end, x in zip(plain.seen["end"], tokens, strict=True)]
    for i, expected in (
        (2, residual[0]),  # one computed step: it is held
        (4, residual[3] + (residual[3] - residual[0]) / 3),
        (7, residual[6] + (residual[6] - residual[3]) / 3),
    ):
        torch.testing.assert_close(residual[i], expected, rtol=0, atol=1e-4)
    assert len(blocks)


def test_a_branch_that_paused_begins_again():
    pipe, call = tiny_wan()

    def pause(pipe, index, timestep, tensors):
        pipe._guidance_scale = 1.0 if 2 <= index < 6 else 4.0
        return tensors

    with ditaccel.accelerated(pipe, cache=SeaCacheConfig(threshold=1e9)):
        generate(pipe, call, num_inference_steps=12, callback_on_step_end=pause)
        assert computed(pipe, "uncond") == [0, 7, 10, 11]


def test_noise_prediction_is_served_and_a_loop_without_sigmas_refused():
    pipe, call = tiny_dit()
    with ditaccel.accelerated(pipe, cache=SeaCacheConfig(threshold=1e9)):
        generate(pipe, call)
        assert ditaccel.report(pipe).forecasts
    pipe, call = tiny_wan()
    transformer = pipe.transformer
    ditaccel.accelerate(transformer, cache=SeaCacheConfig())
    latents, text = torch.randn(1, 4, 4, 12, 12), call["prompt_embeds"]
    with pytest.raises(ConfigError, match="needs the noise levels"), torch.no_grad():
        transformer(latents, torch.tensor([999]), text)
    ditaccel.restore(transformer)


def test_no_state_outlives_its_generation():
    pipe, call = tiny_wan()
    with ditaccel.accelerated(pipe, cache=SeaCacheConfig(threshold=0.3)):
        first = generate(pipe, call, num_inference_steps=8)
        generate(pipe, call, seed=7, num_inference_steps=6)
        assert torch.equal(generate(pipe, call, num_inference_steps=8), first)
