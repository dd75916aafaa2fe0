"""precision="int8" on attention methods: every rest, one planner, reports, and what refuses it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ditaccel.kernels import TileMap, Tiling, tile_attention
from ditaccel.kernels.fuzz import relative_rmse
from tiny import generate, peaked, tiny_wan

import ditaccel
from ditaccel import (
    AccelerationConfig,
    ConfigError,
    LiteAttentionConfig,
    SLAConfig,
    SVG2Config,
)
from ditaccel import config as configs
from ditaccel.attention.engine.attend import attend, slower_kernel
from ditaccel.attention.engine.planner import LayerContext, Plan
from ditaccel.attention.sla.linear import LinearBranch
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.finetuning.run import finetune

LENGTH, SCALE = 96, 0.3
COMMON = {"min_tokens": 0, "dense_steps": 0, "break_even": 1.0}
SMALL = {"q_tile": 16, "k_tile": 16, **COMMON}
METHODS = {
    "lite_attention": LiteAttentionConfig(threshold=-2.0, **SMALL),
    "svg2": SVG2Config(top_p=0.4, q_clusters=5, k_clusters=9, **COMMON),
    "sla": SLAConfig(critical=0.3, cube=(), **SMALL),
}


def _tensors():
    """Keys whose mean is far from zero: a log-sum-exp without it would spoil every rest."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, LENGTH, 16, generator=generator) for h in (4, 2, 2))
    tiles = torch.arange(LENGTH) // 16
    centres = torch.randn(1, 1, 6, 16, generator=generator)
    shift = 4 * torch.randn(1, 2, 1, 16, generator=generator)
    return q + centres[:, :, (tiles + 1) % 6], k + centres[:, :, tiles] + shift, v


@pytest.mark.parametrize("rest", ["nothing", "means", "moments"])
@pytest.mark.parametrize("name", METHODS)
def test_every_rest_goes_with_8_bit_scores(name, rest):
    q, k, v = _tensors()
    planner, state = replace(METHODS[name], rest=rest, precision="int8").planner(), {}
    assert planner.precision == "int8"
    for index in range(2):
        step = DenoisingStep(0, index, "cond", 500.0, sigma=0.5, total=10)
        plan = planner.plan(q, k, v, SCALE, LayerContext(step, 1, 4, LENGTH), state)
        exact = attend(plan, q, k, v, SCALE)
        eight = attend(plan, q, k, v, SCALE, precision="int8")
        planner.update(plan, eight, state)
    assert plan.tile_map.density() < 0.95
    assert 1e-4 < relative_rmse(eight.output, exact.output) < 0.02
    if name == "lite_attention":
        agree = (eight.keep == exact.keep).float().mean()
        assert eight.keep.any() and agree > 0.95


def test_a_trained_branch_is_added_to_tiles_with_8_bit_scores():
    q, k, v = _tensors()
    tiling = Tiling.fixed(LENGTH, 16)
    critical = torch.eye(6, dtype=torch.bool).expand(1, 4, 6, 6)
    tile_map = TileMap.from_mask(critical, tiling, tiling)
    branch = LinearBranch(
        {"feature_map": "softmax", "linear": "marginal"},
        torch.eye(16).expand(4, 16, 16),
        torch.zeros(4, 16),
        None,
    )
    plan = Plan(tile_map, "", stands_for=~critical, branch=branch)
    _, linear = branch.run(plan, q, k, v, SCALE, None, None, "model")
    tiles, same = branch.run(plan, q, k, v, SCALE, None, None, "int8")
    assert torch.equal(linear, same)
    wanted = tile_attention(q, k, v, tile_map, scale=SCALE, precision="int8", return_lse=True)
    assert torch.equal(tiles.output, wanted.output) and torch.equal(tiles.lse, wanted.lse)
    out = attend(plan, q, k, v, SCALE, precision="int8").output
    torch.testing.assert_close(out, wanted.output + linear)


@pytest.mark.parametrize("name", METHODS)
def test_pipelines_take_it_and_the_report_names_it(name, tmp_path):
    pipe, call = peaked("hunyuan_video")  # text and a mask
    call = {**call, "num_inference_steps": 3}
    outs = []
    before = generate(pipe, call)
    for precision in ("model", "int8"):
        config = replace(METHODS[name], precision=precision, **_least(name))
        AccelerationConfig(attention=config).save(tmp_path / "c.yaml")
        loaded = AccelerationConfig.load(tmp_path / "c.yaml")
        assert loaded.attention == config
        with ditaccel.accelerated(pipe, loaded):
            outs.append(generate(pipe, call))
            text = str(ditaccel.report(pipe))
        assert ("with 8-bit scores" in text) == (precision == "int8")
    assert torch.isfinite(outs[1]).all() and not torch.equal(*outs)
    # nearer to each other than to what is skipped nowhere
    assert relative_rmse(outs[1], outs[0]) < 0.6 * relative_rmse(outs[0], before)
    assert torch.equal(generate(pipe, call), before)


def _least(name):
    return {"least_steps": 1} if name == "lite_attention" else {}


_METHODS = sorted(n for n, cls in configs.methods().items() if cls.kind == "attention")


@pytest.mark.slow
@pytest.mark.parametrize("name", _METHODS)
def test_every_method_takes_it(name):
    pipe, call = peaked("wan")
    call = {**call, "num_inference_steps": 6}
    config = configs.methods()[name].examples()[0].skipping
    outs = []
    for precision in ("model", "int8"):
        with ditaccel.accelerated(pipe, attention=replace(config, precision=precision)):
            outs.append(generate(pipe, call))
            assert ditaccel.report(pipe).attention[0].density < 1
    assert torch.isfinite(outs[1]).all() and not torch.equal(*outs)
    # maps that are chosen by thresholds may turn elsewhere after some steps
    assert relative_rmse(outs[1], outs[0]) < 0.5


def test_the_doctor_names_it_and_promises_nothing_on_a_cpu():
    pipe, call = tiny_wan()
    for precision in ("model", "int8"):
        config = replace(METHODS["svg2"], precision=precision)
        text = " ".join(str(ditaccel.doctor(pipe, config, call=call)).split())
        promised = "with 8-bit scores, which save no time on a CPU"
        assert (promised in text) == (precision == "int8")


def test_what_cannot_be_done_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="precision is 'int4'"):
        SLAConfig(precision="int4")
    pipe, call = tiny_wan(layers=2)
    embeds = {k: call.pop(k) for k in list(call) if "embeds" in k}
    config = replace(METHODS["sla"], mode="sla", precision="int8")
    with pytest.raises(ConfigError, match="precision='int8' has no gradient; train in the model"):
        finetune(pipe, [embeds], config, out=tmp_path, steps=1, quiet=True, **call)
    q, k, v = _tensors()
    tiling = Tiling.fixed(LENGTH, 16)
    plan = Plan(TileMap.dense(tiling, tiling), "all")
    with pytest.raises(ValueError, match="8-bit scores have no gradient"):
        attend(plan, q.requires_grad_(), k, v, SCALE, precision="int8")
    with torch.no_grad():
        assert "Triton" in slower_kernel(plan, q, k, v, "int8")
