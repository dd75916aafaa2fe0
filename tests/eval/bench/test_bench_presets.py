"""The benches of presets and of the calibration: on a sample, and on the committed runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from ditaccel.eval.bench import calibration, presets

from ditaccel import cli
from ditaccel.errors import UsageError
from ditaccel.reports.expectation import MEASURED, Calibration

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "eval" / "bench" / "results"
SAMPLES = ROOT / "samples" / "models"


def row(config, psnr, computed, left="0.01", steps=25, model="m"):
    return {
        "model": model,
        "config": config,
        "steps": steps,
        "seed": 0,
        "prompt": "a",
        "psnr": psnr,
        "computed": computed,
        "left": left,
    }


def test_disorder_is_named():
    rows = [row("safe", 50, 0.9), row("balanced", 40, 0.6), row("fast", 41, 0.4)]
    assert presets.disorder(rows) == ["m at 25 steps: balanced against fast: 40.0 dB, 41.0 dB"]
    rows = [row("safe", 50, 0.5), row("balanced", 40, 0.6), row("fast", 30, 0.4)]
    assert presets.disorder(rows) == ["m at 25 steps: safe against balanced: computed 0.500, 0.600"]
    assert not presets.disorder([row("safe", 50, 0.9), row("fast", 30, 0.4)])


def test_a_line_is_found_again_and_its_interval_holds_what_it_says():
    def runs(model):
        spread = (-9.0, -3.0, -1.0, 0.0, 1.0, 2.0, 3.0, 3.0, 2.0, 2.0)
        for i in range(100):
            left = 10 ** (-1 - i / 50)
            psnr = 20 - 10 * (-1 - i / 50) + spread[i % 10]
            yield row("c", psnr, 0.5, str(left), model=model)

    found = calibration.fit([*runs("one"), *runs("two")])
    assert found.slope == pytest.approx(10, abs=0.5) and found.level == pytest.approx(20, abs=1)
    shares = calibration.coverage(found, list(runs("one")))
    assert shares["one"] == pytest.approx(0.8, abs=0.05)
    with pytest.raises(UsageError, match="too few to fit"):
        calibration.fit(list(runs("one"))[:3])


def test_the_constants_in_force_are_those_of_the_committed_runs():
    assert calibration.fit(presets.read(RESULTS / "calibration.csv")) == MEASURED


def test_the_interval_holds_on_runs_that_it_was_not_fitted_on():
    fitted = presets.read(RESULTS / "calibration.csv")
    tested = presets.read(RESULTS / "presets.csv")
    for what in ("seed", "config"):
        assert not {r[what] for r in fitted} & {r[what] for r in tested}
    shares = calibration.coverage(MEASURED, tested)
    assert set(shares) == {"shapes-dit", "shapes-flux", "shapes-wan"}
    assert all(share >= 0.6 for share in shares.values())
    assert sum(shares.values()) / len(shares) >= MEASURED.coverage - 0.1


def test_presets_were_in_order_where_they_were_measured():
    rows = presets.read(RESULTS / "presets.csv")
    assert presets.disorder(rows) == []
    steps = {(r["model"], int(r["steps"])) for r in rows}
    models = ("shapes-dit", "shapes-flux", "shapes-wan")
    assert steps == {(m, s) for m in models for s in (8, 16, 25, 50)}


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"other.csv is not a table of `ditaccel bench presets`"):
        presets.read(path)
    assert cli.main(["bench", "calibration", str(tmp_path / "none.csv")]) == 2


def test_presets_are_in_order_on_a_few_steps_of_a_sample(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    model = str(SAMPLES / "shapes-dit")
    few = ["--steps", "16", "--seeds", "100", "105", "--out", str(out)]
    assert cli.main(["bench", "presets", model, *few]) == 0
    assert "Presets are in order." in capsys.readouterr().out
    rows = presets.read(out)
    assert len(rows) == 2 * 3 and {r["model"] for r in rows} == {"shapes-dit"}
    assert (
        cli.main(["bench", "calibration", str(RESULTS / "calibration.csv"), "--test", str(out)])
        == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "seeds", "steps"),
    [
        ("shapes-dit", 8, "8 16 25 50"),
        ("shapes-flux", 8, "8 16 25 50"),
        ("shapes-wan", 1, "8 25"),  # of one clip alone: at 16 steps its order is chance
    ],
)
def test_presets_are_in_order_on_every_sample(model, seeds, steps):
    chosen = [str(200 + i) for i in range(seeds)]
    command = ["bench", "presets", str(SAMPLES / model), "--seeds", *chosen, "--steps"]
    assert cli.main([*command, *steps.split()]) == 0


def test_safe_is_safe_where_it_once_turned_a_background():
    """At 25 steps it forecast steps 4 and 6, and class 12 came out at 7.6 dB."""
    import torch
    from ditaccel.eval.comparison.sampler import Sampler
    from ditaccel.eval.metrics.psnr import from_mse, mean_squared_error

    import ditaccel
    from ditaccel.io.models import load_pipeline

    torch.set_num_threads(1)
    pipe = load_pipeline(SAMPLES / "shapes-dit")
    sampler = Sampler(pipe, {"guidance_scale": 4.0, "class_labels": [12]}, 25)
    for seed in range(4):
        dense = sampler.generate(pipe, "", seed).frames
        with ditaccel.accelerated(pipe, "safe"):
            frames = sampler.generate(pipe, "", seed).frames
        assert from_mse(mean_squared_error(dense, frames)) > 45


def test_expectations_do_not_leave_the_range_of_psnr():
    line = Calibration(10.0, 20.0, -6.0, 4.0)
    assert line.expect(10.0).low == 0.0 and line.expect(1e-9).high == 70.0
