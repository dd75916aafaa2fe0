"""Jobs and reports of modular pipelines, from a folder with a modular index and loaded ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ditaccel.eval.comparison.sampler import Sampler
from ditaccel.eval.peers.isolation import isolated
from forked import ForkedWorker, after
from job_folders import assert_tidy, outputs
from modular import FOLDER_CALL, PIPELINES, save_modular
from safetensors.numpy import load_file
from tiny import FAMILIES

import ditaccel
from ditaccel.batch.facts import read_facts
from ditaccel.cli import main
from ditaccel.diagnosis.command import hollow_pipeline
from ditaccel.errors import UnsupportedError, UsageError
from ditaccel.io.indexes import MODULAR
from ditaccel.io.models import load_pipeline

KINDS = [name for name in PIPELINES if name in FAMILIES]
PROMPTS = ["a red circle", "a blue square", "a green star"]
MASK = {"ditaccel": 1, "cache": {"method": "step_mask", "steps": [0, 1, 2, 4], "total": 6}}
CALL = [f"--call={name}={value}" for name, value in FOLDER_CALL.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX.1, saved from its modular pipeline."""
    return save_modular(tmp_path_factory.mktemp("model") / "modular")


@pytest.fixture
def command(folder: Path, tmp_path: Path) -> Any:
    """Run `ditaccel generate` on that folder; returns its exit code."""
    path, mask = tmp_path / "jobs.jsonl", tmp_path / "mask.json"
    mask.write_text(json.dumps(MASK))
    rows = [{"prompt": PROMPTS[i % 3], "seed": i} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(out: Path, *options: str) -> int:
        base = ["generate", str(folder), "--jobs", str(path), "--out", str(out), *CALL]
        return main([*base, "--config", str(mask), "--save", "png,frames", *options])

    return run


def test_two_workers_killed_and_resumed(
    command: Any, tmp_path: Path, crew: list[ForkedWorker]
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert command(whole, "--workers", "1") == 0 and not crew
    child = os.fork()
    if child == 0:
        os._exit(command(torn, "--workers", "2", "--quiet"))
    done = torn / "outputs"
    after(60, lambda: len(list(done.glob("*.json"))) > 1, lambda: os.kill(child, signal.SIGKILL))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(list(done.glob("*.json"))) > 1
    assert command(torn, "--workers", "2") == 0
    end = time.monotonic() + 60  # the killed command's workers see it at their next heartbeat
    while os.listdir(torn / "workers") and time.monotonic() < end:
        time.sleep(0.05)
    assert outputs(torn) == outputs(whole) and len(outputs(torn)) == 12
    assert_tidy(torn)
    steps = json.loads(next(done.glob("*.json")).read_text())["steps"]["steps"]
    assert list(steps.values()) == ["###.#."]


@pytest.mark.parametrize("name", KINDS)
def test_loaded_pipeline(name: str, tmp_path: Path) -> None:
    pipe, call = PIPELINES[name]()
    options = {"call": {**call, "num_inference_steps": 4}, "save": "frames,latents", "quiet": True}
    config = "reuse:interval=2"
    made = ditaccel.generate(pipe, PROMPTS[:2], tmp_path / "a", config, **options)
    assert (made.made, made.failed) == (2, 0)
    again = ditaccel.generate(pipe, PROMPTS[:2], tmp_path / "a", config, **options)
    assert (again.made, again.done) == (0, 2)
    (tensor,) = load_file(next((tmp_path / "a" / "outputs").glob("*.frames.safetensors"))).values()
    assert tensor.dtype == np.uint8 and tensor.shape[-1] == 3
    if name == "flux3":
        options["batch"] = 2
        both = ditaccel.generate(pipe, PROMPTS[:2], tmp_path / "b", config, **options)
        assert both.done == 2
    (tensor,) = load_file(next((tmp_path / "a" / "outputs").glob("*.latents.safetensors"))).values()
    assert tensor.ndim == (3 if name == "flux3" else 4)


def test_a_failing_row_is_one_line(tmp_path: Path, capfd: Any) -> None:
    pipe, call = PIPELINES["flux3"]()
    rows = [{"prompt": "a red circle", "call": {"width": 21}}, {"prompt": "b"}]
    call["num_inference_steps"] = 3
    made = ditaccel.generate(pipe, rows, tmp_path / "a", None, call=call, save="png", quiet=True)
    assert (made.done, made.failed) == (1, 1)
    assert "divisible by 2" in made.summary["failures"][0]["reason"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", KINDS)
def test_sampler(name: str) -> None:
    pipe, call = PIPELINES[name]()
    sampler = Sampler(pipe, call, 4)
    dense = sampler.generate(pipe, PROMPTS[0], 0).frames
    twin = isolated(pipe)
    assert np.array_equal(sampler.generate(twin, PROMPTS[0], 0).frames, dense)
    ditaccel.accelerate(twin, "reuse:interval=2")
    assert not np.array_equal(sampler.generate(twin, PROMPTS[0], 0).frames, dense)
    assert np.array_equal(sampler.generate(pipe, PROMPTS[0], 0).frames, dense)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_two_rows_are_compared_and_reported(name: str, tmp_path: Path) -> None:
    pipe, call = PIPELINES[name]()
    configs = ["reuse:interval=2", "taylorseer:interval=2,order=1"]
    options = {"steps": 6, "call": call, "fewer": (3,), "features": "none"}
    found = ditaccel.evaluate(pipe, configs, PROMPTS[:1], 0, tmp_path / "run", **options)
    assert not found.failures and found.page is not None and found.page.is_file()
    assert {"dense", "steps-3"} < set(found.configs) and len(found.configs) >= 5
    assert {"reuse-interval-2", "dense"} < set(found.configs)


def test_facts_and_doctor_read_the_folder(folder: Path) -> None:
    facts = read_facts(str(folder))
    assert (facts.pipeline, facts.family) == ("FluxModularPipeline", "flux")
    assert facts.transformer == "FluxTransformer2DModel"
    assert {"prompt", "height", "num_inference_steps"} <= set(facts.arguments)
    pipe = hollow_pipeline(folder)
    assert next(pipe.transformer.parameters()).device.type == "meta"
    found = ditaccel.doctor(pipe, "balanced", steps=20)
    assert found.ok and found.family == "flux"
    assert main(["doctor", str(folder), "--config", "balanced"]) == 0


def damaged(folder: Path, to: Path, change: Any) -> Path:
    shutil.copytree(folder, to, symlinks=True)
    index = json.loads((to / MODULAR).read_text())
    change(index, to)
    (to / MODULAR).write_text(json.dumps(index))
    return to


def test_folders_that_cannot_be_served(folder: Path, tmp_path: Path) -> None:
    def other_class(index: dict[str, Any], to: Path) -> None:
        index["_class_name"] = "MyModularPipeline"

    def own_blocks(index: dict[str, Any], to: Path) -> None:
        (to / "modular_config.json").write_text("{}")

    def no_part(index: dict[str, Any], to: Path) -> None:
        shutil.rmtree(to / "vae")
        index["vae"][2]["pretrained_model_name_or_path"] = str(to)

    for number, (change, line) in enumerate(
        [
            (other_class, "asks for the pipeline MyModularPipeline"),
            (own_blocks, "brings blocks of its own .*never run"),
            (no_part, "incomplete: it has no vae"),
        ]
    ):
        wrong = damaged(folder, tmp_path / str(number), change)
        with pytest.raises(UsageError, match=line):
            read_facts(str(wrong))
        with pytest.raises(UsageError):
            load_pipeline(wrong)


def test_a_moved_folder_loads_its_own_parts(folder: Path, tmp_path: Path) -> None:
    moved = damaged(folder, tmp_path / "moved", lambda index, to: None)
    pipe = load_pipeline(moved)
    assert pipe.transformer.config._name_or_path == str(moved)
    assert ditaccel.core.kinds.source_of(pipe) == str(moved)


def test_blocks_without_pictures(tmp_path: Path) -> None:
    pipe, _ = FAMILIES["flux3"]()
    with pytest.raises(UnsupportedError, match="makes no pictures"):
        ditaccel.evaluate(pipe, ["reuse:interval=2"], ["a"], 0, tmp_path / "run")
    assert not (tmp_path / "run").exists()
