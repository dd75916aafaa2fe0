"""Pipelines that give a known transformer more: reference images, masks, control, a late start."""

import pytest
import torch
from ditaccel.kernels import TileMap, Tiling
from inspection import traces
from planners import RecordingPlanner
from tiny import FAMILIES, VARIANTS, generate, other_prompt
from tiny.flux2 import klein_kv

import ditaccel
from ditaccel.attention.engine.planner import Plan
from ditaccel.tuning.observe import observed

EXACT = ["adaptive_taylor:tolerance=0", "taylorseer:interval=1,granularity=module"]
SKIPPING = [
    "adaptive_taylor:tolerance=1e9,warmup=2",
    "first_block_residual:threshold=1e9,warmup=2",
    "taylorseer:interval=3,granularity=module",
    "taylorseer:interval=3,granularity=last_block,target=output,correction=auto",
]


@pytest.mark.parametrize("name", VARIANTS)
def test_caches_are_exact_skip_and_are_undone(name):
    pipe, call = VARIANTS[name]()
    dense, clean = generate(pipe, call), traces(pipe)
    for spec in EXACT:
        with ditaccel.accelerated(pipe, spec):
            assert torch.equal(generate(pipe, call), dense), spec
    for spec in SKIPPING:
        with ditaccel.accelerated(pipe, spec):
            result = generate(pipe, call)
            assert ditaccel.report(pipe).forecasts > 0 and torch.isfinite(result).all(), spec
            assert not torch.equal(result, dense), spec
            if spec == SKIPPING[-1]:  # what another prompt leaves behind is nothing
                generate(pipe, other_prompt(call))
                assert torch.equal(generate(pipe, call), result)
    assert traces(pipe) == clean and torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_and_the_last_one_are_known(name):
    pipe, call = VARIANTS[name]()
    with ditaccel.accelerated(pipe, "taylorseer:interval=2,warmup=2,final=1"):
        for generation in range(2):
            generate(pipe, call)
            calls = ditaccel.report(pipe).last_generation().calls
            assert {c.generation for c in calls} == {generation}
            steps = list(dict.fromkeys(c.step for c in calls))
            assert steps == list(range(VARIANTS[name].steps))
            assert {c.reason for c in calls if c.step == steps[-1]} == {"last step"}
            sigmas = [c.sigma for c in calls]
            assert sigmas == sorted(sigmas, reverse=True) and sigmas[0] > sigmas[-1]


@pytest.mark.parametrize(
    ("name", "state"), [("prx", "on"), ("prx_pixel", "off"), ("minimax_h3", "off")]
)
def test_outputs_that_the_scheduler_gets_in_another_form_are_not_corrected(name, state):
    """PRX's pixels become a velocity; H3's sound has another schedule than its video."""
    pipe, call = {**FAMILIES, **VARIANTS}[name]()
    with ditaccel.accelerated(pipe, SKIPPING[-1]):
        generate(pipe, call)
        assert f"Gap correction: {state}" in str(ditaccel.report(pipe))


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.attention])
def test_tokens_of_reference_images_are_image_tokens(name):
    pipe, call = VARIANTS[name]()
    dense = generate(pipe, call)

    def all_tiles(q, k, context, state):
        tilings = [Tiling.fixed(context.length, 16) for _ in range(2)]
        return Plan(TileMap.dense(*tilings), "all", blind=True)

    planner = RecordingPlanner(all_tiles)
    with observed(pipe, planner):
        result = generate(pipe, call)
    for context, _ in planner.seen:
        text = 0 if context.text is None else context.text[1] - context.text[0]
        assert context.length - text == VARIANTS[name].tokens
    assert any(c.key_mask is not None for c, _ in planner.seen) == VARIANTS[name].masked
    error = (result - dense).square().mean().sqrt() / dense.square().mean().sqrt()
    assert float(error) < 1e-5


def test_keys_kept_between_steps_are_cached_over_and_attention_stays_dense_and_says_so():
    """The first step has reference tokens, the others have their keys and values instead."""
    pipe, call = klein_kv()
    dense = generate(pipe, call)
    for spec in EXACT:
        with ditaccel.accelerated(pipe, spec):
            assert torch.equal(generate(pipe, call), dense), spec
    for spec in SKIPPING:
        with ditaccel.accelerated(pipe, spec):
            result = generate(pipe, call)
            assert torch.equal(generate(pipe, call), result) and torch.isfinite(result).all()
            assert ditaccel.report(pipe).forecasts > 0, spec
    config = ditaccel.LiteAttentionConfig(min_tokens=0)
    with (
        ditaccel.accelerated(pipe, attention=config),
        pytest.warns(UserWarning, match=r"not seen here \(keys and values kept .* stayed dense"),
    ):
        assert torch.equal(generate(pipe, call), dense)
    assert torch.equal(generate(pipe, call), dense)


def test_condition_images_among_the_latents_leave_attention_dense_and_say_so():
    """Z-Image's omni mode: `[text, conditions, latents]`, where the plain one has text behind."""
    transformer = FAMILIES["z_image"]()[0].transformer
    source = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, generator=source)

    call = {
        "x": [[noise(4, 1, 8, 8), noise(4, 1, 22, 22)]],
        "cap_feats": [[noise(6, 16), noise(6, 16)]],
        "siglip_feats": [None],
        "image_noise_mask": [[0, 1]],
    }
    config = ditaccel.LiteAttentionConfig(min_tokens=0, dense_steps=0)
    with torch.no_grad():
        dense = [transformer(t=torch.tensor([t]), **call).sample[0] for t in (0.0, 0.3, 0.6)]
        ditaccel.accelerate(transformer, "taylorseer:interval=1,warmup=1", attention=config)
        with pytest.warns(UserWarning, match="where is not known; attention stays dense"):
            seen = [transformer(t=torch.tensor([t]), **call).sample[0] for t in (0.0, 0.3, 0.6)]
        assert all(map(torch.equal, seen, dense))
        ditaccel.restore(transformer)
        ditaccel.accelerate(transformer, "taylorseer:interval=2,warmup=2,granularity=last_block")
        seen = [transformer(t=torch.tensor([t]), **call).sample[0] for t in (0.0, 0.3, 0.6)]
    assert ditaccel.report(transformer).forecasts == 1
    assert torch.equal(seen[1], dense[1]) and not torch.equal(seen[2], dense[2])
    assert seen[2].shape == dense[2].shape and torch.isfinite(seen[2]).all()
