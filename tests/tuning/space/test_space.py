"""The space as text, the race by hand, and a search over everything on a tiny pipeline."""

from dataclasses import replace

import pytest
from tiny import tiny_flux, tiny_wan
from tiny.parts import wan_vae

import ditaccel
from ditaccel import ConfigError, Target
from ditaccel.config import AccelerationConfig, Tuned
from ditaccel.tuning.quality import PSNR, measure_of
from ditaccel.tuning.space.race import Aim, Candidate, Race, Standing
from ditaccel.tuning.space.search import SpaceTuner
from ditaccel.tuning.space.space import Space
from ditaccel.tuning.space.stamp import stamped

SOL = "sol:q_tile=16,k_tile=16,min_tokens=0,dense_layers=0,neighbours=0"


def small_wan(steps=8):
    pipe, call = tiny_wan(layers=2)
    pipe.register_modules(vae=wan_vae())
    call = {k: v for k, v in call.items() if k != "output_type"}
    size = {"height": 96, "width": 96, "num_frames": 13, "num_inference_steps": steps}
    return pipe, {**call, **size}


def test_a_space_is_read_from_text():
    text = "attention=sla,[sol:tau=1,order=morton]; densities=0.05,0.2; steps=0.5,20; caches=fast"
    found = Space.parse(text)
    assert found.attention == ("sla", "sol:tau=1,order=morton") and found.caches == ("fast",)
    assert found.densities == (0.05, 0.2) and found.steps == (0.5, 20) and found.schedules
    assert Space.parse("").schedules and not Space.parse("schedules=false; steps=5").schedules
    assert found.counts(50) == [25, 20]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("atention=sla", "is not one of .*attention="),
        ("steps=many", "steps takes numbers"),
        ("steps=0", "give whole numbers, or shares"),
        ("schedules=perhaps", "true or false"),
        ("schedules=false", "nothing may vary"),
        ("steps=5; steps=6", "steps is given twice"),
        ("attention=", "attention= has no value"),
        ("densities=0.1", "densities are of attention maps"),
        ("rests=means; steps=5", "rests are of attention maps"),
    ],
)
def test_a_wrong_space_is_one_line(text, line):
    with pytest.raises(ConfigError, match=line):
        Space.parse(text)


def test_a_map_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="has no tile map"):
        Space(attention=["taylorseer"]).maps("wan")
    with pytest.raises(ConfigError, match="4 to 7, below the 8"):
        Space(steps=(8,)).counts(8)


def racing(levels, seconds, aim, prompts=4):
    """A race of candidates with known levels; what was run of each."""
    ran = []
    candidates = [
        Candidate(AccelerationConfig(label=str(i), steps=i + 1), "given", s)
        for i, s in enumerate(seconds)
    ]

    def run(candidate, count):
        place = int(candidate.config.label)
        ran.append((place, count))
        return Standing(candidate, (levels[place],) * count, seconds[place], count)

    return Race(aim, run, prompts), candidates, ran


def test_the_race_halves_and_takes_the_fastest_that_reaches_the_level():
    levels, seconds = [20, 31, 35, 33, 28, 40], [1, 2, 3, 4, 5, 6]
    race, candidates, ran = racing(levels, seconds, Aim(PSNR, level=30))
    assert race.won(candidates, 1).candidate.config.label == "1"
    counts = [sum(count == n for _, count in ran) for n in (1, 2, 4)]
    assert counts == [6, 3, 2]
    race, candidates, _ = racing(levels, seconds, Aim(PSNR, seconds=3.5))
    assert race.won(candidates, 1).candidate.config.label == "2"


def test_a_config_that_fronts_share_runs_once_per_round():
    race, candidates, ran = racing([31, 35], [1, 2], Aim(PSNR, level=30))
    twin = replace(candidates[0], config=replace(candidates[0].config, label="0"), kind="joint")
    assert race.won([*candidates, twin], 1).candidate is candidates[0]
    assert ran == [(0, 1), (1, 1), (0, 2), (0, 4)]
    assert len(race.standings) == 2


def test_a_cache_that_holds_too_much_is_never_the_better_one():
    held = Aim(PSNR, level=30, memory=1)
    candidate = Candidate(AccelerationConfig(), "given")
    large = Standing(candidate, (45.0,), 2, 1, memory=2)
    small = Standing(candidate, (29.0,), 2, 1, memory=1)
    assert not held.reached(large) and not held.reached(small)
    assert held.rank(small) < held.rank(large)
    fast = replace(large, seconds=1)
    within = Aim(PSNR, seconds=1, memory=1)
    assert within.rank(small) < within.rank(fast)


def test_a_front_is_bisected():
    levels, seconds = list(range(20, 52, 2)), list(range(16))
    race, candidates, ran = racing(levels, seconds, Aim(PSNR, level=33))
    entered = [int(c.config.label) for c in race.entered(candidates, 1)]
    assert entered == [6, 7, 8] and len(ran) <= 4


def test_what_misses_on_all_prompts_gives_way_to_something_safer():
    levels, seconds = [20, 28, 33, 40], [1, 2, 3, 4]
    race, candidates, ran = racing(levels, seconds, Aim(PSNR, level=30))
    missed = race.run(candidates[1], 4)
    assert race.safer(missed, [candidates]).candidate.config.label == "2"
    assert (3, 4) not in ran
    race, candidates, _ = racing(levels, seconds, Aim(PSNR, level=50))
    assert race.safer(race.run(candidates[1], 4), [candidates]).candidate.config.label == "3"


def test_measures_know_their_better_end():
    assert PSNR.level([30, 40], "min") == 30 and PSNR.reaches(31, 30)
    ssim = measure_of("ssim")
    assert ssim.higher
    mse = measure_of("mse")
    assert replace(mse, weights="a").stored != replace(mse, weights="b").stored
    assert not mse.higher and mse.level([0.1, 0.3], "min") == 0.3 and mse.reaches(0.1, 0.2)
    assert mse.surely([0.1, 0.3], "mean") > 0.2
    with pytest.raises(ConfigError, match="no metric 'sim'"):
        measure_of("sim")
    with pytest.raises(ConfigError, match="cannot be a target"):
        measure_of("kid_real")


def test_targets_are_read_from_text():
    assert Target.parse("psnr=30") == Target(psnr=30)
    assert Target.parse("mse=0.1", statistic="min").metric == "mse"
    assert Target.parse("speedup=2").needs_space and not Target.parse("share=0.5").needs_space
    with pytest.raises(ConfigError, match="not of the form"):
        Target.parse("psnr")
    with pytest.raises(ConfigError, match="above 1"):
        Target(speedup=1)
    with pytest.raises(ConfigError, match="memory cannot be promised"):
        Target(psnr=30, share=0.9, memory="1MB")
    asked = {Target(psnr=30, memory="1MB").asked, Target(psnr=30).asked}
    assert asked == {"30 dB with a cache of at most 1MB", "30 dB"}
    assert Target(computed_share=0.25).asked == "a computed share of 0.25"


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (Target(computed_share=0.5), "searched in seconds"),
        (Target(metric="sim", level=0.9), "no metric 'sim'"),
    ],
)
def test_a_target_that_a_space_does_not_serve_is_refused_before_anything_runs(target, line):
    pipe, call = small_wan()
    ran = []
    pipe.transformer.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(ditaccel.DitaccelError, match=line):
        ditaccel.tune(pipe, [call], target, space="attention=sla")
    with pytest.raises(ditaccel.DitaccelError, match="names a number of steps, too"):
        ditaccel.accelerate(pipe, cache="steps:5+taylorseer")
    assert not ran


def test_a_given_setting_that_cannot_be_put_on_is_refused_before_anything_runs():
    pipe, call = small_wan()
    ran = []
    pipe.transformer.register_forward_hook(lambda *_: ran.append(1))
    given = AccelerationConfig(steps=5, tuned=Tuned(family="flux"))
    with pytest.raises(ConfigError, match="was tuned on flux, and this is wan"):
        SpaceTuner(pipe, [call], Space(caches=[given]))
    assert not ran


def test_a_result_on_fewer_prompts_is_reported():
    pipe, call = small_wan(6)
    tuner = SpaceTuner(pipe, [call] * 3, Space())
    tuner._ends = 0.0  # the time is up
    found = tuner.reach(Target(psnr=5))
    assert not found.complete and "it was run on 1 of 3 alone" in found.words


def test_a_search_over_everything_resumes_with_equal_results(tmp_path):
    pipe, call = small_wan(6)
    space = Space(attention=[SOL], densities=(2.0, 0.5), steps=(5,), caches=["taylorseer"])
    lines = []

    def searched(folder):
        return SpaceTuner(pipe, [call] * 2, replace(space, runs=folder), progress=lines.append)

    tuner = searched(tmp_path / "runs")
    kinds = {candidate.kind for front in tuner.fronts for candidate in front}
    assert "cache" in kinds and {c.kind for c in tuner.others} == {"steps", "given"}
    steps = {c.config.steps for front in tuner.fronts for c in front}
    assert steps == {"keep", 5}
    found = tuner.reach(Target(psnr=20))
    assert found.standings and found.dense > 0
    made = len(lines)
    again = searched(tmp_path / "runs")
    assert len(lines) == made  # no dense run is made again
    twice = again.reach(Target(psnr=20))
    assert twice.best.candidate.config == found.best.candidate.config
    assert (
        found.complete
        and twice.best.levels == found.best.levels
        and twice.best.seconds == found.best.seconds
    )
    config = found.best.candidate.config
    with ditaccel.accelerated(pipe, config):
        pipe(**call)


def test_tune_takes_a_space_and_says_what_no_config_reaches():
    pipe, call = small_wan(6)
    with pytest.warns(UserWarning, match="no config that was run reaches"):
        config = ditaccel.tune(pipe, [call], Target(psnr=98), pairs=1, space="")
    assert config.scheduler


def test_a_promise_in_a_space_is_tested_on_prompts_that_were_kept_apart():
    pipe, call = small_wan(6)
    calls, lines = [call] * 4, []
    target = Target(psnr=5, share=0.3, confidence=0.7)
    assert target.promise.least == 3
    config = ditaccel.tune(pipe, calls, target, pairs=1, space="", progress=lines.append)
    assert lines[-1].startswith("promised: 5 dB for 30 % of the samples")
    assert "with 70 % confidence" in config.label and len(config.tuned.figures["psnr"]) == 3
    with pytest.raises(ditaccel.UsageError, match="at least 3 prompts besides the 2"):
        ditaccel.tune(pipe, calls, target, pairs=2, space="")


def test_fewer_steps_alone_are_a_config_that_can_be_applied():
    pipe, call = tiny_flux()
    ditaccel.accelerate(pipe, AccelerationConfig(steps=5))
    pipe(**call)
    assert ditaccel.report(pipe).step_choice.run == 5
    ditaccel.restore(pipe)
    config = AccelerationConfig(steps=5)
    assert config.name == "steps:5"
    made = stamped(pipe, config, [call], {"psnr": [30.0]}, lambda call, i: pipe(**call))
    assert made == replace(config, scheduler=made.scheduler) and not made.tuned.profile
    assert made.tuned.steps == 5 and made.tuned.latents and made.tuned.figures == {"psnr": (30.0,)}
    ditaccel.accelerate(pipe, AccelerationConfig(steps=0.5))
    pipe(**{**call, "num_inference_steps": 60})
    assert ditaccel.report(pipe).step_choice.run == 30
    ditaccel.restore(pipe)
