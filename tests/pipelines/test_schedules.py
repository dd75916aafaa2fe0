"""Published schedules: the data is whole, a checkpoint is recognised, and others are refused."""

from dataclasses import replace

import diffusers
import pytest
import torch
from ditaccel.pipelines import adapters
from ditaccel.pipelines.schedules import (
    ANY,
    PAYLOADS,
    checkpoints,
    recognised,
    schedules,
    step_list,
)
from inspection import computed
from tiny import generate, tiny_flux

import ditaccel
from ditaccel import ConfigError
from ditaccel import config as configs
from ditaccel.caching.engine.policy import computed_steps
from ditaccel.core.transformers import transformers_of, with_checkpoint

FLUX = {"num_layers": 19, "num_single_layers": 38, "in_channels": 64, "guidance_embeds": True}
WAN = {"num_layers": 40, "num_attention_heads": 40, "in_channels": 16}


def _named(checkpoint):
    family = "flux" if checkpoint == ANY else checkpoints()[checkpoint].family
    return replace(adapters()[family], checkpoint=checkpoint)


@pytest.mark.parametrize("each", schedules(), ids=lambda s: f"{s.checkpoint}-{s.name}")
def test_every_schedule_is_a_config_that_computes_its_steps(each):
    assert each.source and each.licence and each.payload in PAYLOADS
    assert len(each.computed) == int(each.name.rpartition("-")[2])
    assert list(each.computed) == sorted(set(each.computed))
    assert each.computed[0] == 0 and each.computed[-1] < each.steps
    made = configs.preset(f"published:{each.name}", _named(each.checkpoint))
    assert configs.from_dict(configs.to_dict(made)) == made
    assert computed_steps(made.cache.policy(), each.steps) == each.computed


def test_every_model_of_the_field_has_its_schedules():
    found = {s.checkpoint for s in schedules()} - {ANY}
    assert found == set(checkpoints())
    pairs = [(s.name, s.checkpoint) for s in schedules()]
    assert len(pairs) == len(set(pairs))


def test_cache_dits_masks_follow_from_its_bins():
    bins = {
        18: ([8, 3, 3, 2, 1, 1], [1, 2, 2, 2, 3]),
        15: ([6, 2, 2, 2, 2, 1], [1, 3, 3, 3, 3]),
        11: ([6, 1, 1, 1, 1, 1], [1, 3, 4, 5, 4]),
        8: ([4, 1, 1, 1, 1], [2, 5, 6, 7]),
    }
    for number, (compute, cached) in bins.items():
        mask = []
        for runs, skips in zip(compute, [*cached, 0], strict=True):
            mask += [1] * runs + [0] * skips
        (made,) = (s for s in schedules() if s.name == f"scm-{number}")
        assert len(mask) == made.steps == 28
        assert made.computed == tuple(i for i, one in enumerate(mask) if one)


def test_ranges_are_read():
    assert step_list("0-3, 7, 9-10") == (0, 1, 2, 3, 7, 9, 10)
    assert step_list(4) == (4,)


@pytest.mark.parametrize(
    ("family", "name", "config", "more", "found"),
    [
        ("flux", "black-forest-labs/FLUX.1-dev", {}, {}, "flux.1-dev"),
        ("flux", "black-forest-labs/FLUX.1-schnell", FLUX, {}, ""),
        ("flux", "/c/models--black-forest-labs--FLUX.1-dev/snapshots/1f", {}, {}, "flux.1-dev"),
        ("flux", "/c/models--me--FLUX.1-dev-tuned/snapshots/1f", FLUX, {}, ""),
        ("flux", "/models/mine", FLUX, {"is_folder": True}, "flux.1-dev"),
        ("flux", "/models/FLUX.1-Kontext-dev", FLUX, {"is_folder": True}, ""),
        ("flux", "", FLUX, {"pipeline": "FluxKontextPipeline"}, ""),
        ("flux", "", {**FLUX, "guidance_embeds": False}, {}, ""),
        ("qwen_image", "Qwen/Qwen-Image-2512", {}, {}, "qwen-image-2512"),
        ("qwen_image", "", {"num_layers": 60}, {}, ""),
        ("z_image", "D:\\Z-Image-Turbo", {}, {"is_folder": True}, "z-image-turbo"),
        ("wan", "", WAN, {"pipeline": "WanPipeline"}, "wan2.1-14b"),
        ("wan", "", WAN, {"pipeline": "WanPipeline", "transformers": 2}, ""),
        ("wan", "", {**WAN, "in_channels": 36, "image_dim": 1280}, {}, "wan2.1-14b-i2v"),
    ],
)
def test_a_checkpoint_is_recognised_by_its_name_or_its_config(family, name, config, more, found):
    assert recognised(family, name, config, **more) == found


def test_presets_and_doctor_list_what_was_published_for_the_checkpoint():
    with torch.device("meta"):
        transformer = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    names = list(ditaccel.presets(transformer))
    assert "published:budcache-13" in names and "published:lemica-17" not in names
    found = ditaccel.doctor(transformer)
    assert found.checkpoint == "FLUX.1-dev" and "published:gph-9" in found.presets
    assert {each.licence for each in found.schedules} >= {"MIT", "Apache-2.0"}
    assert "none was measured here" in str(found)
    pipe, _ = tiny_flux()
    assert not [name for name in ditaccel.presets(pipe) if "budcache" in name]
    assert ditaccel.doctor(pipe).checkpoint == ""


def test_another_checkpoint_is_refused_unless_it_is_named():
    pipe, _ = tiny_flux()
    with pytest.raises(ConfigError, match=r"not recognised.*:gph-9:checkpoint=flux\.1-dev"):
        ditaccel.accelerate(pipe, "published:gph-9")
    with pytest.raises(ConfigError, match=r"is for Wan 2\.1 1\.3B.*family flux"):
        ditaccel.accelerate(pipe, "published:lemica-14")
    with pytest.raises(ConfigError, match=r"did you mean 'flux\.1-dev'"):
        ditaccel.accelerate(pipe, "published:gph-9:checkpoint=flux1-dev")
    with pytest.raises(ConfigError, match="did you mean 'budcache-13'"):
        ditaccel.accelerate(pipe, "published:budcach-13")
    assert not ditaccel.is_accelerated(pipe)
    pipe.transformer.register_to_config(_name_or_path="black-forest-labs/FLUX.1-dev")
    _, adapter = transformers_of(pipe)
    adapter = with_checkpoint(pipe, {"transformer": pipe.transformer}, adapter)
    assert adapter.checkpoint == "flux.1-dev"


def test_another_step_count_is_refused_with_the_way_to_resample():
    pipe, call = tiny_flux()
    name = "published:scm-8"
    with ditaccel.accelerated(pipe, name), pytest.raises(ConfigError, match="resample=true"):
        generate(pipe, call, num_inference_steps=14)
    with ditaccel.accelerated(pipe, f"{name}:resample=true"):
        generate(pipe, call, num_inference_steps=14)
        assert computed(pipe, "cond") == [0, 1, 2, 3, 6, 10, 13]
        skipped = [c for c in ditaccel.report(pipe).calls if c.action == "forecast"]
        assert skipped and {c.blocks_run for c in skipped} == {0}
