"""`make demo` without models: what it says when they are missing, and its start page."""

from collections.abc import Callable
from pathlib import Path

import pytest
from ditaccel.eval.report.page import write_report
from ditaccel.eval.shapes import demo
from ditaccel.eval.specs import build

Writer = Callable[..., Path]


def test_missing_samples_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = demo.main(["--samples", str(tmp_path), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1 and "none of the sample models" in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("plan", demo.PLANS, ids=lambda plan: plan.model)
def test_plans_parse(plan: demo.Plan) -> None:
    rows = build(plan.configs, plan.steps, plan.fewer)
    roles = {row.role for row in rows}
    assert {"dense", "other_seed", "fewer_steps", "method"} <= roles


def test_start_page_leads_to_the_reports(
    write_evaluation: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples, out = tmp_path / "samples", tmp_path / "out"
    for name in ("shapes-flux",):
        (samples / name).mkdir(parents=True)
        (samples / name / "model_index.json").write_text("{}")

    def evaluate(plan: demo.Plan, folder: Path, target: Path) -> Path:
        run = write_evaluation(target / plan.model, video=False, samples=1)
        write_report(run)
        return run

    monkeypatch.setattr(demo, "_evaluate", evaluate)
    assert demo.main(["--samples", str(samples), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.strip().splitlines()[-1] == f"report: {out / 'index.html'}"
    assert "CG-Taylor θ=0.0  " in said and "nothing skipped" in said and "Best row: " in said
    assert "not in this checkout: shapes-wan" in said
    page = (out / "index.html").read_text()
    for name in ("shapes-flux",):
        assert f'href="{name}/report.html"' in page
        assert (out / name / "report.html").is_file()
    assert "http://" not in page and "https://" not in page
