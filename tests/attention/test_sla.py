"""SLA: the map worked out by hand, dense where all is critical, state, adapters, messages."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from ditaccel.kernels import Tiling, tile_moments
from tiny import FAMILIES, generate, peaked

import ditaccel
from ditaccel import ConfigError, SLAConfig, UsageError
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.cubes import cube_order
from ditaccel.attention.engine.planner import Dense, LayerContext, Plan
from ditaccel.attention.sla.map import moment_errors, tile_classes
from ditaccel.attention.sla.planner import SLAPlanner
from ditaccel.attention.sla.weights import SLAWeights
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.core.weight_changes import fingerprint

WIDTH = 16
SMALL = {"q_tile": 16, "k_tile": 16, "min_tokens": 0, "dense_steps": 0}


def _context(length=128, index=4, text=None, grid=None, layer=2, keys=None):
    step = DenoisingStep(0, index, "cond", 500.0, sigma=0.5, total=10)
    return LayerContext(
        step, layer=layer, layers=4, length=length, text=text, key_mask=keys, grid=grid
    )


def _tensors(heads=2, kv_heads=2, length=128, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, h, length, WIDTH, generator=generator) for h in (heads, kv_heads, kv_heads)
    ]


def _run(config, q, k, v, context=None, keys=None):
    plan = config.planner().plan(q, k, v, WIDTH**-0.5, context or _context(q.shape[2]), {})
    assert isinstance(plan, Plan)
    return plan, attend(plan, q, k, v, WIDTH**-0.5, keys).output


def _dense(q, k, v, mask=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)


def _error(a, b):
    return float((a - b).norm() / b.norm())


# -- the map --


def test_classes_by_hand():
    mass = torch.tensor([[[[0.05, 0.4, 0.1, 0.2, 0.01, 0.04, 0.06, 0.04, 0.03, 0.07]]]])
    critical, marginal = tile_classes(mass, 0.2, 0.3)
    assert critical[0, 0, 0].nonzero().flatten().tolist() == [1, 3]
    # the least three are 4, 8, and the first of the two of 0.04
    assert (~critical & ~marginal)[0, 0, 0].nonzero().flatten().tolist() == [4, 5, 8]


def test_the_published_map_in_float64():
    """Softmax of pooled queries times pooled keys, sorted within each row; ragged tiles too."""
    q, k, v = _tensors(heads=4, kv_heads=2, length=75)
    config = SLAConfig(mode="sparse", critical=0.3, negligible=0.4, cube=(), **SMALL)
    plan, _ = _run(config, q, k, v)
    bounds = [(i, min(i + 16, 75)) for i in range(0, 75, 16)]
    for head in range(4):
        means = [
            torch.stack([x[0, h, a:b].double().mean(0) for a, b in bounds])
            for x, h in ((q, head), (k, head // 2))
        ]
        scores = means[0] @ means[1].T / WIDTH**0.5
        for i in range(5):
            # 30 % of 5 tiles: one
            expected = [j == int(scores[i].argmax()) for j in range(5)]
            assert plan.tile_map.to_mask()[0, head, i].tolist() == expected


def test_tiles_far_below_the_best_one_keep_their_order():
    """Beyond 103 below the largest score a float32 softmax is 0, and ties went by index."""
    q, k, v = (x * 60 for x in _tensors(heads=1, kv_heads=1, length=160))
    config = SLAConfig(mode="sparse", critical=0.1, negligible=0.4, cube=(), **SMALL)
    plan, _ = _run(config, q, k, v)
    means = [x[0, 0].double().unflatten(0, (10, 16)).mean(1) for x in (q, k)]
    scores = means[0] @ means[1].T / WIDTH**0.5
    assert float((scores.amax(1) - scores.amin(1)).median()) > 103
    negligible = ~(plan.stands_for[0, 0] | plan.tile_map.to_mask()[0, 0])
    for i in range(10):
        assert set(negligible[i].nonzero().flatten().tolist()) == set(
            scores[i].argsort()[:4].tolist()
        )


def test_at_least_one_tile_is_critical_however_few_there_are():
    q, k, v = _tensors(length=40)
    plan, out = _run(SLAConfig(critical=0.01, **SMALL), q, k, v)
    assert plan.tile_map.counts.unique().tolist() == [1]
    assert bool(torch.isfinite(out).all())


def test_negligible_never_takes_what_is_critical():
    mass = torch.rand(1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    critical, marginal = tile_classes(mass, 0.01, 0.99, rank=-mass)
    assert critical.sum(-1).unique().tolist() == [1]
    assert bool((critical == (mass == mass.amin(-1, keepdim=True))).all())
    assert marginal.sum().item() == 0


def test_errors_of_moments_by_hand():
    q, k, v = (x.double() for x in _tensors(heads=1, kv_heads=1, length=8))
    mean = q.mean(2, keepdim=True)
    mass, error = moment_errors(mean, tile_moments(k, v, Tiling.fixed(8, 4)), 0.25)
    logits, losses = [], []
    for j in range(2):
        keys, values = k[0, 0, 4 * j : 4 * j + 4], v[0, 0, 4 * j : 4 * j + 4]
        u = 0.0625 * (mean[0, 0, 0].square() * keys.var(0, correction=0)).sum()
        logits.append(0.25 * mean[0, 0, 0] @ keys.mean(0) + torch.log(4 * (1 + u / 2)))
        spread = values.var(0, correction=0).sum().sqrt()
        losses.append(u.sqrt() * spread + u / 2 * values.mean(0).norm())
    expected = torch.stack(logits).softmax(0)
    torch.testing.assert_close(mass[0, 0, 0], expected)
    torch.testing.assert_close(error[0, 0, 0], expected * torch.stack(losses))


# -- what is computed --


@pytest.mark.parametrize("mode", ["training_free", "sparse"])
@pytest.mark.parametrize("cube", [(), (4, 2, 2)])
def test_all_critical_is_dense(mode, cube):
    q, k, v = _tensors(heads=4, kv_heads=2, length=123 + 5)
    keys = torch.ones(1, 128, dtype=torch.bool)
    keys[:, 100:] = False
    config = SLAConfig(critical=1, negligible=0, mode=mode, cube=cube, **SMALL)
    plan, out = _run(config, q, k, v, _context(128, grid=(8, 4, 4)), keys)
    assert plan.tile_map.density() == 1.0
    assert _error(out, _dense(q, k, v, keys[:, None, None])) < 1e-6


def test_training_free_beats_plain_sparse_at_the_same_map():
    q, k, v = _tensors(length=256)
    k = k + 2 * k[:, :, ::16].repeat_interleave(16, 2)  # tiles that differ
    dense = _dense(q, k, v)
    options = {"critical": 0.2, "negligible": 0, "cube": (), "choose_by": "mass", **SMALL}
    errors = {}
    for mode in ("training_free", "sparse"):
        plan, out = _run(SLAConfig(mode=mode, **options), q, k, v)
        errors[mode] = _error(out, dense), plan.tile_map.density()
    assert errors["training_free"][1] == errors["sparse"][1] < 0.25
    assert errors["training_free"][0] < 0.7 * errors["sparse"][0]


def test_cubes_by_hand_with_text_in_front():
    order, inverse = cube_order((2, 2, 4), (2, 1, 2), 18, start=2)
    first = [2, 3, 10, 11]  # both frames of the first row, columns 0 and 1
    assert order.tolist()[:6] == [0, 1, *first]
    assert order.tolist()[6:10] == [4, 5, 12, 13]
    assert order[inverse].tolist() == list(range(18))
    ragged, _ = cube_order((3, 3, 5), (2, 2, 2), 45)
    assert sorted(ragged.tolist()) == list(range(45))
    assert ragged.tolist()[:4] == [0, 1, 5, 6]


def test_heads_take_the_order_that_serves_them():
    """One head looks along time, the other within its frame."""
    grid, length = (16, 4, 4), 256
    generator = torch.Generator().manual_seed(0)
    frame = torch.arange(length) // 16
    place = torch.arange(length) % 16
    codes = 4 * torch.randn(16, WIDTH, generator=generator)
    marks = torch.stack([codes[place], codes[frame]])[None]
    q, k = (marks + 0.1 * torch.randn(1, 2, length, WIDTH, generator=generator) for _ in range(2))
    v = torch.randn(1, 2, length, WIDTH, generator=generator)
    config = SLAConfig(critical=0.07, mode="sparse", cube=(16, 1, 1), **SMALL)
    state: dict = {}
    plan = config.planner().plan(q, k, v, 0.25, _context(length, grid=grid), state)
    assert state["cubed"] == [True, False]
    assert _error(attend(plan, q, k, v, 0.25).output, _dense_scaled(q, k, v)) < 0.05


def _dense_scaled(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.25)


@pytest.mark.parametrize("text", [(0, 20), (108, 128)])
def test_text_attends_to_all_and_is_attended_to(text):
    q, k, v = _tensors()
    grid = (3, 6, 6)
    plan, out = _run(SLAConfig(critical=0.1, **SMALL), q, k, v, _context(text=text, grid=grid))
    rows = slice(*text)
    assert _error(out[:, :, rows], _dense(q, k, v)[:, :, rows]) < 1e-5
    mask = plan.tile_map.to_mask()
    touched = Tiling.fixed(128, 16).touched([text], "cpu")[0, 0]
    assert bool(mask[..., touched].all()) and not bool(mask.all())


def test_masked_keys_count_neither_in_the_map_nor_in_the_moments():
    """What stands behind the mask changes nothing, however large it is."""
    q, k, v = _tensors()
    keys = torch.ones(1, 128, dtype=torch.bool)
    keys[:, 100:] = False  # the last tile in part, one tile behind it whole
    loud = [torch.where(keys[:, None, :, None], x, 100 * x) for x in (k, v)]
    for options in ({}, {"choose_by": "mass"}, {"mode": "sparse", "cube": (2, 2, 4)}):
        config = SLAConfig(**{"critical": 0.2, "cube": (), **options, **SMALL})
        context = _context(grid=(8, 4, 4), keys=keys)
        plan, out = _run(config, q, k, v, context, keys)
        again, same = _run(config, q, *loud, context, keys)
        assert torch.equal(plan.tile_map.to_mask(), again.tile_map.to_mask())
        torch.testing.assert_close(out, same)
        if options.get("cube") is None:
            assert not bool(plan.tile_map.to_mask()[..., 7].any()), "an empty tile is critical"


def test_an_order_serves_longer_each_time(monkeypatch):
    q, k, v = _tensors()
    asked = []
    monkeypatch.setattr(
        SLAPlanner,
        "_sampled",
        lambda self, q, k, v, scale, context, cubes: (
            asked.append(context.step.index) or torch.zeros(2)
        ),
    )
    planner, state = SLAConfig(critical=0.2, **SMALL).planner(), {}
    for index in range(45):
        planner.plan(q, k, v, 0.25, _context(index=index, grid=(8, 4, 4)), state)
    assert asked[::2] == asked[1::2] == [0, 5, 15, 35]  # two orders are tried each time


def test_tiles_follow_the_length_unless_they_are_given():
    planner = SLAConfig().planner()
    assert [planner.tiles(n) for n in (1024, 8191, 8192, 75_000)] == [(32, 32)] * 2 + [
        (128, 64)
    ] * 2
    assert SLAConfig(q_tile=64).planner().tiles(75_000) == (64, 64)


def test_moments_of_the_map_are_used_again_and_are_those_of_the_tensors():
    q, k, v = _tensors()
    config = SLAConfig(critical=0.2, cube=(), **SMALL)
    plan, out = _run(config, q, k, v)
    assert plan.stats is not None
    fresh = attend(replace(plan, stats=None), q, k, v, WIDTH**-0.5).output
    torch.testing.assert_close(out, fresh)


def test_dense_steps_run_on_the_models_own_weights(tmp_path):
    """The adapter is trained for sparse steps; on dense ones it would only be in the way."""
    pipe, call = peaked("wan")
    call = {**call, "num_inference_steps": 4}
    weight = pipe.transformer.blocks[0].attn1.to_q.weight
    before, steps = weight.detach().clone(), []
    path = _weights(pipe, tmp_path / "a.safetensors")
    handle = pipe.transformer.blocks[0].attn1.register_forward_pre_hook(
        lambda *_: steps.append(torch.equal(weight, before))
    )
    config = SLAConfig(weights=path, min_tokens=0, dense_steps=2, break_even=1.0)
    with ditaccel.accelerated(pipe, attention=config):
        generate(pipe, call)
        assert steps == [True] * 4 + [False] * 4  # two branches a step
        with pytest.raises(ZeroDivisionError):
            _interrupted(pipe, call, at=3)
        assert torch.equal(weight, before), "an exception leaves the adapter's weights on"
    handle.remove()


def _interrupted(pipe, call, at):
    def stop(pipe, step, timestep, kwargs):
        if step == at - 1:
            pipe.transformer.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
        return kwargs

    pipe(**call, generator=torch.Generator().manual_seed(0), callback_on_step_end=stop)


def test_first_steps_and_layers_stay_dense():
    q, k, v = _tensors()
    planner = SLAConfig(q_tile=16, k_tile=16, dense_steps=0.3, dense_layers=1).planner()
    for context in (_context(index=2), _context(layer=0)):
        assert isinstance(planner.plan(q, k, v, 0.25, context, {}), Dense)
    assert isinstance(planner.plan(q, k, v, 0.25, _context(index=3), {}), Plan)


# -- pipelines --


@pytest.mark.parametrize("name", ["wan22", "flux", "hunyuan_video", "mochi"])
def test_sparse_generations_are_alike_and_leave_no_state(name):
    pipe, call = peaked(name)
    call = {**call, "num_inference_steps": 6}
    dense = generate(pipe, call)
    config = SLAConfig(critical=0.3, break_even=1.0, cube=(2, 2, 4), **SMALL)
    with ditaccel.accelerated(pipe, attention=config):
        first, second = generate(pipe, call), generate(pipe, call)
        assert torch.equal(first, second), "state outlived its generation"
        assert torch.isfinite(first).all() and not torch.equal(first, dense)
        assert _log(pipe).density < 0.97
        other = generate(pipe, call, seed=9)
        assert not torch.equal(other, first)
    assert torch.equal(generate(pipe, call), dense)


def _log(pipe):
    return ditaccel.report(pipe).attention[0]


def test_compiled_blocks_give_what_eager_ones_do():
    torch._dynamo.reset()
    pipe, call = peaked("wan")
    config = SLAConfig(critical=0.3, break_even=1.0, **SMALL)
    with ditaccel.accelerated(pipe, attention=config):
        expected = generate(pipe, call, num_inference_steps=4)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with ditaccel.accelerated(pipe, attention=config):
        assert torch.equal(generate(pipe, call, num_inference_steps=4), expected)


# -- adapters --


def _weights(pipe, path, mode="sla", scale=0.1, **options):
    config = SLAConfig(critical=0.3, mode=mode, **{**SMALL, **options})
    transformer = pipe.transformer
    made = SLAWeights(SLAPlanner(config, None).options, {"transformer": fingerprint(transformer)})
    module = transformer.blocks[0].attn1
    heads, dim = module.heads, module.to_q.out_features // module.heads
    generator = torch.Generator().manual_seed(3)
    made.projections["transformer"] = [
        (scale * torch.randn(heads, dim, dim, generator=generator), torch.zeros(heads, dim))
        for _ in transformer.blocks
    ]
    made.changes["transformer"] = {
        "blocks.0.attn1.to_q.weight": scale * torch.ones_like(module.to_q.weight)
    }
    made.save(path)
    return str(path)


def test_an_adapter_is_put_on_and_taken_off(tmp_path):
    pipe, call = peaked("wan")
    dense = generate(pipe, call)
    weight = pipe.transformer.blocks[0].attn1.to_q.weight
    before = weight.detach().clone()
    path = _weights(pipe, tmp_path / "a.safetensors")
    options = {"min_tokens": 0, "dense_steps": 0, "break_even": 1.0}
    plain = SLAConfig(critical=0.3, mode="sparse", q_tile=16, k_tile=16, **options)
    with ditaccel.accelerated(pipe, attention=plain):
        untrained = generate(pipe, call)
    with ditaccel.accelerated(pipe, attention=SLAConfig(weights=path, **options)):
        within = []
        handle = pipe.transformer.blocks[0].attn1.register_forward_pre_hook(
            lambda *_: within.append(_error(weight.detach(), before + 0.1) < 1e-3)
        )
        trained = generate(pipe, call)
        handle.remove()
        assert {r["reason"] for r in _log(pipe).rows()} == {"sla"}
        assert within and all(within)
        assert torch.equal(weight, before), "a pipeline saved between calls would not be its own"
    assert not torch.equal(trained, untrained) and torch.isfinite(trained).all()
    assert torch.equal(weight, before) and torch.equal(generate(pipe, call), dense)


def test_a_projection_of_zero_is_plain_sparse(tmp_path):
    pipe, call = peaked("wan")
    path = _weights(pipe, tmp_path / "a.safetensors", scale=0.0)
    options = {"min_tokens": 0, "dense_steps": 0, "break_even": 1.0}
    results = []
    for config in (
        SLAConfig(critical=0.3, mode="sparse", q_tile=16, k_tile=16, **options),
        SLAConfig(weights=path, **options),
    ):
        with ditaccel.accelerated(pipe, attention=config):
            results.append(generate(pipe, call))
    assert _error(*results) < 1e-5


def test_adapters_of_other_models_and_configs_are_refused(tmp_path):
    pipe, _ = peaked("wan")
    path = _weights(pipe, tmp_path / "a.safetensors")
    with pytest.raises(
        ConfigError, match=r"critical=0.1, but .*a.safetensors was trained with .*0.3"
    ):
        ditaccel.accelerate(pipe, attention=SLAConfig(weights=path, critical=0.1))
    with pytest.raises(ConfigError, match=r"mode='training_free', but .* trained with mode='sla'"):
        ditaccel.accelerate(pipe, attention=SLAConfig(weights=path, mode="training_free"))
    with torch.no_grad():
        for block in pipe.transformer.blocks:
            block.ffn.net[2].weight.normal_()
            block.attn1.to_q.weight.normal_()
    with pytest.raises(ConfigError, match=r"trained for another transformer: its weights differ"):
        ditaccel.accelerate(pipe, attention=SLAConfig(weights=path))
    other, _ = FAMILIES["flux"]()
    with pytest.raises(ConfigError, match="its parameters have other names or shapes"):
        ditaccel.accelerate(other, attention=SLAConfig(weights=path))
    with pytest.raises(UsageError, match="not accelerated"):
        ditaccel.report(other)
    (tmp_path / "b.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match=r"b.safetensors is not a readable safetensors file"):
        ditaccel.accelerate(pipe, attention=SLAConfig(weights=str(tmp_path / "b.safetensors")))
    with pytest.raises(UsageError, match=r"no weights at .*c.safetensors"):
        ditaccel.accelerate(pipe, attention=SLAConfig(weights=str(tmp_path / "c.safetensors")))
    with pytest.raises(ConfigError, match="mode='sla' needs weights=FILE"):
        ditaccel.accelerate(pipe, attention=SLAConfig(mode="sla"))


def test_fingerprints_survive_half_precision():
    pipe, _ = peaked("wan")
    known = fingerprint(pipe.transformer)
    path_free = SLAWeights({}, {"transformer": known})
    from ditaccel.core.patching import PatchLedger

    path_free.attach("transformer", pipe.transformer.half(), PatchLedger(owner=None))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"critical": 101}, "critical is 101; it is a share of the key tiles, from 0 to 1"),
        ({"critical": 5}, "critical is 5; .* not a percentage: give critical=0.05"),
        ({"negligible": 12.5}, "negligible is 12.5; .* give negligible=0.125"),
        ({"negligible": -1}, "negligible is -1; it is a share"),
        (
            {"critical": 0.6, "negligible": 0.5},
            "critical=0.6 and negligible=0.5 add up to",
        ),
        ({"mode": "fast"}, "mode is 'fast'"),
        ({"choose_by": "luck"}, "choose_by is 'luck'"),
        ({"feature_map": "cosine"}, "feature_map is 'cosine'"),
        ({"rest": "modes"}, "rest is 'modes'"),
        ({"cube": (1, 2)}, "give frames, rows and columns"),
        ({"cube": (0, 2, 2)}, "give frames, rows and columns"),
        ({"q_tile": 8}, "q_tile is 8; tiles have at least 16 tokens"),
        ({"dense_steps": -1}, "dense_steps is -1"),
    ],
)
def test_bad_options_are_named(options, line):
    with pytest.raises(ConfigError, match=line):
        SLAConfig(**options)


def test_defaults_that_add_up_to_more_than_all_with_an_option_are_named():
    with pytest.raises(ConfigError, match=r"critical=0.95 and negligible=0.1 add up to more"):
        SLAConfig(critical=0.95, mode="sparse").planner()


def test_a_config_reads_back():
    config = ditaccel.AccelerationConfig(attention=SLAConfig(critical=0.08, cube=(4, 4, 4)))
    from ditaccel import config as configs

    assert configs.from_dict(configs.to_dict(config)) == config
    assert configs.parse_spec("sla:critical=0.08,cube=[4,4,4]").attention == config.attention


def test_an_old_file_of_percentages_is_refused_with_the_shares(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(
        "ditaccel: 1\nattention:\n  method: sla\n  critical: 5.0\n  negligible: null\n"
        "  qk: model\n  dense_steps: 0.2\n"
    )
    with pytest.raises(
        ConfigError, match=r"old.yaml: .* shares now, .* qk, and write critical: 0.05"
    ):
        ditaccel.accelerate(peaked("wan")[0], path)
    with pytest.raises(ConfigError, match=r"not a percentage: give critical=0.07"):
        ditaccel.accelerate(peaked("wan")[0], "sla:critical=7")


def test_weights_of_percentages_load_as_before(tmp_path):
    from safetensors.torch import safe_open, save_file

    pipe, _ = peaked("wan")
    path = tmp_path / "a.safetensors"
    _weights(pipe, path)
    now = SLAWeights.load(path)
    with safe_open(str(path), "pt") as file:
        about = json.loads(file.metadata()["ditaccel"])
    about["options"] |= {"critical": 30.0, "negligible": 10.0}
    save_file(now.tensors(), path, {"format": "ditaccel-sla-1", "ditaccel": json.dumps(about)})
    old = SLAWeights.load(path)
    assert old.options == now.options and old.options["critical"] == 0.3
