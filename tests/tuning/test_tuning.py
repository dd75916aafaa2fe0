"""The schedule search against brute force, and tune on a real (tiny) pipeline."""

import gc
import weakref
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from inspection import traces
from tiny import generate, tiny_dit, tiny_flux, tiny_wan, tiny_wan22

import ditaccel
import ditaccel.tuning.recording as recording_room
from ditaccel import config as configs
from ditaccel.caching.engine.forecast import newton_weights
from ditaccel.core.denoising.response import euler
from ditaccel.core.transformers import transformers_of
from ditaccel.tuning.plan_search import cheapest_good
from ditaccel.tuning.quality import surely
from ditaccel.tuning.recording import record
from ditaccel.tuning.schedule_search import GapCosts, Plan, Trajectory, best_steps, plans
from ditaccel.tuning.target import TuningRun
from ditaccel.tuning.trajectories import trajectories_of
from ditaccel.tuning.trials import Trial
from ditaccel.tuning.tuner import Tuner

CALLS = [{"class_labels": [3]}, {"class_labels": [5]}]


def trajectory(steps=9, size=40, seed=0):
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, steps)[:, None]
    outputs = np.sin(3 * time * rng.normal(size=size)) + rng.normal(size=size) * time**2
    sigmas = np.linspace(1, 0, steps + 1) ** 1.3
    response = euler(sigmas, flow=True).latents[:, :-1]
    return outputs, Trajectory(outputs @ outputs.T / size, response, np.zeros(steps))


def test_gap_costs_are_the_errors_themselves():
    outputs, t = trajectory()
    costs = GapCosts(t, unseen=0.25)
    seen = left = 0.0
    for i in (4, 5):
        for nodes in ([3, 1], [6, 3, 1]):
            weights = newton_weights([float(n) for n in nodes], float(i), len(nodes) - 1)
            error = t.response[-1, i] * (np.asarray(weights) @ outputs[nodes] - outputs[i])
            if len(nodes) == 2:
                seen = seen + error
            else:
                left = left + error
    expected = np.mean(left**2) + 0.25 * np.mean(seen**2)
    assert costs(1, 3, 6) == pytest.approx(expected, rel=1e-6)
    assert costs(1, 3, 4) == 0.0


@pytest.mark.parametrize("warmup", [1, 3])
def test_search_finds_what_brute_force_finds(warmup):
    _, t = trajectory()
    costs = GapCosts(t)
    found = best_steps(costs, range(9), t.forced(warmup))
    for count in range(max(2, warmup + 1), 10):
        every = []
        for middle in combinations(range(warmup, 8), count - warmup - 1):
            path = (*range(warmup), *middle, 8)
            before = (-1, *path)
            total = sum(costs(before[i], path[i], path[i + 1]) for i in range(len(path) - 1))
            every.append((total, path))
        assert found[count][0] == pytest.approx(min(every)[0], rel=1e-9)
    assert found[9][0] == 0.0


def test_plans_keep_the_others_within_the_first_and_trade_share_for_cost():
    _, first = trajectory()
    _, difference = trajectory(seed=1)
    front = plans(first, replace(difference, response=3.0 * difference.response), warmup=1)
    assert len(front) > 4
    for a, b in pairwise(front):
        assert a.share < b.share and a.cost > b.cost
    assert all(set(p.others) <= set(p.steps) for p in front)
    assert any(len(p.others) < len(p.steps) for p in front)


def test_tune_keeps_to_a_share_and_leaves_the_pipeline_as_it_was(tmp_path):
    pipe, call = tiny_dit(scheduler=DDIMScheduler(clip_sample=False))
    dense = generate(pipe, call)
    clean = traces(pipe), sorted(vars(pipe.scheduler))
    config = ditaccel.tune(
        pipe, CALLS, ditaccel.Target(computed_share=0.5), num_inference_steps=12, guidance_scale=2.0
    )
    assert traces(pipe) == clean[0]
    assert sorted(vars(pipe.scheduler)) == clean[1]
    assert len(config.cache.steps) <= 6 and config.cache.total == 12
    configs.dump(config, tmp_path / "tuned.yaml")
    ditaccel.accelerate(pipe, tmp_path / "tuned.yaml")
    generate(pipe, call, num_inference_steps=12)
    assert ditaccel.report(pipe).computed_share == pytest.approx(len(config.cache.steps) / 12)
    ditaccel.restore(pipe)
    assert (generate(pipe, call) == dense).all()


def test_tune_reaches_a_quality_with_less_where_less_is_asked():
    pipe, _call = tiny_dit(scheduler=DDIMScheduler(clip_sample=False))
    lines = []
    tuner = Tuner(pipe, [{**c, "num_inference_steps": 12} for c in CALLS], progress=lines.append)
    found = [tuner.check(front[i]) for front in tuner.plans for i in (0, -1)]
    levels = sorted(surely(run.levels, "mean") for run in found)
    easy, hard = tuner.at_psnr(levels[0] - 1), tuner.at_psnr(levels[-1])
    assert easy.computed_share <= hard.computed_share
    assert easy.psnr >= levels[0] - 1 and hard.psnr >= levels[-1]
    assert any("dB" in line for line in lines)


def recorded(pipe, call, budget=10**9):
    transformers, adapter = transformers_of(pipe)
    return record(pipe, transformers, adapter, lambda: generate(pipe, call), budget)


def test_two_calls_a_step_are_recognised():
    """Guided = first + (1 - scale) * (other - first) in Wan: the weight is read off the run."""
    pipe, call = tiny_wan()
    _, recording = recorded(pipe, call)
    first, difference = trajectories_of([recording])
    assert difference is not None and first.gram.shape == (8, 8)
    below = np.tril_indices(9, -1, 8)
    weights = difference.response[below] / first.response[below]
    np.testing.assert_allclose(weights, 1 - call["guidance_scale"], rtol=1e-3)


def test_the_products_kept_are_those_of_the_outputs():
    pipe, call = tiny_flux()
    outputs, guided = [], []
    handle = pipe.transformer.register_forward_hook(lambda m, a, out: outputs.append(out[0]))
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda output, *a, **k: (guided.append(output), step(output, *a, **k))[1]
    image, recording = recorded(pipe, call)
    handle.remove()
    assert torch.equal(image, generate(pipe, call))
    one, other = (torch.stack(outputs[i::2]).flatten(1).double() for i in (0, 1))
    scheduled = torch.stack(guided[: len(one)]).flatten(1).double()
    for found, series in (
        (recording.guided, scheduled),
        (recording.first, one),
        (recording.difference, other - one),
    ):
        expected = series @ series.T / series.shape[1]
        np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-9, atol=1e-12)


def test_samples_of_a_batch_are_told_apart():
    pipe, call = tiny_dit(scheduler=DDIMScheduler(clip_sample=False))
    _, both = recorded(pipe, call)
    # DiT doubles its latents for guidance; both halves are the same
    assert both.guided.shape == (4, 8, 8) and both.first is None
    assert np.array_equal(both.guided[:2], both.guided[2:])
    assert abs(both.guided[0] - both.guided[1]).max() > 1e-3


@pytest.mark.parametrize("budget", [0, 3000])
def test_outputs_over_the_budget_are_spooled_and_say_the_same(budget, monkeypatch):
    stores = []

    class Watched(recording_room.OutputStore):
        def __init__(self, budget):
            super().__init__(budget)
            stores.append(self)

    monkeypatch.setattr(recording_room, "OutputStore", Watched)
    pipe, call = tiny_wan()
    _, held = recorded(pipe, call)
    _, spooled = recorded(pipe, call, budget)
    assert [s.spooled for s in stores] == [False, True]
    for a, b in zip(vars(held).values(), vars(spooled).values(), strict=True):
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_spooled_output_keeps_its_bits(dtype):
    store = recording_room.OutputStore(budget=0)
    outputs = [torch.randn(2, 3, 5).to(dtype) for _ in range(4)]
    for output in outputs:
        store.add("a", output)
    assert store.spooled and store.shape("a") == (2, 4, 15)
    assert torch.equal(
        store.columns("a", 4, 11), torch.stack(outputs, 1).flatten(2)[..., 4:11].double()
    )


def test_a_recording_is_freed_before_the_next_one_begins(monkeypatch):
    alive, most = [], []

    class Watched(recording_room.OutputStore):
        def __init__(self, budget):
            super().__init__(budget)
            gc.collect()
            most.append(sum(ref() is not None for ref in alive))
            alive.append(weakref.ref(self))

        def add(self, series, output):
            super().add(series, output)
            alive.extend(weakref.ref(o) for o in self._series[series][-1:])

    monkeypatch.setattr(recording_room, "OutputStore", Watched)
    pipe, _ = tiny_dit(scheduler=DDIMScheduler(clip_sample=False))
    tuner = Tuner(pipe, [{**c, "num_inference_steps": 12} for c in (*CALLS, *CALLS)])
    gc.collect()
    assert most == [0, 0, 0, 0]
    assert not any(ref() is not None for ref in alive)
    assert tuner.total == 12


def test_a_full_temporary_folder_is_one_line(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recording_room.tempfile, "TemporaryFile", full)
    pipe, call = tiny_wan()
    generate(pipe, call)
    clean = traces(pipe)
    with pytest.raises(ditaccel.UsageError, match="No space left on device; name a folder"):
        recorded(pipe, call, budget=0)
    assert traces(pipe) == clean and "step" not in vars(pipe.scheduler)


def test_target_of_the_worst_sample_asks_for_more():
    pipe, _ = tiny_dit(scheduler=DDIMScheduler(clip_sample=False))
    lines = []
    tuner = Tuner(pipe, [{**c, "num_inference_steps": 12} for c in CALLS], progress=lines.append)
    run = tuner.check(tuner.plans[0][0])
    assert run.psnr_min < run.psnr and (run.level("mean"), run.level("min")) == (
        run.psnr,
        run.psnr_min,
    )
    assert lines[-1].endswith(f"{run.psnr:.1f} dB, worst {run.psnr_min:.1f} dB")
    easy = tuner.reach(ditaccel.Target(psnr=run.psnr - 1e-6))
    hard = tuner.reach(ditaccel.Target(psnr=run.psnr - 1e-6, statistic="min"))
    assert hard.psnr_min >= run.psnr - 1e-6 > run.psnr_min
    assert hard.computed_share >= easy.computed_share
    with pytest.warns(UserWarning, match="reaches 98 dB for the worst sample; the best has"):
        tuner.at_psnr(98, "min")


def test_mistakes_are_named():
    pipe, _ = tiny_dit()
    target = ditaccel.Target(computed_share=0.5)
    with pytest.raises(
        ditaccel.UnsupportedError,
        match="whose steps are linear; this one clips",
    ):
        ditaccel.tune(pipe, CALLS, target, num_inference_steps=6)  # this DDIM clips
    with pytest.raises(ditaccel.UsageError, match="at least one prompt"):
        ditaccel.tune(pipe, [], target)
    two, call = tiny_wan22()
    with pytest.raises(ditaccel.UsageError, match="sets output_type itself"):
        ditaccel.tune(two, [call], target)
    with pytest.raises(ditaccel.UsageError, match="item 0 of prompts is of type int"):
        ditaccel.tune(pipe, [3], target)
    still, _ = tiny_dit(scheduler=DDIMScheduler(clip_sample=False))
    with pytest.raises(ditaccel.ConfigError, match="2 steps leave nothing to skip"):
        ditaccel.tune(still, CALLS, target, num_inference_steps=2)
    with pytest.raises(ditaccel.ConfigError, match="memory_budget is 'lots'"):
        ditaccel.tune(still, CALLS, target, memory_budget="lots")
    with pytest.raises(ditaccel.UsageError, match="memory_budget is -1"):
        ditaccel.tune(still, CALLS, target, memory_budget=-1)
    ditaccel.accelerate(pipe)
    with pytest.raises(ditaccel.UsageError, match="needs the dense pipeline"):
        ditaccel.tune(pipe, CALLS, target)
    with pytest.raises(ditaccel.ConfigError, match="Target"):
        ditaccel.Target()
    with pytest.raises(ditaccel.ConfigError, match="psnr is 120"):
        ditaccel.Target(psnr=120)
    with pytest.raises(ditaccel.ConfigError, match="statistic is 'median'; it must be one of"):
        ditaccel.Target(psnr=30, statistic="median")
    with pytest.raises(ditaccel.ConfigError, match=r"computed_share is 1\.5"):
        ditaccel.Target(computed_share=1.5)


def _measured(levels):
    """Fronts of one plan per share, and a check that gives the levels in `levels`."""
    front = [Plan((0, i + 1), None, share, 1 / share) for i, share in enumerate(levels)]
    given = dict(zip(front, levels.values(), strict=True))
    runs: dict = {}

    def check(plan):
        return runs.setdefault(plan, TuningRun(None, plan.share, (given[plan],), plan.mask))

    return front, check, runs


@pytest.mark.parametrize("target", [20.0, 28.0, 31.0, 31.9, 35.0, 45.0])
@pytest.mark.parametrize(
    "levels",
    [
        (20, 25, 31.9, 27, 28.6),  # the dearest is not the best
        (12, 40, 14, 41, 16, 42, 18, 43),
        (45, 10, 10, 10, 10, 10),
        (10, 10, 10, 44, 10, 10),
        (20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, 44, 46),
    ],
)
def test_the_cheapest_of_all_that_were_run_is_taken_on_any_front(levels, target):
    shares = [round(0.1 + 0.8 * i / len(levels), 3) for i in range(len(levels))]
    front, check, runs = _measured(dict(zip(shares, levels, strict=True)))
    check(front[len(front) // 3])  # by an earlier search

    def good(run):
        return run.psnr >= target

    found = cheapest_good([front], check, lambda: list(runs.values()), good)
    held = [r for r in runs.values() if good(r)]
    assert found == (min(held, key=lambda r: r.computed_share) if held else None)
    if sorted(levels) == list(levels):
        every = [s for s, level in zip(shares, levels, strict=True) if level >= target]
        assert found is not None and found.computed_share == every[0]


def _with_levels(tuner, levels):
    """Let a tuner believe that plans of so many steps of 100 gave these levels."""
    front = []
    tuner.total = tuner._calls_of_dense = 100
    for share, level in levels.items():
        count = round(100 * share)
        plan = Plan(tuple(range(count)), None, share, 1 / share)
        tuner._known[plan.mask] = Trial(plan.mask, (level,))
        front.append(plan)
    return front


def test_nothing_that_was_run_is_forgotten():
    """The fault: 31.9 dB at share .438 was shown, and 28.6 dB at .5 returned."""
    pipe, _ = tiny_dit(scheduler=DDIMScheduler(clip_sample=False))
    tuner = Tuner(pipe, [{**c, "num_inference_steps": 12} for c in CALLS])
    tuner.plans = [_with_levels(tuner, {0.25: 20.0, 0.44: 31.9, 0.5: 28.6})]
    with pytest.warns(UserWarning, match=r"reaches 35 dB; the best has 31\.9 dB, with 44 %"):
        best = tuner.at_psnr(35)
    assert best.psnr == 31.9 and not best.reaches(ditaccel.Target(psnr=35))
    assert tuner.at_psnr(31).computed_share == 0.44
    assert tuner.at_share(0.5).psnr == 31.9 and tuner.at_share(0.3).psnr == 20.0


def test_a_plan_with_the_longer_warm_up_within_a_decibel_is_taken_and_that_is_said():
    pipe, _ = tiny_dit(scheduler=DDIMScheduler(clip_sample=False))
    lines = []
    tuner = Tuner(pipe, [{**c, "num_inference_steps": 12} for c in CALLS], progress=lines.append)
    tuner.plans = [_with_levels(tuner, {0.4: 30.0}), _with_levels(tuner, {0.41: 30.6})]
    assert tuner.at_share(0.5).psnr == 30.0
    assert "for its longer warm-up" in lines[-1] and "only 0.6 dB more" in lines[-1]


def test_plans_of_nearly_all_steps_are_on_the_front():
    _, first = trajectory()
    _, difference = trajectory(seed=1)
    assert plans(first, None, warmup=1)[-1].share == pytest.approx(8 / 9)
    front = plans(first, replace(difference, response=3.0 * difference.response), 1)
    assert 0.8 < front[-1].share < 1.0


def test_long_runs_are_announced(monkeypatch):
    pipe, _ = tiny_dit(scheduler=DDIMScheduler(clip_sample=False))
    monkeypatch.setattr("ditaccel.tuning.tuner._LONG", -1.0)
    lines = []
    Tuner(pipe, [{**c, "num_inference_steps": 12} for c in CALLS], progress=lines.append)
    assert lines[1].startswith("a dense run takes") and "2 of them, then 4 plans" in lines[1]
