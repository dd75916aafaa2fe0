"""Adapters are plain data that fits the installed diffusers."""

import functools
import subprocess
import sys

import diffusers
import pytest
import torch
from ditaccel.pipelines import adapter_for, adapters, submodule
from tiny_families import FAMILIES, family_of

from ditaccel import config as configs
from ditaccel.caching.blocks import find_blocks


def test_every_family_has_a_tiny_pipeline_in_these_tests():
    assert set(adapters()) == set(map(family_of, FAMILIES))


@pytest.mark.parametrize("name", sorted(adapters()))
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
            assert isinstance(parts[0], torch.nn.Module)
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


def test_pipelines_and_kernels_import_nothing_of_the_plugins_other_rooms():
    code = (
        "import sys, ditaccel.pipelines as p, ditaccel.kernels\n"
        "p.adapters()\n"
        "assert 'diffusers' not in sys.modules and 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd="/")
