"""An own config starts from its family's base; single options of a preset can be changed."""

from __future__ import annotations

import pytest
from ditaccel.pipelines import adapters
from tiny import tiny_dit, tiny_flux

import ditaccel
from ditaccel import AdaptiveTaylorConfig, config
from ditaccel.caching.engine.gate import StepRules

MEASURED = [name for name, each in adapters().items() if "balanced" in each.presets]


def test_an_own_config_with_a_presets_options_is_that_preset():
    pipe, _ = tiny_flux()
    preset = config.preset("balanced", "flux")
    with ditaccel.accelerated(pipe, cache=AdaptiveTaylorConfig(tolerance=0.01, few=2)):
        own = ditaccel.report(pipe)
    assert own.config["cache"] == config.to_dict(preset)["cache"]
    assert own.filled == {"warmup": 0.35, "guidance": "difference"}
    assert "not given, so flux's own: warmup=0.35, guidance=difference" in str(own)


@pytest.mark.parametrize("family", MEASURED)
def test_every_familys_presets_are_its_base_at_other_tolerances(family):
    base = adapters()[family].base.get("adaptive_taylor", {})
    for name in ("safe", "balanced", "fast"):
        cache = config.preset(name, family).cache
        assert cache.method == "adaptive_taylor"
        assert cache.guidance == base.get("guidance", "independent")
        assert None not in (cache.warmup, cache.tolerance)


def test_what_was_given_stands():
    pipe, _ = tiny_flux()
    given = AdaptiveTaylorConfig(tolerance=0.01, warmup=3, guidance="independent")
    with ditaccel.accelerated(pipe, cache=given):
        report = ditaccel.report(pipe)
    assert report.config["cache"]["warmup"] == 3 and not report.filled


def test_open_options_stay_open_in_files_and_whole_ones_stay_whole(tmp_path):
    open_, path = (
        ditaccel.AccelerationConfig(cache=AdaptiveTaylorConfig(tolerance=0.02)),
        tmp_path / "own.yaml",
    )
    config.dump(open_, path)
    assert config.load(path) == open_ and config.load(path).cache.warmup is None
    pipe, _ = tiny_flux()
    with ditaccel.accelerated(pipe, path):
        whole = config.from_dict(ditaccel.report(pipe).config)
    assert (whole.cache.warmup, whole.cache.guidance) == (0.35, "difference")
    config.dump(whole, path)
    assert config.load(path) == whole
    assert config.parse_spec(config.spec_of(whole)).methods == whole.methods


def test_files_of_earlier_versions_load_as_they_were_written(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(
        "ditaccel: 1\nlabel: flux balanced\ncache:\n  method: adaptive_taylor\n  tolerance: 0.01\n"
        "  order: 1\n  warmup: 5\n  final: 1\n  max_interval: 12\n  coordinate: index\n"
        "  target: output\n  basis: taylor\n  guidance: difference\n  guidance_interval: 1\n"
        "  correction: auto\n  memory_budget: null\n  on_budget: refuse\n"
    )
    cache = config.load(path).cache
    assert (cache.warmup, cache.guidance) == (5, "difference")
    assert cache.policy().rules == StepRules(5, 1, needed=2)


@pytest.mark.parametrize(
    "call",
    [
        {"config": "balanced", "tolerance": 0.02},
        {"config": "balanced:tolerance=0.02"},
        {"tolerance": 0.02},
    ],
)
def test_single_options_of_a_preset_can_be_changed(call):
    pipe, _ = tiny_flux()
    with ditaccel.accelerated(pipe, **call):
        cache = ditaccel.report(pipe).config["cache"]
    whole = config.to_dict(config.preset("balanced", "flux"))["cache"]
    assert cache == {**whole, "tolerance": 0.02}


def test_a_preset_and_an_attention_method_go_together():
    pipe, _ = tiny_dit()
    spec = "fast:warmup=4 & lite_attention:threshold=-4"
    with ditaccel.accelerated(pipe, spec):
        made = ditaccel.report(pipe).config
    assert made["cache"]["warmup"] == 4 and made["cache"]["tolerance"] == 0.03
    assert made["attention"]["threshold"] == -4


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ({"tolerence": 0.02}, "no option 'tolerence' of adaptive_taylor; did you mean 'tolerance'"),
        ({"config": "balanced:tolerence=1"}, "did you mean 'tolerance'"),
        ({"tolerance": "much"}, "tolerance is 'much'; it must be"),
        ({"warmup": 2.5}, "warmup is 2.5; give a whole number of steps, or a share below 1"),
        ({"warmup": 0}, "warmup is 0; at least 1 step"),
        ({"config": "balanced:order=1,order=2"}, "gives 'order' twice"),
        ({"config": "balanecd:order=1"}, "flux has no preset 'balanecd'; did you mean 'balanced'"),
        (
            {"config": "balanced & adaptive_taylor"},
            "are both caching methods",
        ),
    ],
)
def test_mistakes_in_options_are_one_line(call, line):
    pipe, _ = tiny_flux()
    with pytest.raises(ditaccel.ConfigError) as error:
        ditaccel.accelerate(pipe, **call)
    assert line in str(error.value) and "\n" not in str(error.value)
    ditaccel.accelerate(pipe)  # nothing was left behind
    ditaccel.restore(pipe)


@pytest.mark.parametrize(
    ("warmup", "steps", "first"),
    [(0.5, 50, 25), (0.35, 20, 7), (0.35, 8, 3), (0.1, 8, 3), (5, 50, 5), (0.35, None, 3)],
)
def test_the_warm_up_follows_the_number_of_steps(warmup, steps, first):
    assert AdaptiveTaylorConfig(warmup=warmup).policy().rules.first(steps) == first
