"""Calibration chooses thresholds by the error against the dense output."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from tiny import generate, tiny_wan

import ditaccel
from ditaccel import ConfigError, LiteAttentionConfig, SVG2Config, UsageError
from ditaccel import config as configs
from ditaccel.tuning.calibration import calibrate, calibrated_methods

BASE = LiteAttentionConfig(min_tokens=0, break_even=0.97, q_tile=16, k_tile=16, dense_steps=1)


def _peaked():  # type: ignore[no-untyped-def]
    """A tiny Wan whose attention is peaked, so that something can be skipped."""
    pipe, call = tiny_wan(layers=2)
    with torch.no_grad():
        for block in pipe.transformer.blocks:
            block.attn1.norm_q.weight.mul_(30.0)
    return pipe, {**call, "height": 128, "width": 128, "num_frames": 9}


def test_a_tighter_target_keeps_more_and_errs_less() -> None:
    pipe, call = _peaked()
    before = generate(pipe, call)
    found = {}
    for target in (0.005, 0.1):
        found[target] = calibrate(pipe, [call], BASE, target_error=target, parts=2)
        result = found[target]
        assert len(result.config.thresholds) == 2
        assert all(len(own) == 2 for own in result.config.thresholds)
        assert all(list(own) == sorted(own) for own in result.config.thresholds)
        assert max(result.error) <= target
    assert sum(found[0.1].density) < sum(found[0.005].density)
    assert sum(found[0.1].error) > sum(found[0.005].error)
    assert torch.equal(generate(pipe, call), before), "calibrate left something behind"


def test_the_config_round_trips_and_runs(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pipe, call = _peaked()
    chosen = calibrate(pipe, [call], BASE, target_error=0.1, parts=2).config
    path = tmp_path / "lite.yaml"
    configs.dump(ditaccel.AccelerationConfig(attention=chosen), path)
    assert configs.load(path).attention == chosen
    with ditaccel.accelerated(pipe, path):
        generate(pipe, call)
        assert ditaccel.report(pipe).attention[0].density < 1.0


def test_thresholds_of_another_model_are_refused() -> None:
    pipe, call = _peaked()
    wrong = dataclasses.replace(BASE, thresholds=(-3.0,) * 5)
    with (
        pytest.raises(ConfigError, match="5 entries, but the transformer has 2"),
        ditaccel.accelerated(pipe, attention=wrong),
    ):
        generate(pipe, call)


def test_bad_input() -> None:
    pipe, call = _peaked()
    with pytest.raises(ConfigError, match="target_error"):
        calibrate(pipe, [call], BASE, target_error=0.0)
    with pytest.raises(ConfigError, match="parts"):
        calibrate(pipe, [call], BASE, parts=0)
    with pytest.raises(UsageError, match="prompt"):
        calibrate(pipe, [], BASE)
    with ditaccel.accelerated(pipe, attention=BASE), pytest.raises(UsageError, match="restore"):
        calibrate(pipe, [call], BASE)
    dense = dataclasses.replace(BASE, dense_steps=100)
    with pytest.raises(UsageError, match="no attention call"):
        calibrate(pipe, [call], dense)
    with pytest.raises(UsageError, match=r"192 tokens here, and shorter .* min_tokens=1024"):
        calibrate(pipe, [call], LiteAttentionConfig())


def test_candidates_are_in_documented_units() -> None:
    assert calibrated_methods() == {"lite_attention": LiteAttentionConfig.calibrated}
    option = LiteAttentionConfig.calibrated
    for a, b in itertools.pairwise((option.never, *option.candidates)):
        assert a < b < 0
        assert LiteAttentionConfig(**{option.option: b, option.per_layer: ((a, b),)})


def test_a_method_without_an_option_to_calibrate_is_refused() -> None:
    pipe, call = _peaked()
    with pytest.raises(ConfigError, match=r"SVG2Config has no option .* lite_attention"):
        calibrate(pipe, [call], SVG2Config())


def test_tune_calibrates_attention() -> None:
    pipe, call = _peaked()
    call = {**call, "height": 256, "width": 256, "num_inference_steps": 6, "num_frames": 13}
    with pytest.warns(UserWarning, match=r"100 % of the attention is kept, .* would go dense"):
        found = ditaccel.tune(pipe, [call], ditaccel.Target(attention_error=0.05))
    assert found.cache is None and len(found.attention.thresholds) == 2
    for wrong in ({}, {"psnr": 30.0, "attention_error": 0.1}, {"attention_error": 1.5}):
        with pytest.raises(ConfigError, match=r"Target|attention_error"):
            ditaccel.Target(**wrong)
