"""Changes of masks, trials that are given up early and remembered, and the search over them."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pytest

import ditaccel
from ditaccel.tuning.masks import Mask, Moves
from ditaccel.tuning.quality import MOST_PSNR, level_of
from ditaccel.tuning.refine import Goal, Refinement
from ditaccel.tuning.trials import Journal, Trials, is_hopeless

MOVES = Moves(12, frozenset({0, 1, 11}))
START = Mask((0, 1, 4, 8, 11), (0, 1, 8, 11))


def draws(mask, kind, count=300, moves=MOVES):
    random = Random(0)
    found = {moves.proposed(mask, (kind,), random, lambda m: m == mask) for _ in range(count)}
    return found - {None}


@pytest.mark.parametrize("start", [START, Mask((0, 1, 4, 8, 11)), Mask((0, 1, 5, 11), (0, 1, 11))])
@pytest.mark.parametrize("kind", ["move", "trade", "order", "drop", "add"])
def test_changes_make_masks_that_can_be_run(start, kind):
    found = draws(start, kind)
    assert found or (kind == "trade" and start is not START)
    for mask in found:
        assert mask != start and mask == mask.plain
        assert list(mask.steps) == sorted(set(mask.steps)) and {0, 1, 11} <= set(mask.steps)
        assert set(mask.steps) <= set(range(12))
        assert (mask.others is None) == (start.others is None)
        if mask.others is not None:
            assert {0, 1, 11} <= set(mask.others) <= set(mask.steps)
            assert list(mask.others) == sorted(set(mask.others))
        more = mask.calls - start.calls
        assert more in {"drop": (-1, -2), "add": (1,)}.get(kind, (0,))
        mask.config(12).cache.policy()  # a config that its own checks take


def test_every_move_of_one_step_is_drawn(monkeypatch):
    monkeypatch.setattr("ditaccel.tuning.masks._TWICE", 0.0)
    start = Mask((0, 1, 5, 11))
    assert draws(start, "move", 600) == {Mask((0, 1, s, 11)) for s in (2, 3, 4, 6, 7, 8, 9, 10)}
    # between steps 0 and 1 nothing is forecast, and after the last one neither
    assert draws(start, "order", 300) == {
        Mask(start.steps, None, orders) for orders in ((1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 2, 1))
    }


def test_orders_go_with_the_step_at_which_their_gap_begins(monkeypatch):
    monkeypatch.setattr("ditaccel.tuning.masks._TWICE", 0.0)
    start = Mask((0, 1, 5, 8, 11), None, (1, 0, 2, 0, 1))
    for mask in draws(start, "move"):
        before, after = dict(zip(start.steps, start.orders, strict=True)), mask.orders
        expected = tuple(before.get(step, 1) for step in mask.steps)
        assert (after or (1,) * 5) == expected


# -- trials


def runs_of(levels_of, log=None):
    """A `run` that gives levels per mask, one per pair, and notes how many were asked for."""

    def run(mask):
        for i, level in enumerate(levels_of(mask)):
            if log is not None:
                log.append((mask, i))
            yield [level]

    return run


BASE = [30.0, 34.0, 28.0, 32.0, 31.0, 29.0, 33.0, 27.0]


def test_a_better_plan_with_a_bad_start_is_not_given_up():
    """Worse by 1.1 dB on both first pairs, better by 2 on the others: it wins, and must be seen."""
    better = [b + d for b, d in zip(BASE, [-1.1, -1.1, 2, 2, 2, 2, 2, 2], strict=True)]
    assert np.mean(better) > np.mean(BASE)
    log: list = []
    trials = Trials(runs_of(lambda mask: better, log), 8, "mean")
    trial = trials.tried(START, BASE)
    assert trial.complete and len(log) == 8


def test_a_plan_that_loses_by_far_is_given_up_after_the_first_pairs():
    log: list = []
    trials = Trials(runs_of(lambda mask: [b - 6 for b in BASE], log), 8, "mean")
    trial = trials.tried(START, BASE)
    assert not trial.complete and len(log) == 2
    assert trials.tried(START, BASE) is trial and len(log) == 2
    assert trials.tried(START).complete, "run in full where that is asked for"


@pytest.mark.parametrize("statistic", ["min", "p10"])
def test_of_the_worst_samples_giving_up_is_certain(statistic):
    """Whatever the remaining samples are: checked against the best that they could be."""
    random = np.random.default_rng(0)
    given_up = 0
    for _ in range(300):
        levels = list(random.normal(30, 3, 8))
        to_beat = list(random.normal(30, 3, 8))
        for done in range(1, 8):
            best = [*levels[:done], *[MOST_PSNR] * (8 - done)]
            loses = level_of(best, statistic) <= level_of(to_beat, statistic)
            assert is_hopeless(levels[:done], to_beat, statistic, 1.0) == loses
            given_up += loses
        assert not is_hopeless(levels, to_beat, statistic, 1.0)
    assert given_up > 100


def test_of_the_mean_better_plans_are_hardly_ever_given_up():
    """Differences that scatter by 2 dB around a gain of 0.3 dB; 2 deviations are one in 40."""
    random = np.random.default_rng(1)
    lost = won = 0
    for _ in range(2000):
        differences = random.normal(0.3, 2.0, 8)
        if differences.mean() <= 0:
            continue
        won += 1
        levels = np.add(BASE, differences)
        lost += any(is_hopeless(levels[:m], BASE, "mean", 2.0) for m in range(1, 8))
    assert won > 1000 and lost / won < 0.02


def test_trials_are_remembered_over_a_kill(tmp_path):
    path, log = tmp_path / "trials.jsonl", []
    levels = {START: BASE, Mask((0, 3), None, (0, 2)): [b - 6 for b in BASE]}
    for mask in levels:
        Trials(runs_of(levels.get), 8, "mean", journal=Journal(path, "a")).tried(mask, BASE)
    with path.open("ab") as file:
        file.write(b'{"steps": [0, 5], "lev')  # killed while writing
    again = Trials(runs_of(levels.get, log), 8, "mean", journal=Journal(path, "a"))
    for mask, expected in levels.items():
        trial = again.tried(mask, BASE)
        assert trial.levels == tuple(expected[: len(trial.levels)])
        assert trial.complete == (mask == START)
    assert not log
    again.tried(Mask((0, 3), None, (0, 2)))
    assert len(log) == 8, "one that was given up is run again where all of it is asked for"
    third = Journal(path, "a")
    assert third.known[Mask((0, 3), None, (0, 2))] == tuple(b - 6 for b in BASE)


def test_a_file_of_another_search_is_refused(tmp_path):
    path = tmp_path / "trials.jsonl"
    Trials(runs_of(lambda mask: BASE), 8, "mean", journal=Journal(path, "a")).tried(START)
    with pytest.raises(ditaccel.UsageError, match=r"remembers another search .* name another file"):
        Journal(path, "b")
    path.write_text('{"search": "a"}\n{"steps": "all", "levels": []}\n')
    with pytest.raises(ditaccel.UsageError, match="line 2 is damaged: steps must be a list"):
        Journal(path, "a")
    path.write_text("")
    assert not Journal(path, "b").known


@pytest.mark.parametrize(("gains", "taken"), [((1, 1, 1, 2), True), ((9, -3, -3, -1), False)])
def test_a_gain_that_one_lucky_sample_makes_is_not_taken(gains, taken):
    start, other = Mask((0, 1, 4, 11)), Mask((0, 1, 5, 11))
    base = [30.0, 31.0, 29.0, 32.0]
    levels = {start: base, other: [b + g for b, g in zip(base, gains, strict=True)]}
    trials = Trials(runs_of(levels.get), 4, "mean")
    assert sum(gains) > 0
    assert trials.surpasses(trials.tried(other), trials.tried(start)) == taken
    search = Refinement(trials, MOVES, Goal(calls=4), Random(0))
    assert search._is_better(trials.tried(other), trials.tried(start)) == taken
    worst = Trials(runs_of(levels.get), 4, "min")
    assert worst.surpasses(worst.tried(other), worst.tried(start))


# -- the search, where the best mask is known


def toy(mask, total=12):
    """Level per pair: known best are the steps of a square grid, and order 2 in the last gap."""
    outputs = np.linspace(0, 1, total) ** 3
    error, orders = 0.0, mask.orders or (1,) * len(mask.steps)
    for i, (start, end) in enumerate(itertools.pairwise(mask.steps)):
        nodes = mask.steps[: i + 1][-(orders[i] + 1) :]
        for at in range(start + 1, end):
            guess = sum(
                outputs[n] * np.prod([(at - m) / (n - m) for m in nodes if m != n]) for n in nodes
            )
            error += (guess - outputs[at]) ** 2
    level = 10 * np.log10(1 / max(error, 1e-9))
    return [level + d for d in (0.0, 1.0, -1.0, 0.5)]


def search(goal, method, start, count=400, seed=0, moves=MOVES, over=lambda: False):
    told: list = []
    refinement = Refinement(
        Trials(runs_of(toy), 4, "mean"),
        moves,
        goal,
        Random(seed),
        told=lambda level, calls: told.append((level, calls)),
        over=over,
    )
    return getattr(refinement, method)(start, count), told


def best_of_all(count):
    """The known optimum, by trying every mask of so many steps with every order."""
    found = []
    for middle in itertools.combinations(range(2, 11), count - 3):
        steps = (0, 1, *middle, 11)
        places = range(1, count - 1)
        for orders in itertools.product(*[[o for o in (0, 1, 2) if o <= i] for i in places]):
            mask = Mask(steps, None, (1, *orders, 1)).plain
            found.append((np.mean(toy(mask)), mask))
    return max(found, key=lambda f: f[0])


@pytest.mark.parametrize("method", ["climb", "anneal"])
def test_the_known_optimum_is_found_at_a_fixed_number_of_calls(method):
    level, _ = best_of_all(5)
    start = Mask((0, 1, 2, 3, 11))
    found, told = search(Goal(calls=5), method, start)
    assert found.mask.calls == 5
    assert np.mean(found.levels) == pytest.approx(level, abs=0.05)
    assert [t[0] for t in told] == sorted(t[0] for t in told), "the best never gets worse"


def test_towards_a_level_steps_are_dropped_and_never_below_it():
    start = Mask((0, 1, 2, 3, 4, 5, 6, 8, 11))
    target = float(np.mean(toy(Mask((0, 1, 4, 7, 11)))))
    found, told = search(Goal(psnr=target), "climb", start)
    assert np.mean(found.levels) >= target and found.mask.calls <= 5
    assert [t[1] for t in told] == sorted((t[1] for t in told), reverse=True)


def test_below_a_level_steps_are_added_until_it_is_reached():
    start = Mask((0, 1, 11))
    target = float(np.mean(toy(Mask((0, 1, 4, 7, 11)))))
    assert np.mean(toy(start)) < target
    found, _ = search(Goal(psnr=target), "climb", start)
    assert np.mean(found.levels) >= target and found.mask.calls <= 6


def test_a_search_ends_where_nothing_is_left_or_the_time_is_up():
    moves = Moves(4, frozenset({0, 1, 3}))
    found, told = search(Goal(calls=3), "climb", Mask((0, 1, 3)), moves=moves)
    assert found.mask.steps == (0, 1, 3) and len(told) <= 2
    _, told = search(Goal(calls=5), "climb", Mask((0, 1, 4, 8, 11)), over=lambda: True)
    assert not told


def test_the_same_draws_meet_the_same_answers(tmp_path):
    """A search that was killed continues: what it had run is not run again."""
    path, log = tmp_path / "trials.jsonl", []

    def climbed(count, log):
        trials = Trials(runs_of(toy, log), 4, "mean", journal=Journal(path, "a"))
        refinement = Refinement(trials, MOVES, Goal(calls=5), Random(3))
        return refinement.climb(Mask((0, 1, 2, 3, 11)), count)

    climbed(20, [])
    there = path.read_bytes()
    assert climbed(20, log) and not log and path.read_bytes() == there
    whole = climbed(60, log)
    path.unlink()
    assert climbed(60, []).mask == whole.mask
