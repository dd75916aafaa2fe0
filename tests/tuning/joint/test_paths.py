"""The shortest path over steps and modes against brute force, and what an edge costs by hand."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest

from ditaccel.attention.sol import SolConfig
from ditaccel.core.denoising.response import euler
from ditaccel.tuning.joint.modes import AttentionMap
from ditaccel.tuning.joint.paths import JointCosts, JointSearch, Prices, shortest
from ditaccel.tuning.schedule_search import GapCosts, Trajectory

STEPS, SIZE = 6, 40


def recorded(seed=0, modes=2):
    """Outputs, errors of each mode, their trajectory and their Gram matrix."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, STEPS)[:, None]
    outputs = np.sin(3 * time * rng.normal(size=SIZE)) + rng.normal(size=SIZE) * time**2
    alike = rng.normal(size=SIZE)
    errors = [
        (0.05 / (1 + mode)) * (alike + 0.5 * rng.normal(size=(STEPS, SIZE)))
        for mode in range(modes)
    ]
    every = np.concatenate([outputs, *errors])
    response = euler(np.linspace(1, 0, STEPS + 1) ** 1.3, flow=True).latents[:, :-1]
    t = Trajectory(outputs @ outputs.T / SIZE, response, np.zeros(STEPS))
    return outputs, errors, t, every @ every.T / SIZE


def test_dense_steps_cost_what_they_cost_without_attention():
    _, _, t, gram = recorded()
    costs, gaps = JointCosts(t, gram), GapCosts(t)
    assert costs(1, 2, 5, 0, 1.0) == pytest.approx(gaps(1, 2, 5), rel=1e-9)
    assert costs(-1, 0, 1, 0, 1.0) == 0.0


def test_a_sparse_step_leaves_its_error_in_the_latents_and_in_what_is_forecast_of_it():
    outputs, errors, t, gram = recorded()
    costs = JointCosts(t, gram, unseen=0.0)
    e = errors[1]
    # alone, without a gap behind it
    alone = np.mean((t.response[-1, 2] * e[2]) ** 2)
    assert costs(1, 2, 3, 2, 1.0) == pytest.approx(alone, rel=1e-9)
    # step 3 is forecast from 4 (which corrects), 2 and 1, all of them sparse
    weights = t.weights([4, 2, 1], 3)
    made = weights @ (outputs + e)[[4, 2, 1]]
    left = t.response[-1, 2] * e[2] + t.response[-1, 3] * (made - outputs[3])
    assert costs(1, 2, 4, 2, 1.0) == pytest.approx(np.mean(left**2), rel=1e-9)


def test_coherence_is_what_errors_that_are_alike_add_up_to():
    _, errors, t, gram = recorded()
    every = t.response[-1][:, None] * errors[0]
    apart = np.square(every).mean(1).sum()
    found = JointCosts(t, gram).coherence(1)
    assert found == pytest.approx(np.mean(every.sum(0) ** 2) / apart, rel=1e-9) and found > 2


def test_the_weight_is_of_sparse_errors_alone():
    _, _, t, gram = recorded()
    costs = JointCosts(t, gram)
    forecast, full = costs(1, 2, 4, 1, 0.0), costs(1, 2, 4, 1)
    assert costs(1, 2, 4, 1, 0.3) == pytest.approx(forecast + 0.3 * (full - forecast))
    assert costs(1, 2, 4, 0, 0.3) == costs(1, 2, 4, 0)


@pytest.mark.parametrize("worth", [1e-4, 3e-3, 3e-2, 1.0])
def test_the_path_is_the_one_that_brute_force_finds(worth):
    _, _, t, gram = recorded()
    costs, seconds, forced = JointCosts(t, gram), (1.0, 0.4, 0.6), t.forced(1)

    def total(path, modes):
        ends, before = (*path[1:], STEPS), (-1, *path)
        return sum(
            costs(before[i], path[i], ends[i], modes[i], 1.5) + worth * seconds[modes[i]]
            for i in range(len(path))
        )

    def edge(before, at, end):
        return min((costs(before, at, end, m, 1.5) + worth * seconds[m], m) for m in range(3))

    cost, path, modes = shortest(edge, range(STEPS), forced, 12, STEPS)
    every = []
    for count in range(STEPS - 1):
        for middle in combinations(range(1, STEPS - 1), count):
            steps = (0, *middle, STEPS - 1)
            every += [(total(steps, m), steps, m) for m in product(range(3), repeat=len(steps))]
    assert cost == pytest.approx(min(every)[0], rel=1e-12)
    assert total(path, modes) == pytest.approx(cost, rel=1e-12)


def test_plans_trade_seconds_for_error_and_a_joint_front_is_never_above_the_single_ones():
    _, _, t, gram = recorded()
    prices = Prices((1.0, 0.4, 0.6), forecast=0.01)
    attention = AttentionMap.of(SolConfig(), (2.0, 1.0))
    joint = JointSearch(t, None, gram, prices, attention).plans(1)
    caches = JointSearch(t, None, gram[:STEPS, :STEPS], prices).plans(1)
    sparse = JointSearch(t, None, gram, prices, attention, caching=False).plans(1)
    for front in (joint, caches, sparse):
        assert all(a.seconds < b.seconds and a.cost > b.cost for a, b in pairwise(front))
    assert all(len(p.plan.steps) == STEPS and any(p.modes) for p in sparse)
    assert all(not any(p.modes) and p.map is None for p in caches)
    assert joint[0].seconds < min(caches[0].seconds, sparse[0].seconds)
    assert any(any(p.modes) and len(p.plan.steps) < STEPS for p in joint)


def test_a_plan_becomes_a_config_with_a_density_per_step():
    attention = AttentionMap.of(SolConfig(), (2.0, 1.0))
    assert attention.along((0, 1, 5), (0, 0, 0), 8) is None
    made = attention.along((0, 1, 3, 4, 5, 7), (0, 0, 1, 1, 2, 0), 8)
    assert made.dense_parts == ((0.0, 1.5 / 8), (6.5 / 8, 7.5 / 8))
    assert made.schedule == ((3 / 8, 2.0), (4 / 8, 2.0), (5 / 8, 1.0))
    assert made.dense_steps == 0 and made.break_even == 1.0
    level = attention.along((0, 3, 5), (0, 2, 2), 8)
    assert level.schedule == () and level.tau == 1.0
