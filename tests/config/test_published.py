"""`published:METHOD`: the settings that reproduce the decisions of each method's authors."""

import pytest
import torch
from ditaccel.kernels import Tiling, feature_map
from ditaccel.pipelines import adapters
from planners import RecordingPlanner
from tiny import generate, peaked, tiny_dit, tiny_flux, tiny_wan

import ditaccel
from ditaccel import ConfigError, SLAConfig
from ditaccel import config as configs
from ditaccel.attention import svg2
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.options import touched_tiles, whole_tiles
from ditaccel.attention.engine.planner import Dense, DenseReason, LayerContext
from ditaccel.attention.sla.planner import SLAPlanner
from ditaccel.attention.sla.weights import SLAWeights
from ditaccel.config.published import published_presets
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.tuning.observe import observed

NAMED = [(a.name, p) for a in adapters().values() for p in published_presets(a)]


def _computed(pipe, branch=None):
    calls = ditaccel.report(pipe).last_generation().calls
    return [c.step for c in calls if c.action == "compute" and branch in (None, c.branch)]


@pytest.mark.parametrize(("family", "name"), NAMED)
def test_every_published_preset_is_a_config_that_reads_back(family, name):
    made = configs.preset(name, family)
    assert len(made.methods) == 1
    assert configs.from_dict(configs.to_dict(made)) == made


def test_each_published_method_has_a_preset_and_ours_has_none():
    methods = {name.partition(":")[2] for family, name in NAMED if family == "wan"} - {""}
    assert methods == {
        "adaspa",
        "attention_tile",
        "clear",
        "confidence_gated_taylor",
        "dbcache",
        "draft_attention",
        "easycache",
        "first_block_residual",
        "fora",
        "lite_attention",
        "magcache",
        "nabla",
        "radial",
        "rainfusion",
        "seacache",
        "sla",
        "sol",
        "sparge",
        "sparse_vdit",
        "sta",
        "svg1",
        "svg2",
        "tafc",
        "taylorseer",
        "teacache",
        "vmoba",
        "xattention",
    }


@pytest.mark.parametrize(
    ("family", "name", "expected"),
    [
        # Shenyi-Z/TaylorSeer 288776d, liuxiao-guan/CG-Taylor-DiT c60a715, svg-project 5ce7b01
        ("flux", "taylorseer", {"interval": 6, "order": 1, "warmup": 3, "final": 0}),
        ("dit", "taylorseer", {"interval": 4, "order": 4, "warmup": 2}),
        ("wan", "taylorseer", {"interval": 5, "order": 1, "warmup": 1}),
        ("dit", "confidence_gated_taylor", {"threshold": 0.008, "block_order": 3, "warmup": 3}),
        ("wan", "confidence_gated_taylor", {"threshold": 0.36, "warmup": 6, "guidance": "follow"}),
        ("wan", "svg2", {"q_clusters": 300, "k_clusters": 1000, "refresh": 1, "compensate": False}),
        ("hunyuan_video", "svg2", {"q_clusters": 400, "cluster_when_dense": True}),
        ("sd3", "lite_attention", {"threshold": -10.0, "retest": 0, "share_branches": True}),
        # mit-han-lab/radial-attention 72788d4, NATTEN 8c8729f
        ("wan", "radial", {"decay": 0.2, "sinks": ("first_frame",), "dense_layers": 1}),
        ("hunyuan_video", "radial", {"decay": 1.0, "neighbor": 1.0, "sinks": ()}),
        ("hunyuan_video", "neighborhood", {"window": (18, 24, 24), "stride": (16, 8, 8)}),
        ("wan", "svg1", {"density": 0.3, "refresh": 1, "q_tile": 128, "k_tile": 128}),
        ("wan", "sla", {"mode": "sla", "projection": "shared", "q_tile": 64, "dense_steps": 0}),
    ],
)
def test_constants_are_the_authors(family, name, expected):
    (made,) = configs.preset(f"published:{name}", family).methods
    assert {key: getattr(made, key) for key in expected} == expected


def test_the_bare_word_is_the_confidence_gate():
    bare = configs.preset("published", "wan")
    assert bare.methods == configs.preset("published:confidence_gated_taylor", "wan").methods


def test_options_may_be_changed_behind_the_name():
    made = configs.resolve("published:taylorseer:interval=3,order=2", "flux")
    assert (made.cache.interval, made.cache.order, made.cache.warmup) == (3, 2, 3)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("published:tailorseer", "did you mean 'taylorseer'"),
        ("published:taylorseer", "give no settings for sd3 .*first_block_residual"),
        ("published:adaptive_taylor", "give no settings for sd3"),
        ("published:lite_attention:treshold=-3", "did you mean 'threshold'"),
        ("published", "give no settings for sd3"),
    ],
)
def test_what_nobody_published_is_said(name, line):
    with pytest.raises(ConfigError, match=line):
        configs.preset(name, "sd3")


# -- confidence-gated Taylor on Flux --


def test_flux_gate_learns_nothing_in_its_warm_up():
    """As the authors' Flux code: steps 0 to 5 are computed, step 6 is gated by a reuse."""
    pipe, call = tiny_flux()
    outputs = []
    pipe.transformer.transformer_blocks[0].register_forward_hook(
        lambda module, args, output: outputs.append(output[1].clone())
    )
    with ditaccel.accelerated(pipe, "published:confidence_gated_taylor:threshold=0.99"):
        generate(pipe, call, num_inference_steps=10, true_cfg_scale=1.0)
        calls = ditaccel.report(pipe).calls
    assert [c.action for c in calls][:7] == ["compute"] * 6 + ["forecast"]
    assert calls[5].error == pytest.approx(1.0)  # against a forecast of 0
    expected = (outputs[5] - outputs[6]).abs().mean() / outputs[6].abs().mean()
    assert calls[6].error == pytest.approx(float(expected), rel=1e-4)


# -- TaylorSeer's warm-up --


def _last_hidden(config, **changes):
    pipe, call = tiny_wan()
    seen = []
    pipe.transformer.norm_out.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].double().clone())
    )
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=6, **changes)
    return seen


def test_only_the_last_two_steps_of_the_warm_up_enter_derivatives():
    options = {"interval": 9, "order": 2, "warmup": 3, "granularity": "last_block"}
    f0, f1, f2, first, *_ = _last_hidden(
        ditaccel.TaylorSeerConfig(**options, warmup_history="last_two")
    )
    torch.testing.assert_close(first, f2 + (f2 - f1), rtol=1e-4, atol=1e-5)
    f0, f1, f2, first, *_ = _last_hidden(ditaccel.TaylorSeerConfig(**options))
    bend = (f2 - f1) - (f1 - f0)
    torch.testing.assert_close(first, f2 + (f2 - f1) + bend / 2, rtol=1e-4, atol=1e-5)


def test_modules_forget_the_early_warm_up_too():
    """With two features an order of 2 is one of 1: the same bits up to the next computed step."""
    results = []
    for order, history in ((2, "last_two"), (1, "all"), (2, "all")):
        pipe, call = tiny_dit()
        config = ditaccel.TaylorSeerConfig(
            interval=9, order=order, warmup=3, warmup_history=history
        )
        with ditaccel.accelerated(pipe, cache=config):
            results.append(generate(pipe, call, num_inference_steps=6))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# -- nothing may be skipped --


@pytest.mark.parametrize("make", [tiny_wan, tiny_flux])
@pytest.mark.parametrize(
    "spec",
    [
        "adaptive_taylor:tolerance=0,guidance=difference,guidance_interval=3",
        "taylorseer:interval=1,granularity=last_block,guidance=difference,guidance_interval=2",
    ],
)
def test_zero_is_exact_whatever_the_guidance_interval(make, spec):
    pipe, call = make()
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, spec):
        assert torch.equal(generate(pipe, call), dense)
        assert all(c.action == "compute" for c in ditaccel.report(pipe).calls)


# -- LiteAttention --


@pytest.mark.parametrize("shares", [False, True])
def test_branches_share_a_list_where_the_planner_says_so(shares):
    states = {}

    def answer(q, k, context, state):
        states.setdefault((context.layer, context.step.branch), set()).add(id(state))
        return Dense(DenseReason.OTHER, "asked for")

    planner = RecordingPlanner(answer)
    planner.shares_branches = shares
    pipe, call = tiny_wan()
    with observed(pipe, planner), pytest.warns(UserWarning):
        generate(pipe, call, num_inference_steps=6)
    assert (states[0, "cond"] == states[0, "uncond"]) is shares


def test_one_list_for_both_branches_keeps_less_than_two():
    """Each branch drops what the other one still wanted: the original's way with guidance."""
    kept = {}
    for shares in (False, True):
        pipe, call = peaked("wan")
        config = configs.resolve(
            "published:lite_attention:threshold=-4,q_tile=16,k_tile=16,"
            f"share_branches={str(shares).lower()}",
            "wan",
        )
        with ditaccel.accelerated(pipe, config):
            generate(pipe, call, num_inference_steps=8)
            kept[shares] = ditaccel.report(pipe).attention[0].density
    assert kept[True] < kept[False] < 1.0


def test_published_lite_attention_needs_no_least_number_of_steps():
    pipe, call = peaked("wan")
    with ditaccel.accelerated(pipe, "published:lite_attention:threshold=-4,q_tile=16,k_tile=16"):
        generate(pipe, call, num_inference_steps=4)
        reasons = {r["reason"] for r in ditaccel.report(pipe).attention[0].rows()}
    assert reasons == {"first map", "carried map"}


def test_must_skip_rounds_inwards_or_as_the_original_outwards():
    """100 to 300 in tiles of 64: the original drops 1 to 4, ours 2 and 3."""
    tiling = Tiling.fixed(512, 64)
    cpu = torch.device("cpu")
    inside = whole_tiles("must_skip", ((100, 300),), tiling, cpu).flatten().nonzero()
    touched = touched_tiles("must_skip", ((100, 300),), tiling, cpu).flatten().nonzero()
    assert inside.flatten().tolist() == [2, 3]
    assert touched.flatten().tolist() == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="touches every tile"):
        touched_tiles("must_skip", ((0, 500),), tiling, cpu)


# -- SVG2 --


def test_clusters_are_kept_warm_in_dense_steps_but_not_in_dense_layers(monkeypatch):
    runs = []
    real = svg2.kmeans

    def counted(x, count, iterations, centroids=None):
        runs.append((iterations, centroids is not None))
        return real(x, count, iterations, centroids=centroids)

    monkeypatch.setattr(svg2, "kmeans", counted)
    pipe, call = peaked("wan")
    layers = len(pipe.transformer.blocks)
    spec = "published:svg2:q_clusters=4,k_clusters=8,dense_steps=2,dense_layers=1,"
    for warm in ("true", "false"):
        runs.clear()
        with ditaccel.accelerated(pipe, spec + f"cluster_when_dense={warm}"):
            generate(pipe, call, num_inference_steps=5, guidance_scale=1.0)
            steps = {
                r["step"]
                for r in ditaccel.report(pipe).attention[0].rows()
                if "clusters" in r["reason"]
            }
        assert steps == {2, 3, 4}
        clustered = 5 if warm == "true" else 3
        assert len(runs) == 2 * (layers - 1) * clustered
        assert sorted(runs).count((50, False)) == 2 * (layers - 1)
        assert sorted(runs).count((2, True)) == 2 * (layers - 1) * (clustered - 1)


# -- SLA --

WIDTH = 16


def _sla(projection="shared", linear="marginal", heads=2, seed=0):
    config = SLAConfig(
        mode="sla", linear=linear, projection=projection, critical=0.25, negligible=0,
        q_tile=16, k_tile=16, dense_steps=0, min_tokens=0, break_even=1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    own = 1 if projection == "shared" else heads
    adapter = SLAWeights(SLAPlanner(config, None).options)
    adapter.projections[""] = [
        (
            torch.randn(own, WIDTH, WIDTH, generator=generator),
            torch.randn(own, WIDTH, generator=generator),
        )
    ]
    return SLAPlanner(config, adapter), adapter.projections[""][0]


@pytest.mark.parametrize("linear", ["marginal", "all"])
@pytest.mark.parametrize("projection", ["shared", "per_head"])
def test_sla_as_its_authors_wrote_it_in_float64(projection, linear):
    """o_s + Proj(o_l), one projection for all heads; o_l over marginal keys, or over all."""
    planner, (weight, bias) = _sla(projection, linear)
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 96, WIDTH, generator=generator) for _ in range(3))
    step = DenoisingStep(0, 4, "cond", 500.0, sigma=0.5, total=10)
    context = LayerContext(step, layer=0, layers=1, length=96)
    plan = planner.plan(q, k, v, WIDTH**-0.5, context, {})
    out = attend(plan, q, k, v, WIDTH**-0.5).output

    q, k, v, weight, bias = (x.double() for x in (q, k, v, weight, bias))
    tiles = [x.unflatten(2, (6, 16)).mean(3) for x in (q, k)]
    scores = tiles[0] @ (tiles[1] - k.mean(2, keepdim=True)).mT
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(1).indices, True)
    critical = chosen.repeat_interleave(16, 2).repeat_interleave(16, 3)
    logits = (q @ k.mT * WIDTH**-0.5).masked_fill(~critical, -torch.inf)
    phi_q, phi_k = feature_map("softmax")(q, k)
    weights = phi_q @ phi_k.mT
    if linear == "marginal":
        weights = weights.masked_fill(critical, 0.0)
    branch = weights @ v / weights.sum(-1, keepdim=True)
    expected = logits.softmax(-1) @ v + branch @ weight.mT + bias[:, None]
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


def test_files_of_before_keep_what_they_were_trained_with(tmp_path):
    planner, _ = _sla("per_head")
    weights = planner.weights
    for key in ("linear", "projection"):
        del weights.options[key]
    weights.save(tmp_path / "old.safetensors")
    loaded = SLAWeights.load(tmp_path / "old.safetensors")
    assert (loaded.options["linear"], loaded.options["projection"]) == ("marginal", "per_head")
    with pytest.raises(ConfigError, match="trained with linear='marginal'"):
        SLAConfig(mode="sla", linear="all", weights=str(tmp_path / "old.safetensors")).planner()


def test_published_sla_asks_for_its_weights():
    pipe, _ = tiny_wan()
    with pytest.raises(ConfigError, match="needs weights=FILE"):
        ditaccel.accelerate(pipe, "published:sla")
