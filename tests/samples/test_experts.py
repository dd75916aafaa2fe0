"""The sample with two experts: how they differ, and that one plan serves both."""

import json

import pytest
import torch

import ditaccel
from ditaccel.io.models import load_pipeline

from .conftest import SAMPLES

FOLDER = SAMPLES / "models" / "shapes-wan22"


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(FOLDER)


def test_each_expert_is_trained_on_its_own_side_of_the_boundary(script):
    experts = script("experts")
    generator = torch.Generator().manual_seed(0)
    high = experts.noise_levels(4096, generator, high=True)
    low = experts.noise_levels(4096, generator, high=False)
    assert low.max() <= experts.BOUNDARY <= high.min() and high.max() <= 1.0 and low.min() >= 0.0
    # spread as the sampler spreads its steps: 7 / 12 of them lie below the boundary at a shift of 5
    scheduler = load_pipeline(FOLDER).scheduler
    scheduler.set_timesteps(1000)
    share = (scheduler.sigmas[:-1] < experts.BOUNDARY).float().mean()
    assert share == pytest.approx(7 / 12, abs=0.01)


def test_it_ships_as_wan_22_does_and_its_experts_differ(pipe):
    assert pipe.config.boundary_ratio == 0.875
    assert type(pipe.scheduler).__name__ == "UniPCMultistepScheduler"
    assert pipe.scheduler.config.flow_shift == 5.0 and pipe.scheduler.config.use_flow_sigmas
    call = json.loads((FOLDER / "sample.json").read_text())["call"]
    assert call["guidance_scale"] != call["guidance_scale_2"]
    pairs = zip(pipe.transformer.parameters(), pipe.transformer_2.parameters(), strict=True)
    apart = [((a - b).norm() / a.norm().clamp_min(1e-6)).item() for a, b in pairs]
    assert sorted(apart)[len(apart) // 2] > 0.02
    # what they share are links into the other sample's folder
    for part in ("vae", "text_encoder", "tokenizer"):
        assert (FOLDER / part).resolve() == (SAMPLES / "models" / "shapes-wan" / part).resolve()


def test_one_plan_serves_both_experts(pipe):
    call = json.loads((FOLDER / "sample.json").read_text())["call"]
    call |= {"num_frames": 5, "num_inference_steps": 24, "output_type": "latent"}
    with ditaccel.accelerated(pipe, "balanced"):
        frames = pipe("a red circle", generator=torch.Generator().manual_seed(0), **call).frames
        report = ditaccel.report(pipe)
    assert torch.isfinite(frames).all()
    forecast = {c.transformer for c in report.newest if c.action == "forecast"}
    assert forecast == {"transformer", "transformer_2"}
    assert report.correction == "on" and report.left is not None
