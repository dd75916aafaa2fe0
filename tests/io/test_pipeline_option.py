"""`--pipeline` in every command, on a trained sample: LoRA, offload, compile, scheduler, class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ditaccel
from ditaccel import cli
from ditaccel.io.asking import default_call
from ditaccel.io.factory import read_factory
from ditaccel.io.models import read_sheet

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
MODEL = str(SAMPLES / "models" / "shapes-flux")
FILE = SAMPLES / "pipelines.py"
KINDS = ("lora", "offloaded", "compiled", "rescheduled", "quantised", "image_to_image")


def named(kind: str) -> list[str]:
    """The option for a factory; without torchao the quantised one cannot be made."""
    if kind == "quantised":
        pytest.importorskip("torchao", reason="torchao is an extra of its own")
    return ["--pipeline", f"{FILE}:{kind}"]


def by_hand(kind: str, seed: int = 0) -> torch.Tensor:
    """The picture that the factory's pipeline makes when it is called as the command does it."""
    opened = read_factory(f"{FILE}:{kind}").make(MODEL, "cpu", None)
    pipe, own = opened.pipe, opened.call
    call = default_call(pipe, read_sheet(MODEL), {"num_inference_steps": 4}, own)
    generator = torch.Generator("cpu").manual_seed(seed)
    call |= {"prompt": "a red circle", "generator": generator, "output_type": "np"}
    return torch.from_numpy(pipe(**call).images[0]).mul(255).round().to(torch.uint8)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """One row."""
    path = tmp_path / "jobs.txt"
    path.write_text("a red circle\n")
    return path


def generated(folder: Path) -> torch.Tensor:
    """The frames of a job of one row."""
    (path,) = (folder / "outputs").glob("*.frames.safetensors")
    return next(iter(load_file(path).values()))


def run_job(jobs: Path, out: Path, *options: str) -> int:
    """Generate 4 steps, as frames."""
    command = ["generate", MODEL, "--jobs", str(jobs), "--out", str(out), "--steps", "4"]
    return cli.main([*command, "--save", "frames", "--quiet", "--config", "none", *options])


@pytest.mark.parametrize("kind", KINDS)
def test_generate_makes_what_the_functions_pipeline_makes(kind, jobs, tmp_path) -> None:
    kind_option = named(kind)
    torch.set_num_threads(1)
    expected = by_hand(kind)
    assert run_job(jobs, tmp_path / "o", "--workers", "1", *kind_option) == 0
    frames = generated(tmp_path / "o")
    assert torch.equal(frames[0], expected)
    job = json.loads((tmp_path / "o" / "job.json").read_text())
    assert job["settings"]["pipeline"] == f"{FILE}:{kind}"
    if kind == "image_to_image":
        assert job["pipeline"] == "FluxImg2ImgPipeline"
    if kind in ("lora", "rescheduled", "image_to_image"):
        plain = by_hand("plain")
        assert not torch.equal(frames[0], plain)


def test_rows_of_another_function_are_other_rows(jobs, tmp_path, capsys) -> None:
    out = tmp_path / "o"
    assert run_job(jobs, out, "--workers", "1") == 0
    capsys.readouterr()
    assert run_job(jobs, out, "--workers", "1", *named("rescheduled"), "--name", "{id}") == 0
    assert "made 1 in" in capsys.readouterr().out
    assert len(list((out / "outputs").glob("*.json"))) == 2


@pytest.mark.slow
def test_two_workers_import_the_function_each(tmp_path) -> None:
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("a red circle\na blue square\n")
    one, two = tmp_path / "one", tmp_path / "two"
    option = named("rescheduled")
    assert run_job(jobs, one, "--workers", "1", *option) == 0
    assert run_job(jobs, two, "--workers", "2", *option) == 0
    files = sorted(p.name for p in (one / "outputs").glob("*.safetensors"))
    assert len(files) == 2
    for name in files:
        assert (one / "outputs" / name).read_bytes() == (two / "outputs" / name).read_bytes()


def test_a_class_that_was_not_said_is_one_line(jobs, tmp_path, capsys) -> None:
    path = tmp_path / "mine.py"
    shutil.copy(SAMPLES / "pipelines.py", tmp_path / "from_samples.py")
    text = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport from_samples\n"
    path.write_text(f"{text}def make(model):\n    return from_samples.image_to_image(model)\n")
    option = ["--pipeline", f"{path}:make"]
    code = run_job(jobs, tmp_path / "o", "--workers", "1", *option)
    told = capsys.readouterr().err
    assert code == 2 and "returned FluxImg2ImgPipeline" in told and "-> FluxImg2ImgPipeline" in told


def test_one_device_for_several_workers_is_refused(jobs, tmp_path, capsys, monkeypatch) -> None:
    from ditaccel.batch import command

    monkeypatch.setattr(command, "choose_devices", lambda *_: ("cuda:0", "cuda:1"))
    assert run_job(jobs, tmp_path / "o", *named("rescheduled")) == 2
    assert "the function takes no `device`" in capsys.readouterr().err


def evaluated(out: Path, *options: str) -> int:
    """A short evaluation of one config."""
    command = ["eval", MODEL, "--limit", "1", "--steps", "4", "--fewer", "3", "--features", "none"]
    command += ["--config", "taylorseer:interval=2", "--no-html", "--quiet", "--pairs", "1"]
    return cli.main([*command, "--out", str(out), *options])


@pytest.mark.parametrize(
    "kind",
    [
        k if k in ("image_to_image", "lora") else pytest.param(k, marks=pytest.mark.slow)
        for k in KINDS
        if k != "compiled"  # refused: see below
    ],
)
def test_eval_measures_the_functions_pipeline(kind, tmp_path, capsys) -> None:
    assert evaluated(tmp_path / "o", *named(kind)) == 0, capsys.readouterr().err
    run = json.loads((tmp_path / "o" / "run.json").read_text())
    assert run["pipeline"].startswith(f"pipelines.py:{kind}@") and run["dtype"] == "float32"
    if kind == "image_to_image":
        assert run["call"]["strength"] == 0.9
    assert evaluated(tmp_path / "o", *named(kind)) == 0, "the same command goes on"
    assert evaluated(tmp_path / "o", *named("plain")) == 2
    assert "another setup (different: " in (err := capsys.readouterr().err)
    assert "pipeline is 'pipelines.py:plain@" in err and "there 'pipelines.py" in err


def test_eval_says_that_it_cannot_look_into_compiled_blocks(tmp_path, capsys) -> None:
    assert evaluated(tmp_path / "o", *named("compiled")) == 2
    assert "measure the pipeline before it is compiled" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_doctor_looks_at_the_functions_pipeline(capsys) -> None:
    assert cli.main(["doctor", MODEL, *named("image_to_image")]) == 0
    assert "FluxImg2ImgPipeline" in capsys.readouterr().out
    assert cli.main(["doctor", MODEL, "--pipeline", f"{FILE}:nothing"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "rescheduled"])
def test_tune_finetune_and_bench_take_it(kind, tmp_path, capsys) -> None:
    option = named(kind)
    path = tmp_path / "t.yaml"
    command = ["tune", MODEL, "--share", "0.6", "--limit", "1", "--steps", "8", "--out", str(path)]
    assert cli.main([*command, *option]) == 0
    assert ditaccel.config.load(path).cache.total == 8
    command = ["finetune", MODEL, "--out", str(tmp_path / "f"), "--updates", "1", "--limit", "1"]
    command += ["--config", "sla:critical=0.2,min_tokens=0,q_tile=16,k_tile=16"]
    assert cli.main([*command, "--steps", "3", "--quiet", *option]) in (0, 1)
    assert (tmp_path / "f" / "adapter.safetensors").exists()
    command = ["bench", "sparsity", MODEL, "--steps", "2", *option]
    assert cli.main(command) == 0
    capsys.readouterr()
