"""HarmoniCa: what a router says, and which files are refused."""

import pytest
import torch
from tiny import generate, tiny_dit

import ditaccel
from ditaccel import HarmoniCaConfig
from ditaccel.caching.harmonica import Router, even_steps, threshold_for
from ditaccel.core.weight_changes import fingerprint

MODULES = [f"transformer_blocks.{block}.{name}" for block in (0, 1) for name in ("attn1", "ff")]


def saved(pipe, path, logits, threshold=0.1):
    """A file of a router for two blocks."""
    router = Router(
        {
            "steps": len(logits),
            "timesteps": [],
            "scheduler": "DDIMScheduler",
            "modules": {"transformer": MODULES},
            "threshold": threshold,
        },
        {"transformer": fingerprint(pipe.transformer)},
        method="harmonica",
        logits={"transformer": torch.tensor(logits)},
    )
    router.save(path)
    return path


def test_a_module_rests_where_the_sigmoid_of_its_logit_is_at_most_the_threshold(tmp_path):
    pipe, call = tiny_dit(layers=2)
    ran = {name: [] for name in MODULES}
    steps = []
    pipe.transformer.register_forward_pre_hook(lambda *_: steps.append(0))
    for name in MODULES:
        module = pipe.transformer.get_submodule(name)
        module.register_forward_hook(lambda *_, n=name: ran[n].append(len(steps) - 1))
    # sigmoid(-2.3) = 0.091, sigmoid(-2.1) = 0.109, sigmoid(0.9) = 0.711
    logits = [
        [-5.0, 5.0, 5.0, 5.0],  # at the first step all are computed
        [-2.3, -2.1, 0.9, 5.0],
        [-2.1, -2.3, 5.0, -5.0],
        [5.0, -2.1, -5.0, 0.9],
    ]
    path = saved(pipe, tmp_path / "router.safetensors", logits)
    with ditaccel.accelerated(pipe, cache=HarmoniCaConfig(schedule=path)):
        generate(pipe, call, num_inference_steps=4)
    assert list(ran.values()) == [[0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 3]]
    for found in ran.values():
        found.clear()
    steps.clear()
    with ditaccel.accelerated(pipe, cache=HarmoniCaConfig(schedule=path, threshold=0.75)):
        generate(pipe, call, num_inference_steps=4)
    assert list(ran.values()) == [[0, 3], [0], [0, 2], [0, 1]]


def test_exact_where_the_threshold_is_0(tmp_path):
    pipe, call = tiny_dit(layers=2)
    dense = generate(pipe, call, num_inference_steps=4)
    path = saved(pipe, tmp_path / "router.safetensors", [[-5.0] * 4] * 4)
    for threshold, exact in ((0.0, True), (None, False)):
        config = HarmoniCaConfig(schedule=path, threshold=threshold)
        with ditaccel.accelerated(pipe, cache=config):
            found = generate(pipe, call, num_inference_steps=4)
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(dense)) is exact
    again = generate(pipe, call, num_inference_steps=4)
    assert torch.equal(torch.as_tensor(again), torch.as_tensor(dense))


@pytest.mark.parametrize(
    ("share", "total", "expected"),
    [(0.5, 8, [0, 2, 4, 6]), (0.4, 10, [0, 2, 5, 8]), (0.3, 5, [0]), (1.0, 3, [0, 1, 2])],
)
def test_an_untrained_schedule_is_even(share, total, expected):
    assert even_steps(share, total) == expected
    pipe, call = tiny_dit(layers=2)
    with ditaccel.accelerated(pipe, cache=HarmoniCaConfig(share=share)):
        generate(pipe, call, num_inference_steps=total)
        calls = ditaccel.report(pipe).calls
    assert [c.step for c in calls if c.action == "compute"] == expected


def test_a_threshold_leaves_the_share_by_cost():
    # behind the first step, the chances of one module of cost 1 and one of cost 3
    chances = torch.tensor([[0.5, 0.5], [0.9, 0.8], [0.2, 0.6]])
    logits, costs = {"transformer": chances.logit()}, {"transformer": torch.tensor([1.0, 3.0])}
    # of 12, the first step takes 4; then 1 (0.9), 3 (0.8), 3 (0.6), 1 (0.2)
    for share, kept in ((12 / 12, 0.0), (11 / 12, 0.2), (8 / 12, 0.6), (7.9 / 12, 0.8), (0.3, 0.9)):
        assert threshold_for(logits, costs, share) == pytest.approx(kept, abs=1e-6)


def test_files_for_something_else_are_refused_in_one_line(tmp_path):
    pipe, call = tiny_dit(layers=2)
    path = saved(pipe, tmp_path / "router.safetensors", [[5.0, -5.0, 5.0, -5.0]] * 4)
    config = HarmoniCaConfig(schedule=path)
    with (
        ditaccel.accelerated(pipe, cache=config),
        pytest.raises(ditaccel.ConfigError, match="was made for 4 steps, and this run has 5"),
    ):
        generate(pipe, call, num_inference_steps=5)
    moved = HarmoniCaConfig(schedule=path, resample=True)
    with ditaccel.accelerated(pipe, cache=moved):
        generate(pipe, call, num_inference_steps=8)
    other, _ = tiny_dit(layers=2)
    with torch.no_grad():
        for parameter in other.transformer.parameters():
            parameter.normal_(std=0.1)
    with pytest.raises(ditaccel.ConfigError, match="was made for another transformer"):
        ditaccel.accelerate(other, cache=config)
    with pytest.raises(ditaccel.UsageError, match="no weights at"):
        ditaccel.accelerate(pipe, cache=HarmoniCaConfig(schedule=tmp_path / "none.safetensors"))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"share": 0.0}, "share is 0.0; it is above 0"),
        ({"share": 0.4, "way": "pairs"}, "no share below 0.5 can be left"),
        ({"threshold": 0.2}, "belong to a trained schedule"),
        ({"schedule": "x", "share": 0.4}, "share change nothing of a trained schedule"),
        ({"cost": -1.0}, "cost is -1.0"),
        ({"proxy_every": -1}, "proxy_every is -1"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(options, line):
    with pytest.raises(ditaccel.ConfigError, match=line):
        HarmoniCaConfig(**options)
