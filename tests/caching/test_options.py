"""Options that methods share: written once, and the same in files as ever."""

import dataclasses

import pytest

import ditaccel
from ditaccel import config
from ditaccel.caching.engine.gate import IntervalGate
from ditaccel.caching.engine.policy import CachePolicy

FORECAST = {"order", "coordinate", "guidance"}
TARGET = FORECAST | {"target", "basis", "correction"}
BUDGET = {"memory_budget", "on_budget"}
# Rows of job folders have an id that is made of all options: another one would be another row.
OPTIONS = {
    "adaptive_taylor": TARGET
    | BUDGET
    | {"guidance_interval", "tolerance", "warmup", "final", "max_interval", "few"},
    "confidence_gated_taylor": TARGET
    | BUDGET
    | {"threshold", "block_order", "warmup", "final", "gate_history", "reduce", "max_consecutive"},
    "first_block_residual": FORECAST
    | {"threshold", "warmup", "final", "reduce", "max_consecutive"},
    "reuse": {"interval", "warmup", "final", "target"},
    "step_mask": TARGET
    | {"guidance_interval", "guidance_steps", "steps", "total"}
    | {"orders", "guidance_orders", "resample"},
    "taylorseer": TARGET
    | BUDGET
    | {"guidance_interval", "interval", "warmup", "warmup_history", "final", "granularity"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_method_has_the_options_that_its_files_have(name):
    cls = config.methods()[name]
    made = ditaccel.AccelerationConfig(cache=cls())
    written = config.to_dict(made)["cache"]
    assert set(written) - {"method"} == OPTIONS[name]
    assert config.from_dict(config.to_dict(made)) == made


@pytest.mark.parametrize("name", OPTIONS)
def test_a_methods_own_options_come_first(name):
    cls = config.methods()[name]
    own = [field.name for field in dataclasses.fields(cls) if field.name in cls.__annotations__]
    assert [field.name for field in dataclasses.fields(cls)][: len(own)] == own


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_reaches_the_policy_under_its_name(name):
    cls = config.methods()[name]
    changed = {
        "order": 2,
        "coordinate": "sigma",
        "guidance": "difference",
        "guidance_interval": 3,
        "target": "residual",
        "basis": "newton",
        "correction": "always",
        "memory_budget": "2 kB",
        "on_budget": "downgrade",
    }
    given = {key: value for key, value in changed.items() if key in OPTIONS[name]}
    if "granularity" in OPTIONS[name]:
        given["granularity"] = "last_block"
    policy = cls(**given).policy()
    for key, value in given.items():
        assert getattr(policy, key) == (2000 if key == "memory_budget" else value), key


def test_a_target_that_nobody_knows_is_refused_in_one_line():
    with pytest.raises(ditaccel.ConfigError, match=r"'logits'; known: hidden, residual, output"):
        CachePolicy(gate=IntervalGate(2), target="logits")
