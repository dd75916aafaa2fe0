"""An SLA adapter stays applied, or says why not, whatever happens to the weights it changes."""

from dataclasses import replace

import pytest
import torch
from conformance import relative_rmse
from put_on_later import CHANGES
from tiny import generate, peaked

import ditaccel
from ditaccel.attention.sla import SLAConfig
from ditaccel.attention.sla.planner import SLAPlanner
from ditaccel.attention.sla.weights import SLAWeights
from ditaccel.core.own_weights import own_weights, slots_of
from ditaccel.core.weight_changes import fingerprint
from ditaccel.errors import ConfigError

OPTIONS = {"min_tokens": 0, "dense_steps": 0, "break_even": 1.0}
STEPS = 4
CHANGED = ("attn1.to_q.weight", "attn1.to_v.weight", "attn1.to_k.bias", "ffn.net.2.weight")


def _changes(transformer):
    generator = torch.Generator().manual_seed(4)
    weights = dict(transformer.named_parameters())
    names = [f"blocks.{i}.{name}" for i in (0, 2) for name in CHANGED]
    return {name: 0.1 * torch.randn(weights[name].shape, generator=generator) for name in names}


def _adapter(transformer, path, changes, mode="sla"):
    config = SLAConfig(critical=0.3, mode=mode, q_tile=16, k_tile=16, **OPTIONS)
    made = SLAWeights(SLAPlanner(config, None).options, {"transformer": fingerprint(transformer)})
    module = transformer.blocks[0].attn1
    heads, dim = module.heads, module.to_q.out_features // module.heads
    generator = torch.Generator().manual_seed(3)
    made.projections["transformer"] = [
        (0.1 * torch.randn(heads, dim, dim, generator=generator), torch.zeros(heads, dim))
        for _ in transformer.blocks
    ]
    made.changes["transformer"] = changes
    made.save(path)
    return SLAConfig(weights=str(path), **OPTIONS)


def _expected(change, tmp_path):
    """The changes are part of the model's own weights, the adapter has projections alone."""
    pipe, call = peaked("wan")
    with torch.no_grad():
        for name, by in _changes(pipe.transformer).items():
            dict(pipe.transformer.named_parameters())[name].add_(by.half().float())
    config = _adapter(pipe.transformer, tmp_path / "none.safetensors", {})
    change(pipe)
    ditaccel.accelerate(pipe, attention=config)
    return generate(pipe, call, num_inference_steps=STEPS)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "name",
    ["LoRA", "fused QKV", "load_state_dict(assign=True)", "group offload", "model offload"],
)
def test_it_stays_applied(name, when, tmp_path):
    change = CHANGES[name].apply
    expected = _expected(change, tmp_path)
    pipe, call = peaked("wan")
    call = {**call, "num_inference_steps": STEPS}
    config = _adapter(pipe.transformer, tmp_path / "a.safetensors", _changes(pipe.transformer))
    if when == "before":
        change(pipe)
        dense = generate(pipe, call)
    ditaccel.accelerate(pipe, attention=config)
    if when == "after":
        generate(pipe, call)
        change(pipe)
    assert relative_rmse(generate(pipe, call), expected) < 1e-5
    ditaccel.restore(pipe)
    if when == "after":
        other, _ = peaked("wan")
        change(other)
        dense = generate(other, call)
    assert relative_rmse(generate(pipe, call), dense) < 1e-6


def test_fused_and_unfused_between_generations(tmp_path):
    pipe, call = peaked("wan")
    call = {**call, "num_inference_steps": STEPS}
    config = _adapter(pipe.transformer, tmp_path / "a.safetensors", _changes(pipe.transformer))
    ditaccel.accelerate(pipe, attention=config)
    expected = generate(pipe, call)
    for change in ("fuse_qkv_projections", "unfuse_qkv_projections", "fuse_qkv_projections"):
        getattr(pipe.transformer, change)()
        assert relative_rmse(generate(pipe, call), expected) < 1e-5


def _in_8_bits(pipe):
    pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )


class _Group:
    stream, offload_to_disk_path = object(), None


def _with_a_stream(pipe):
    """What group offloading with a stream leaves on a module; the stream itself needs a GPU."""
    from diffusers.hooks.hooks import HookRegistry, ModelHook

    hook = ModelHook()
    hook.group = _Group()
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer.blocks[0].attn1.to_q)
    registry.register_hook(hook, "of_a_group")  # (by its own name, pipelines look for a device)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("change", "line"),
    [
        (CHANGES["sequential offload"].apply, "on no device .sequential offload."),
        (_in_8_bits, "8 bits or fewer .float8_e4m3fn., which would round changes away"),
        (_with_a_stream, "loaded from copies .group offload with a stream."),
    ],
)
def test_where_it_cannot_be_applied_the_cause_is_said(change, line, when, tmp_path):
    pipe, call = peaked("wan")
    call = {**call, "num_inference_steps": STEPS}
    config = _adapter(pipe.transformer, tmp_path / "a.safetensors", _changes(pipe.transformer))
    if when == "before":
        change(pipe)
        with pytest.raises(ConfigError, match=f"cannot be applied: .*{line}"):
            ditaccel.accelerate(pipe, attention=config)
    else:
        ditaccel.accelerate(pipe, attention=config)
        generate(pipe, call)
        change(pipe)
        with pytest.raises(ConfigError, match=f"cannot be applied: .*{line}"):
            generate(pipe, call)
        ditaccel.restore(pipe)
    generate(pipe, call)


def test_names_are_those_before_adapters_and_fusing():
    pipe, _ = peaked("wan")
    transformer = pipe.transformer
    before, known = list(own_weights(transformer)), fingerprint(transformer)
    assert before == [name for name, _ in transformer.named_parameters()]
    CHANGES["LoRA"].apply(pipe)
    transformer.fuse_qkv_projections()
    assert list(own_weights(transformer)) == before
    assert fingerprint(transformer) == known
    changes = {"blocks.0.attn1.to_k.weight": torch.ones(24, 24), "blocks.9.gone": torch.ones(1)}
    (slot, change), missing = (
        slots_of(transformer, changes)[0][0],
        slots_of(transformer, changes)[1],
    )
    assert missing == ["blocks.9.gone"]
    assert slot.module is transformer.blocks[0].attn1.to_qkv and slot.leaf == "weight"
    assert change.shape == (72, 24) and change.sum(1).nonzero()[:, 0].tolist() == [*range(24, 48)]


def test_changes_of_the_weights_serve_without_the_branch(tmp_path):
    """An adapter of mode `combined`, at the cost of training-free attention."""
    pipe, call = peaked("wan")
    transformer, path = pipe.transformer, tmp_path / "a.safetensors"
    changes = _changes(transformer)
    config = replace(_adapter(transformer, path, changes, "combined"), mode="training_free")
    with ditaccel.accelerated(pipe, attention=config):
        found = generate(pipe, call)
    with torch.no_grad():
        for name, by in changes.items():
            dict(transformer.named_parameters())[name].add_(by.half().float())
    plain = SLAConfig(critical=0.3, mode="training_free", q_tile=16, k_tile=16, **OPTIONS)
    with ditaccel.accelerated(pipe, attention=plain):
        assert torch.equal(found, generate(pipe, call))
    _adapter(transformer, path, {}, "combined")
    with pytest.raises(ConfigError, match="holds projections alone"):
        config.planner()
