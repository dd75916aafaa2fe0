"""Modular pipelines are tuned as others are: from a prompt to a config that runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from modular import PIPELINES
from tiny import FAMILIES

import ditaccel
from ditaccel import config as configs
from ditaccel.caching.magcache import MagCacheConfig
from ditaccel.core.kinds import decoded
from ditaccel.errors import UnsupportedError, UsageError
from ditaccel.tuning.calibration import calibrate

PROMPTS = ["a red circle", "a blue square"]
KINDS = [name for name in PIPELINES if name in FAMILIES]


@pytest.fixture(params=KINDS)
def made(request):
    return PIPELINES[request.param]()


def pictures(pipe, call, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt=PROMPTS[0], generator=generator, **call, **decoded(pipe))


def test_tuned_config_runs_from_its_file(made, tmp_path):
    pipe, call = made
    dense = pictures(pipe, {**call, "num_inference_steps": 6})
    target = ditaccel.Target(computed_share=0.7)
    found = ditaccel.tune(pipe, PROMPTS, target, pairs=2, steps=6, **call)
    configs.dump(found, tmp_path / "tuned.yaml")
    ditaccel.accelerate(pipe, tmp_path / "tuned.yaml")
    fast = pictures(pipe, {**call, "num_inference_steps": 6})
    assert 0 < ditaccel.report(pipe).computed_share <= 0.7
    assert not np.array_equal(fast, dense)
    ditaccel.restore(pipe)
    assert np.array_equal(pictures(pipe, {**call, "num_inference_steps": 6}), dense)


def test_constants_are_measured(made):
    pipe, call = made
    found = ditaccel.fit(pipe, MagCacheConfig(), PROMPTS[:1], num_inference_steps=8, **call)
    with ditaccel.accelerated(pipe, cache=found):
        pictures(pipe, {**call, "num_inference_steps": 8})
        assert ditaccel.report(pipe).forecasts > 0


def test_attention_is_calibrated():
    pipe, call = PIPELINES["flux3"]()
    config = ditaccel.LiteAttentionConfig(dense_steps=0, min_tokens=16, q_tile=32, k_tile=32)
    found = calibrate(pipe, PROMPTS[:1], config, parts=1, num_inference_steps=2, **call)
    assert found.error and max(found.error) <= 0.02


@pytest.mark.parametrize("name", ["output", "state", "output_type"])
def test_what_tune_sets_itself(made, name):
    pipe, call = made
    with pytest.raises(UsageError, match=f"^tune sets {name} itself"):
        ditaccel.tune(pipe, PROMPTS, ditaccel.Target(psnr=30), **{name: "pil"}, **call)


def test_blocks_without_pictures():
    pipe, _ = FAMILIES["flux3"]()
    with pytest.raises(UnsupportedError, match=r"makes no pictures \(its blocks leave latents\)"):
        ditaccel.tune(pipe, PROMPTS, ditaccel.Target(psnr=30))


def test_unknown_arguments(made):
    with pytest.raises(UsageError, match="takes no argument 'heigth'"):
        ditaccel.tune(made[0], PROMPTS, ditaccel.Target(psnr=30), heigth=64)
