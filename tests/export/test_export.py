"""Exported schedules: other engines compute the same steps, and what they lose is said."""

import json

import pytest
import torch
import yaml
from ditaccel.eval.peers.isolation import isolated
from tiny import generate, tiny_flux

import ditaccel
from ditaccel import ConfigError, cli
from ditaccel import config as configs
from ditaccel.export.formats import FORMATS, to_cache_dit, to_diffusers
from ditaccel.export.schedule import schedule_of

STEPS = 8
CONFIG = ditaccel.StepMaskConfig(steps=(0, 1, 3, 6), total=STEPS, target="residual", order=0)


def _schedule(method=CONFIG, **options):
    return schedule_of(configs.AccelerationConfig.of(method), **options)


def _computed(pipe, call, branches=2):
    """Steps on which a block after the first one ran, seen from outside."""
    calls, ran = [0], set()
    transformer = pipe.transformer
    # inside the block: hooks of some engines answer for the block itself
    inner = transformer.single_transformer_blocks[-1].proj_mlp
    inner.register_forward_hook(lambda *_: ran.add(calls[0] // branches))
    transformer.norm_out.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    output = generate(pipe, call, num_inference_steps=STEPS)
    return tuple(sorted(ran)), output


def test_cache_dit_computes_the_same_steps(tmp_path):
    cache_dit = pytest.importorskip("cache_dit", reason="pip install ditaccel[peers]")
    pipe, call = tiny_flux()
    path = tmp_path / "mask.yaml"
    path.write_text(to_cache_dit(_schedule())[0])
    dense, _ = _computed(isolated(pipe), call)
    assert dense == tuple(range(STEPS))
    twin = isolated(pipe)
    loaded = cache_dit.load_configs(str(path))
    loaded["cache_config"].enable_separate_cfg = True
    cache_dit.enable_cache(twin, **{k: v for k, v in loaded.items() if v is not None})
    assert _computed(twin, call)[0] == CONFIG.steps


def test_diffusers_magcache_computes_the_same_steps_and_makes_the_same_latents():
    from diffusers import MagCacheConfig

    pipe, call = tiny_flux()
    twin = isolated(pipe)
    arguments = json.loads(to_diffusers(_schedule())[0])["arguments"]
    twin.transformer.enable_cache(MagCacheConfig(**arguments))
    steps, theirs = _computed(twin, call)
    assert steps == CONFIG.steps
    with ditaccel.accelerated(pipe, CONFIG):
        ours = generate(pipe, call, num_inference_steps=STEPS)
    # both reuse the residual over all blocks
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_vllm_omni_computes_the_same_steps():
    """By the rule of its MagCache, as its source states it; vLLM-Omni itself is not run."""
    text, notes = FORMATS["vllm-omni"](_schedule())
    given = json.loads(text)
    assert set(given) == {
        "mag_threshold",
        "mag_max_skip_steps",
        "mag_retention_ratio",
        "num_inference_steps",
        "mag_ratios",
    }
    computed, ratio, error, skipped, known = [], 1.0, 0.0, 0, False
    for step in range(given["num_inference_steps"]):
        ratio *= given["mag_ratios"][step]
        skipped, error = skipped + 1, error + abs(1 - ratio)
        few = error <= given["mag_threshold"] and skipped <= given["mag_max_skip_steps"]
        if not (known and few):
            computed.append(step)
            ratio, error, skipped, known = 1.0, 0.0, 0, True
    assert tuple(computed) == CONFIG.steps and "requests of 8 steps" in notes[0]


def test_sglang_computes_the_same_steps():
    """Its bins are those of cache-dit, which makes a mask of them."""
    cache_dit = pytest.importorskip("cache_dit", reason="pip install ditaccel[peers]")
    text, _ = FORMATS["sglang"](_schedule())
    lines = (line.removeprefix("export ") for line in text.splitlines() if line[0] != "#")
    given = dict(line.split("=") for line in lines)
    assert all(name.startswith("SGLANG_CACHE_DIT_") for name in given)
    bins = [
        [int(n) for n in given[f"SGLANG_CACHE_DIT_SCM_{kind}_BINS"].split(",")]
        for kind in ("COMPUTE", "CACHE")
    ]
    assert cache_dit.steps_mask(*bins, total_steps=STEPS) == _schedule().mask
    assert given["SGLANG_CACHE_DIT_MC"] == "2" and given["SGLANG_CACHE_DIT_TAYLORSEER"] == "false"


def test_json_holds_all_that_engines_take():
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    mixed = ditaccel.StepMaskConfig(steps=(0, 1, 4), total=6, orders=(1, 0, 2))
    found = _schedule(mixed, scheduler=scheduler)
    data = json.loads(FORMATS["json"](found)[0])
    assert data["computed_steps"] == [0, 1, 4] and data["mask"] == [1, 1, 0, 0, 1, 0]
    assert data["orders"] == [1, 0, 2] and data["payload"] == "output"
    assert len(data["timesteps"]) == 6 and len(data["sigmas"]) == 7
    assert data["sigmas"][0] == 1.0 and len(scheduler.timesteps) == 1000
    assert found.longest_gap == 2
    assert "an order of its own for each gap" in found.lost


def test_published_schedules_and_intervals_can_be_exported():
    every_third = _schedule(ditaccel.TaylorSeerConfig(interval=3), steps=7)
    assert every_third.computed == (0, 3, 6) and every_third.payload == "modules"
    moved = ditaccel.StepMaskConfig(steps=(0, 1, 6, 9), total=10, resample=True)
    assert _schedule(moved, steps=5).computed == (0, 3, 4)


@pytest.mark.parametrize(
    ("method", "options", "line"),
    [
        (ditaccel.AdaptiveTaylorConfig(tolerance=0.1), {"steps": 8}, "decides in the run"),
        (ditaccel.SVG2Config(), {"steps": 8}, "no caching method"),
        (ditaccel.TaylorSeerConfig(), {}, "say how many steps"),
        (CONFIG, {"steps": 9}, "made for 8 steps, not for 9.*resample=true"),
    ],
)
def test_what_has_no_schedule_is_refused(method, options, line):
    with pytest.raises(ConfigError, match=line):
        _schedule(method, **options)


def test_the_command_writes_a_file_and_says_what_is_lost(tmp_path, capsys):
    out = tmp_path / "mask.yaml"
    name = "published:gph-9:checkpoint=qwen-image"
    assert cli.main(["export", name, "--to", "cache-dit", "--out", str(out)]) == 0
    made = yaml.safe_load(out.read_text())["cache_config"]
    mask = made["steps_computation_mask"]
    assert sum(mask) == 9 and len(mask) == made["num_inference_steps"] == 50
    assert "9 of 50 steps are computed" in capsys.readouterr().out
    spec = "step_mask:steps=[0, 2],total=4,guidance=difference,correction=auto"
    assert cli.main(["export", spec, "--to", "diffusers"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["class"] == "MagCacheConfig"
    assert "not exported: guidance='difference'" in told.err and "gap correction" in told.err
    assert "pictures will differ" in told.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["published:budcache-13"], "say which checkpoint is meant"),
        (["taylorseer:interval=3"], "--steps taylorseer is for loops of any length"),
        (["none-such.yaml"], "cannot read the config"),
    ],
)
def test_mistakes_end_in_one_line(words, line, capsys):
    assert cli.main(["export", *words, "--to", "json"]) == 2
    told = capsys.readouterr().err
    assert line in told and len(told.strip().splitlines()) == 1
