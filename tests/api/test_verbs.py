"""generate and evaluate from Python: values in, a value out, the same files as the commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_dit

import ditaccel
from ditaccel import ReuseConfig, StepMaskConfig, TaylorSeerConfig
from ditaccel.io.models import load_pipeline

ROOT = Path(__file__).resolve().parents[2]
DIT = ROOT / "samples" / "models" / "shapes-dit"


@pytest.fixture(scope="module")
def pipe():
    made = load_pipeline(DIT)
    made.set_progress_bar_config(disable=True)
    return made


def names(pipe, count):
    return sorted(pipe.labels)[:count]


def test_generate_takes_a_pipeline_and_rows(pipe, tmp_path):
    prompts = names(pipe, 2)
    dense = pipe([pipe.labels[prompts[0]]], num_inference_steps=4).images[0].size
    threads = torch.get_num_threads()
    how = {"call": {"num_inference_steps": 4}, "quiet": True}
    made = ditaccel.generate(pipe, prompts, tmp_path, ReuseConfig(interval=2), seeds=[0, 1], **how)
    assert (made.made, made.done, made.failed) == (4, 4, 0) and made.folder == tmp_path
    assert [r["prompt"] for r in made.results] == [p for p in prompts for _ in range(2)]
    assert {r["status"] for r in made.results} == {"done"}
    assert len(list((tmp_path / "outputs").glob("*.png"))) == 4 and "4 done" in str(made)
    assert not ditaccel.is_accelerated(pipe) and torch.get_num_threads() == threads
    assert pipe([pipe.labels[prompts[0]]], num_inference_steps=4).images[0].size == dense
    again = ditaccel.generate(pipe, prompts, tmp_path, ReuseConfig(interval=2), seeds=[0, 1], **how)
    assert (again.made, again.done) == (0, 4)
    other = ditaccel.generate(pipe, [{"prompt": prompts[0], "seed": 7}], tmp_path, None, **how)
    assert other.made == 1 and other.results[0]["seed"] == 7


def test_what_other_weights_made_is_made_again(tmp_path):
    how = {"call": {"num_inference_steps": 2}, "quiet": True}
    made, _ = tiny_dit()
    made.set_progress_bar_config(disable=True)
    rows = [{"class_label": 1}]
    assert ditaccel.generate(made, rows, tmp_path, None, **how).made == 1
    assert ditaccel.generate(made, rows, tmp_path, None, **how).made == 0
    with torch.no_grad():
        next(made.transformer.parameters()).flatten()[0] += 1.0
    assert ditaccel.generate(made, rows, tmp_path, None, **how).made == 1


@pytest.mark.parametrize(
    ("change", "error", "line"),
    [
        ({"worker": 2}, ditaccel.ConfigError, "no option 'worker'; did you mean 'workers'"),
        ({"workers": 2}, ditaccel.UsageError, "a loaded pipeline is used as it is"),
        ({"rows": []}, ditaccel.UsageError, "at least one prompt"),
        ({"rows": [3]}, ditaccel.UsageError, "row 1 is of type int"),
        ({"config": "warp"}, ditaccel.ConfigError, "no preset 'warp'"),
        ({"config": TaylorSeerConfig}, ditaccel.ConfigError, "is the class TaylorSeerConfig"),
        ({"limit": 0}, ditaccel.ConfigError, "limit is '0': "),
        ({"batch": -2}, ditaccel.ConfigError, "batch is '-2': "),
        ({"save": ["png", "gif"]}, ditaccel.ConfigError, "save is 'png,gif': 'gif' is not one of"),
        ({"codec": "vp9"}, ditaccel.ConfigError, "codec is 'vp9'; it must be one of: h264"),
        ({"fps": "x"}, ditaccel.ConfigError, "fps is 'x': "),
        ({"filter": "prompt"}, ditaccel.ConfigError, "filter is 'prompt': expected column=pattern"),
        ({"verify": "yes"}, ditaccel.ConfigError, "verify is 'yes'; it must be True or False"),
        ({"seeds": [-1]}, ditaccel.DitaccelError, "seed"),
        ({"model": 3}, ditaccel.UsageError, "neither a diffusers pipeline"),
        ({"model": "no/such/model"}, ditaccel.UsageError, "no model folder"),
    ],
)
def test_mistakes_of_generate_are_one_line(pipe, tmp_path, change, error, line):
    given = {"model": pipe, "rows": names(pipe, 1), "config": "balanced", "quiet": True, **change}
    with pytest.raises(error) as raised:
        ditaccel.generate(out=tmp_path / "out", **given)
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_an_accelerated_pipeline_is_not_taken(pipe, tmp_path):
    with (
        ditaccel.accelerated(pipe, "reuse:interval=2"),
        pytest.raises(ditaccel.UsageError, match=r"call ditaccel\.restore\(pipe\) first"),
    ):
        ditaccel.generate(pipe, names(pipe, 1), tmp_path)


def test_evaluate_gives_figures_and_a_page(pipe, tmp_path):
    found = ditaccel.evaluate(
        pipe,
        ["balanced", ReuseConfig(interval=2)],
        names(pipe, 1),
        [0],
        tmp_path / "run",
        steps=6,
        fewer=[3],
        features="none",
        pairs=1,
        quiet=True,
    )
    assert {"dense", "balanced", "steps-3"} < set(found.configs)
    (reuse,) = (figures for name, figures in found.configs.items() if name.startswith("reuse"))
    assert reuse["computed_share"] < 1
    assert found.summary == json.loads((found.folder / "summary.json").read_text())
    assert found.page is not None and found.page.exists() and str(found.page) in str(found)
    assert not ditaccel.is_accelerated(pipe)


def test_a_loaded_pipeline_is_called_as_its_folder_says_and_a_failed_row_is_told(pipe, tmp_path):
    own = json.loads((DIT / "sample.json").read_text())["call"]
    mask = StepMaskConfig(steps=(0, 3, 9), total=10)
    how = {"steps": 4, "fewer": [], "features": "none", "pairs": 1, "page": False, "quiet": True}
    with pytest.warns(UserWarning, match="step-mask.* failed: .*10 steps"):
        found = ditaccel.evaluate(pipe, [mask], names(pipe, 1), 0, tmp_path / "run", **how)
    call = json.loads((found.folder / "run.json").read_text())["call"]
    assert own and {**own, "num_inference_steps": 4} == {k: call.get(k) for k in own} | {
        "num_inference_steps": call["num_inference_steps"]
    }
    (name,) = found.failures
    assert f"failed: {name}: " in str(found) and name not in found.configs


@pytest.mark.parametrize("option", [{"device": "cuda:7"}, {"dtype": "bfloat16"}])
def test_evaluate_takes_a_loaded_pipeline_as_it_is(pipe, tmp_path, option):
    (name,) = option
    with pytest.raises(ditaccel.UsageError, match=f"{name} is for a model that evaluate loads"):
        ditaccel.evaluate(pipe, "fast", names(pipe, 1), 0, tmp_path / "run", **option)
    with (
        ditaccel.accelerated(pipe, "reuse:interval=2"),
        pytest.raises(ditaccel.UsageError, match=r"call ditaccel\.restore\(pipe\) first"),
    ):
        ditaccel.evaluate(pipe, "fast", names(pipe, 1), 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluations_of_other_weights_do_not_mix(tmp_path):
    how = {"steps": 3, "fewer": [], "features": "none", "pairs": 1, "page": False, "quiet": True}
    made, _ = tiny_dit()
    torch.set_num_threads(2)
    ditaccel.evaluate(made, "reuse:interval=2", "1", 0, tmp_path, threads=1, **how)
    assert torch.get_num_threads() == 2
    with torch.no_grad():
        next(made.transformer.parameters()).flatten()[0] += 1.0
    with pytest.raises(ditaccel.UsageError, match="fingerprint"):
        ditaccel.evaluate(made, "reuse:interval=2", "1", 0, tmp_path, **how)


def test_tune_asks_for_a_target(pipe):
    with pytest.raises(ditaccel.ConfigError, match=r"target is 35; give a Target"):
        ditaccel.tune(pipe, names(pipe, 1), 35)


def test_mistakes_of_evaluate_are_one_line(pipe, tmp_path):
    with pytest.raises(ditaccel.ConfigError, match="no option 'step'; did you mean 'steps'"):
        ditaccel.evaluate(pipe, "balanced", "x", 0, tmp_path, step=3)
    with pytest.raises(ditaccel.ConfigError, match="is the class TaylorSeerConfig itself"):
        ditaccel.evaluate(pipe, [TaylorSeerConfig], names(pipe, 1), 0, tmp_path)


def test_they_are_loaded_when_they_are_asked_for():
    code = (
        "import sys, ditaccel\n"
        "def loaded(): return [m for m in ('ditaccel.batch.command', 'ditaccel.eval.runs', 'PIL')"
        " if m in sys.modules]\n"
        "assert not loaded(), loaded()\n"
        "assert 'generate' in dir(ditaccel) and not loaded()\n"
        "ditaccel.generate, ditaccel.evaluate\n"
        "assert {'ditaccel.batch.command', 'ditaccel.eval.runs'} <= set(loaded())\n"
        "try: ditaccel.generat\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "has no attribute 'generat'" in done.stdout
