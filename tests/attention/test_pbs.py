"""PBS: keys in the order of what they weigh, worked out by hand in float64."""

from dataclasses import replace

import pytest
import torch
from planners import computed_pairs, context_of, masked_softmax

import ditaccel
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.pbs import PBSConfig

LENGTH, TEXT, SCALE = 90, 10, 0.5
CONFIG = PBSConfig(
    q_tile=16, k_tile=16, probes=LENGTH, threshold=0.6, min_tokens=0, dense_steps=0, break_even=1.0
)


def _tensors(heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        2 * torch.randn(1, h, LENGTH, 16, generator=generator) for h in (heads, kv_heads, kv_heads)
    )


def _plan(config=CONFIG, **changes):
    q, k, v = _tensors()
    changes.setdefault("text", (0, TEXT))
    return config.planner().plan(q, k, v, SCALE, context_of(LENGTH, **changes), {})


@pytest.mark.parametrize("segment", [None, 32])
def test_keys_follow_their_mean_weight_in_each_segment(segment):
    q, k, _ = _tensors()
    plan = _plan(replace(CONFIG, segment=segment))
    for h in range(2):  # of the keys; two heads of queries share each
        weights = [
            (q[0, g].double() @ k[0, h, TEXT:].double().T * SCALE).softmax(-1).mean(0)
            for g in (2 * h, 2 * h + 1)
        ]
        mean = sum(weights) / 2
        parts = mean.split(segment or LENGTH)
        starts = [TEXT + i * (segment or LENGTH) for i in range(len(parts))]
        expected = torch.cat(
            [s + part.argsort(descending=True) for s, part in zip(starts, parts, strict=True)]
        )
        order = plan.order.k_order[0, h].tolist()
        assert order == [*expected.tolist(), *range(TEXT)]


def test_a_row_keeps_the_fewest_tiles_of_sorted_keys_that_reach_the_threshold():
    q, k, v = _tensors()
    plan = _plan()
    kept = plan.tile_map.to_mask()[0]
    for h in range(4):
        keys = k[0, h // 2, plan.order.k_order[0, h // 2].long()][: LENGTH - TEXT].double()
        means = torch.stack([tile.mean(0) for tile in keys.split(16)])
        best = (q[0, h, TEXT:].double() @ means.T).argmax(-1)
        rows = plan.order.q_order[0, h].tolist()
        assert rows == [*(TEXT + best.argsort(stable=True)).tolist(), *range(TEXT)]
        for i in range(5):
            query = q[0, h, rows[16 * i : 16 * i + 16]].double().mean(0)
            shares = (query @ means.T * SCALE).softmax(-1)
            order = shares.argsort(descending=True)
            count = int((shares[order].cumsum(0) < 0.6).sum()) + 1
            assert set(kept[h, i].nonzero().flatten().tolist()) == {*order[:count].tolist(), 5}
    pairs = computed_pairs(plan, 1, 4, LENGTH)
    assert float(pairs.float().mean()) < 0.8
    out = attend(plan, q, k, v, SCALE).output.double()
    reference = masked_softmax(q, k, v, SCALE, pairs)
    assert float((out - reference).norm() / reference.norm()) < 1e-6


def test_sorting_makes_few_tiles_hold_most_of_the_weight():
    """Keys that matter are spread over the sequence: by place every tile holds some."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 1, 256, 16, generator=generator) for _ in range(3))
    q[..., 0], k[..., 0] = 4.0, torch.where(torch.arange(256) % 16 == 0, 4.0, 0.0)
    config = replace(CONFIG, threshold=0.9, probes=32)
    plan = config.planner().plan(q, k, v, SCALE, context_of(256), {})
    dense = masked_softmax(q, k, v, SCALE, torch.ones(1, 1, 256, 256, dtype=torch.bool))
    out = attend(plan, q, k, v, SCALE).output.double()
    assert plan.tile_map.density() < 0.2
    assert float((out - dense).norm() / dense.norm()) < 0.1


def test_padding_takes_no_part():
    mask = torch.ones(1, LENGTH, dtype=torch.bool)
    mask[:, 30:50] = False
    plan = _plan(key_mask=mask)
    assert sorted(plan.order.k_order[0, 0, 60:80].tolist()) == list(range(30, 50))
    assert not bool(plan.tile_map.to_mask()[0, :, :4, 4].any()), "a tile of padding was chosen"


def test_bad_options():
    for options in ({"threshold": 0.0}, {"probes": 0}, {"segment": 100}):
        with pytest.raises(ditaccel.ConfigError, match=next(iter(options))):
            PBSConfig(**options)
