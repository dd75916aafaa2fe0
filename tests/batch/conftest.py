"""A tiny pipeline on disk, and the command line run in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import ForkedWorker
from tiny import tiny_dit

from ditaccel.batch.workers import local
from ditaccel.cli import main


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DiT with a VAE: 8 x 8 pictures in some hundredths of a second."""
    folder = tmp_path_factory.mktemp("model") / "tiny-dit"
    pipe, _ = tiny_dit(layers=2)
    pipe.save_pretrained(folder)
    call = {"num_inference_steps": 8, "guidance_scale": 3.0}
    (folder / "sample.json").write_text(json.dumps({"family": "dit", "call": call}))
    return folder


@pytest.fixture
def jobs(tmp_path: Path) -> Callable[..., Path]:
    """Write a job file of class labels."""

    def write(count: int = 4, extra: list[dict[str, Any]] | None = None) -> Path:
        rows = [{"class_label": i % 10, "seed": i} for i in range(count)] + (extra or [])
        path = tmp_path / "jobs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def generate(model: Path, tmp_path: Path, capsys: Any) -> Callable[..., tuple[int, str, str]]:
    """Run `ditaccel generate` on the tiny model; returns exit code, stdout and stderr."""

    def run(jobs: Path, *options: str, out: Path | None = None) -> tuple[int, str, str]:
        capsys.readouterr()
        command = [
            "generate",
            str(model),
            "--jobs",
            str(jobs),
            "--out",
            str(out or tmp_path / "out"),
        ]
        if "--workers" not in options:
            command += ["--workers", "1"]  # in this process
        code = main([*command, *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> list[ForkedWorker]:
    """Workers are forks of this process; here they are, in the order of their start."""
    started: list[ForkedWorker] = []

    def spawn(arguments: list[str], environment: dict[str, str]) -> ForkedWorker:
        started.append(ForkedWorker(arguments, environment))
        return started[-1]

    monkeypatch.setattr(local, "spawn", spawn)
    return started
