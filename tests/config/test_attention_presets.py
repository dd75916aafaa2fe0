"""Presets of attention stand beside those of caches, which have the same names."""

from dataclasses import replace

import pytest
from ditaccel.pipelines import adapters
from tiny import tiny_wan

import ditaccel
from ditaccel import ConfigError
from ditaccel.config import AccelerationConfig, resolve
from ditaccel.config.attention_presets import attention_presets

WAN = adapters()["wan"]


@pytest.mark.parametrize("name", WAN.attention_presets)
def test_a_preset_names_its_method_and_options(name):
    options = dict(WAN.attention_presets[name])
    found = resolve(f"attention:{name}", "wan")
    assert found.cache is None and found.attention.method == options.pop("method")
    for option, value in options.items():
        assert getattr(found.attention, option) == value


def test_it_goes_together_with_a_cache():
    both = resolve("balanced & attention:fast", "wan")
    assert both.cache == resolve("balanced", "wan").cache
    assert both.attention == resolve("attention:fast", "wan").attention
    listed = resolve(["balanced", "attention:fast"], "wan")
    assert listed.methods == both.methods


def test_options_may_be_changed():
    found = resolve("attention:fast:dense_steps=3", "wan").attention
    assert found.dense_steps == 3 and found.critical == WAN.attention_presets["fast"]["critical"]
    assert resolve("steps:26+attention:fast", "wan").steps == 26


def test_as_an_argument_the_names_are_those_of_the_kind():
    pipe, _ = tiny_wan()
    with ditaccel.accelerated(pipe, attention="fast"):
        config = ditaccel.report(pipe).config
        assert config["attention"]["method"] == WAN.attention_presets["fast"]["method"]
    with ditaccel.accelerated(pipe, cache="fast", attention="svg2:top_p=0.8"):
        config = ditaccel.report(pipe).config
        assert config["cache"]["method"] == WAN.presets["fast"]["method"]
        assert config["attention"]["top_p"] == 0.8
    listed = ditaccel.presets(pipe)
    assert isinstance(listed["attention:balanced"], AccelerationConfig)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"attention": "fasst"}, "did you mean 'fast'"),
        ({"attention": "taylorseer"}, "attention='taylorseer' names taylorseer"),
        ({"cache": "balanced & svg2"}, "give the name, spec or preset of a caching method"),
        ({"cache": "svg2"}, "cache='svg2' names svg2"),
        ({"config": "attention:fast & svg2"}, "both attention methods"),
        ({"config": "attention:"}, "has no preset of attention ''"),
    ],
)
def test_what_is_none_is_refused(arguments, said):
    pipe, _ = tiny_wan()
    with pytest.raises(ConfigError, match=said):
        ditaccel.accelerate(pipe, **arguments)
    assert not ditaccel.is_accelerated(pipe)


def test_families_without_attention_have_none():
    without = replace(WAN, attention=())
    assert attention_presets(WAN) and not attention_presets(without)
