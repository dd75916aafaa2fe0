"""`audit`: which calls are compared with dense, and that the user's own calls stay as they are."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from inspection import traces
from saved_model import decoder_dit

import ditaccel


@pytest.fixture
def pipe():
    made = decoder_dit()
    made.scheduler = DDIMScheduler(clip_sample=False)
    return ditaccel.accelerate(made, "reuse:interval=3")


CALL = {"class_labels": [3], "num_inference_steps": 6, "output_type": "np"}


def run(pipe, seed=0, **more):
    return pipe(**CALL | more, generator=torch.Generator().manual_seed(seed)).images


def test_an_audited_call_is_the_pipelines_own_and_the_level_is_that_to_dense(pipe):
    plain = run(pipe)
    report = ditaccel.report(pipe)
    watched = ditaccel.audit(pipe, every=1)
    assert np.array_equal(run(watched), plain)
    assert np.array_equal(run(pipe), plain) and ditaccel.is_accelerated(pipe)
    assert ditaccel.report(pipe).total_calls == 3 * report.total_calls  # dense ones do not count
    ditaccel.restore(pipe)
    dense = run(pipe)
    assert not np.array_equal(dense, plain)
    a, b = (np.round(x[0] * 255).astype(int) for x in (plain, dense))
    expected = 10 * np.log10(255**2 / np.square(a - b).mean())
    assert watched.report.levels == pytest.approx((expected,))
    with pytest.raises(ditaccel.UsageError, match="not accelerated"):
        run(watched)


def test_generators_and_global_noise_go_on_as_without(pipe):
    watched = ditaccel.audit(pipe, every=1)
    states = []
    for called in (pipe, watched):
        torch.manual_seed(5)
        own = torch.Generator().manual_seed(1)
        pictures = [called(**CALL, generator=own).images, called(**CALL).images]
        states.append((*pictures, own.get_state().numpy(), torch.get_rng_state().numpy()))
    assert all(np.array_equal(one, other) for one, other in zip(*states, strict=True))
    levels = watched.report.levels
    assert len(levels) == 2 and all(level < 99 for level in levels)


def test_one_call_of_each_group_is_audited(pipe):
    watched = ditaccel.audit(pipe, every=3, seed=1)
    counts = []
    for seed in range(7):
        run(watched, seed)
        counts.append(watched.report.audited)
    assert counts[2] == 1 and counts[5] == 2
    report = watched.report
    assert report.calls == 7 and str(report).startswith(f"{report.audited} of 7 calls audited: ")
    assert report.interval[0] < report.mean < report.interval[1]


def test_any_kind_of_output_is_compared(pipe):
    watched = ditaccel.audit(pipe, every=1)
    run(watched, output_type="pil")
    run(watched)
    first, second = watched.report.levels
    assert first == pytest.approx(second, abs=1e-6)


def test_a_missed_target_is_reported_once(pipe):
    watched = ditaccel.audit(pipe, every=1, target=98)
    with pytest.warns(UserWarning, match="below the target of 98 dB") as caught:
        for _ in range(5):
            run(watched)
    assert len(caught) == 1


def test_mistakes_are_named(pipe):
    with pytest.raises(ditaccel.ConfigError, match="every is 0; it must be 1 or more"):
        ditaccel.audit(pipe, every=0)
    with pytest.raises(ditaccel.UsageError, match="compares pictures"):
        run(ditaccel.audit(pipe, every=1), output_type="latent")
    ditaccel.restore(pipe)
    with pytest.raises(ditaccel.UsageError, match="nothing to audit"):
        ditaccel.audit(pipe)


def test_an_audit_leaves_nothing_behind():
    made = decoder_dit()
    made.scheduler = DDIMScheduler(clip_sample=False)
    run(made)
    clean = traces(made)
    run(ditaccel.audit(ditaccel.accelerate(made, "reuse:interval=3"), every=1))
    ditaccel.restore(made)
    assert traces(made) == clean
