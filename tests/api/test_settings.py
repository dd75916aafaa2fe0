"""What `accelerate` takes, and what tells a user what there is to take."""

import pytest
import torch
from tiny import generate, tiny_dit, tiny_wan

import ditaccel
from ditaccel import LiteAttentionConfig, ReuseConfig, SVG2Config, TaylorSeerConfig


def on(pipe, *args, **kwargs):
    with ditaccel.accelerated(pipe, *args, **kwargs):
        config = ditaccel.report(pipe).config
    return {kind: config[kind]["method"] for kind in ("cache", "attention") if kind in config}


def test_methods_are_given_alone_and_together():
    pipe, _ = tiny_dit()
    taylor, sparse = TaylorSeerConfig(interval=3), LiteAttentionConfig(threshold=-5.0)
    both = {"cache": "taylorseer", "attention": "lite_attention"}
    assert on(pipe, taylor) == {"cache": "taylorseer"}
    assert on(pipe, sparse) == {"attention": "lite_attention"}
    assert on(pipe, taylor, sparse) == on(pipe, [sparse, taylor]) == both
    assert on(pipe, taylor, attention=sparse) == on(pipe, sparse, "taylorseer:order=2") == both
    assert on(pipe, "balanced", sparse) == {**both, "cache": "adaptive_taylor"}
    ditaccel.accelerate(pipe, taylor, sparse, order=2)
    assert ditaccel.report(pipe).config["cache"]["order"] == 2


def test_a_clash_is_one_line_and_leaves_what_was_on():
    pipe, _ = tiny_wan()
    ditaccel.accelerate(pipe, SVG2Config())
    for wrong in ((TaylorSeerConfig(), ReuseConfig()), ([TaylorSeerConfig(), ReuseConfig()],)):
        with pytest.raises(ditaccel.ConfigError) as error:
            ditaccel.accelerate(pipe, *wrong)
        assert "taylorseer and reuse are both caching methods" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ditaccel.ConfigError, match=r"is the class ReuseConfig itself"):
        ditaccel.accelerate(pipe, ReuseConfig)
    with pytest.raises(ditaccel.ConfigError, match="accelerates nothing"):
        ditaccel.accelerate(pipe, [])
    assert ditaccel.report(pipe).method == "svg2"


def test_whether_it_is_on():
    pipe, _ = tiny_wan()
    assert not ditaccel.is_accelerated(pipe)
    ditaccel.accelerate(pipe, "reuse:interval=2")
    assert ditaccel.is_accelerated(pipe) and ditaccel.is_accelerated(pipe.transformer)
    assert not ditaccel.is_accelerated(torch.nn.Linear(2, 2))
    ditaccel.restore(pipe)
    assert not ditaccel.is_accelerated(pipe)
    with pytest.raises(ditaccel.UsageError, match="neither a diffusers pipeline"):
        ditaccel.is_accelerated("pipe")


def test_every_preset_that_is_named_can_be_asked_for():
    pipe, call = tiny_dit()
    found = ditaccel.presets(pipe)
    assert {"safe", "balanced", "fast", "published:taylorseer"} <= set(found)
    for name, config in found.items():
        assert ditaccel.config.resolve(name, "dit").methods == config.methods
    changed = ditaccel.presets(pipe)
    changed.clear()
    assert ditaccel.presets(pipe) == found
    torch.manual_seed(0)
    with ditaccel.accelerated(pipe, found["fast"]):
        generate(pipe, call)


def test_methods_and_families_are_listed():
    assert ditaccel.methods()["taylorseer"] is TaylorSeerConfig
    assert {cls.kind for cls in ditaccel.methods().values()} == {"cache", "attention", "calls"}
    assert ditaccel.families()["wan"].transformers[0] == "WanTransformer3DModel"
