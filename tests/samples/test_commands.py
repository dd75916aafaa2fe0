"""Every command on every shipped sample: it works, or ends in one line that says what to do."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from ditaccel import cli
from ditaccel.errors import UsageError
from ditaccel.io.models import read_sheet

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
MODELS = sorted(p.parent.name for p in (SAMPLES / "models").glob("*/model_index.json"))
FAST = {"eval": ["--features", "none", "--no-html", "--fewer", "4", "--quiet"]}
# Options that make a call of each sample short.
SHORT = {"text-to-video": ["--call", "num_frames=9"]}


@pytest.fixture(autouse=True)
def closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' log keeps the first test's stderr, which is closed in the next one."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


def short(name: str) -> list[str]:
    """Options for short calls."""
    return SHORT.get(read_sheet(SAMPLES / "models" / name).task, [])


def ended(capsys: pytest.CaptureFixture[str], command: list[str]) -> tuple[int, str]:
    """Exit code and all that was printed; never a traceback, and one line for what is refused."""
    capsys.readouterr()
    try:
        code = cli.main(command)
    except SystemExit as end:  # argparse's own
        code = int(end.code or 0)
    told = capsys.readouterr()
    assert "Traceback" not in told.err, told.err
    if code == 2:
        errors = [line for line in told.err.splitlines() if "error:" in line]
        assert len(errors) == 1, told.err
    return code, told.out + told.err


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """Path of a shipped sample."""
    return str(SAMPLES / "models" / request.param)


def test_doctor(model: str, capsys) -> None:
    code, told = ended(capsys, ["doctor", model])
    assert code == 0 and "blocks" in told


def test_generate_and_report(model: str, capsys, tmp_path) -> None:
    out = str(tmp_path / "job")
    jobs = str(read_sheet(model).prompts)
    command = ["generate", model, "--jobs", jobs, "--limit", "1", "--out", out, "--quiet"]
    code, told = ended(
        capsys, [*command, "--steps", "8", "--workers", "1", *short(Path(model).name)]
    )
    assert code == 0, told
    code, told = ended(capsys, ["report", out])
    assert code == 0 and "gallery" in told


@pytest.mark.slow
def test_eval_and_report(model: str, capsys, tmp_path) -> None:
    out = str(tmp_path / "out")
    command = ["eval", model, "--config", "balanced", "--limit", "1", "--steps", "10", "--out", out]
    code, told = ended(capsys, [*command, *FAST["eval"], *short(Path(model).name)])
    assert code == 0, told
    assert "dense" in told and "4 steps" in told
    code, told = ended(capsys, ["report", out])
    assert code == 0, told


@pytest.mark.slow
def test_tune_by_share_and_by_psnr(model: str, capsys, tmp_path) -> None:
    command = ["tune", model, "--limit", "1", "--steps", "9", *short(Path(model).name)]
    code, told = ended(capsys, [*command, "--share", "0.6", "--out", str(tmp_path / "a.yaml")])
    assert code == 0 and (tmp_path / "a.yaml").exists(), told
    code, told = ended(capsys, [*command, "--psnr", "98", "--out", str(tmp_path / "b.yaml")])
    assert code == 1 and "no plan that was run reaches 98 dB" in told


@pytest.mark.slow
def test_tune_of_attention(model: str, capsys, tmp_path) -> None:
    command = ["tune", model, "--limit", "1", "--steps", "6", *short(Path(model).name)]
    path = tmp_path / "a.yaml"
    code, told = ended(capsys, [*command, "--attention-error", "0.02", "--out", str(path)])
    assert code in (1, 2) and not path.exists()
    assert re.search(r"min_tokens=1024|of the attention is kept", told)


def test_finetune_says_before_it_runs_what_to_do(model: str, capsys, tmp_path) -> None:
    command = ["finetune", model, "--out", str(tmp_path / "run"), "--updates", "1", "--limit", "1"]
    more = ["--steps", "3", "--quiet", *short(Path(model).name)]
    code, told = ended(capsys, [*command, *more])
    assert code == 2 and "no attention call is sparse" in told and "min_tokens" in told
    assert not (tmp_path / "run").exists()
    code, told = ended(capsys, [*command, "--steps", "0"])
    assert code == 2 and "whole number" in told


@pytest.mark.slow
def test_finetune(model: str, capsys, tmp_path) -> None:
    command = ["finetune", model, "--out", str(tmp_path / "run"), "--updates", "3", "--limit", "1"]
    command += ["--config", "sla:critical=0.2,min_tokens=0,q_tile=16,k_tile=16"]
    more = ["--steps", "3", "--quiet", *short(Path(model).name)]
    code, told = ended(capsys, [*command, *more])
    assert code in (0, 1) and (tmp_path / "run" / "adapter.safetensors").exists(), told
    assert (code == 1) == ("training made the outputs no better" in told)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bench",
    [
        ["overhead", "--steps", "6", "--rounds", "1"],
        ["sparsity", "--steps", "2"],
        ["sla", "--steps", "4", "--critical", "0.2", "--layers", "4"],
    ],
    ids=lambda bench: bench[0],
)
def test_benches_of_a_model(model: str, bench: list[str], capsys, tmp_path) -> None:
    out = tmp_path / "b.csv"
    code, told = ended(capsys, ["bench", bench[0], model, *bench[1:], "--out", str(out)])
    assert code == 0 and out.read_text().count("\n") > 2, told


@pytest.mark.slow
def test_bench_batch(model: str, capsys, tmp_path) -> None:
    command = ["bench", "batch", model, "--limit", "1", "--steps", "4", "--frames", "9"]
    code, told = ended(capsys, [*command, "--only", "loop, 1 thread", "generate"])
    video = "video" in read_sheet(model).task
    assert code == (0 if video else 2), told
    assert video or "not a video model" in told


@pytest.mark.slow
def test_benches_of_kernels(capsys, tmp_path) -> None:
    small = ["--lengths", "256", "--heads", "1", "--dtype", "float32", "--repeats", "1"]
    code, told = ended(capsys, ["bench", "attention", *small, "--density", "0.5", "0.25"])
    assert code == 0 and "slope" in told
    code, told = ended(capsys, ["bench", "sparse_linear", *small, "--out", str(tmp_path / "b.csv")])
    assert code == 0 and (tmp_path / "b.csv").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "MODEL", "--out", "OUT"],
        ["tune", "MODEL", "--psnr", "30", "--out", "OUT.yaml"],
        ["finetune", "MODEL", "--out", "OUT"],
        ["doctor", "MODEL"],
        ["bench", "overhead", "MODEL"],
        ["bench", "sparsity", "MODEL"],
        ["bench", "sla", "MODEL"],
        ["bench", "batch", "MODEL"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_odd_calls_are_one_line(command: list[str], capsys, tmp_path) -> None:
    good = str(SAMPLES / "models" / "shapes-dit")
    ready = [part.replace("OUT", str(tmp_path / "o")) for part in command]
    for place in ("x" * 5000, "~nouser/x", "a\0b", "", str(SAMPLES / "README.md"), "no/such/one"):
        code, told = ended(capsys, [place if part == "MODEL" else part for part in ready])
        assert code == 2, (place[:20], told)
        assert len(told) < 1500
    ready = [good if part == "MODEL" else part for part in ready]
    for device in ("meta", "mps", "nonsense", "cuda:99"):
        code, told = ended(capsys, [*ready, "--device", device])
        assert (code, command[0]) == (2, command[0]) or command[0] == "doctor", told
    for more in (["--pipeline", "nothing"], ["--dtype", "float7"], ["--no-such-option"]):
        code, told = ended(capsys, [*ready, *more])
        assert code == 2, told
    if command[0] in ("eval", "tune", "finetune"):
        odd = [["--call", "num_inference_steps=0"], ["--call", "nothing=1"], ["--threads", "0"]]
        odd += [["--prompts", "~nouser/x"], ["--prompts", "a\0b"], ["--prompts", "x" * 5000]]
        seeds = {"eval": "--seeds"}.get(command[0], "--seed")
        odd += [[seeds, "9" * 30], [seeds, "-1"], ["--limit", "0"]]
        for more in odd:
            code, told = ended(capsys, [*ready, *more])
            assert code == 2, (more[1][:20], told)
    if "OUT" in " ".join(command):
        for out in ("x" * 5000, "~nouser/x", "a\0b", "", "/proc/no/such.yaml"):
            odd_out = [out if part.startswith(str(tmp_path / "o")) else part for part in ready]
            code, told = ended(capsys, [*odd_out, "--limit", "1"])
            assert code == 2, (out[:20], told)
    assert not list(tmp_path.iterdir())


def test_what_a_pipeline_raises_on_its_arguments_is_one_line(capsys, tmp_path) -> None:
    model, out = str(SAMPLES / "models" / "shapes-flux"), str(tmp_path / "o.yaml")
    odd = ["--call", "num_images_per_prompt=x"]
    for command in (
        ["tune", model, "--psnr", "30", "--steps", "4", "--limit", "1", "--out", out, *odd],
        ["finetune", model, "--steps", "2", "--updates", "1", "--out", str(tmp_path / "f"), *odd],
    ):
        code, told = ended(capsys, command)
        assert code == 2 and "the call of FluxPipeline fails (" in told, told
    code, told = ended(capsys, ["bench", "sla", model, "--steps", "2", "--size", "7"])
    assert code == 2 and "--size must be a whole number >= 16" in told
    code, told = ended(capsys, ["bench", "attention", "--lengths", "64", "--backend", "triton"])
    assert code == 2 and "--backend triton: " in told
    assert not list(tmp_path.iterdir())


def test_our_own_errors_keep_their_traceback() -> None:
    """An error of ours below a pipeline's call is no mistake of the user's."""
    from tiny import generate, tiny_dit

    from ditaccel.io.asking import calls_of

    pipe, call = tiny_dit()
    with pytest.raises(UsageError, match="the call of DiTPipeline fails"), calls_of(pipe, "x"):
        generate(pipe, {**call, "class_labels": 3})

    def broken(*_: object) -> None:
        raise RuntimeError("ours")

    ours = type(broken)(broken.__code__, {**globals(), "__name__": "ditaccel.somewhere"})
    pipe.transformer.register_forward_pre_hook(ours)
    with pytest.raises(RuntimeError, match="ours"), calls_of(pipe, "x"):
        generate(pipe, call)
