"""Linear and low-rank companions of exact tiles: by definition, pair by pair in float64."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from ditaccel.kernels import TileMap, Tiling
from tiny import generate, peaked

import ditaccel
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.options import Rest
from ditaccel.attention.engine.planner import Plan
from ditaccel.attention.engine.rest import companions
from ditaccel.attention.engine.rest.companions import COMPANIONS

TILE, LENGTH, WIDTH, SCALE = 16, 40, 6, 0.4
STARTS = range(0, LENGTH, TILE)


def _call():
    """Two heads that share keys, a short last tile, and keys that do not count."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, LENGTH, WIDTH, generator=generator) for h in (2, 1, 1))
    mask = torch.ones(1, LENGTH, dtype=torch.bool)
    mask[0, 35:] = mask[0, 3] = False
    tiling = Tiling.fixed(LENGTH, TILE)
    kept = torch.eye(3, dtype=torch.bool)[None, None].clone()
    kept[..., 2, :] = True  # the last query tile skips nothing
    return q, k, v, mask, TileMap.from_mask(kept, tiling, tiling)


def _pairs(name, q, k, counted, logits):
    """What a key counts for a query, float64 `(L, L)`, up to a factor per query."""
    if name == "average":
        weights = logits.softmax(-1).mean(0)
        sizes = [int(counted[s : s + TILE].sum()) for s in STARTS]
        return torch.stack([weights[j // TILE] / sizes[j // TILE] for j in range(LENGTH)]).expand(
            LENGTH, -1
        )
    if name == "agents":
        agents = torch.stack([q[s : s + TILE].mean(0) for s in STARTS])
        of_query = (SCALE**0.3 * q @ agents.T).softmax(-1)
        scores = (SCALE * agents @ k.T).masked_fill(~counted, -math.inf)
        return of_query @ scores.softmax(-1)
    if name == "random_features":
        generator = torch.Generator().manual_seed(companions._SEED)
        w = torch.randn(WIDTH, companions._FEATURES, generator=generator).double()
        a, b = (
            (x * SCALE**0.5 @ w - SCALE * x.square().sum(-1, keepdim=True) / 2).exp()
            for x in (q, k)
        )
        return a @ b.T / companions._FEATURES
    power = 3 * (0.5 + q.square().mean(-1, keepdim=True).sqrt().tanh())
    size = (q.abs() / q.abs().amax(-1, keepdim=True)) ** power
    pairs = torch.zeros(LENGTH, LENGTH, dtype=torch.float64)
    for c in range(WIDTH):
        same = q[:, c, None].sign() == k[None, :, c].sign()
        pairs += same * size[:, c, None] * k[None, :, c].abs() ** 3
    return pairs


def _means_logits(q, k, counted):
    """Logits of tiles of keys, by their means, for queries and for the means of their tiles."""
    means = torch.stack([q[s : s + TILE].mean(0) for s in STARTS])
    bias = torch.zeros(3, 3, dtype=torch.float64)
    centres = []
    for j, start in enumerate(STARTS):
        own = k[start : start + TILE][counted[start : start + TILE]]
        centres.append(own.mean(0))
        half = SCALE**2 * (means.square() * own.var(0, unbiased=False)).sum(-1) / 2
        bias[:, j] = (len(own) * (1 + half)).log()
    centres = torch.stack(centres)
    rows = torch.arange(LENGTH) // TILE
    return SCALE * q @ centres.T + bias[rows], SCALE * means @ centres.T + bias


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("name", COMPANIONS)
def test_companions_follow_their_definition(name, varying):
    q, k, v, mask, tile_map = _call()
    if varying:
        bounds = torch.tensor([0, 16, 32, 40], dtype=torch.int32).view(1, 1, -1)
        tiling = Tiling.variable(bounds, LENGTH)
        tile_map = TileMap.from_mask(tile_map.to_mask(), tiling, tiling)
    out = attend(Plan(tile_map, "", rest=name), q, k, v, SCALE, mask).output[0].double()
    kept, counted, values = tile_map.to_mask()[0, 0], mask[0], v[0, 0].double()
    of_tile = torch.arange(LENGTH) // TILE
    for h in range(2):
        queries, keys = q[0, h].double(), k[0, 0].double()
        logits, of_means = _means_logits(queries, keys, counted)
        pairs = _pairs(name, queries, keys, counted, of_means)
        for i in range(LENGTH):
            row = kept[of_tile[i]]
            exact = row[of_tile] & counted
            skipped = ~row[of_tile] & counted
            weights = (SCALE * queries[i] @ keys[exact].T).exp()
            top, total = weights @ values[exact], weights.sum()
            if skipped.any():
                mine = pairs[i, skipped]
                mass = mine.sum() if name == "random_features" else logits[i, ~row].exp().sum()
                top, total = top + mass * (mine @ values[skipped]) / mine.sum(), total + mass
            torch.testing.assert_close(out[h, i], top / total, rtol=1e-4, atol=1e-5)


def test_every_rest_that_can_be_chosen_is_there():
    assert set(get_args(Rest)) == {"nothing", "means", "moments", *COMPANIONS}


def test_large_scores_do_not_overflow_random_features():
    q, k, v, mask, tile_map = _call()
    plan = Plan(tile_map, "", rest="random_features")
    out = attend(plan, 30 * q, 30 * k, v, SCALE, mask).output
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", COMPANIONS)
def test_companions_in_a_pipeline_leave_nothing_behind(name):
    pipe, call = peaked("flux")
    call = {**call, "num_inference_steps": 2}
    dense = generate(pipe, call)
    config = ditaccel.AttentionTileConfig(
        references=0, q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0, rest=name
    )
    with ditaccel.accelerated(pipe, attention=config):
        sparse = generate(pipe, call)
        assert ditaccel.report(pipe).attention[0].density < 1
    assert torch.isfinite(sparse).all() and not torch.equal(sparse, dense)
    assert torch.equal(generate(pipe, call), dense)
