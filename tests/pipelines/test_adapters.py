"""Adapters are plain data that fits the installed diffusers."""

import subprocess
import sys

import diffusers
import pytest
import torch
from ditaccel.pipelines import adapter_for, adapters
from tiny import tiny_dit, tiny_flux, tiny_wan, tiny_wan22

from ditaccel import config as configs
from ditaccel.caching.hooks import find_blocks

MAKERS = {"dit": tiny_dit, "flux": tiny_flux, "wan": tiny_wan}


def test_every_family_has_a_tiny_pipeline_in_these_tests():
    assert set(adapters()) == set(MAKERS)


@pytest.mark.parametrize("name", sorted(adapters()))
def test_class_names_exist_and_lead_back(name):
    for transformer in adapters()[name].transformers:
        assert hasattr(diffusers, transformer)
        assert adapter_for(transformer) is adapters()[name]
    assert adapter_for("NoSuchTransformer") is None


@pytest.mark.parametrize("name", sorted(adapters()))
def test_presets_are_valid_and_complete(name):
    presets = adapters()[name].presets
    assert set(presets) == {"safe", "balanced", "fast", "published"}
    for preset in presets:
        assert configs.preset(preset, name).cache is not None


@pytest.mark.parametrize("name", sorted(adapters()))
def test_contracts_name_modules_that_exist(name):
    pipe, _ = MAKERS[name]()
    for block in find_blocks(pipe.transformer, adapters()[name].blocks):
        for module in block.contract.forecast_modules + block.contract.idle_modules:
            assert isinstance(getattr(block.module, module), torch.nn.Module)


def test_a_passing_block_returns_what_the_real_one_returns():
    """Same structure and shapes as the block itself, for every block of every family."""
    for name, make in {**MAKERS, "wan22": tiny_wan22}.items():
        pipe, call = make()
        adapter = adapters()["wan" if name == "wan22" else name]
        checked: list[object] = []

        def compare(module, args, kwargs, output, block, checked=checked):
            passing = block.passing(block.hidden_in(args, kwargs), args, kwargs)
            assert isinstance(output, torch.Tensor) == isinstance(passing, torch.Tensor)
            pairs = (
                [(output, passing)]
                if isinstance(output, torch.Tensor)
                else list(zip(output, passing, strict=True))
            )
            for real, passed in pairs:
                assert real.shape == passed.shape and real.dtype == passed.dtype
            checked.append(block)

        blocks = find_blocks(pipe.transformer, adapter.blocks)
        for block in blocks:
            block.module.register_forward_hook(
                lambda m, a, k, o, block=block: compare(m, a, k, o, block), with_kwargs=True
            )
        pipe(**{**call, "num_inference_steps": 1})
        assert len({id(b) for b in checked}) == len(blocks)


def test_pipelines_and_kernels_import_nothing_of_the_plugins_other_rooms():
    code = (
        "import sys, ditaccel.pipelines as p, ditaccel.kernels\n"
        "p.adapters()\n"
        "assert 'diffusers' not in sys.modules and 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd="/")
