"""Configs: strict, versioned, round trip through files; every mistake is one clear line."""

import dataclasses

import pytest
from ditaccel.pipelines import adapters
from hypothesis import given
from hypothesis import strategies as st

import ditaccel
from ditaccel import cli
from ditaccel import config as configs
from ditaccel.config import AccelerationConfig
from ditaccel.config.specs import text_of
from ditaccel.errors import ConfigError, UsageError


def test_every_method_and_preset_round_trips(tmp_path):
    made = [AccelerationConfig(**{cls.kind: cls()}) for cls in configs.methods().values()]
    made += [configs.preset(p, a.name) for a in adapters().values() for p in a.presets]
    assert len(made) >= 12
    for config in made:
        assert configs.parse_spec(configs.spec_of(config)).methods == config.methods
        for suffix in ("yaml", "json"):
            path = tmp_path / f"config.{suffix}"
            configs.dump(config, path)
            assert configs.load(path) == config
            assert {p.suffix for p in tmp_path.iterdir()} <= {".yaml", ".json"}


@given(
    threshold=st.floats(0, 1e6),
    order=st.integers(0, 6),
    reduce=st.sampled_from(["batch_mean", "worst_sample"]),
    consecutive=st.none() | st.integers(1, 100),
)
def test_random_configs_round_trip(tmp_path_factory, threshold, order, reduce, consecutive):
    config = AccelerationConfig(
        cache=ditaccel.ConfidenceGatedTaylorConfig(
            threshold=threshold, order=order, reduce=reduce, max_consecutive=consecutive
        )
    )
    path = tmp_path_factory.mktemp("configs") / "config.yaml"
    configs.dump(config, path)
    assert configs.load(path) == config


def test_a_config_saves_and_loads_itself(tmp_path):
    config = AccelerationConfig(cache=ditaccel.ReuseConfig(interval=3), label="mine")
    config.save(tmp_path / "new" / "mine.yaml")
    assert AccelerationConfig.load(tmp_path / "new" / "mine.yaml") == config
    with pytest.raises(UsageError, match="cannot read the config"):
        AccelerationConfig.load(tmp_path / "other.yaml")


def test_methods_go_together_in_a_list():
    taylor, svg = ditaccel.TaylorSeerConfig(interval=3), ditaccel.SVG2Config()
    both = configs.resolve([svg, taylor], "flux")
    assert (both.cache, both.attention, both.label) == (taylor, svg, "")
    named = configs.resolve(["fast", svg], "flux")
    assert named.cache == configs.preset("fast", "flux").cache and named.attention == svg
    assert named.label == "flux fast & svg2"
    assert configs.resolve([both], "flux") is both and configs.resolve([], "flux").methods == ()


def test_options_are_given_by_name():
    with pytest.raises(ConfigError) as error:
        AccelerationConfig(ditaccel.ReuseConfig())
    line = str(error.value)
    assert line.startswith(
        "AccelerationConfig takes its options by name, as in AccelerationConfig("
    )
    assert "cache=ReuseConfig(" in line and "\n" not in line


def test_inline_specs():
    parsed = configs.parse_spec("step_mask:steps=[0,1,4],total=6,order=2").cache
    assert parsed == ditaccel.StepMaskConfig(steps=(0, 1, 4), total=6, order=2)
    assert configs.parse_spec("taylorseer").cache == ditaccel.TaylorSeerConfig()
    assert configs.resolve("taylorseer:interval=7", "wan").cache.interval == 7


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ditaccel.TaylorSeerConfig().interval = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("taylorseer:intervall=3", "no option 'intervall'; did you mean 'interval'"),
        ("tailorseer:interval=3", "unknown method 'tailorseer'; did you mean 'taylorseer'"),
        ("taylorseer:interval=0", "interval is 0; it must be 1 or more"),
        ("taylorseer:order=-1", "order is -1"),
        ("taylorseer:order=99", "amplifies noise"),
        ("taylorseer:interval=2.5", "interval is 2.5; it must be a whole number"),
        ("taylorseer:interval=true", "interval is True; it must be a whole number"),
        ("taylorseer:interval", "is not option=value"),
        ("taylorseer:warmup=0", "warmup is 0"),
        ("taylorseer:guidance=difference", "needs granularity='last_block'"),
        ("step_mask:steps=[0,2],guidance=difference,guidance_steps=[1]", "not in steps"),
        ("step_mask:steps=[0,2],guidance_steps=[2]", "needs guidance='difference'"),
        ("taylorseer:correction=off", "correction is False; it must be one of: 'auto'"),
        ("adaptive_taylor:correction=maybe", "correction is 'maybe'"),
        ("taylorseer:granularity=layer", "granularity is 'layer'"),
        ("taylorseer:memory_budget=lots", "write bytes or a size"),
        ("taylorseer:memory_budget=1.2.3GB", "write bytes or a size"),
        ("confidence_gated_taylor:threshold=-0.1", "threshold is -0.1"),
        ("confidence_gated_taylor:threshold=.nan", "threshold is nan"),
        ("confidence_gated_taylor:reduce=median", "reduce is 'median'"),
        ("confidence_gated_taylor:basis=fourier", "basis is 'fourier'"),
        ("adaptive_taylor:order=3,warmup=3", "order 3 needs at least 4"),
        ("adaptive_taylor:tolerance=-1", "tolerance is -1"),
        ("step_mask:steps=[1,2]", "include 0"),
        ("step_mask:steps=[0,9],total=5", "holds [9], but total is 5"),
        ("reuse:interval=0", "interval is 0"),
        ("first_block_residual:guidance=none", "guidance is 'none'"),
    ],
)
def test_mistakes_in_options_are_named(spec, message):
    with pytest.raises(ConfigError) as error:
        configs.parse_spec(spec)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec",
    [
        "taylorseer",
        "taylorseer:interval=7",
        "step_mask:steps=[0, 2, 5]",
        "sla:weights='off'",
        "taylorseer:order=2,memory_budget=2GB & lite_attention:threshold=-3.0",
    ],
)
def test_a_config_is_written_as_a_user_writes_it(spec):
    assert configs.spec_of(configs.parse_spec(spec)) == spec


def test_what_no_spec_can_say_is_written_as_yaml(tmp_path):
    config = AccelerationConfig(attention=ditaccel.SLAConfig(weights="a, b & c.safetensors"))
    text = configs.spec_of(config)
    assert text.startswith("ditaccel: 1\n")
    (tmp_path / "config.yaml").write_text(text)
    assert configs.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cache: {method: taylorseer}", "config format is None"),
        ("ditaccel: 99\ncache: {method: taylorseer}", "config format is 99"),
        ("ditaccel: 1\ncaches: {}", "no key 'caches'; did you mean 'cache'"),
        ("ditaccel: 1\ncache: taylorseer", "'cache' must be a mapping"),
        ("- a\n- b", "must be a mapping"),
        ("ditaccel: [", "not a valid yaml file"),
    ],
)
def test_mistakes_in_files_name_the_file(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        configs.load(path)
    assert message in str(error.value) and "bad.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_unwritable_files(tmp_path):
    with pytest.raises(UsageError, match="cannot read the config"):
        configs.load(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match=r"cannot write .*config\.yaml"):
        (tmp_path / "file").touch()
        configs.dump(AccelerationConfig(), tmp_path / "file" / "config.yaml")


def test_unknown_presets_and_families_are_named():
    with pytest.raises(
        ConfigError,
        match="wan has no preset 'fats'; did you mean 'fast'",
    ):
        configs.resolve("fats", "wan")
    with pytest.raises(ConfigError, match="unknown family 'wann'; did you mean 'wan'"):
        configs.preset("fast", "wann")


def test_a_config_of_no_method_is_refused():
    with pytest.raises(ConfigError, match="is a text; give the text itself"):
        AccelerationConfig(cache="taylorseer")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (5, r"config is of type int; give a preset name \('balanced'\), the path of a config file"),
        ({}, "config is of type dict; give "),
        (ditaccel.SVG2Config, r"is the class SVG2Config itself; give an instance .* SVG2Config\("),
        (["fast", ditaccel.ReuseConfig()], "adaptive_taylor and reuse are both caching methods"),
        (["svg2", "svg2"], "svg2 and svg2 are both attention methods"),
        ("", "no preset ''. Known: "),
        ("TaylorSeer", "did you mean 'taylorseer'"),
        ("balanced & svg3", r"did you mean 'svg2'\?"),
        ("balanced &", "a name is missing next to '&'"),
        ("balanced & fast", "are both caching methods"),
        ("taylorseer:interval=3,interval=4", "gives 'interval' twice"),
        ("steps:25", "call it with num_inference_steps=25 without accelerating it"),
        ("steps:0+fast", "steps is 0; it must be a whole number from 1, a share"),
        ("steps:few+fast", "steps is 'few'; it must be a finite number or one of: 'keep', 'auto'"),
        ("peer/fbc:threshold=0.1", "a peer, which only an evaluation runs"),
    ],
)
def test_a_config_of_a_wrong_kind_is_one_clear_line(wrong, message):
    with pytest.raises(ConfigError, match=message):
        configs.resolve(wrong, "flux")


def test_a_mistake_on_the_command_line_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor", "anywhere", "--tokens", "x"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.count("\n") == 1 and "--tokens" in said and "doctor --help" in said
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0 and ditaccel.__version__ in capsys.readouterr().out


def test_a_preset_and_an_attention_method_go_together():
    for text in ("balanced & svg2:top_p=0.8", "svg2:top_p=0.8 & balanced"):
        found = configs.resolve(text, "wan")
        assert found.cache == configs.preset("balanced", "wan").cache
        assert found.attention == ditaccel.SVG2Config(top_p=0.8)


def test_a_setting_as_one_line_of_text(tmp_path):
    taylor, sparse = ditaccel.TaylorSeerConfig(interval=3), ditaccel.SVG2Config(top_p=0.8)
    for setting in (taylor, [taylor, sparse], ["fast", sparse], "fast", tmp_path / "a.yaml"):
        text = text_of(setting)
        if isinstance(setting, list) or setting is taylor:
            found, meant = configs.resolve(text, "wan"), configs.resolve(setting, "wan")
            assert found.methods == meant.methods
        else:
            assert text == str(setting)
    with pytest.raises(ConfigError, match="cannot be written in one line"):
        text_of(ditaccel.SLAConfig(weights="a, b & c.safetensors"))
