"""Promises with a confidence: the exact test, and how often a promise is broken."""

import numpy as np
import pytest
from diffusers import DDIMScheduler
from scipy.stats import beta, binom
from tiny import tiny_dit

import ditaccel
from ditaccel import ConfigError, Target
from ditaccel.tuning.promise import (
    LOOKS,
    Promise,
    allowed,
    chance,
    first_that_holds,
    least_runs,
    spread,
    surely_reached,
)
from ditaccel.tuning.tuner import Tuner

PROMISE = Promise(30.0, 0.9, 0.95)


@pytest.mark.parametrize(("runs", "missed", "share"), [(42, 0, 0.9), (60, 3, 0.9), (999, 40, 0.95)])
def test_chances_and_bounds_are_the_binomials(runs, missed, share):
    assert chance(runs, missed, share) == pytest.approx(binom.cdf(missed, runs, 1 - share))
    # Clopper and Pearson's lower bound
    bound = beta.ppf(0.05, runs - missed, missed + 1)
    assert surely_reached(runs, missed, 0.05) == pytest.approx(bound, rel=1e-9)


def test_how_many_prompts_a_promise_takes():
    assert least_runs(0.9, 0.05) == 29  # 0.9^29 < 0.05 < 0.9^28
    assert PROMISE.least == 42 and 0.9**42 < 0.05 / LOOKS < 0.9**41
    for missed in (0, 1, 5):
        runs = least_runs(0.8, 0.01, missed)
        assert allowed(runs, 0.8, 0.01) == missed and allowed(runs - 1, 0.8, 0.01) == missed - 1
    assert allowed(41, 0.9, PROMISE.doubt) == -1
    with pytest.raises(
        ditaccel.UsageError, match=r"needs at least 42 prompts .*\(79 prompts if 2 of them may\)"
    ):
        PROMISE.check_count(41, 8)
    PROMISE.check_count(42, 8)


def each(levels):
    yield from levels


def broken(shares, runs, seeds=400):
    """How often a promise is broken, and what is taken, over many draws of held-out samples.

    Args:
        shares: true share of samples that reach the level, by config, the least costly first.
        runs: held-out samples.
        seeds: draws.
    """
    taken = []
    for seed in range(seeds):
        reached = (
            np.random.default_rng(seed).random((len(shares), runs)) < np.array(shares)[:, None]
        )
        levels = np.where(reached, 31.0, 20.0)
        tests = first_that_holds(PROMISE, range(len(shares)), lambda i, x=levels: each(x[i]), runs)
        taken.append(len(tests) - 1 if tests[-1].held else None)
    bad = [i for i in taken if i is not None and shares[i] < PROMISE.share]
    return len(bad) / seeds, taken


@pytest.mark.parametrize("runs", [42, 76, 200])
@pytest.mark.parametrize("shares", [[0.8999] * LOOKS, [0.5, 0.7, 0.85, 0.8999], [0.88, 0.89, 0.99]])
def test_a_promise_is_broken_no_more_often_than_it_says(shares, runs):
    rate, _ = broken(shares, runs)
    # 400 draws of 5 % give more than 8 % once in 300 times
    assert rate <= 0.08


def test_without_the_correction_it_would_be_broken_too_often():
    """That the test above can fail: four looks at 5 % each, all of them just short."""
    runs = least_runs(0.9, 0.05)
    reached = np.random.default_rng(0).random((400, LOOKS, runs)) < 0.8999
    missed = (~reached).sum(-1)
    assert (missed <= allowed(runs, 0.9, 0.05)).any(-1).mean() > 0.12


def test_levels_that_depend_on_the_prompt_are_no_way_around():
    """Configs fail on the same prompts: their tests err together, never more often."""
    wrong = 0
    for seed in range(400):
        hard = np.random.default_rng(seed).random(76)
        levels = [np.where(hard < share, 31.0, 20.0) for share in (0.87, 0.88, 0.89, 0.8999)]
        wrong += first_that_holds(PROMISE, range(4), lambda i, x=levels: each(x[i]), 76)[-1].held
    assert wrong / 400 <= 0.08


def test_the_least_costly_that_is_good_enough_is_taken_mostly():
    _, taken = broken([0.7, 0.98, 0.995, 1.0], 120)
    assert taken.count(1) / len(taken) > 0.9
    _, taken = broken([0.6, 0.7, 0.8], 120)
    assert taken.count(None) / len(taken) > 0.99


def test_what_cannot_be_saved_is_given_up():
    asked = []

    def levels(config):
        for i in range(42):
            asked.append(config)
            yield 20.0 if config == "bad" and i == 3 else 30.0

    tests = first_that_holds(PROMISE, ["bad", "good"], levels, 42)
    assert asked.count("bad") == 4 and asked.count("good") == 42
    assert [(len(t.levels), t.missed, t.held) for t in tests] == [(4, 1, False), (42, 0, True)]


def test_what_is_looked_at_costs_more_and_more():
    shares = [0.1, 0.2, 0.22, 0.25, 0.3, 0.32, 0.4, 0.9]
    assert [shares[i] for i in spread(shares, 0.2)] == [0.2, 0.25, 0.32, 0.4]
    assert [shares[i] for i in spread(shares, 0.9)] == [0.9]


def dit():
    return tiny_dit(layers=2, scheduler=DDIMScheduler(clip_sample=False))[0]


def test_tune_promises_a_config_or_says_that_it_cannot():
    pipe, lines = dit(), []
    calls = [{"class_labels": [i % 10], "num_inference_steps": 6} for i in range(8)]
    target = Target(psnr=12, share=0.5, confidence=0.9)
    assert target.promise.least == 6
    config = ditaccel.tune(pipe, calls, target, pairs=2, progress=lines.append)
    assert "12 dB for 50 % of the samples with 90 % confidence" in config.label
    assert lines[-1].startswith("promised: ") and " of 6 held-out prompts" in lines[-1]
    hard = Target(psnr=98, share=0.5, confidence=0.9)
    with pytest.warns(UserWarning, match="no config can be promised to reach 98 dB for 50 %"):
        config = ditaccel.tune(pipe, calls, hard, pairs=2)
    assert "dB for" not in config.label
    with pytest.raises(
        ditaccel.UsageError, match=r"at least 6 prompts besides the 3 .*there are 5"
    ):
        ditaccel.tune(pipe, calls, target, pairs=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"computed_share": 0.5, "share": 0.9}, "share and confidence go with psnr"),
        ({"psnr": 30, "confidence": 0.9}, "confidence is of a share"),
        ({"psnr": 30, "share": 1.0}, "share is 1.0; give a part of 1"),
        ({"psnr": 30, "share": 0.9, "confidence": 1.0}, "confidence is 1.0; give a part of 1"),
        ({"psnr": 30, "share": 0.9, "statistic": "min"}, "leave statistic out"),
    ],
)
def test_unusable_promises_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Target(**options)


def test_held_out_runs_are_not_made_again_after_a_kill(tmp_path, monkeypatch):
    """Neither dense nor with a config; and what is promised is the same."""
    calls = [{"class_labels": [i % 10], "num_inference_steps": 6} for i in range(8)]
    refine = ditaccel.Refine(trials=0, resume=tmp_path / "kept.jsonl")
    made = []
    generate = Tuner._generate
    monkeypatch.setattr(
        Tuner, "_generate", lambda self, call, seed: made.append(seed) or generate(self, call, seed)
    )

    def promised():
        tuner = Tuner(dit(), calls[:2], refine=refine)
        del made[:]
        return tuner.promised(Promise(12.0, 0.5, 0.9), calls[2:])

    first = promised()
    held_out = [seed for seed in made if seed >= 2]
    assert len(held_out) >= 12  # dense, and with a config
    again = promised()
    assert not [seed for seed in made if seed >= 2]
    assert again.run.config == first.run.config and again.run.levels == first.run.levels
