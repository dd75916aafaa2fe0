"""Methods count from where their class is defined; what cannot be a method is one clear line."""

from dataclasses import dataclass

import pytest

import ditaccel
from ditaccel import config as configs
from ditaccel.config import AttentionConfig, CacheConfig, method, registry
from ditaccel.errors import ConfigError


@pytest.fixture(autouse=True)
def methods_as_they_were(monkeypatch):
    configs.methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def late(name="late"):
    @method(name, paper="2501.00001")
    @dataclass(frozen=True)
    class LateConfig(CacheConfig):
        interval: int = 2

        def policy(self):
            return ditaccel.ReuseConfig(self.interval).policy()

    return LateConfig


def test_a_method_counts_after_the_first_look_up():
    assert "late" not in configs.methods()
    made = late()
    assert configs.methods()["late"] is made
    assert configs.resolve("late:interval=3", "flux").cache == made(interval=3)
    assert configs.from_dict(configs.to_dict(configs.parse_spec("late"))).cache == made()
    assert (made.kind, made.paper, made.base, made.baseline) == ("cache", "2501.00001", {}, False)
    with pytest.raises(ConfigError, match="late: interval is 'x'; it must be a whole number"):
        made(interval="x")


def test_a_cell_that_is_run_again_takes_the_formers_place():
    former, again = late(), late()
    assert configs.methods()["late"] is again is not former
    assert ditaccel.AccelerationConfig(cache=former()).cache == former()


def test_every_method_has_examples_and_can_be_made_without_arguments():
    for name, cls in configs.methods().items():
        assert cls() == cls() and cls.method == name
        assert [each.variant for each in cls.examples()][:1] == [""], name
        for each in cls.examples():
            assert type(each.exact) is type(each.skipping) is cls
            for config in (each.exact, each.skipping):
                assert configs.parse_spec(configs.method_spec(config)).methods == (config,)


class WithoutVerb(CacheConfig):
    """No policy."""


class WithoutPlanner(AttentionConfig):
    """No planner."""


class Stranger:
    """Derived from nothing."""

    def policy(self):
        return None


class Thawed(CacheConfig):
    """No dataclass."""

    def policy(self):
        return None


@dataclass(frozen=True)
class Demanding(Thawed):
    """An option without a default."""

    interval: int


@pytest.mark.parametrize(
    ("name", "cls", "message"),
    [
        ("taylorseer", Thawed, "taken by ditaccel.caching.taylorseer.TaylorSeerConfig; give"),
        ("published", Thawed, "choose another name"),
        ("My Method", Thawed, "choose another name, of small letters, digits and underscores"),
        ("late", WithoutVerb, "no method policy(); define it"),
        ("late", WithoutPlanner, "no method planner(); define it"),
        ("late", Stranger, "derive the class from ditaccel.config.CacheConfig"),
        ("late", Thawed, "write @dataclass(frozen=True) between @method and the class"),
        ("late", Demanding, "the option 'interval' has no default; give it one"),
    ],
)
def test_what_cannot_be_a_method_is_refused_in_one_line(name, cls, message):
    with pytest.raises(ConfigError) as error:
        method(name)(cls)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert f"method {name!r}, {cls.__name__}:" in str(error.value)
    assert configs.methods().get(name) is not cls


def test_of_puts_each_config_where_its_type_says():
    cache, attention = ditaccel.ReuseConfig(), ditaccel.SVG2Config()
    assert configs.AccelerationConfig.of(attention, cache).methods == (cache, attention)
    with pytest.raises(ConfigError, match="reuse and reuse are both caching methods"):
        configs.AccelerationConfig.of(cache, cache)
    with pytest.raises(ConfigError, match="not a config of a caching method"):
        configs.AccelerationConfig.of(3)
