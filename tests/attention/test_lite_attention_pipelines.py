"""LiteAttention on pipelines: exactness, state, caches on top, guard rails, the report."""

import copy
import json
import warnings

import pytest
import torch
from PIL import Image
from tiny import ATTENTION_FAMILIES, FAMILIES, generate, peaked

import ditaccel
from ditaccel import LiteAttentionConfig
from ditaccel.tuning.observe import observed

SMALL = {"q_tile": 16, "k_tile": 16, "min_tokens": 0, "break_even": 0.97}
PEAKED = LiteAttentionConfig(threshold=-4.0, **SMALL)


def log_of(pipe, index=0):
    return ditaccel.report(pipe).attention[index]


@pytest.mark.parametrize("name", ATTENTION_FAMILIES)
def test_a_threshold_that_skips_nothing_is_dense_up_to_rounding(name):
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    config = LiteAttentionConfig(threshold=-1e30, **{**SMALL, "break_even": 1.0})
    ditaccel.accelerate(pipe, attention=config)
    result = generate(pipe, call)
    assert any(r["reason"] == "carried map" for r in log_of(pipe).rows())
    error = (result - dense).square().mean().sqrt() / dense.square().mean().sqrt()
    assert float(error) < FAMILIES[name].rounding
    assert log_of(pipe).density == 1.0
    ditaccel.restore(pipe)
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("name", ["wan", "wan22", "flux", "hunyuan_video", "sd3", "mochi"])
def test_peaked_attention_is_skipped_the_same_in_each_generation_and_undone(name):
    pipe, call = peaked(name)
    dense = generate(pipe, call)
    ditaccel.accelerate(pipe, attention=PEAKED)
    first, second = generate(pipe, call), generate(pipe, call)
    assert torch.equal(first, second), "state outlived its generation"
    assert torch.isfinite(first).all() and not torch.equal(first, dense)
    for log in ditaccel.report(pipe).attention:
        assert log.density < 0.97
        reasons = {r["reason"] for r in log.rows()}
        assert {"first map", "carried map"} <= reasons
    ditaccel.restore(pipe)
    assert torch.equal(generate(pipe, call), dense)


def test_text_of_a_joint_sequence_is_never_skipped():
    for name, text in (("flux", 0), ("sd3", -1)):
        pipe, call = peaked(name)
        with ditaccel.accelerated(
            pipe, attention=LiteAttentionConfig(threshold=-0.1, retest=0, **SMALL)
        ):
            generate(pipe, call)
            log = log_of(pipe)
            dual = {i for i, layer in enumerate(log.layers) if layer.endswith("attn2")}
            late = {at: m for at, m in log.maps.items() if at[2] == 6 and at[0] not in dual}
            assert late and all((m[text] == 255).all() for m in late.values())
            assert all((m[:, text] == 255).all() for m in late.values())
            assert all((m == 0).any() for m in late.values())


def replay(pipe, calls):
    """Run recorded transformer calls on a copy of the transformer, accelerated alone."""
    transformer = copy.deepcopy(pipe.transformer)
    ditaccel.accelerate(transformer, attention=PEAKED)
    with torch.no_grad():
        return [transformer(**kwargs)[0] for kwargs, _ in calls]


def test_branches_never_mix():
    """Each branch gives what it gives when it runs alone."""
    pipe, call = peaked("wan")
    ditaccel.accelerate(pipe, attention=PEAKED)
    calls = []
    handle = pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0].clone())),
        with_kwargs=True,
    )
    generate(pipe, call)
    handle.remove()
    maps = log_of(pipe).maps
    pairs = [(m, maps[layer, "uncond", i]) for (layer, b, i), m in maps.items() if b == "cond"]
    assert any(not torch.equal(*pair) for pair in pairs), "a mix would not show"
    for branch in (calls[0::2], calls[1::2]):
        for alone, (_, together) in zip(replay(pipe, branch), branch, strict=True):
            assert torch.equal(alone, together)


def test_items_that_mochi_attends_to_one_by_one_never_mix():
    """Turning the batch around turns the outputs around, and nothing else."""
    pipe, call = peaked("mochi")
    calls = []
    handle = pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True
    )
    generate(pipe, call)
    handle.remove()
    turned = [
        ({k: v.flip(0) if torch.is_tensor(v) else v for k, v in kwargs.items()}, output)
        for kwargs, output in calls
    ]
    straight, other = replay(pipe, calls), replay(pipe, turned)
    for a, b in zip(straight, other, strict=True):
        torch.testing.assert_close(a, b.flip(0), rtol=1e-4, atol=1e-4)
    assert any(not torch.allclose(a, out) for a, (_, out) in zip(straight, calls, strict=True))


def test_another_prompt_and_size_equal_a_fresh_pipeline():
    pipe, call = peaked("wan")
    other = {
        **call,
        "prompt_embeds": call["prompt_embeds"] * 0.5,
        "height": 112,
        "num_inference_steps": 7,
    }
    ditaccel.accelerate(pipe, attention=PEAKED)
    generate(pipe, call)
    reused = generate(pipe, other)
    fresh, _ = peaked("wan")
    ditaccel.accelerate(fresh, attention=PEAKED)
    assert torch.equal(reused, generate(fresh, other))


@pytest.mark.parametrize(("interval", "carried"), [(3, True), (5, False)])
def test_forecast_steps_leave_maps_alone_and_let_them_age(interval, carried):
    pipe, call = peaked("wan")
    cache = ditaccel.TaylorSeerConfig(interval=interval, warmup=2, granularity="last_block")
    attention = LiteAttentionConfig(threshold=-4.0, max_age=4, **SMALL)
    with ditaccel.accelerated(pipe, cache=cache, attention=attention):
        result = generate(pipe, call, num_inference_steps=12)
        report = ditaccel.report(pipe)
        computed = [c.step for c in report.calls if c.action == "compute" and c.branch == "cond"]
        rows = [r for r in report.attention[0].rows() if r["branch"] == "cond" and r["layer"] == 1]
        text = str(report)
    assert torch.isfinite(result).all()
    assert [r["step"] for r in rows] == computed == ([0, 1, 4, 7, 10] if carried else [0, 1, 6, 11])
    later = "carried map" if carried else "first map"
    assert [r["reason"] for r in rows[2:]] == [later] * len(rows[2:])
    assert all((r["density"] < 1) == carried for r in rows[2:])
    assert report.forecasts > 0 and "were forecast" in text and "calls sparse" in text


def test_a_cache_that_skips_nothing_changes_nothing_about_attention():
    pipe, call = peaked("wan")
    with ditaccel.accelerated(pipe, attention=PEAKED):
        alone = generate(pipe, call)
    with ditaccel.accelerated(pipe, "taylorseer:interval=1", attention=PEAKED):
        assert torch.equal(generate(pipe, call), alone)


def test_thresholds_act_on_their_layer_and_part_of_the_loop():
    pipe, call = peaked("wan")
    never, much = -1e30, -0.5
    thresholds = (never, much, (never, much), never)
    options = {**SMALL, "break_even": 1.0, "retest": 0, "dense_steps": 0}
    config = LiteAttentionConfig(thresholds=thresholds, **options)
    with ditaccel.accelerated(pipe, attention=config):
        generate(pipe, call)
        density = {(r["layer"], r["step"]): r["density"] for r in log_of(pipe).rows()}
    assert all(density[layer, step] == 1 for layer in (0, 3) for step in range(8))
    assert density[1, 1] < 1
    assert density[2, 4] == 1 > density[2, 5]  # what step 4 marks, step 5 leaves out
    wrong = LiteAttentionConfig(thresholds=(-3.0,), **SMALL)
    with (
        ditaccel.accelerated(pipe, attention=wrong),
        pytest.raises(ditaccel.ConfigError, match="thresholds has 1 entries"),
    ):
        generate(pipe, call)


@pytest.mark.parametrize(
    ("options", "changes", "line"),
    [
        ({"min_tokens": 145}, {}, "144 tokens are too short .*min_tokens=145"),
        ({}, {"num_inference_steps": 4}, "4 steps are too few for this attention method"),
    ],
)
def test_guard_rails_say_it_once_and_run_dense(options, changes, line):
    pipe, call = peaked("wan")
    dense = generate(pipe, call, **changes)
    config = LiteAttentionConfig(threshold=-4.0, **{**SMALL, **options})
    ditaccel.accelerate(pipe, attention=config)
    with pytest.warns(UserWarning, match=line) as caught:
        assert torch.equal(generate(pipe, call, **changes), dense)
    assert len([w for w in caught if "ditaccel" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(generate(pipe, call, **changes), dense)
    text = str(ditaccel.report(pipe))
    assert "0 of 64" in text or "0 of 32" in text
    assert "Nothing was skipped" in text and "Warning: transformer" in text


@pytest.mark.parametrize("name", ["wan", "flux", "sd3"])
def test_what_cannot_pay_is_not_put_on(name):
    """Told by a few queries before any map is tried; said once; the output is the dense one."""
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    config = LiteAttentionConfig(threshold=-20.0, **{**SMALL, "break_even": None})
    ditaccel.accelerate(pipe, attention=config)
    with pytest.warns(UserWarning, match="100 % of the attention would be kept") as caught:
        assert torch.equal(generate(pipe, call), dense)
        assert torch.equal(generate(pipe, call), dense)
    assert len([w for w in caught if "would be kept" in str(w.message)]) == 1
    reasons = {r["reason"] for r in log_of(pipe).rows()}
    assert reasons == {"dense first steps", "rests: not sparse enough to pay"}
    assert "Nothing was skipped" in str(ditaccel.report(pipe))


def test_what_is_promised_is_about_what_is_kept():
    pipe, call = peaked("wan")
    free = {**SMALL, "break_even": 1.0, "retest": 0}
    planner = LiteAttentionConfig(threshold=-4.0, **free).planner()
    seen, plan = [], planner.plan

    def look(q, k, v, scale, context, state):
        made = plan(q, k, v, scale, context, state)
        if context.step.index == 3:
            promised = planner.promise(q, k, scale, context)
            seen.append((float(promised), float(made.tile_map.densities().mean())))
        return made

    planner.plan = look
    with observed(pipe, planner):
        generate(pipe, call)
    assert seen and all(abs(promised - kept) < 0.3 for promised, kept in seen)
    assert sum(p - kept for p, kept in seen) / len(seen) < 0.1  # it does not promise too little


def test_a_layer_that_keeps_too_much_rests_and_the_others_go_on():
    pipe, call = peaked("wan")
    ditaccel.accelerate(pipe, attention=LiteAttentionConfig(threshold=-4.0, **SMALL))
    generate(pipe, call, num_inference_steps=24)
    free = {(r["layer"], r["step"]): r["density"] for r in log_of(pipe).rows()}
    layers = {layer for layer, _ in free}
    at_three = {layer: float(free[layer, 3]) for layer in layers}
    assert len(layers) > 1 and len(set(at_three.values())) > 1
    between = sum(sorted(at_three.values())[-2:]) / 2  # only the fullest layer lies above
    ditaccel.restore(pipe)
    config = LiteAttentionConfig(threshold=-4.0, **{**SMALL, "break_even": between})
    with ditaccel.accelerated(pipe, attention=config):
        generate(pipe, call, num_inference_steps=24)
        rows = [r for r in log_of(pipe).rows() if r["branch"] == "cond"]
    fullest = max(at_three, key=at_three.__getitem__)
    resting = {(r["layer"], r["step"]) for r in rows if r["reason"].startswith("rests")}
    assert {(fullest, step) for step in range(4, 10)} <= resting
    assert not any(layer != fullest and step == 4 for layer, step in resting)


def test_first_maps_are_not_judged():
    """Half of the steps dense, so that the first map falls on the step that is judged."""
    pipe, call = peaked("wan")
    options = {**SMALL, "break_even": 0.97}
    config = LiteAttentionConfig(threshold=-4.0, dense_steps=0.5, **options)
    with ditaccel.accelerated(pipe, attention=config), warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(pipe, call)
        assert log_of(pipe).density < 0.97


def test_report_of_attention(tmp_path):
    pipe, call = peaked("wan")
    with ditaccel.accelerated(pipe, attention=PEAKED):
        assert "no call was seen" in log_of(pipe).lines()[0]
        with pytest.raises(ditaccel.UsageError, match="no attention call of the newest generation"):
            log_of(pipe).picture(tmp_path / "none.png")
        generate(pipe, call)
        generate(pipe, call)
        report = ditaccel.report(pipe)
        log = report.attention[0]
        rows, text = log.rows(), str(report)
        assert len(rows) == 4 * 8 * 2 and {r["generation"] for r in rows} == {1}
        assert all(r["planning_s"] >= 0 and r["running_s"] > 0 for r in rows)
        assert log.density == pytest.approx(sum(r["density"] for r in rows) / len(rows))
        assert "Attention of transformer: 56 of 64 calls sparse" in text
        assert "along the steps, in tenths (# = all): ##" in text and "blocks.2.attn1" not in text
        line = next(x for x in report.details().splitlines() if "blocks.2.attn1" in x)
        marks = line.split()[1]
        assert len(marks) == 8 and marks.startswith("##") and marks[-1].isdigit()
        saved = json.loads(report.to_json())
        assert saved["attention"] == rows
        assert saved["config"]["attention"]["threshold"] == -4.0
        assert [each.rows() for each in report.last_generation().attention] == [rows]
        sizes = set()
        for branch in (None, "uncond"):
            with Image.open(log.picture(tmp_path / f"{branch}.png", branch)) as picture:
                sizes.add(picture.size)
                assert picture.getextrema() == (0, 255)
        ((width, height),) = sizes
        assert width >= 64 + 7 * 50 and height == 16 + 4 * 50 + 18  # maps, and their legend
        with pytest.raises(ditaccel.UsageError, match="no branch 'x'; there are: cond, uncond"):
            log.picture(tmp_path / "x.png", "x")
        for name in ("x.nothing", "no/folder.png"):
            with pytest.raises(ditaccel.UsageError, match=r"cannot write the picture .*png"):
                log.picture(tmp_path / name)


def test_spec_preset_file_and_round_trip(tmp_path):
    small = "min_tokens=0,break_even=0.97,q_tile=16,k_tile=16"
    spec = f"taylorseer:interval=3 & lite_attention:threshold=-4,{small}"
    pipe, call = peaked("wan")
    with ditaccel.accelerated(pipe, spec):
        expected = generate(pipe, call)
        config = ditaccel.config.parse_spec(spec)
    path = tmp_path / "both.yaml"
    ditaccel.config.dump(config, path)
    with ditaccel.accelerated(pipe, path):
        assert torch.equal(generate(pipe, call), expected)
    with pytest.raises(ditaccel.ConfigError, match="accelerates nothing"):
        ditaccel.accelerate(pipe, ditaccel.AccelerationConfig())
