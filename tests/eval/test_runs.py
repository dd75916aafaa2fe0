"""Paired runs on a tiny pipeline: order, resume after a kill, failures, and what is recorded."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from ditaccel.eval.comparison.rows import Rows
from ditaccel.eval.comparison.sampler import Sampler, make_samples
from ditaccel.eval.comparison.turns import REPEATS, in_turn
from ditaccel.eval.measure import memory
from ditaccel.eval.metrics.real import load_real
from ditaccel.eval.options import Options
from ditaccel.eval.runs import evaluate
from ditaccel.eval.specs import build
from ditaccel.eval.store import load_frames
from ditaccel.eval.summary.summarise import summarise

from ditaccel.errors import ConfigError, UnsupportedError, UsageError
from ditaccel.io import provenance
from ditaccel.io.asking import default_call
from ditaccel.io.files import read_json, read_lines
from ditaccel.io.frames import to_uint8
from ditaccel.io.models import Sheet

CONFIGS = ["T=taylorseer:interval=2|3", "peer/first_block_cache:threshold=1e9"]
OPTIONS = Options(fewer=[3], features="none", quiet=True)
PROMPTS = ["a red circle", "b"]


@pytest.fixture(autouse=True)
def cheap_memory(monkeypatch) -> None:
    """Looking at every object of the test session takes tenths of a second each time."""
    monkeypatch.setattr(memory, "live_tensor_bytes", lambda: 0)


@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """One whole run: two prompts, two seeds, six rows."""
    patch = pytest.MonkeyPatch()
    patch.setattr(memory, "live_tensor_bytes", lambda: 0)
    out = tmp_path_factory.mktemp("runs") / "out"
    evaluate(str(model_folder), CONFIGS, PROMPTS, [0, 1], out, OPTIONS)
    patch.undo()
    return out


def test_every_line_once_with_all_fields(finished) -> None:
    run, lines = read_json(finished / "run.json"), read_lines(finished / "results.jsonl")
    configs = [c["id"] for c in run["configs"]]
    assert Counter((line["config"], line["sample"]) for line in lines) == dict.fromkeys(
        [(c, s) for c in configs for s in ("p000-s0", "p001-s0", "p000-s1", "p001-s1")], 1
    )
    assert run["call"] == {"guidance_scale": 3.0, "num_inference_steps": 6}
    assert (run["family"], run["task"], run["seeds"]) == ("dit", "class-to-image", [0, 1])
    for line in lines:
        assert line["seconds"] > 0 and line["finite"] and line["versions"]["torch"]
        assert load_frames(finished / line["media"]).shape == (1, 8, 8, 3)
        assert set(line["metrics"]) >= {"psnr", "identical", "ssim", "flip", "lpips"}
        assert all(len(call) == 5 for call in line["calls"])


def test_shares_are_counted_from_outside(finished) -> None:
    for line in read_lines(finished / "results.jsonl"):
        steps = {"dense": 6, "other-seed": 6, "steps-3": 3}.get(line["config"])
        if steps:
            assert line["computed_share"] == pytest.approx(steps / 6)
        if line["config"].startswith("taylorseer"):
            # What the method says of itself is held against what the probes saw.
            assert line["computed_share"] == pytest.approx(line["reported_share"], abs=0.02)
            forecasts = [c for c in line["calls"] if c[2] == "forecast"]
            assert forecasts and line["computed_share"] < 1
        if line["config"].startswith("peer"):
            assert {c[2] for c in line["calls"]} == {"compute", "forecast"}


def test_pairs_share_their_noise(finished) -> None:
    lines = {(x["config"], x["sample"]): x for x in read_lines(finished / "results.jsonl")}
    for sample in ("p000-s0", "p001-s1"):
        assert lines["dense", sample]["metrics"]["identical"]
        assert lines["dense", sample]["metrics"]["psnr"] == 99.0
        assert not lines["other-seed", sample]["metrics"]["identical"]
    dense = [load_frames(finished / lines["dense", s]["media"]) for s in ("p000-s0", "p000-s1")]
    assert not np.array_equal(*dense)


def test_rows_take_turns_behind_dense(finished) -> None:
    rows = build(CONFIGS, 6, [3])
    orders = [in_turn(rows, turn) for turn in range(len(rows) - 1)]
    assert {order[0].id for order in orders} == {"dense"}
    assert len({order[1].id for order in orders}) == len(rows) - 1
    made = read_lines(finished / "generations.jsonl")
    order = [(line["sample"], line["config"]) for line in made]
    expected = [
        (sample.id, row.id)
        for turn, sample in enumerate(make_samples(PROMPTS, [0, 1]))
        for row in in_turn(rows, turn)
    ]
    assert order == expected


def test_summary(finished) -> None:
    summary = read_json(finished / "summary.json")
    dense = summary["configs"]["dense"]
    assert dense["n"] == 4 and dense["psnr"]["identical"] == 4
    assert dense["speedup"] == {"median": 1.0, "p25": 1.0, "p75": 1.0}
    assert dense["seconds"]["warmup"] > 0
    assert summary["dense_repeats"] is True
    table, *verdicts = summary["verdicts"]
    assert table["config"] is None and "dense with another seed, the same work" in table["text"]
    assert len(verdicts) == 3 and summary["failures"] == []
    assert set(summary["not_available"]) >= {"lpips", "fid_dense", "fid_real", "accuracy"}
    assert summary["configs"]["steps-3"]["psnr"]["kept"] is not None


def test_floors_follow_from_what_dense_computes(finished) -> None:
    """A row of half the steps has half of dense's floor; sparse or not, it is never above."""
    run, summary = read_json(finished / "run.json"), read_json(finished / "summary.json")
    warm = read_lines(finished / "warmups.jsonl")
    assert [line["config"] for line in warm if "flops" in line] == ["dense"]
    floors = {name: row["floor_seconds"] for name, row in summary["configs"].items()}
    assert floors["other-seed"] == floors["dense"] > 0
    assert floors["steps-3"] == pytest.approx(floors["dense"] / 2)
    ceilings = run["ceilings"]
    bound = max(warm[0]["flops"] / ceilings["flops"], 4 * warm[0]["work"] / ceilings["bytes"])
    assert floors["dense"] == pytest.approx(bound)
    assert "FLOP/s" in summary["limits"]["text"] or "not shown" in summary["limits"]["text"]


def test_every_row_is_timed_beside_a_dense_run_of_its_own(finished) -> None:
    for line in read_lines(finished / "results.jsonl"):
        pairs = line["pairs"]
        assert line["timing"]["seconds"] == line["seconds"] and line["timing"]["process"] > 0
        assert (not pairs) if line["config"] == "dense" else 1 <= len(pairs) <= 1 + REPEATS
        for pair in pairs:
            assert pair["dense"]["seconds"] > 0 and pair["row"]["denoiser"] > 0
        if pairs:
            assert pairs[0]["row"] == line["timing"]
    runs = read_json(finished / "summary.json")["timing"]["dense"]["runs"]
    assert runs >= 4 * 5 + 4  # beside each of five rows on four samples, and the samples' own


def test_only_the_first_samples_are_timed(model_folder, tmp_path) -> None:
    options = replace(OPTIONS, pairs=1)
    out = evaluate(str(model_folder), [], ["b"], [0, 1], tmp_path / "out", options)
    for line in read_lines(out / "results.jsonl"):
        timed = line["sample"] == "p000-s0" and line["config"] != "dense"
        assert bool(line["pairs"]) == timed
    assert read_json(out / "summary.json")["configs"]["steps-3"]["n"] == 2


def test_a_row_that_changes_dense_is_found(model_folder, tmp_path, monkeypatch) -> None:
    original = Rows.run
    spoilt = []

    def run(self, row, sample, between=None):
        outcome = original(self, row, sample, between)
        if between is None and row.role == "fewer_steps":
            spoilt.append(row)
        elif spoilt and row.role == "dense":
            spoilt.clear()
            frames = outcome.generation.frames.copy()
            frames[0, 0, 0, 0] ^= 1
            return replace(outcome, generation=replace(outcome.generation, frames=frames))
        return outcome

    monkeypatch.setattr(Rows, "run", run)
    out = evaluate(str(model_folder), [], ["b"], [0, 1], tmp_path / "out", OPTIONS)
    summary = read_json(out / "summary.json")
    assert summary["dense_repeats"] is False
    assert summary["verdicts"][0]["kind"] == "dense changed"


def test_results_of_an_earlier_version_are_refused_in_one_line(model_folder, tmp_path) -> None:
    (tmp_path / "run.json").write_text('{"schema": 1, "configs": []}')
    for call in (
        lambda: summarise(tmp_path),
        lambda: evaluate(str(model_folder), [], ["b"], [0], tmp_path, OPTIONS),
    ):
        with pytest.raises(UsageError, match=r"earlier version .*not timed in pairs.*again, into"):
            call()


def test_a_finished_run_does_nothing_again(finished, model_folder) -> None:
    before = (finished / "results.jsonl").read_bytes(), read_json(finished / "summary.json")
    evaluate(str(model_folder), CONFIGS, PROMPTS, [0, 1], finished, OPTIONS)
    assert before == (
        (finished / "results.jsonl").read_bytes(),
        read_json(finished / "summary.json"),
    )


def test_another_setup_in_the_same_folder_is_refused(finished, model_folder) -> None:
    with pytest.raises(UsageError, match="different: seeds"):
        evaluate(str(model_folder), CONFIGS, PROMPTS, [7], finished, OPTIONS)


def test_resume_after_sigkill(finished, model_folder, tmp_path) -> None:
    """Killed twice without warning: every line exactly once, every picture as without a kill."""
    out = tmp_path / "out"
    arguments = (str(model_folder), CONFIGS, PROMPTS, [0, 1], out, OPTIONS)
    for wanted in (3, 11):
        child = multiprocessing.get_context("fork").Process(target=evaluate, args=arguments)
        child.start()
        deadline = time.monotonic() + 240
        while len(read_lines(out / "generations.jsonl")) < wanted:
            assert child.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert not (out / "summary.json").exists()
    with (out / "results.jsonl").open("ab") as file:
        file.write(b'{"config": "dense", "sampl')
    evaluate(*arguments)
    whole, pieces = (read_lines(folder / "results.jsonl") for folder in (finished, out))
    keys = Counter((line["config"], line["sample"]) for line in pieces)
    assert set(keys.values()) == {1}
    assert set(keys) == {(line["config"], line["sample"]) for line in whole}
    for line in whole:
        assert np.array_equal(
            load_frames(finished / line["media"]), load_frames(out / line["media"])
        )


class Breaking:
    """A pipeline call that fails, or gives NaN, for one seed of the fewer-steps row."""

    def __init__(self, nan: bool) -> None:
        self.nan = nan

    def __call__(self, original):
        def call(pipe, *args, **kwargs):
            output = original(pipe, *args, **kwargs)
            if kwargs["num_inference_steps"] == 3 and kwargs["generator"].initial_seed() == 1:
                if not self.nan:
                    raise RuntimeError("out of\nmemory")
                output.images = output.images.copy()
                output.images[0, 0, 0, 0] = np.nan
            return output

        return call


@pytest.mark.parametrize("nan", [False, True])
def test_failures_are_recorded_and_the_run_goes_on(
    model_folder, tmp_path, monkeypatch, nan
) -> None:
    from diffusers import DiTPipeline

    original = DiTPipeline.__call__
    broken = Breaking(nan)(original)
    broken.__signature__ = __import__("inspect").signature(original)  # type: ignore[attr-defined]
    monkeypatch.setattr(DiTPipeline, "__call__", broken)
    out = tmp_path / "out"
    arguments = (str(model_folder), [], ["b"], [0, 1, 2], out, OPTIONS)
    evaluate(*arguments)
    summary = read_json(out / "summary.json")
    words = "not finite: NaN" if nan else "RuntimeError: out of"
    (failure,) = summary["failures"]
    assert (failure["config"], failure["sample"]) == ("steps-3", "p000-s1")
    assert words in failure["error"] and "\n" not in failure["error"]
    assert summary["configs"]["steps-3"]["n"] == 2 and summary["configs"]["dense"]["n"] == 3
    assert not list(out.rglob("steps-3/p000-s1.npz"))
    monkeypatch.setattr(DiTPipeline, "__call__", original)
    evaluate(*arguments)
    summary = read_json(out / "summary.json")
    assert summary["failures"] == [] and summary["configs"]["steps-3"]["n"] == 3


def test_a_broken_dense_run_ends_in_one_clear_error(model_folder, tmp_path, monkeypatch) -> None:
    from diffusers import AutoencoderKL

    original = AutoencoderKL.decode

    def decode(self, z, *args, **kwargs):
        return original(self, z * torch.nan, *args, **kwargs)

    monkeypatch.setattr(AutoencoderKL, "decode", decode)
    with pytest.raises(UsageError, match=r"dense run fails.*not finite"):
        evaluate(str(model_folder), [], ["b"], [0], tmp_path / "out", OPTIONS)


def test_a_peer_that_cannot_run_is_a_reason_not_an_end(model_folder, tmp_path) -> None:
    out = evaluate(str(model_folder), ["peer/seacache"], ["b"], [0], tmp_path / "out", OPTIONS)
    summary = read_json(out / "summary.json")
    assert "caches nothing" in summary["unavailable"]["peer-seacache"]
    assert set(summary["configs"]) == {"dense", "other-seed", "steps-3"}


def test_loaded_pipeline_and_video(pipelines, tmp_path) -> None:
    pipe, call = pipelines["wan"]
    real = tmp_path / "real.npz"
    np.savez(real, frames=np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3), np.uint8))
    options = Options(
        steps=6,
        fewer=[3],
        call={k: v for k, v in call.items() if k != "num_inference_steps"},
        features=f"{__name__}:Tiny={_weights(tmp_path)}",
        real=str(real),
        quiet=True,
    )
    out = evaluate(
        pipe, ["steps:4+taylorseer:interval=2"], ["x", "y"], [0], tmp_path / "o", options
    )
    run, summary = read_json(out / "run.json"), read_json(out / "summary.json")
    assert run["call"]["prompt_embeds"] == "tensor(1, 6, 16)" and run["features"]["dim"] == 3
    assert load_frames(out / "media/dense/p000-s0.npz").shape == (5, 16, 16, 3)
    row = summary["configs"]["steps-4-taylorseer-interval-2"]
    assert row["computed_share"] < 4 / 6
    # Of two samples a distance tells nothing, so there is none and the reason is said.
    for key in ("fid_dense", "fid_real", "kid_real"):
        assert row[key] is None and "at least 10 samples" in summary["not_available"][key]
    calls = read_lines(out / "results.jsonl")[0]["calls"]
    assert {tuple(c[:2]) for c in calls} == {(s, f"call{b}") for s in range(6) for b in (0, 1)}


class Tiny(torch.nn.Module):
    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    def forward(self, images):
        return images.mean(dim=(2, 3)) * self.scale


def _weights(folder):
    torch.save(Tiny().state_dict(), folder / "tiny.pth")
    return folder / "tiny.pth"


def test_bad_input_before_anything_is_written(model_folder, tmp_path) -> None:
    model, out = str(model_folder), tmp_path / "out"

    def run(configs=(), prompts=("b",), seeds=(0,), **changes):
        evaluate(model, configs, prompts, seeds, out, Options(quiet=True, **changes))

    for error, words, arguments in (
        (ConfigError, "nothing_such", {"configs": ["nothing_such"]}),
        (ConfigError, "no peer", {"configs": ["peer/nobody"]}),
        (ConfigError, "no option", {"configs": ["peer/pab:speed=1"]}),
        (ConfigError, "interval", {"configs": ["taylorseer:interval=-1"]}),
        (UsageError, "no class 'cat'", {"prompts": ["cat"]}),
        (UsageError, "at least one prompt", {"prompts": []}),
        (UsageError, "at least one prompt", {"seeds": []}),
        (UsageError, "at least 2", {"steps": 1}),
        (UsageError, "dtype", {"dtype": "int8"}),
        (UsageError, "threads", {"threads": 0}),
        (UsageError, "pairs must be", {"pairs": 0}),
        (UsageError, "neither a folder", {"features": "nowhere"}),
        (UsageError, "no weights file", {"weights": {"lpips": "nowhere.pth"}}),
        (UsageError, "device", {"device": "cuda:99"}),
    ):
        with pytest.raises(error, match=words):
            run(**arguments)
    assert not out.exists()


def test_summary_of_a_damaged_folder(tmp_path, finished) -> None:
    with pytest.raises(UsageError, match=r"run\.json is missing"):
        summarise(tmp_path)
    (tmp_path / "run.json").write_bytes((finished / "run.json").read_bytes())
    with pytest.raises(UsageError, match="no dense result"):
        summarise(tmp_path)
    lines = (finished / "results.jsonl").read_text().splitlines()
    first = json.loads(next(x for x in lines if '"config": "dense"' in x))
    first["seconds"] = "soon"
    (tmp_path / "results.jsonl").write_text(json.dumps(first) + "\n")
    with pytest.raises(UsageError, match="line 1 is damaged: seconds must be a number, not text"):
        summarise(tmp_path)


def test_outputs_that_are_no_pictures() -> None:
    assert to_uint8(np.full((1, 2, 4, 4, 3), 0.5)).tolist()[0][0][0] == [128, 128, 128]
    for value in (np.zeros((1, 16, 4, 8)), np.zeros((1, 4, 4, 3), np.uint8), None):
        with pytest.raises(UsageError, match="not RGB frames"):
            to_uint8(value)


def test_real_frames(tmp_path) -> None:
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    assert [f.shape for f in load_real(tmp_path)] == [(1, 8, 8, 3)] * 3
    assert len(load_real(tmp_path, 2)) == 2
    (tmp_path / "1.png").write_bytes(b"broken")
    (tmp_path / "bad.npz").write_bytes(b"broken")
    for path, words in (
        (tmp_path, "not a readable picture"),
        (tmp_path / "bad.npz", "not an npz"),
        (tmp_path / "none", "no such"),
    ):
        with pytest.raises(UsageError, match=words):
            load_real(path)


def test_provenance(model_folder, tmp_path) -> None:
    assert {"ditaccel", "torch", "diffusers", "python"} <= set(provenance.versions())
    assert provenance.fingerprint(model_folder) == provenance.fingerprint(model_folder)
    assert provenance.fingerprint(model_folder) != provenance.fingerprint(tmp_path)
    assert provenance.commit()


def test_kept_tensors_are_seen(monkeypatch) -> None:
    monkeypatch.undo()
    kept = memory.KeptTensors()
    kept(0)
    stored = torch.zeros(250_000)
    kept(5)
    assert 1_000_000 <= kept.peak < 2_000_000 and kept.seconds > 0
    del stored
    assert memory.DevicePeak("cpu").read() is None


def test_sampler_arguments(pipelines) -> None:
    pipe = pipelines["dit"][0]
    dit = Sampler(pipe, default_call(pipe, Sheet(negative_prompt="ugly")), 7)
    arguments = dit.arguments("b", 5, None)
    assert arguments["class_labels"] == [1] and arguments["num_inference_steps"] == 7
    assert "negative_prompt" not in arguments and arguments["generator"].initial_seed() == 5
    pipe = pipelines["flux"][0]
    flux = Sampler(pipe, default_call(pipe, Sheet(negative_prompt="ugly")), 7)
    assert flux.arguments("a cat", 0, 4)["prompt"] == "a cat"
    assert flux.arguments("a cat", 0, 4)["negative_prompt"] == "ugly"


def test_runs_with_different_schedulers_never_mix(finished, model_folder) -> None:
    other = replace(OPTIONS, scheduler="unipc")
    with pytest.raises(UsageError, match="another setup"):
        evaluate(str(model_folder), CONFIGS, PROMPTS, [0, 1], finished, other)
    unknown = replace(OPTIONS, scheduler="nosuch")
    with pytest.raises(UnsupportedError, match="no scheduler 'nosuch'"):
        evaluate(str(model_folder), [], PROMPTS, [0], finished, unknown)
