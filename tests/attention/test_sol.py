"""Sol-Attn: the threshold and the centroids of the rest, worked out by hand in float64."""

import math
from dataclasses import replace

import pytest
import torch
from planners import computed_pairs, context_of

import ditaccel
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.cubes import morton_order
from ditaccel.attention.sol import SolConfig

LENGTH, SCALE = 90, 0.35
CONFIG = SolConfig(
    q_tile=16, k_tile=16, tau=0.6, neighbours=1, min_tokens=0, dense_steps=0, dense_layers=0,
    break_even=1.0,
)  # fmt: skip


def _tensors(heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        1.5 * torch.randn(2, h, LENGTH, 16, generator=generator)
        for h in (heads, kv_heads, kv_heads)
    )


def _rule(q, k, tau, neighbours):
    """The tiles of one head that are exact, as the authors' code has it, in powers of two."""
    unit = SCALE * math.log2(math.e)
    means = torch.stack([tile.double().mean(0) for tile in k.split(16)])
    kept = torch.zeros(6, 6, dtype=torch.bool)
    for i, queries in enumerate(q.split(16)):
        query = queries.double().mean(0)
        scores = queries.double() @ means.T * unit
        mu = query @ means.mean(0) * unit
        sigma = ((query**2) @ means.var(0, correction=0) * unit**2 + 1e-6).sqrt()
        kept[i] = scores.mean(0) > mu + tau * sigma
        kept[i, max(0, i - neighbours) : i + neighbours + 1] = True
    return kept


@pytest.mark.parametrize("tau", [-1e6, 0.0, 0.6, 2.0])
def test_the_threshold_in_float64(tau):
    q, k, v = _tensors()
    plan = replace(CONFIG, tau=tau).planner().plan(q, k, v, SCALE, context_of(LENGTH), {})
    for b in range(2):
        for h in range(4):
            assert torch.equal(plan.tile_map.to_mask()[b, h], _rule(q[b, h], k[b, h // 2], tau, 1))
    assert (plan.tile_map.density() == 1.0) is (tau == -1e6)


@pytest.mark.parametrize("spread", [False, True])
def test_a_centroid_stands_for_each_other_tile(spread):
    q, k, v = _tensors()
    config = replace(CONFIG, spread=spread)
    plan = config.planner().plan(q, k, v, SCALE, context_of(LENGTH), {})
    out = attend(plan, q, k, v, SCALE).output.double()
    expected = torch.empty_like(out)
    for b in range(2):
        for h in range(4):
            kept = _rule(q[b, h], k[b, h // 2], 0.6, 1)
            keys, values = k[b, h // 2].double().split(16), v[b, h // 2].double().split(16)
            for i, queries in enumerate(q[b, h].double().split(16)):
                logits, parts = [], []
                for j in range(6):
                    if kept[i, j]:
                        logits.append(queries @ keys[j].T * SCALE)
                        parts.append(values[j])
                        continue
                    # e^{q.k} times the sum of the values, and times their number below
                    bias = math.log(len(keys[j]))
                    if spread:
                        variance = keys[j].var(0, correction=0)
                        bias += math.log1p(float(queries.mean(0) ** 2 @ variance) * SCALE**2 / 2)
                    logits.append((queries @ keys[j].mean(0) * SCALE + bias)[:, None])
                    parts.append(values[j].mean(0, keepdim=True))
                expected[b, h, 16 * i : 16 * i + 16] = torch.cat(logits, 1).softmax(-1) @ torch.cat(
                    parts
                )
    assert float((out - expected).norm() / expected.norm()) < 1e-6


def test_published_settings_run_from_their_schedule_and_keep_text():
    published = SolConfig(**SolConfig.published[""])
    config = replace(
        published, q_tile=16, k_tile=16, schedule=((0.2, 2.0), (1.0, -2.0)), dense_layers=0
    )
    q, k, v = _tensors()
    planner, densities = config.planner(), []
    for index in range(2, 10):
        context = context_of(LENGTH, index, text=(80, LENGTH))
        plan = planner.plan(q, k, v, SCALE, context, {})
        pairs = computed_pairs(plan, 2, 4, LENGTH)
        assert bool(pairs[..., 80:].all()) and bool(pairs[..., 80:, :].all())
        densities.append(plan.tile_map.density())
    assert densities == sorted(densities) and densities[0] < 0.85 < densities[-1]


def test_a_morton_curve_keeps_neighbours_together():
    order, inverse = morton_order((1, 4, 4), 18, start=2)
    assert order.tolist()[:10] == [0, 1, 2, 3, 6, 7, 4, 5, 8, 9]
    assert order[inverse].tolist() == list(range(18))
    ragged, _ = morton_order((3, 5, 6), 90)
    assert sorted(ragged.tolist()) == list(range(90))
    assert sorted(ragged.tolist()[:8]) == [0, 1, 6, 7, 30, 31, 36, 37]
    q, k, v = _tensors()
    config = replace(CONFIG, order="morton")
    plan = config.planner().plan(q, k, v, SCALE, context_of(LENGTH, grid=(3, 5, 6)), {})
    assert plan.order is not None and torch.equal(plan.order.tokens, ragged)
    exact = replace(config, tau=-1e6)
    plan = exact.planner().plan(q, k, v, SCALE, context_of(LENGTH, grid=(3, 5, 6)), {})
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=SCALE, enable_gqa=True)
    assert float((attend(plan, q, k, v, SCALE).output - dense).norm() / dense.norm()) < 1e-6


def test_bad_options():
    with pytest.raises(ditaccel.ConfigError, match="neighbours is -1; it must be 0 or more"):
        SolConfig(neighbours=-1)
    with pytest.raises(ditaccel.ConfigError, match="order"):
        SolConfig(order="hilbert")
