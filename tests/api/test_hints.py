"""What people get wrong, and the line that they get: followed, it works."""

import dataclasses

import pytest
from ditaccel.eval.specs import parse_config
from tiny import generate, tiny_flux

import ditaccel
from ditaccel import ConfigError, cli
from ditaccel import config as configs
from ditaccel.caching.engine.gate import IntervalGate, StepRules
from ditaccel.config import CacheConfig, registry
from ditaccel.reports.data import CallRecord


@pytest.fixture
def method(monkeypatch):
    """Register methods for one test."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    return registry.method


def test_a_refused_run_says_why_in_the_report():
    pipe, call = tiny_flux()
    mask = ditaccel.StepMaskConfig(steps=(0, 2), total=4)
    with ditaccel.accelerated(pipe, mask):
        with pytest.raises(ConfigError):
            generate(pipe, call, num_inference_steps=6)
        told = str(ditaccel.report(pipe))
        assert "was refused: the step mask was made for 4 steps" in told
        assert "No transformer call was seen" not in told
        generate(pipe, call, num_inference_steps=4)
        assert "refused" not in str(ditaccel.report(pipe))


@pytest.mark.parametrize("fault", ["raises", "nonsense"])
def test_a_broken_method_breaks_no_other(method, fault):
    @method("broken")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class BrokenConfig(CacheConfig):
        def policy(self):
            if fault == "raises":
                raise ZeroDivisionError("of mine")
            return "nonsense"

    pipe, call = tiny_flux()
    found = {m.name: m for m in ditaccel.doctor(pipe).methods}
    line = "ZeroDivisionError: of mine" if fault == "raises" else "of type str.*CachePolicy"
    with pytest.raises(ConfigError, match=line) as caught:
        ditaccel.accelerate(pipe, BrokenConfig())
    assert found["broken"].reason == str(caught.value)
    assert found["taylorseer"].works and not ditaccel.is_accelerated(pipe)
    with ditaccel.accelerated(pipe, "balanced"):
        generate(pipe, call)


def test_an_undecorated_class_is_told_what_it_lacks():
    @dataclasses.dataclass(frozen=True)
    class PlainConfig(CacheConfig):
        def policy(self):
            return ditaccel.ReuseConfig(interval=2).cache_policy(IntervalGate(2), StepRules())

    with pytest.raises(ConfigError, match=r"PlainConfig is not registered.*@method\('a_name'\)"):
        ditaccel.accelerate(tiny_flux()[0], PlainConfig())


def test_hints_work_when_they_are_followed():
    pipe, _ = tiny_flux()
    attention = ditaccel.LiteAttentionConfig()
    with pytest.raises(ConfigError, match="write attention=LiteAttentionConfig"):
        configs.AccelerationConfig(cache=attention)
    assert configs.AccelerationConfig(attention=attention).attention is attention
    with pytest.raises(ConfigError, match=r"accelerate\(pipe, 'taylorseer:interval=3'\)"):
        configs.AccelerationConfig(cache="taylorseer:interval=3")
    ditaccel.restore(ditaccel.accelerate(pipe, "taylorseer:interval=3"))
    ditaccel.restore(ditaccel.accelerate(pipe, cache="taylorseer:interval=3"))
    with pytest.raises(ConfigError, match=r"give an instance: ReuseConfig\(\)"):
        configs.AccelerationConfig(cache=ditaccel.ReuseConfig)
    with pytest.raises(ConfigError, match="no option 'intervall'; did you mean 'interval'"):
        ditaccel.TaylorSeerConfig(intervall=3)


@pytest.mark.parametrize("dense", [None, "none", "dense"])
def test_dense_means_the_same_everywhere(dense):
    pipe, _ = tiny_flux()
    with pytest.raises(ConfigError, match=r"means a dense run.*ditaccel\.restore\(pipe\)"):
        ditaccel.accelerate(pipe, dense)
    ditaccel.accelerate(pipe)
    assert ditaccel.is_accelerated(pipe)
    ditaccel.restore(pipe)
    with ditaccel.accelerated(pipe, None, cache=ditaccel.ReuseConfig(interval=2)):
        assert ditaccel.is_accelerated(pipe)


def test_a_config_saved_without_a_suffix_can_be_loaded(tmp_path):
    path = tmp_path / "mine"
    made = configs.AccelerationConfig(cache=ditaccel.ReuseConfig(interval=2))
    made.save(path)
    assert configs.resolve(str(path), "flux") == made
    assert configs.resolve(path, "flux") == made


def test_a_report_has_its_columns_before_a_run():
    pytest.importorskip("pandas")
    pipe, _ = tiny_flux()
    with ditaccel.accelerated(pipe, "balanced"):
        frame = ditaccel.report(pipe).to_pandas()
    assert list(frame.columns) == [field.name for field in dataclasses.fields(CallRecord)]
    assert len(frame) == 0


def test_an_unknown_flag_points_to_the_commands_own_help(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", "model", "--stepps", "3"])
    assert caught.value.code == 2
    assert "`ditaccel doctor --help` lists the options" in capsys.readouterr().err


def test_a_model_that_is_not_there_comes_before_its_prompts(capsys, tmp_path):
    assert cli.main(["eval", "no model", "--out", str(tmp_path / "out")]) == 2
    assert "no model folder at no model" in capsys.readouterr().err


def test_doctor_counts_text_tokens():
    pipe, _ = tiny_flux()
    found = ditaccel.doctor(pipe, call={"max_sequence_length": 77})
    assert found.transformers[0].text_tokens == 77 and "77 of text" in str(found)


def test_one_step_is_not_one_steps():
    labels = [row.label for text in ("steps:1", "steps:2") for row in parse_config(text)]
    assert labels == ["1 step", "2 steps"]
