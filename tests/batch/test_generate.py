"""`ditaccel generate` end to end on a tiny pipeline: output, resume, failures."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_folders import assert_tidy, outputs, sidecars
from PIL import Image

import ditaccel
from ditaccel.batch import encode, making
from ditaccel.batch.overlap import Seam
from ditaccel.batch.workers import worker
from ditaccel.batch.workers.claims import Claims
from ditaccel.errors import UnsupportedError
from ditaccel.io.files import read_lines
from ditaccel.io.frames import to_uint8
from ditaccel.io.models import load_pipeline
from ditaccel.io.schedulers import put_scheduler

Run = Callable[..., tuple[int, str, str]]
Jobs = Callable[..., Path]


@pytest.mark.parametrize("config", ["none", "taylorseer:interval=2"])
def test_outputs_are_the_pipelines_own(
    generate: Run, jobs: Jobs, model: Path, tmp_path: Path, config: str
) -> None:
    code, printed, _ = generate(jobs(3), "--config", config, "--save", "png,frames,latents")
    assert code == 0 and "3 of 3 items done" in printed
    pipe = load_pipeline(model)
    if config != "none":
        ditaccel.accelerate(pipe, config)
    for record in sidecars(tmp_path / "out").values():
        call = {**record["call"], "class_labels": [record["class_label"]], "output_type": "np"}
        noise = torch.Generator().manual_seed(record["seed"])
        plain = to_uint8(pipe(**call, generator=noise).images)
        name = tmp_path / "out" / "outputs" / record["name"]
        assert np.array_equal(np.asarray(Image.open(f"{name}.png")), plain[0])
        from safetensors.torch import load_file

        frames = load_file(f"{name}.frames.safetensors")["frames"]
        assert np.array_equal(frames.numpy(), plain)
        latents = load_file(f"{name}.latents.safetensors")["latents"]
        with torch.no_grad():
            decoded = (pipe.vae.decode(latents[None]).sample / 2 + 0.5).clamp(0, 1)
        assert np.array_equal(to_uint8(decoded.permute(0, 2, 3, 1)), plain)
        assert bool(record["steps"].get("forecast")) == (config != "none")
    assert_tidy(tmp_path / "out")


def test_lanes_order_batches_and_shards_do_not_change_a_byte(
    generate: Run, jobs: Jobs, tmp_path: Path
) -> None:
    path = jobs(6)
    generate(path, out=tmp_path / "a")
    generate(path, "--no-overlap", out=tmp_path / "b")
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(rows)))
    generate(path, out=tmp_path / "c")
    for shard in ("1/2", "0/2"):
        code, printed, _ = generate(path, "--shard", shard, out=tmp_path / "d")
        assert code == 0 and "3 of 3" in printed
    want = outputs(tmp_path / "a")
    assert len(want) == 6
    for other in "bcd":
        assert outputs(tmp_path / other) == want
        assert_tidy(tmp_path / other)


@pytest.mark.parametrize("shared", [True, False])
def test_a_shard_helps_those_that_work_in_its_folder(
    generate: Run, jobs: Jobs, tmp_path: Path, shared: bool
) -> None:
    if shared:  # shard 0 was here, and died
        (tmp_path / "out" / "shards").mkdir(parents=True)
        (tmp_path / "out" / "shards" / "0-of-2").touch()
    code, printed, _ = generate(jobs(6), "--shard", "1/2")
    assert code == 0 and f"made {6 if shared else 3}" in printed
    assert len(outputs(tmp_path / "out")) == (6 if shared else 3)


def test_the_same_command_again_makes_nothing(generate: Run, jobs: Jobs, tmp_path: Path) -> None:
    path = jobs(3)
    generate(path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "outputs").iterdir()}
    code, printed, noted = generate(path)
    assert code == 0 and "made 0" in printed and "3 of 3 items are done already" in noted
    assert "done already: 3 of 3" in generate(path, "--dry-run")[1]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "outputs").iterdir()} == before


def test_new_and_changed_rows_alone_are_made(generate: Run, jobs: Jobs, tmp_path: Path) -> None:
    path = jobs(3)
    generate(path)
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({"class_label": 1, "seed": 77})
    path.write_text("\n".join([*lines, json.dumps({"class_label": 9, "seed": 9})]))
    code, printed, _ = generate(path)
    assert code == 0 and "made 2" in printed and "1 outputs of other rows" in printed


@pytest.mark.parametrize("damage", ["truncate", "delete", "sidecar", "flip"])
def test_damaged_outputs_are_made_again(
    generate: Run, jobs: Jobs, tmp_path: Path, damage: str
) -> None:
    path = jobs(2)
    generate(path)
    want = outputs(tmp_path / "out")
    victim = sorted((tmp_path / "out" / "outputs").glob("*.png"))[0]
    if damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-3])
    elif damage == "delete":
        victim.unlink()
    elif damage == "sidecar":
        victim.with_suffix(".json").write_text('{"id": ')
    else:
        data = bytearray(victim.read_bytes())
        data[-20] ^= 1
        victim.write_bytes(bytes(data))
    options = ["--verify"] if damage == "flip" else []
    code, printed, _ = generate(path, *options)
    assert code == 0 and "made 1" in printed
    assert outputs(tmp_path / "out") == want


def test_bad_rows_fail_alone(generate: Run, jobs: Jobs, tmp_path: Path) -> None:
    path = jobs(2, [{"seed": "x", "class_label": 1}, {"class_label": 1, "call": {"foo": 1}}])
    code, printed, noted = generate(path)
    assert code == 3 and "2 of 4 items done, 2 failed" in printed
    assert "row 3 cannot be made: seed is 'x'" in noted and "row 4 cannot be made" in noted
    lines = read_lines(tmp_path / "out" / "results.jsonl")
    assert [line["status"] for line in lines] == ["done", "done", "failed", "failed"]
    assert_tidy(tmp_path / "out")


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bad_row_is_named_once(generate: Run, jobs: Jobs, quiet: bool) -> None:
    path = jobs(1, [{"seed": f"x{i}", "class_label": 1} for i in range(12)])
    _, printed, noted = generate(path, *(["--quiet"] if quiet else []))
    text = printed + noted
    assert all(text.count(f"seed is 'x{i}'") == 1 for i in range(10 if quiet else 12))
    assert ("10 bad rows, named at the start" in printed) is not quiet


def _spoil(monkeypatch: pytest.MonkeyPatch, seed: int, error: Exception, times: int = 99) -> list:
    """Make the item with a seed fail when it is denoised."""
    plain, seen = Seam.call, []

    def call(self: Seam, arguments: dict[str, Any], **options: Any) -> Any:
        if arguments["generator"].initial_seed() == seed and len(seen) < times:
            seen.append(options["alone"])
            self.baton.release()
            raise error
        return plain(self, arguments, **options)

    monkeypatch.setattr(Seam, "call", call)
    return seen


def test_a_failing_item_fails_alone_and_is_retried_on_demand(
    generate: Run, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jobs(3)
    with monkeypatch.context() as patch:
        _spoil(patch, 1, ValueError("height must be\ndivisible"))
        code, printed, _ = generate(path)
        assert code == 3 and "row 2: height must be" in printed
    code, printed, _ = generate(path)
    assert code == 3 and "made 0" in printed
    code, printed, _ = generate(path, "--retry-failed")
    assert code == 0 and "made 1" in printed and "3 of 3" in printed
    assert os.listdir(tmp_path / "out" / "failed") == []
    lines = read_lines(tmp_path / "out" / "results.jsonl")
    assert [line["status"] for line in lines] == ["done"] * 3


@pytest.mark.parametrize("lasting", [True, False])
def test_out_of_memory_is_tried_again_alone(
    generate: Run, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    seen = _spoil(monkeypatch, 1, error, times=99 if lasting else 1)
    code, printed, _ = generate(jobs(4))
    assert seen == ([False, True] if lasting else [False])
    assert code == (3 if lasting else 0)
    assert f"{3 if lasting else 4} of 4 items done" in printed
    assert ("out of memory: CUDA out of memory" in printed) == lasting


def test_nan_fails_the_item(
    generate: Run, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = worker.Maker.arguments

    def arguments(self: Any, items: Any) -> dict[str, Any]:
        made = plain(self, items)
        return made | ({"guidance_scale": float("inf")} if items[0].seed == 1 else {})

    monkeypatch.setattr(worker.Maker, "arguments", arguments)
    code, printed, _ = generate(jobs(2), "--config", "none")
    assert code == 3 and "not finite" in printed and len(outputs(tmp_path / "out")) == 1


def test_a_full_disk_stops_the_job_and_loses_nothing(
    generate: Run, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain, count = jobs(4), encode.write_png, []

    def full(target: Path, frames: Any) -> None:
        count.append(target)
        if len(count) > 2:
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(target, frames)

    with monkeypatch.context() as patch:
        patch.setattr(encode, "write_png", full)
        code, _, noted = generate(path)
    assert code == 2 and "No space left on device" in noted and "Traceback" not in noted
    assert len(outputs(tmp_path / "out")) == 2
    code, printed, _ = generate(path)
    assert code == 0 and "made 2" in printed and "4 of 4" in printed
    assert_tidy(tmp_path / "out")


def test_an_unwritable_folder_is_one_line(generate: Run, jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, noted = generate(jobs(1), out=tmp_path / "file" / "out")
    assert code == 2 and noted.strip().splitlines()[-1].startswith("ditaccel: error: --out")


def test_the_folder_of_an_evaluation_is_refused(generate: Run, jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    code, _, noted = generate(jobs(1))
    assert code == 2 and "holds an evaluation" in noted
    assert os.listdir(tmp_path / "out") == ["run.json"]


def test_a_link_out_of_the_folder_is_not_followed(
    generate: Run, jobs: Jobs, tmp_path: Path
) -> None:
    (tmp_path / "out" / "outputs").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "outputs" / "sub").symlink_to(tmp_path / "elsewhere")
    code, _, noted = generate(jobs(1), "--name", "sub/{id}")
    assert code == 2 and "leads out of" in noted and os.listdir(tmp_path / "elsewhere") == []


def test_pickled_weights_are_refused(
    generate: Run, jobs: Jobs, model: Path, tmp_path: Path
) -> None:
    import shutil

    from ditaccel.cli import main

    copy = tmp_path / "pickled"
    shutil.copytree(model, copy)
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    command = ["generate", str(copy), "--jobs", str(jobs(1)), "--out", str(tmp_path / "o")]
    assert main(command) == 2


def test_dry_run_loads_and_writes_nothing(
    generate: Run, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "open_pipeline", None)
    path = jobs(5)
    code, printed, _ = generate(path, "--dry-run", "--limit", "4", "--shard", "1/2")
    assert code == 0 and not (tmp_path / "out").exists()
    assert "items: 5, 0 of them bad" in printed and "2 of them, shard 1/2 (as given)" in printed
    assert "done already" not in printed
    assert "config: balanced, which is adaptive_taylor:" in printed
    spec = "taylorseer:interval=7 & lite_attention:threshold=-3.0"
    assert f"config: {spec}\n" in generate(path, "--dry-run", "--config", spec)[1]
    code, printed, _ = generate(path, "--dry-run", "--json")
    assert len(json.loads(printed)["items"]) == 5
    code, _, noted = generate(jobs(1, [{"class_label": -1}]), "--dry-run")
    assert code == 3 and "class_label is -1" in noted


def test_json_is_for_machines(generate: Run, jobs: Jobs) -> None:
    code, printed, _ = generate(jobs(2, [{}]), "--json", "--quiet")
    summary = json.loads(printed)
    assert (code, summary["done"], summary["failed"], summary["left"]) == (3, 2, 1, 0)
    assert summary["failures"][0]["row"] == 3 and summary["seconds"]["denoise"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--config", "nonsense"), "no preset 'nonsense'"),
        (("--save", "mp4"), "makes pictures"),
        (("--call", "foo=1"), "--call foo: DiTPipeline takes no such argument"),
        (("--shard", "2/2"), "i/n"),
        (("--name", "{x}"), "unknown field"),
        (("--device", "cuda"), "no GPU"),
        (("--filter", "colour=red"), "--filter 'colour' is not a column"),
    ],
)
def test_wrong_commands_are_one_line(
    generate: Run, jobs: Jobs, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    code, _, noted = generate(jobs(1), *options)
    assert code == 2 and words in noted and not (tmp_path / "out").exists()


def test_configs_of_rows(generate: Run, jobs: Jobs, tmp_path: Path) -> None:
    rows = [
        {"class_label": 1, "seed": s, "config": c}
        for s, c in ((0, "none"), (1, "taylorseer:interval=2"), (2, "none"), (3, "steps:3+reuse"))
    ]
    assert generate(jobs(0, rows), "--config", "reuse:interval=3")[0] == 0
    records = {r["seed"]: r for r in sidecars(tmp_path / "out").values()}
    found = {seed: record["steps"].get("forecast", 0) for seed, record in records.items()}
    assert found[0] == found[2] == 0 < found[1]
    assert records[3]["config"]["steps"] == 3  # and the call of the row asked for more
    assert {len(signs) for signs in records[3]["steps"]["steps"].values()} == {3}
    assert records[3]["call"]["num_inference_steps"] > 3


def test_another_scheduler_is_used_and_never_mixed(
    generate: Run, jobs: Jobs, model: Path, tmp_path: Path
) -> None:
    options = ("--config", "none", "--save", "latents", "--scheduler")
    assert generate(jobs(1), *options, "dpm++2m")[0] == 0
    (record,) = sidecars(tmp_path / "out").values()
    assert record["scheduler"] == "dpm++2m"
    pipe = load_pipeline(model)
    put_scheduler(pipe, "dpm++2m")
    call = {**record["call"], "class_labels": [record["class_label"]], "output_type": "np"}
    plain = to_uint8(pipe(**call, generator=torch.Generator().manual_seed(record["seed"])).images)
    from safetensors.torch import load_file

    latents = load_file(tmp_path / "out/outputs" / f"{record['name']}.latents.safetensors")
    with torch.no_grad():
        decoded = (pipe.vae.decode(latents["latents"][None]).sample / 2 + 0.5).clamp(0, 1)
    assert np.array_equal(to_uint8(decoded.permute(0, 2, 3, 1)), plain)
    code, _, noted = generate(jobs(2), *options, "unipc")
    assert code == 2 and "was begun with scheduler 'dpm++2m', and this command asks for" in noted
    code, _, noted = generate(jobs(2), *options[:-1])
    assert code == 2 and "asks for the model's own scheduler" in noted
    code, _, noted = generate(jobs(1), *options, "unipcc", out=tmp_path / "other")
    assert code == 2 and "did you mean 'unipc'" in noted and not (tmp_path / "other").exists()


def test_a_config_that_the_model_refuses(
    generate: Run, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, plain = "taylorseer:interval=9", making.api.accelerate

    def accelerate(pipe: Any, config: Any) -> Any:
        if config.cache.method == "taylorseer":
            raise UnsupportedError("this model takes no taylorseer")
        return plain(pipe, config)

    monkeypatch.setattr(making.api, "accelerate", accelerate)
    code, _, noted = generate(jobs(2), "--config", refused)
    assert code == 2 and "takes no taylorseer" in noted and outputs(tmp_path / "out") == {}
    # of one row alone, it fails that row
    rows = jobs(2, [{"class_label": 1, "config": refused}])
    code, printed, _ = generate(rows, "--config", "reuse:interval=2")
    assert code == 3 and "2 of 3 items done, 1 failed" in printed


def test_batches_give_every_item_its_own_noise(generate: Run, jobs: Jobs, tmp_path: Path) -> None:
    path = jobs(5)
    generate(path, "--save", "frames", "--config", "none", out=tmp_path / "a")
    generate(path, "--save", "frames", "--config", "none", "--batch", "3", out=tmp_path / "b")
    assert sorted(r["batch"] for r in sidecars(tmp_path / "b").values()) == [2, 2, 3, 3, 3]
    from safetensors.torch import load_file

    for name in outputs(tmp_path / "a"):
        one, other = (
            load_file(tmp_path / x / "outputs" / name)["frames"].int() for x in ("a", "b")
        )
        # matrix products of another batch size differ in the last bits: one level at most
        assert (one - other).abs().max() <= 1


def test_a_worker_that_was_taken_for_dead_publishes_nothing(
    generate: Run, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Claims, "holds", lambda self, claim: False)
    _, printed, _ = generate(jobs(1))
    assert "0 of 1 items done" in printed and outputs(tmp_path / "out") == {}


def test_interrupting_drops_what_is_denoised_and_keeps_the_rest(
    generate: Run, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain, count = jobs(6), Seam.call, []

    def call(self: Seam, arguments: dict[str, Any], **options: Any) -> Any:
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Seam, "call", call)
        code, printed, noted = generate(path)
    assert code == 130 and "run the same command again" in noted
    made = len(outputs(tmp_path / "out"))
    assert 1 <= made <= 5
    assert_tidy(tmp_path / "out", finished=False)
    code, printed, _ = generate(path)
    assert code == 0 and f"made {6 - made}" in printed


def test_a_hub_id_that_cannot_be_asked_for_says_why(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from huggingface_hub import constants

    from ditaccel.cli import main

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    command = ["generate", "some/model", "--jobs", str(jobs(1)), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "HF_HUB_OFFLINE is set" in said[0]
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_what_the_filter_keeps(generate: Run, jobs: Jobs) -> None:
    code, printed, _ = generate(jobs(6), "--dry-run", "--filter", "class_label=[45]")
    shown = [line for line in printed.splitlines() if line.startswith("  ")]
    assert code == 0 and [line.split("-s")[0].strip() for line in shown] == ["4", "5"]


def test_a_warning_is_said_once(generate: Run, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    plain = Seam.call

    def call(self: Seam, arguments: dict[str, Any], **options: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("look\nout", stacklevel=1)
        return plain(self, arguments, **options)

    monkeypatch.setattr(Seam, "call", call)
    _, _, noted = generate(jobs(4), "--config", "none")
    assert noted.count("generate: warning: look out\n") == 1
