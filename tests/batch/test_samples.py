"""The shipped models, few steps: files hold what the plain pipeline call gives, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_folders import assert_tidy, sidecars
from safetensors.torch import load_file

import ditaccel
from ditaccel.cli import main
from ditaccel.io.frames import to_uint8
from ditaccel.io.models import load_pipeline

MODELS = Path(__file__).resolve().parents[2] / "samples" / "models"


@pytest.mark.parametrize(
    ("name", "kinds", "call"),
    [
        ("shapes-wan", "mp4,frames", {"num_frames": 5}),
        ("shapes-flux", "png,frames", {}),
        ("shapes-dit", "png,frames", {}),
    ],
)
def test_a_sample(tmp_path: Path, name: str, kinds: str, call: dict[str, Any]) -> None:
    model, jobs, out = MODELS / name, tmp_path / "jobs.txt", tmp_path / "out"
    jobs.write_text("red circle\ngreen square\nblue circle\n")
    config = "taylorseer:interval=2,warmup=1,granularity=last_block"
    command = ["generate", str(model), "--jobs", str(jobs), "--out", str(out), "--seeds", "3"]
    command += ["--config", config, "--steps", "5", "--save", kinds, "--workers", "1"]
    for key, value in call.items():
        command += ["--call", f"{key}={value}"]
    assert main([*command, "--quiet"]) == 0
    assert_tidy(out)
    pipe = load_pipeline(model)
    ditaccel.accelerate(pipe, config)
    assert len(sidecars(out)) == 3
    for record in sidecars(out).values():
        arguments = {**record["call"], "output_type": "np"}
        if record["class_label"] is None:
            arguments |= {"prompt": record["prompt"], "negative_prompt": record["negative_prompt"]}
        else:
            arguments["class_labels"] = [record["class_label"]]
        output = pipe(**arguments, generator=torch.Generator().manual_seed(3))
        value = output.frames if hasattr(output, "frames") else output.images
        path = out / "outputs" / f"{record['name']}.frames.safetensors"
        assert np.array_equal(load_file(path)["frames"].numpy(), to_uint8(value))
        assert record["steps"]["forecast"] > 0
        assert record["shape"] == list(to_uint8(value).shape)
        if "mp4" in kinds:
            import av

            with av.open(str(out / "outputs" / f"{record['name']}.mp4")) as container:
                assert sum(1 for _ in container.decode(video=0)) == 5
