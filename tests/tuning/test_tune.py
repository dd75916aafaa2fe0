"""`tune` on real (tiny) pipelines: schedulers, two transformers, refinement, options."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from tiny import generate, tiny_dit, tiny_wan, tiny_wan22
from tiny.parts import wan_vae

import ditaccel
from ditaccel import Refine, Target
from ditaccel import config as configs
from ditaccel.caching.engine.forecast import newton_weights
from ditaccel.core.denoising.probing import Probe
from ditaccel.core.denoising.response import euler
from ditaccel.core.transformers import transformers_of
from ditaccel.io.schedulers import put_scheduler
from ditaccel.tuning.masks import Mask
from ditaccel.tuning.recording import record
from ditaccel.tuning.schedule_search import GapCosts, Trajectory, best_steps
from ditaccel.tuning.target import TuningRun
from ditaccel.tuning.trajectories import trajectories_of
from ditaccel.tuning.trials import Trial
from ditaccel.tuning.tuner import Tuner, paired

CALLS = [{"class_labels": [3]}, {"class_labels": [5]}]
SHIFTED = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0}


def decoded(pipe, call):
    """A tiny Wan that decodes, and a call for `tune`."""
    pipe.register_modules(vae=wan_vae())
    return pipe, {k: v for k, v in call.items() if k != "output_type"}


def dit(**options):
    return tiny_dit(scheduler=DDIMScheduler(clip_sample=False), **options)[0]


@pytest.mark.parametrize(
    "scheduler",
    [
        UniPCMultistepScheduler(solver_order=2, **SHIFTED),
        UniPCMultistepScheduler(solver_order=3, **SHIFTED),
        DPMSolverMultistepScheduler(**SHIFTED),
        FlowMatchEulerDiscreteScheduler(shift=5.0),
    ],
    ids=["unipc2", "unipc3", "dpm++2m", "euler"],
)
def test_any_deterministic_scheduler_is_tuned(scheduler):
    pipe, call = decoded(*tiny_wan(layers=2, scheduler=scheduler))
    config = ditaccel.tune(pipe, [call], Target(computed_share=0.6), pairs=1)
    assert config.cache.total == 8 and 2 <= len(config.cache.steps) <= 7


def test_tuned_for_another_scheduler_which_the_file_names(tmp_path):
    pipe = dit()
    own = pipe.scheduler
    call = {**CALLS[0], "num_inference_steps": 8}
    target = Target(computed_share=0.6)
    config = ditaccel.tune(pipe, [call], target, pairs=1, scheduler="unipc")
    assert pipe.scheduler is own
    assert config.scheduler == "UniPCMultistepScheduler of order 2"
    config.save(tmp_path / "tuned.yaml")
    with pytest.warns(UserWarning, match="tuned with UniPCMultistepScheduler of order 2, and the"):
        ditaccel.accelerate(pipe, str(tmp_path / "tuned.yaml"))
    ditaccel.restore(pipe)
    put_scheduler(pipe, "unipc")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ditaccel.accelerate(pipe, config)
    with pytest.raises(ditaccel.UnsupportedError, match="no scheduler 'unipcc'"):
        ditaccel.tune(pipe, [call], target, scheduler="unipcc")


@pytest.mark.parametrize(
    "scheduler", [HeunDiscreteScheduler(), PNDMScheduler()], ids=["heun", "pndm"]
)
def test_a_stage_of_a_step_is_a_step_of_its_own(scheduler):
    """Two calls per step, of which either may be forecast: the response has a row for each."""
    pipe, _ = tiny_dit(scheduler=scheduler)
    tuner = Tuner(pipe, [{**CALLS[0], "num_inference_steps": 6}])
    assert tuner.total == len(pipe.scheduler.timesteps) > 6
    run = tuner.at_share(0.6)
    assert run.computed_share == pytest.approx(len(run.mask.steps) / tuner.total)


def test_the_last_step_but_one_of_unipc_counts_double():
    """At order 2 its output moves the end by 1.98 times as much as under Euler."""
    scheduler = UniPCMultistepScheduler(solver_order=2, **SHIFTED)
    scheduler.set_timesteps(20)
    multistep = Probe.of(scheduler, 0).response
    sigmas = scheduler.sigmas.double().numpy()
    assert multistep is not None
    assert multistep.end(18) / (sigmas[19] - sigmas[18]) == pytest.approx(1.98, abs=0.06)
    random = np.random.default_rng(0)
    time = np.linspace(0, 1, 20)[:, None]
    outputs = np.sin(3 * time * random.normal(size=60)) + random.normal(size=60) * time**2
    gram = outputs @ outputs.T / 60
    costs = [
        GapCosts(Trajectory(gram, r.latents[:, :-1], np.zeros(20)), unseen=0.0)(16, 17, 19)
        for r in (multistep, euler(sigmas, flow=True))
    ]
    assert costs[0] / costs[1] == pytest.approx(1.98**2, rel=0.06)


def test_a_gap_costs_nothing_where_outputs_are_a_line():
    """The known optimum: forecasts of order 1 are exact there, so the fewest steps cost nothing."""
    time = np.arange(9.0)[:, None]
    outputs = 1.0 + time * np.linspace(-1, 1, 7)
    response = np.tril(np.ones((10, 9)), -1)
    t = Trajectory(outputs @ outputs.T, response, np.zeros(9))
    cost, steps = best_steps(GapCosts(t), range(9), t.forced(2))[3]
    assert steps == (0, 1, 8) and cost == pytest.approx(0.0, abs=1e-9)


def test_a_gap_ends_where_another_transformer_takes_over():
    random = np.random.default_rng(0)
    outputs = random.normal(size=(10, 30)).cumsum(0)
    response = np.tril(random.uniform(0.5, 1.0, (11, 10)), -1)
    t = Trajectory(outputs @ outputs.T / 30, response, np.zeros(10), switches=(6,))
    assert t.forced(1) == {0, 6, 7, 9}
    costs = GapCosts(t, unseen=0.25)
    left, seen = np.zeros(30), np.zeros(30)
    for i in (4, 5):  # the output of step 6 is of another transformer: nothing is interpolated
        weights = newton_weights([3.0, 2.0], float(i), 1)
        error = weights[0] * outputs[3] + weights[1] * outputs[2] - outputs[i]
        left, seen = left + response[-1, i] * error, seen + response[6, i] * error
    assert costs(2, 3, 6) == pytest.approx(np.mean(left**2) + 0.25 * np.mean(seen**2))
    # nor is anything extrapolated from before the switch
    assert costs(5, 6, 9) == costs(-1, 6, 9) != costs(5, 4, 9)
    for _, steps in best_steps(costs, range(10), t.forced(1)).values():
        assert {0, 6, 7, 9} <= set(steps)


def test_two_transformers_are_recorded_each_with_its_own_guidance():
    pipe, call = tiny_wan22(layers=1)
    call = {**call, "guidance_scale": 5.0, "guidance_scale_2": 3.0}
    transformers, adapter = transformers_of(pipe)
    _, recording = record(pipe, transformers, adapter, lambda: generate(pipe, call), 10**9)
    names = [n for i, n in enumerate(recording.names) if i == 0 or n != recording.names[i - 1]]
    assert names == ["transformer", "transformer_2"]
    first, difference = trajectories_of([recording])
    (switch,) = first.switches
    weights = difference.response[-1] / first.response[-1]
    np.testing.assert_allclose(weights[:switch], 1 - 5.0, rtol=1e-3)
    np.testing.assert_allclose(weights[switch:], 1 - 3.0, rtol=1e-3)


def test_two_transformers_are_tuned():
    pipe, call = decoded(*tiny_wan22(layers=2))
    tuner = Tuner(pipe, [call], refine=Refine(trials=4))
    (switch,) = tuner._first.switches
    run = tuner.reach(Target(computed_share=0.6))
    for computed in (run.mask.steps, run.mask.others):
        assert {0, switch, switch + 1, 11} <= set(computed)
    assert run.computed_share == pytest.approx(run.mask.calls / 24), "nothing else was computed"


def refined(lines=None, **options):
    calls = [{**c, "num_inference_steps": 11} for c in CALLS]
    say = (lambda line: None) if lines is None else lines.append
    return Tuner(dit(), calls, progress=say, refine=Refine(**options))


def test_refining_gains_at_the_same_number_of_calls():
    target = Target(computed_share=0.4)
    plain = refined(trials=0).reach(target)
    for anneal in (False, True):
        lines: list[str] = []
        tuner = refined(lines, trials=16, anneal=anneal)
        tuner.reach(target)
        best = max(
            (run for run in tuner.runs if run.computed_share <= 0.4), key=lambda run: run.psnr
        )
        assert best.psnr > plain.psnr + 0.1 and plain in tuner.runs
        assert lines[-1].startswith("refined by +") and "with fresh noise" in lines[-1]
    assert refined(trials=500, minutes=1e-9).reach(target) == plain


@pytest.mark.parametrize("gain", [-0.5, 0.5])
def test_a_refined_plan_is_taken_only_if_fresh_noise_bears_it_out(monkeypatch, gain):
    """The winner of many trials owes a part of its gain to the pairs it was tried on."""
    target, lines = Target(computed_share=0.4), []
    plain = refined(trials=0).reach(target)
    tuner = refined(lines, trials=16)
    seen = []

    def on(mask):
        seen.append(mask)
        level = 30.0 if mask == plain.mask else 30.0 + gain
        return tuner._as_run(Trial(mask, (level, level + 1)))

    monkeypatch.setattr(tuner, "_on_fresh", on)
    run = tuner.reach(target)
    assert len(seen) == 2 and seen[1] == plain.mask and f"{gain:+.1f} +- 0.0 dB" in lines[-1]
    if gain > 0:
        assert run.mask == seen[0] and run.psnr == 31.0, "with the level of the fresh noise"
    else:
        assert run == plain and "the first plan stays" in lines[-1]


def test_refining_towards_a_level_drops_steps():
    wanted = refined(trials=0).reach(Target(computed_share=0.5)).psnr - 1e-6
    plain = refined(trials=0).reach(Target(psnr=wanted))
    tuner = refined(trials=25)
    run = tuner.reach(Target(psnr=wanted))
    assert run.computed_share <= plain.computed_share
    assert any(r.psnr >= wanted and r.computed_share <= plain.computed_share for r in tuner.runs)


def test_a_killed_search_continues_from_its_file(tmp_path):
    class Killed(Exception):
        pass

    def tuned(runs):
        """Tune, and be killed after so many generations; returns how many were run."""
        pipe, count = dit(), 0
        inner = pipe.scheduler.set_timesteps

        def counted(*args, **kwargs):
            nonlocal count
            if count == runs:
                raise Killed
            count += 1
            return inner(*args, **kwargs)

        pipe.scheduler.set_timesteps = counted
        refine = Refine(trials=12, resume=tmp_path / "run.jsonl")
        options = {"refine": refine, "pairs": 2, "steps": 10}
        try:
            config = ditaccel.tune(pipe, CALLS, Target(computed_share=0.5), **options)
        except Killed:
            config = None
        return config, count

    killed, _ = tuned(15)
    assert killed is None and len((tmp_path / "run.jsonl").read_text().splitlines()) > 3
    continued, rest = tuned(None)
    there = (tmp_path / "run.jsonl").read_text()
    again, none = tuned(None)
    # two dense runs that are recorded, and two that show the usual errors of the config
    assert none == 4 < rest, "only these are made again"
    assert again == continued and (tmp_path / "run.jsonl").read_text() == there
    (tmp_path / "run.jsonl").unlink()
    assert tuned(None)[0] == continued


def test_a_file_that_cannot_be_used_is_refused_before_anything_runs(tmp_path):
    lines, target = [], Target(computed_share=0.5)
    file = tmp_path / "new" / "run.jsonl"
    options = {"pairs": 1, "steps": 6, "progress": lines.append}
    ditaccel.tune(dit(), CALLS, target, refine=Refine(trials=0, resume=file), **options)
    assert file.exists() and lines
    lines.clear()
    for wrong, line in ((tmp_path, "this is a folder"), (file / "a", "is a file and not a folder")):
        with pytest.raises(ditaccel.UsageError, match=line):
            ditaccel.tune(dit(), CALLS, target, refine=Refine(resume=wrong), **options)
    with pytest.raises(ditaccel.UsageError, match="remembers another search"):
        ditaccel.tune(dit(), CALLS, target, refine=Refine(resume=file), seed=1, **options)
    assert not lines


def test_orders_of_a_refined_plan_are_saved(tmp_path):
    config = ditaccel.StepMaskConfig(steps=(0, 1, 5, 9), orders=(1, 0, 2, 1), total=10)
    configs.dump(ditaccel.AccelerationConfig(cache=config), tmp_path / "a.yaml")
    assert configs.load(tmp_path / "a.yaml").cache == config


def test_a_mean_reaches_a_target_by_its_standard_error():
    """Of samples that come out alike or not, a mean of a few says little about others."""
    mask = Mask((0, 1, 5))

    def run(*levels):
        return TuningRun(mask.config(9), 0.5, levels, mask)

    assert run(36.0, 38.0).reaches(Target(psnr=36))  # 37 +- 1
    assert not run(36.0, 38.0).reaches(Target(psnr=36.1))
    assert not run(45.0, 45.0, 20.0, 38.0).reaches(Target(psnr=35))  # 37 +- 5.9
    assert run(45.0, 45.0, 20.0, 38.0).shown("mean") == "37.0 ± 5.9 dB"
    assert run(36.0).reaches(Target(psnr=36)) and run(36.0).shown("mean") == "36.0 dB"
    assert run(36.0, 38.0).reaches(Target(psnr=36, statistic="min"))
    assert run(*[40.0] * 9, 20.0).reaches(Target(psnr=37, statistic="p10"))


def test_pairs_are_the_prompts_in_turn():
    assert paired([1, 2, 3], None) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert paired([1, 2, 3], 2) == [1, 2]
    assert len(paired(list(range(20)), None)) == 20 and paired([], None) == []


def test_steps_are_spelled_in_one_way_and_an_adapter_reaches_tune():
    pipe = dit()
    adapter = transformers_of(pipe)[1]
    asked = []

    class Watched(type(pipe)):
        def __call__(self, *args, **kwargs):
            asked.append(kwargs["num_inference_steps"])
            return super().__call__(*args, **kwargs)

    pipe.__class__ = Watched
    target = Target(computed_share=0.5)
    config = ditaccel.tune(pipe, CALLS, target, steps=9, pairs=2, adapter=adapter)
    assert config.cache.total == 9 and set(asked) == {9}
    with pytest.raises(ditaccel.ConfigError, match="steps is 9, and num_inference_steps is 8"):
        ditaccel.tune(pipe, CALLS, target, steps=9, num_inference_steps=8)
    with pytest.raises(ditaccel.ConfigError, match=r"adapter is of type str; give a .*FamilyAd"):
        ditaccel.tune(pipe, CALLS, target, steps=9, adapter="dit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0}, "pairs is 0; it must be 1 or more"),
        ({"refine": -1}, "refine is -1; it must be 0 or more"),
        ({"refine": 1.5}, "refine is 1.5; it must be a whole number"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ditaccel.ConfigError, match=message):
        ditaccel.tune(dit(), CALLS, Target(psnr=30), **options)
    with pytest.raises(ditaccel.ConfigError, match=r"minutes is -2\.0; it must be more than 0"):
        Refine(minutes=-2)


@pytest.mark.parametrize(("value", "hint"), [("35", "psnr=35"), (35.5, "psnr=35.5")])
def test_the_hint_of_a_target_by_position_can_be_followed(value, hint):
    with pytest.raises(ditaccel.ConfigError, match=rf"as in Target\({hint}\)"):
        Target(value)
    with pytest.raises(ditaccel.ConfigError, match=r"as in Target\(psnr=\.\.\.\)"):
        Target("good")


def test_a_scheduler_that_draws_noise_is_refused():
    pipe, _ = tiny_dit(scheduler=EulerAncestralDiscreteScheduler())
    with pytest.raises(ditaccel.UnsupportedError, match="this one draws noise; use a preset"):
        ditaccel.tune(pipe, CALLS, Target(psnr=30), steps=6)
