"""Several workers, and runs of several machines: the results of one, and honest timings."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from ditaccel.eval import store
from ditaccel.eval.judge import Judge
from ditaccel.eval.measure import memory
from ditaccel.eval.options import Options
from ditaccel.eval.runs import evaluate
from ditaccel.eval.store import load_frames
from ditaccel.eval.workers import crew
from ditaccel.eval.workers.parts import absorb, merge
from ditaccel.eval.workers.worker_main import work

from ditaccel.errors import UsageError
from ditaccel.io.files import read_json, read_lines
from ditaccel.io.models import Sheet

OPTIONS = Options(fewer=[3], features="none", quiet=True, threads=1)
CONFIGS = ["taylorseer:interval=2"]
PROMPTS = ["a red circle", "b"]
NONE = Judge(OPTIONS, Sheet(), None)


@pytest.fixture(autouse=True)
def cheap_memory(monkeypatch) -> None:
    """Looking at every object of the test session takes tenths of a second each time."""
    monkeypatch.setattr(memory, "live_tensor_bytes", lambda: 0)


@pytest.fixture(scope="module")
def alone(model_folder, tmp_path_factory):
    """The run of one worker."""
    patch = pytest.MonkeyPatch()
    patch.setattr(memory, "live_tensor_bytes", lambda: 0)
    out = tmp_path_factory.mktemp("alone") / "out"
    evaluate(str(model_folder), CONFIGS, PROMPTS, [0, 1], out, OPTIONS)
    patch.undo()
    return out


def assert_equal_but_for_timing(one: Path, other: Path) -> None:
    lines = [
        {(x["config"], x["sample"]): x for x in read_lines(folder / "results.jsonl")}
        for folder in (one, other)
    ]
    assert lines[0].keys() == lines[1].keys()
    for key, line in lines[0].items():
        for what in ("metrics", "computed_share", "prompt", "seed", "media", "calls"):
            assert lines[1][key][what] == line[what], (key, what)
        frames = [load_frames(folder / line["media"]) for folder in (one, other)]
        assert np.array_equal(*frames)
    rows = [read_json(folder / "summary.json")["configs"] for folder in (one, other)]
    for name, row in rows[0].items():
        for key in ("n", "psnr", "ssim", "computed_share"):
            assert rows[1][name][key] == row[key]


def test_two_workers_give_what_one_gives(alone, model_folder, tmp_path, monkeypatch) -> None:
    """The second worker runs in this process, before the first one begins."""

    class InHere:
        def __init__(self, root, count, progress):
            self.repeats = []
            assert count == 2
            (root / "queue/done/p000-s0").parent.mkdir(parents=True, exist_ok=True)
            for sample in ("p000-s0", "p001-s1"):
                (root / "queue/done" / sample).touch()  # left to the first one
            work(root, root / "parts/1-x", 1, None, told.append)
            for sample in ("p000-s0", "p001-s1"):
                (root / "queue/done" / sample).unlink()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self):
            self.repeats = [line["dense_repeats"] for line in told if "dense_repeats" in line]

    told: list[dict] = []
    monkeypatch.setattr(crew, "Crew", InHere)
    out = tmp_path / "out"
    options = replace(OPTIONS, workers=2, device="cpu")
    evaluate(str(model_folder), CONFIGS, PROMPTS, [0, 1], out, options)
    assert sum("step" in line for line in told) == 2 * 4
    assert_equal_but_for_timing(alone, out)
    summary = read_json(out / "summary.json")
    assert summary["dense_repeats"] is True and not (out / "workers").exists()
    (shared,) = [v for v in summary["verdicts"] if v["kind"] == "shared machine"]
    assert "2 workers shared this machine" in shared["text"]
    assert not [
        v
        for v in read_json(alone / "summary.json")["verdicts"]
        if v["kind"] in ("shared machine", "several machines")
    ]


FILES = ("generations.jsonl", "results.jsonl")


def killed_run(alone: Path, out: Path) -> Path:
    """The run as it would be if a kill had left one sample in the parts of two dead workers."""
    shutil.copytree(alone, out)
    for name, count in (("1-a", 1), ("2-b", 3)):
        part = out / "workers/parts" / name
        part.mkdir(parents=True)
        for file in FILES:
            own = [x for x in read_lines(alone / file) if x["sample"] == "p001-s0"][:count]
            (part / file).write_text("".join(json.dumps(x) + "\n" for x in own))
            for line in own:
                (part / line["media"]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(alone / line["media"], part / line["media"])
    for file in FILES:
        left = [x for x in read_lines(alone / file) if x["sample"] != "p001-s0"]
        (out / file).write_text("".join(json.dumps(x) + "\n" for x in left))
    for media in out.glob("media/*/p001-s0.npz"):
        media.unlink()
    return out


def test_what_killed_workers_made_is_kept_and_the_rest_made(alone, model_folder, tmp_path) -> None:
    """Of two parts of a sample the larger one counts; what neither has the next run makes."""
    out = killed_run(alone, tmp_path / "out")
    evaluate(str(model_folder), CONFIGS, PROMPTS, [0, 1], out, OPTIONS)
    assert_equal_but_for_timing(alone, out)
    made = [x for x in read_lines(out / FILES[0]) if x["sample"] == "p001-s0"]
    before = [x for x in read_lines(alone / FILES[0]) if x["sample"] == "p001-s0"]
    assert [x["seconds"] for x in made[:3]] == [x["seconds"] for x in before[:3]]
    assert made[3]["seconds"] != before[3]["seconds"] and not (out / "workers").exists()


class Killed(BaseException):
    """What a kill does at a call."""


def kill_at(monkeypatch, call: int, what: str) -> None:
    """End the process at the given call of a function that writes, before it does anything."""
    own = getattr(Path, what) if what == "replace" else getattr(store, what)
    calls = iter(range(10**6))

    def last(*given):
        if next(calls) == call:
            raise Killed
        return own(*given)

    monkeypatch.setattr(Path if what == "replace" else store, what, last)


@pytest.mark.parametrize(
    ("what", "call"), [("replace", 1), ("append_lines", 0), ("append_lines", 1)]
)
def test_a_kill_while_parts_are_taken_loses_nothing(
    alone, tmp_path, monkeypatch, what, call
) -> None:
    out = killed_run(alone, tmp_path / "out")
    with (
        store.Store(out, read_json(out / "run.json")) as run,
        monkeypatch.context() as patch,
        pytest.raises(Killed),
    ):
        kill_at(patch, call, what)
        absorb(run)
    with store.Store(out, read_json(out / "run.json")) as run:
        absorb(run)
        assert sum(run.is_done(row, sample) for row, sample in run.generations) == 15
    made = [x for x in read_lines(out / FILES[0]) if x["sample"] == "p001-s0"]
    assert len(made) == 3 and not (out / "workers").exists()


def test_a_worker_that_does_not_know_what_the_command_knows_makes_nothing(
    alone, model_folder, tmp_path
) -> None:
    """A metric that a script registered by import is not there in another process."""
    run = read_json(alone / "run.json")
    run["metrics"].append({**run["metrics"][0], "key": "mine"})
    root = tmp_path / "workers"
    root.mkdir()
    (tmp_path / "run.json").write_text(json.dumps(run))
    (root / "task.json").write_text(
        json.dumps(
            {
                "run": "x", "model": str(model_folder), "configs": CONFIGS, "prompts": PROMPTS,
                "seeds": [0, 1], "options": asdict(OPTIONS), "devices": ["cpu", "cpu"],
                "samples": ["p000-s0"],
            }
        )
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"not that of the command \(metrics: mine\)"):
        work(root, root / "parts/1-x", 1, None, lambda line: None)
    assert not (root / "parts").exists()


def test_a_pipeline_or_an_array_cannot_be_shared(pipelines, model_folder, tmp_path) -> None:
    pipe, call = pipelines["dit"]
    two = replace(OPTIONS, workers=2, device="cpu")
    with pytest.raises(UsageError, match="several workers each load the model"):
        evaluate(pipe, [], PROMPTS, [0], tmp_path / "a", replace(two, call=call))
    with pytest.raises(UsageError, match=r"plain arguments only .*evaluate with one worker"):
        odd = replace(two, call={"class_labels": np.zeros(1)})
        evaluate(str(model_folder), [], PROMPTS, [0], tmp_path / "b", odd)


def of_another_machine(folder: Path, to: Path, seeds: dict[int, int], slower: float) -> Path:
    """A copy of a run with other seeds, as a machine of another speed would have made it."""
    shutil.copytree(folder, to)
    run = read_json(to / "run.json")
    run["seeds"] = [seeds[seed] for seed in run["seeds"]]
    run["device"]["name"] = "another CPU"
    (to / "run.json").write_text(json.dumps(run))
    for media in sorted((to / "media").glob("*/*-s*.npz"), reverse=True):  # 1 before 0: 0 may be 1
        prompt, seed = media.stem.split("-s")
        media.rename(media.with_name(f"{prompt}-s{seeds[int(seed)]}.npz"))
    for name in ("generations.jsonl", "results.jsonl"):
        lines = read_lines(to / name)
        for line in lines:
            prompt, _, seed = line["sample"].partition("-s")
            line["sample"] = f"{prompt}-s{seeds[int(seed)]}"
            line["media"] = f"media/{line['config']}/{line['sample']}.npz"
            if "seed" in line:
                line["seed"] = seeds[line["seed"]]
            line["device"]["name"] = "another CPU"
            for pair in line["pairs"]:
                for side, factor in (("dense", 10.0), ("row", 10.0 * slower)):
                    pair[side] = {k: v * factor for k, v in pair[side].items()}
            line["timing"] = {k: v * 10 for k, v in line["timing"].items()}
        (to / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return to


def test_runs_of_two_machines_become_one_table(alone, tmp_path) -> None:
    other = of_another_machine(alone, tmp_path / "other", {0: 7, 1: 1}, 2.0)
    out = merge([alone, other], tmp_path / "both", NONE)
    summary, run = read_json(out / "summary.json"), read_json(out / "run.json")
    assert run["seeds"] == [0, 1, 7] and len(run["machines"]) == 2
    assert summary["configs"]["dense"]["n"] == 6  # seed 1 is in both, and counts once
    lines = read_lines(out / "results.jsonl")
    assert {(x["sample"], x["machine"]) for x in lines} == {
        *((f"p00{i}-s{seed}", 0) for i in (0, 1) for seed in (0, 1)),
        ("p000-s7", 1), ("p001-s7", 1),
    }  # fmt: skip
    assert all(load_frames(out / x["media"]).shape == (1, 8, 8, 3) for x in lines)
    here, there = summary["machines"]
    assert (here["samples"], there["samples"]) == (4, 2) and there["name"] == "another CPU"
    assert there["speedup"]["steps-3"] == pytest.approx(here["speedup"]["steps-3"] / 2, rel=0.3)
    assert summary["configs"]["steps-3"]["timing"]["state"] == "noisy"
    assert "its machines differ" in summary["configs"]["steps-3"]["timing"]["reason"]
    (warning,) = [v for v in summary["verdicts"] if v["kind"] == "several machines"]
    assert "timed on 2 machines" in warning["text"] and "do not agree on" in warning["text"]
    assert "2 samples that several runs had" in warning["text"]
    again = (out / "results.jsonl").read_bytes()
    assert merge([alone, other], out, NONE) == out
    assert (out / "results.jsonl").read_bytes() == again


def test_dense_runs_of_a_slower_machine_are_no_noise(alone, tmp_path) -> None:
    """Each row's dense run is looked at among those of its own machine."""
    other = of_another_machine(alone, tmp_path / "other", {0: 7, 1: 8}, 1.0)
    summary = read_json(merge([alone, other], tmp_path / "both", NONE) / "summary.json")
    for name, row in summary["configs"].items():
        assert "another time than the other dense runs" not in row["timing"]["reason"], name
        assert "machines differ" not in row["timing"]["reason"]


def test_runs_that_cannot_be_merged(alone, tmp_path) -> None:
    with pytest.raises(UsageError, match="two or more folders"):
        merge([alone], tmp_path / "a", NONE)
    with pytest.raises(UsageError, match="adds nothing: all its 4 samples are in the others"):
        merge([alone, alone], tmp_path / "b", NONE)
    other = of_another_machine(alone, tmp_path / "other", {0: 7, 1: 8}, 1.0)
    run = read_json(other / "run.json")
    (other / "run.json").write_text(json.dumps({**run, "dtype": "bfloat16"}))
    with pytest.raises(UsageError, match=r"setups differ .dtype is 'bfloat16', there 'float32'"):
        merge([alone, other], tmp_path / "c", NONE)
    assert not any((tmp_path / name).exists() for name in "abc")


def test_a_merge_that_would_lose_results_is_refused(alone, tmp_path) -> None:
    other = of_another_machine(alone, tmp_path / "other", {0: 7, 1: 8}, 1.0)
    (other / "workers").mkdir()
    with pytest.raises(UsageError, match=r"other was stopped while .* run its command again first"):
        merge([alone, other], tmp_path / "out", NONE)
    (other / "workers").rmdir()
    (other / "media/dense/p001-s8.npz").unlink()
    with pytest.raises(UsageError, match=r"other lacks the frames of 1 of its 16 results"):
        merge([alone, other], tmp_path / "out", NONE)
    run = read_json(other / "run.json")
    (other / "run.json").write_text(json.dumps({**run, "metrics": run["metrics"][1:]}))
    with pytest.raises(UsageError, match=r"setups differ \(metrics: \w+\)"):
        merge([alone, other], tmp_path / "out", NONE)
    (other / "results.jsonl").unlink()
    (other / "run.json").write_text(json.dumps(run))
    with pytest.raises(UsageError, match="other holds no results"):
        merge([alone, other], tmp_path / "out", NONE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", [0, 3, 4])
def test_a_merge_that_was_killed_is_completed(alone, tmp_path, monkeypatch, call) -> None:
    other = of_another_machine(alone, tmp_path / "other", {0: 7, 1: 8}, 1.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, call, "append_lines")
        merge([alone, other], tmp_path / "out", NONE)
    out = merge([alone, other], tmp_path / "out", NONE)
    lines = read_lines(out / "results.jsonl")
    assert len({(x["config"], x["sample"]) for x in lines}) == len(lines) == 32
    again = merge([out, of_another_machine(alone, tmp_path / "c", {0: 5, 1: 6}, 1.0)],
                  tmp_path / "again", NONE)  # fmt: skip
    assert len(read_lines(again / "results.jsonl")) == 48


def test_failures_of_merged_runs_are_reported(alone, tmp_path) -> None:
    """Also those of a sample that failed in every row, and has no result."""
    other = of_another_machine(alone, tmp_path / "other", {0: 7, 1: 8}, 1.0)
    for file in FILES:
        left = [x for x in read_lines(other / file) if x["sample"] != "p000-s7"]
        (other / file).write_text("".join(json.dumps(x) + "\n" for x in left))
    lost = {"config": "dense", "sample": "p000-s7", "error": "out of memory"}
    (other / "failures.jsonl").write_text(json.dumps(lost) + "\n")
    out = merge([alone, other], tmp_path / "out", NONE)
    wanted = [lost]
    assert read_json(out / "summary.json")["failures"] == wanted
    merge([alone, other], out, NONE)
    assert read_json(out / "summary.json")["failures"] == wanted


@pytest.mark.slow
def test_a_killed_worker_is_replaced(alone, model_folder, tmp_path) -> None:
    out = tmp_path / "out"
    options = replace(OPTIONS, workers=2, device="cpu")
    arguments = (str(model_folder), CONFIGS, PROMPTS, [0, 1], out, options)
    command = multiprocessing.get_context("fork").Process(target=evaluate, args=arguments)
    command.start()
    killed, deadline = 0, time.monotonic() + 240
    while command.is_alive() and time.monotonic() < deadline:
        for home in list((out / "workers/queue/workers").glob("*")):
            pid = int(home.name.rsplit("-", 3)[1])
            if not killed and pid != command.pid:
                os.kill(pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.02)
    command.join()
    assert command.exitcode == 0 and killed
    assert_equal_but_for_timing(alone, out)
    assert not (out / "workers").exists()
