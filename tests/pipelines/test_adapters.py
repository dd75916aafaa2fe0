"""Adapters are plain data that fits the installed diffusers."""

import functools
import inspect
import subprocess
import sys

import diffusers
import pytest
import torch
from ditaccel.pipelines import adapter_for, adapters, submodule
from tiny import FAMILIES, families_tested, family_of, offered

from ditaccel import config as configs
from ditaccel.attention.engine.processor import check_processor
from ditaccel.attention.engine.runtime import find_attention
from ditaccel.caching.engine.blocks import find_blocks

OFFERED = [name for name in sorted(adapters()) if offered(name)]


def test_every_family_has_a_tiny_pipeline_in_these_tests():
    assert families_tested() == set(OFFERED)


@pytest.mark.parametrize("name", OFFERED)
def test_class_names_exist_and_lead_back(name):
    for transformer in adapters()[name].transformers:
        assert hasattr(diffusers, transformer)
        assert adapter_for(transformer) is adapters()[name]
    assert adapter_for("NoSuchTransformer") is None


@pytest.mark.parametrize("name", sorted(adapters()))
def test_presets_are_valid_and_complete(name):
    presets = adapters()[name].presets
    assert {"safe", "balanced", "fast"} <= set(presets) <= {"safe", "balanced", "fast", "published"}
    for preset in presets:
        assert configs.preset(preset, name).cache is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_contracts_name_modules_that_exist(name):
    """Each one somewhere; single blocks may lack it (None), as the last one of a joint stack."""
    pipe, _ = FAMILIES[name]()
    adapter = adapters()[family_of(name)]
    blocks = find_blocks(pipe.transformer, adapter.blocks)
    assert len(blocks) == sum(len(getattr(pipe.transformer, c.container)) for c in adapter.blocks)
    for contract in adapter.blocks:
        for role in contract.forecast_modules + contract.idle_modules:
            parts = [submodule(b.module, role) for b in blocks if b.contract is contract]
            assert any(isinstance(part, torch.nn.Module) for part in parts)
            assert all(part is None or isinstance(part, torch.nn.Module) for part in parts)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_passing_block_returns_what_the_real_one_returns(name):
    """Same structure and shapes as the block itself, for every block."""
    pipe, call = FAMILIES[name]()
    blocks = find_blocks(pipe.transformer, adapters()[family_of(name)].blocks)
    checked = set()

    def compare(module, args, kwargs, output, index):
        block = blocks[index]
        passing = block.passing(block.hidden_in(args, kwargs), args, kwargs)
        assert isinstance(output, torch.Tensor) == isinstance(passing, torch.Tensor)
        pairs = (
            [(output, passing)]
            if isinstance(output, torch.Tensor)
            else list(zip(output, passing, strict=True))
        )
        for real, passed in pairs:
            if real is None:  # SD3 drops its text after the last block
                assert index == len(blocks) - 1
                continue
            assert real.shape == passed.shape and real.dtype == passed.dtype
        assert torch.is_tensor(block.hidden_out(output))
        checked.add(index)

    for index, block in enumerate(blocks):
        block.module.register_forward_hook(
            functools.partial(compare, index=index), with_kwargs=True
        )
    pipe(**{**call, "num_inference_steps": 2})
    assert checked == set(range(len(blocks)))


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_run_in_the_order_of_the_contracts(name):
    pipe, call = FAMILIES[name]()
    adapter = adapters()[family_of(name)]
    order = []
    for index, block in enumerate(find_blocks(pipe.transformer, adapter.blocks)):
        block.module.register_forward_hook(lambda *_, index=index: order.append(index))
    pipe(**{**call, "num_inference_steps": 2})
    per_call = max(order) + 1
    assert order == list(range(per_call)) * (len(order) // per_call)


# What classes need beside their defaults, which are the published sizes.
PUBLISHED = {
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "caption_channels": [4096, 4096],
        "llama_layers": list(range(48)),
    },
    "EasyAnimateTransformer3DModel": {"in_channels": 16, "out_channels": 16, "patch_size": 2},
    "HunyuanDiT2DModel": {"in_channels": 4, "patch_size": 2, "hidden_size": 1408, "num_layers": 40},
    "LatteTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "sample_size": 64,
        "num_layers": 28,
        "cross_attention_dim": 1152,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "caption_channels": 4096,
        "norm_type": "ada_norm_single",
    },
    "LuminaNextDiT2DModel": {"num_kv_heads": 8},
    "OmniGenTransformer2DModel": {
        "rope_scaling": {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
    },
}


# Of the parameters, where others are in blocks that see text or reference images alone.
SHARE = {"Flux3Transformer2DModel": 0.6}


@pytest.mark.slow  # seconds, for all classes
@pytest.mark.parametrize("transformer", [t for n in OFFERED for t in adapters()[n].transformers])
def test_contracts_fit_the_published_sizes(transformer):
    """On the meta device: nothing is computed, and no weight is held."""
    adapter = adapter_for(transformer)
    with torch.device("meta"):
        model = getattr(diffusers, transformer)(**PUBLISHED.get(transformer, {}))
    blocks = find_blocks(model, adapter.blocks)
    parameters = sum(p.numel() for p in model.parameters())
    assert len(blocks) >= 16
    assert sum(b.cost for b in blocks) > SHARE.get(transformer, 0.85) * parameters
    found = find_attention(model, adapter.attention) if adapter.attention else []
    assert len(found) >= 16 or adapter.no_attention_because
    for each in found:
        check_processor(each)
    names = inspect.signature(model.forward).parameters
    assert {adapter.timestep, *adapter.samples} <= set(names)


def test_pipelines_and_kernels_import_nothing_of_the_plugins_other_rooms():
    code = (
        "import sys, ditaccel.pipelines as p, ditaccel.kernels\n"
        "p.adapters()\n"
        "assert 'diffusers' not in sys.modules and 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd="/")
