"""`fit`: what a method's constants are measured with, and what the command writes."""

import pytest
import torch
from inspection import traces
from tiny import generate, tiny_dit, tiny_wan22

import ditaccel
from ditaccel import ConfigError, MagCacheConfig, TeaCacheConfig, UsageError
from ditaccel import config as configs
from ditaccel.cli import main


def test_the_command_writes_a_config_that_runs(model_folder, tmp_path, capsys):
    path = tmp_path / "ratios.yaml"
    arguments = ["tune", str(model_folder), "--fit", "magcache:threshold=0.2", "--limit", "2"]
    assert main([*arguments, "--out", str(path)]) == 0
    cache = configs.load(path).cache
    assert cache.threshold == 0.2 and len(cache.ratios[0]) == 6
    assert "6 ratios" in capsys.readouterr().out
    assert main([*arguments, "--out", str(path)]) == 2  # it is there
    assert main([*arguments[:3], "teacache", "--limit", "1", "--out", str(tmp_path)]) == 0
    assert configs.load(tmp_path / "teacache.yaml").cache.polynomial != (1.0, 0.0)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("easycache", "EasyCacheConfig has nothing to be measured; give one of: MagCacheConfig()"),
        ("lite_attention", "NoneType has nothing to be measured"),
        ("magcash", "did you mean 'magcache'"),
    ],
)
def test_a_method_without_constants_is_a_line(model_folder, tmp_path, method, message, capsys):
    path = tmp_path / "a.yaml"
    assert main(["tune", str(model_folder), "--fit", method, "--out", str(path)]) == 2
    assert message in capsys.readouterr().err and not path.exists()


def test_both_experts_have_ratios_in_one_list():
    pipe, call = tiny_wan22()
    config = ditaccel.fit(pipe, MagCacheConfig(), [call])
    assert {len(ratios) for ratios in config.ratios} == {12}
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)


def test_nothing_is_left_and_an_accelerated_pipeline_is_refused():
    pipe, call = tiny_dit()
    dense, clean = generate(pipe, call), traces(pipe)
    lines = []
    config = ditaccel.fit(pipe, TeaCacheConfig(), [call, call], progress=lines.append)
    assert lines[:2] == ["dense run 1 of 2", "dense run 2 of 2"] and "R2" in lines[2]
    assert traces(pipe) == clean and torch.equal(generate(pipe, call), dense)
    ditaccel.accelerate(pipe, cache=config)
    with pytest.raises(UsageError, match="needs the dense pipeline"):
        ditaccel.fit(pipe, TeaCacheConfig(), [call])
    with pytest.raises(ConfigError, match="MagCacheConfig has nothing"):
        ditaccel.fit(pipe, MagCacheConfig, [call])  # the class itself
    ditaccel.restore(pipe)
