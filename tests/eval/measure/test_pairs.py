"""Speed-ups on a machine with busy moments: right, or marked; never one that cannot be true."""

import numpy as np
import pytest
from busy_machine import FRAMES, Machine
from ditaccel.eval.comparison.sampler import Sample
from ditaccel.eval.comparison.turns import GIVE_UP, REPEATS, Turns, in_turn
from ditaccel.eval.measure.pairs import Dense, Pair, State, Timed, control_state, timed
from ditaccel.eval.measure.timing import Timing
from ditaccel.eval.specs import baselines, parse_config

ROWS = [*baselines(50, [25, 17, 12]), *parse_config("presets=safe|balanced|fast")]
WORK = {
    "dense": 1.0, "other-seed": 1.0, "steps-25": 0.5, "steps-17": 0.34, "steps-12": 0.24,
    "safe": 0.8, "balanced": 0.5, "fast": 1.0,
}  # fmt: skip


def measure(machine: Machine, samples: int) -> tuple[dict[str, Timed], bool, str]:
    """All rows on some samples, and what the control row says of the table."""
    turns = Turns(machine.run)
    pairs: dict[str, list[list[Pair]]] = {row.id: [] for row in ROWS}
    for turn in range(samples):
        sample = Sample(f"p{turn:03d}-s0", "x", 0)
        dense, *others = in_turn(ROWS, turn)
        turns.dense_runs.append(machine.run(dense, sample).timing)
        for row in others:
            pairs[row.id].append(turns.timed(dense, row, sample, FRAMES, turn)[1])
    reference = Dense.of(turns.dense_runs)
    found = {}
    for row in ROWS[1:]:
        share = WORK[row.id]
        skips = share < 1 or row.role == "other_seed"
        shares, bounds = [share] * samples, [1 / share] * samples
        found[row.id] = timed(pairs[row.id], shares, bounds, [reference] * samples, skips)
    return found, *control_state(found["other-seed"])


@pytest.mark.parametrize("samples", [2, 3, 8])
@pytest.mark.parametrize(("clock", "queue"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("busy", [0.0, 0.3, 1.0])
def test_no_speed_up_is_wrong_and_unmarked(
    samples: int, clock: bool, queue: bool, busy: float
) -> None:
    """In 20 runs: what is not marked noisy lies within 10 % of a quiet machine's."""
    good = total = 0
    for seed in range(20):
        machine = Machine(WORK, np.random.default_rng(seed), busy, clock, queue)
        found, trusted, words = measure(machine, samples)
        for name, took in found.items():
            total += 1
            if not trusted or took.state in (State.NOISY, State.IMPOSSIBLE):
                continue
            good += 1
            assert took.speedup is not None
            assert took.speedup["median"] == pytest.approx(machine.truth(name), rel=0.1), seed
        assert ("noise of this table" in words) == trusted
    # Marking everything would be no answer: with a clock of its own nearly all can be told.
    assert good > 0.9 * total if clock or not busy else good < total


def test_without_another_clock_and_a_run_queue_noise_is_still_marked() -> None:
    """Nothing but wall-clock: what passes for quiet is right, but for a rare even stretch."""
    wrong = good = total = 0
    for seed in range(60):
        machine = Machine(WORK, np.random.default_rng(seed), 0.3, clock=False, queue=False)
        found, trusted, _ = measure(machine, 3)
        for name, took in found.items():
            total += 1
            if trusted and took.state is State.OK and took.speedup is not None:
                good += 1
                wrong += abs(took.speedup["median"] / machine.truth(name) - 1) > 0.15
                assert took.speedup["median"] <= 1.05 / WORK[name]
    assert good > 0.3 * total and wrong <= 0.02 * good


def test_a_busy_moment_is_measured_again_and_a_busy_machine_is_given_up() -> None:
    def count(busy: float) -> tuple[int, int]:
        machine = Machine(WORK, np.random.default_rng(1), busy)
        found, _, _ = measure(machine, 4)
        return machine.runs, sum(took.busy for took in found.values())

    rows, samples = len(ROWS) - 1, 4
    quiet, _ = count(0.0)
    assert quiet == samples * (1 + 2 * rows)
    some, left = count(0.25)
    assert quiet < some <= quiet + 2 * REPEATS * samples * rows
    assert left <= 2
    always, left = count(1.0)
    assert always <= quiet + 2 * (GIVE_UP + REPEATS)
    assert left == samples * rows


def timing(wall: float, process: float | None = None, wait: float | None = None) -> Timing:
    return Timing(wall, process, None, wait)


def test_the_figures_that_were_seen() -> None:
    """Dense by wall-clock 2.5 to 3.6 s beside other work, .40 to .45 s by process time."""
    dense = [timing(w, p, w - p) for w, p in ((2.53, 0.41), (3.57, 0.45), (2.9, 0.43))]
    reference = Dense.of(dense)
    other = [timing(w, p, w - p) for w, p in ((1.26, 0.42), (0.9, 0.44))]
    control = timed(
        [[Pair(d, r)] for d, r in zip(dense, other, strict=False)],
        [1, 1],
        [1, 1],
        [reference] * 2,
        True,
    )
    assert control.wall is not None and control.wall > 2.8  # "dense, another seed 2.83x"
    assert control.speedup is not None and control.speedup["median"] == pytest.approx(1.0, abs=0.03)
    assert control.clock == "process time" and control_state(control)[0]
    # "25 steps 5.62x": by its own clock it is what half of the steps can be.
    half = [timing(w, p, w - p) for w, p in ((0.45, 0.22), (0.7, 0.23))]
    took = timed(
        [[Pair(d, r)] for d, r in zip(dense, half, strict=False)],
        [0.5, 0.5], [2.0, 2.0], [reference] * 2, True,
    )  # fmt: skip
    assert took.state is State.OK and took.speedup is not None
    assert took.speedup["median"] == pytest.approx(1.91, abs=0.05)
    assert took.wall is not None and took.wall > 5


def test_what_the_work_does_not_allow_is_refused() -> None:
    """80 % computed and 1.37x: the bound is 1.25x."""
    pairs = [[Pair(timing(2.0), timing(1.46))], [Pair(timing(2.02), timing(1.47))]]
    reference = Dense.of([timing(2.0), timing(2.02)])
    took = timed(pairs, [0.8, 0.8], [1.25, 1.25], [reference] * 2, True)
    assert took.state is State.IMPOSSIBLE
    assert "1.37× was measured, and the work it did allows 1.25×" in took.reason
    # Sparse attention has no such bound: its layers all run.
    assert timed(pairs, [1.0, 1.0], [None, None], [reference] * 2, True).state is State.OK


def test_a_row_that_skips_nothing_has_no_state_of_a_result() -> None:
    pairs = [[Pair(timing(2.0), timing(1.2))]]
    took = timed(pairs, [1.0], [1.0], [Dense.of([timing(2.0)])], False)
    assert took.state is State.UNSKIPPED


def test_several_threads_do_not_pass_for_noise() -> None:
    """Dense keeps two cores busy, forecasts one: process time is not what a user waits for."""
    pair = Pair(timing(1.0, 1.9, 0.001), timing(0.5, 0.7, 0.001))
    assert not pair.busy and pair.ratio == 2.0
    throttled = Pair(timing(2.0, 1.0, 0.0), timing(0.5, 0.49, 0.0))
    assert throttled.busy and throttled.ratio == pytest.approx(1.0 / 0.49)


def test_pairs_come_back_from_their_lines() -> None:
    pair = Pair(Timing(2.0, 1.9, None, 0.1, 1.8), Timing(1.0, None, 0.9))
    assert Pair.from_dict(pair.to_dict()) == pair
    assert pair.to_dict()["row"] == {"seconds": 1.0, "device": 0.9}


def test_work_that_varies_from_sample_to_sample_is_no_noise() -> None:
    """An adaptive method computes half of one sample and a quarter of the next."""
    shares = [0.5, 0.25, 0.4]
    pairs = [[Pair(timing(2.0), timing(2.0 * share))] for share in shares]
    dense = [Dense.of([timing(2.0)])] * 3
    took = timed(pairs, shares, [1 / s for s in shares], dense, True)
    assert took.state is State.OK
    even = timed(pairs, [0.4] * 3, [None] * 3, dense, True)
    assert even.state is State.NOISY and "its pairs differ by" in even.reason


@pytest.mark.parametrize(
    ("low", "middle", "high", "trusted"),
    [(0.99, 1.0, 1.01, True), (0.97, 0.98, 1.0, True), (0.9, 0.92, 0.94, False),
     (0.95, 1.06, 1.2, False), (1.4, 2.83, 3.1, False)],
)  # fmt: skip
def test_the_control_row_is_the_noise_of_the_table(
    low: float, middle: float, high: float, trusted: bool
) -> None:
    control = Timed(State.OK, "", {"median": middle, "p25": low, "p75": high})
    found, words = control_state(control)
    assert found == trusted and f"{middle:.2f}× [{low:.2f}, {high:.2f}]" in words
    assert ("measure again on a quiet machine" in words) == (not trusted)


def test_a_table_without_its_control_row_is_not_trusted() -> None:
    assert not control_state(Timed(State.UNTIMED, "", None))[0]
