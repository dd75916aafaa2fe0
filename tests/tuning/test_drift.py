"""What a config was tuned on is in its file, and a run that leaves it is reported."""

import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import tiny_dit, tiny_flux

import ditaccel
from ditaccel import ConfigError, SLAConfig, StepMaskConfig, Target
from ditaccel.config import AccelerationConfig, Tuned
from ditaccel.reports.drift import Drift, drift_of, profile_of

CALLS = [{"class_labels": [3]}, {"class_labels": [5]}]


def test_a_profile_is_the_range_of_the_steps_that_all_runs_have():
    runs = [{3: 1.0, 5: 2.0, 9: 1.0}, {3: 4.0, 5: 1.0}, {3: 2.0, 5: 3.0}]
    assert profile_of(runs) == ((3.0, 1.0, 2.0, 4.0), (5.0, 1.0, 2.0, 3.0))
    assert profile_of([]) == ()


def test_a_run_has_left_its_profile_where_a_third_of_the_steps_has():
    profile = [(step, 1.0, 2.0, 3.0) for step in range(6)]
    assert drift_of(profile, {7: 1.0}) is None
    usual = drift_of(profile, dict.fromkeys(range(6), 4.4))
    assert usual == Drift(6, 0, 0, 2.2) and not usual.has_left
    two = drift_of(profile, {**dict.fromkeys(range(6), 2.0), 0: 6.1, 1: 9.0})
    assert (two.above, two.has_left) == (2, False)
    three = drift_of(profile, {**dict.fromkeys(range(6), 2.0), 0: 6.1, 1: 9.0, 2: float("nan")})
    assert three.has_left and "at 3 of 6 steps the error of the forecasts is above" in str(three)
    few = drift_of(profile, dict.fromkeys(range(6), 8.9), runs=2)
    assert not few.has_left and drift_of(profile, dict.fromkeys(range(6), 9.1), runs=2).has_left
    less = drift_of(profile, dict.fromkeys(range(6), 0.4))
    assert less.has_left and "is below" in str(less)


def dit():
    return tiny_dit(scheduler=DDIMScheduler(clip_sample=False))[0]


def run(pipe, steps=12, seed=0, **more):
    call = {**CALLS[0], "num_inference_steps": steps, "output_type": "latent", **more}
    return pipe(**call, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    path = tmp_path_factory.mktemp("tuned") / "tuned.yaml"
    config = ditaccel.tune(
        dit(), CALLS, Target(computed_share=0.5), pairs=2, num_inference_steps=12
    )
    config.save(path)
    return path


def test_a_file_says_what_it_was_tuned_on_and_reads_back(tuned):
    found = AccelerationConfig.load(tuned)
    made = found.tuned
    assert made.model == "DiTPipeline" and made.family == "dit" and made.steps == 12
    assert made.dtype == "float32" and made.prompts == 2 and len(made.prompts_hash) == 16
    assert "torch" in made.versions and len(made.figures["psnr"]) == 3
    low, middle, high = made.figures["psnr"][1], *made.figures["psnr"][::2]
    assert low <= middle <= high
    assert made.latents and made.profile and all(len(row) == 4 for row in made.profile)
    assert AccelerationConfig.load(tuned) == found


def test_the_run_that_it_was_tuned_on_is_silent(tuned):
    pipe = dit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ditaccel.accelerate(pipe, str(tuned))
        run(pipe)
    found = ditaccel.report(pipe)
    assert found.drift.compared == len(found.errors) and not found.drift.has_left
    assert "Drift" not in str(found)
    ditaccel.restore(pipe)
    # and nothing is kept where nothing was tuned
    with ditaccel.accelerated(pipe, StepMaskConfig(steps=(0, 1, 2, 5, 11))):
        run(pipe)
        assert ditaccel.report(pipe).errors == {} and ditaccel.report(pipe).drift is None


def test_other_weights_dtype_scheduler_and_size_are_warned_of(tuned):
    pipe = dit()
    with torch.no_grad():
        for weight in pipe.transformer.transformer_blocks.parameters():
            weight.mul_(1.5)
    with pytest.warns(UserWarning, match="other weights of DiTPipeline"):
        ditaccel.accelerate(pipe, str(tuned))
    ditaccel.restore(pipe)
    pipe = dit()
    pipe.scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    pipe.transformer.to(torch.float64)
    with pytest.warns(UserWarning, match="weights in float32, and these are float64"):
        ditaccel.accelerate(pipe, str(tuned))
    ditaccel.restore(pipe)
    config = AccelerationConfig.load(tuned)
    lower = tuple((row[0], *(1e-3 * error for error in row[1:])) for row in config.tuned.profile)
    off = AccelerationConfig(
        cache=config.cache, tuned=Tuned(latents=(4, 9, 9), steps=12, profile=lower)
    )
    pipe = dit()
    expected = pytest.warns(UserWarning, match="latents of 4 x 9 x 9, and these are")
    with expected, ditaccel.accelerated(pipe, off):
        run(pipe)
        found = ditaccel.report(pipe)
    assert found.drift.above == found.drift.compared > 0
    assert "Drift: this run has left" in str(found)


def test_a_config_that_was_changed_keeps_where_it_was_tuned_and_not_what_was_measured(tuned):
    kept = AccelerationConfig.load(tuned)
    sla = SLAConfig()
    changes = [{"config": [tuned, sla]}, {"config": tuned, "attention": sla}, {"order": 1}]
    for change in changes:
        with ditaccel.accelerated(dit(), **{"config": tuned, **change}) as pipe:
            made = Tuned.from_dict(ditaccel.report(pipe).config["tuned"])
            assert made == replace(kept.tuned, figures={}, profile=())


def test_another_family_is_refused_in_one_line(tuned):
    pipe, _ = tiny_flux()
    with pytest.raises(ConfigError, match="was tuned on dit, and this is flux"):
        ditaccel.accelerate(pipe, str(tuned))
    assert not ditaccel.is_accelerated(pipe)


@pytest.mark.parametrize(
    ("tuned", "line"),
    [
        ({"models": "x"}, "has no key 'models'"),
        ({"profile": [[1, 2]]}, "each row of profile"),
        ({"profile": [[1, 0, 1, 2]]}, "errors are above 0"),
        ({"profile": [[float("nan"), 1, 1, 2]]}, "errors are above 0"),
        ({"figures": 3}, "delete the key"),
        ([], "must be a mapping"),
    ],
)
def test_a_damaged_key_is_one_line(tuned, line):
    with pytest.raises(ConfigError, match=line):
        Tuned.from_dict(tuned)
