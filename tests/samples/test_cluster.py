"""The recipes for clusters: they parse, and the command in them plans what it should."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ditaccel.cli import main

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "samples" / "cluster"


def plan(script: str, env: dict[str, str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> str:
    """Run a recipe's shell text with `ditaccel` replaced by an echo, then its command as a plan."""
    tool = tmp_path / "bin" / "ditaccel"
    tool.parent.mkdir()
    tool.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, **env, "PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = done.stdout.split("\0")[:-1]
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("\n".join(f"prompt {i}" for i in range(64)))
    for name, value in (("--jobs", str(jobs)), ("--out", str(tmp_path / "out"))):
        arguments[arguments.index(name) + 1] = value
    arguments[1] = str(ROOT / "samples" / "models" / "shapes-wan")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().out


def test_slurm(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    script = RECIPES / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    env = {
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_COUNT": "16",
        "SLURM_ARRAY_TASK_MIN": "0",
    }
    printed = plan(script.read_text(), env, tmp_path, monkeypatch, capsys)
    assert "4 of them, shard 3/16 (Slurm array)" in printed
    count = next(line for line in script.read_text().splitlines() if "--array" in line)
    assert count == "#SBATCH --array=0-15%8"


def test_kubernetes(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    job = yaml.safe_load((RECIPES / "kubernetes.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (script,) = container["args"]
    assert spec["completionMode"] == "Indexed" and container["command"] == ["/bin/sh", "-c"]
    assert f"/{spec['completions']}" in shlex.split(script)[-1]
    printed = plan(script, {"JOB_COMPLETION_INDEX": "7"}, tmp_path, monkeypatch, capsys)
    assert "8 of them, shard 7/8 (as given)" in printed


def test_skypilot(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    task = yaml.safe_load((RECIPES / "skypilot.yaml").read_text())
    env = {"SKYPILOT_NODE_RANK": "2", "SKYPILOT_NUM_NODES": str(task["num_nodes"])}
    printed = plan(task["run"], env, tmp_path, monkeypatch, capsys)
    assert "16 of them, shard 2/4 (as given)" in printed


@pytest.mark.parametrize("name", [p.name for p in RECIPES.iterdir() if p.suffix != ".md"])
def test_every_recipe_is_in_the_table(name: str) -> None:
    assert f"[{name}]({name})" in (RECIPES / "README.md").read_text()
