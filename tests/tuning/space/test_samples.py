"""A search over everything on shapes-flux: its targets hold on prompts that it has not seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

import ditaccel
from ditaccel import Space, Target
from ditaccel.io.models import read_sheet
from ditaccel.tuning.quality import as_bytes, psnrs

SAMPLES = Path(__file__).parents[3] / "samples"
MODEL = SAMPLES / "models" / "shapes-flux"
LEVEL = 30.0


@pytest.mark.slow
def test_a_level_holds_on_held_out_prompts_and_another_scheduler_is_reported():
    pipe = DiffusionPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    call = {**read_sheet(MODEL).call, "negative_prompt": ""}
    lines = (SAMPLES / "prompts" / "shapes-flux.txt").read_text().splitlines()
    prompts = [line for line in lines if line and not line.startswith("#")]
    target = Target(psnr=LEVEL, statistic="p10")
    config = ditaccel.tune(
        pipe, prompts[-6:], target, pairs=6, space=Space(caches=["fast"]), **call
    )
    made = config.tuned
    assert made.prompts == 6 and made.profile and made.figures["speedup"][0] > 1.1

    def run(i):
        generator = torch.Generator().manual_seed(i)
        images = pipe(prompt=prompts[i], **call, output_type="np", generator=generator).images
        return as_bytes(images)

    dense = [run(i) for i in range(6)]
    ditaccel.accelerate(pipe, config)
    levels, left = [], 0
    for i in range(6):
        levels += psnrs(run(i), dense[i])
        left += ditaccel.report(pipe).drift.has_left
    assert np.mean(levels) > LEVEL and left <= 2
    ditaccel.restore(pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    ditaccel.accelerate(pipe, config)
    run(0)
    assert ditaccel.report(pipe).drift.has_left
    assert "this run has left what the config was tuned on" in str(ditaccel.report(pipe))
