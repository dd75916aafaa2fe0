"""What the other guidance branch computes: what the first one does, or a difference less often."""

import torch
from inspection import computed
from tiny import generate, tiny_wan

import ditaccel


def test_follow_gives_all_branches_the_first_ones_decision():
    pipe, call = tiny_wan()
    config = ditaccel.ConfidenceGatedTaylorConfig(threshold=0.05, guidance="follow")
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=16)
        assert computed(pipe, "cond") == computed(pipe, "uncond")
        assert 4 < len(computed(pipe, "cond")) < 16


def test_difference_computes_the_others_less_often():
    pipe, call = tiny_wan()
    config = ditaccel.AdaptiveTaylorConfig(
        tolerance=1e9, max_interval=2, warmup=3, guidance="difference", guidance_interval=2
    )
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=16)
        cond, uncond = computed(pipe, "cond"), computed(pipe, "uncond")
        assert cond == [0, 1, 2, 4, 6, 8, 10, 12, 14, 15]
        assert uncond == [0, 1, 2, 6, 10, 14, 15]


def test_difference_is_exact_where_branches_differ_by_a_line():
    """Same prompt on both sides: the difference is zero, so the other branch is never wrong."""
    pipe, call = tiny_wan()
    same = {**call, "negative_prompt_embeds": call["prompt_embeds"]}
    dense = generate(pipe, same)
    config = ditaccel.StepMaskConfig(
        steps=tuple(range(8)), guidance="difference", guidance_interval=4, order=0
    )
    with ditaccel.accelerated(pipe, cache=config):
        result = generate(pipe, same)
        assert len(computed(pipe, "uncond")) < 8
    torch.testing.assert_close(result, dense, rtol=1e-5, atol=1e-5)


def test_difference_is_the_first_branch_plus_the_forecast_difference():
    """Recompute from the outside what the other branch hands to the final layer."""
    pipe, call = tiny_wan()
    seen = []
    pipe.transformer.norm_out.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone())
    )
    config = ditaccel.StepMaskConfig(
        steps=(0, 1, 2, 5),
        guidance="difference",
        guidance_steps=(0, 1),
        correction="never",
        target="hidden",
    )
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=6)
        assert computed(pipe, "uncond") == [0, 1]
    cond, uncond = seen[0::2], seen[1::2]
    difference = [u - c for c, u in zip(cond[:2], uncond[:2], strict=True)]
    for step in (2, 3, 5):
        expected = cond[step] + difference[1] + (step - 1) * (difference[1] - difference[0])
        torch.testing.assert_close(uncond[step], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(uncond[step], cond[step])
