"""AdaSpa: true weights of tiles, searches at few steps, heads that differ; by hand in float64."""

import pytest
import torch
from ditaccel.kernels import Tiling
from planners import computed_pairs, context_of, masked_softmax

import ditaccel
from ditaccel.attention import adaspa
from ditaccel.attention.adaspa import AdaSpaConfig, chosen, tile_weights
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.planner import Dense

LENGTH, SCALE = 90, 0.4
OPTIONS = {"q_tile": 16, "k_tile": 16, "min_tokens": 0, "break_even": 1.0}


def _tensors(seed=0, heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        2 * torch.randn(2, h, LENGTH, 16, generator=generator) for h in (heads, kv_heads, kv_heads)
    )


def _weights(q, k, lse=None):
    """Of one head, and its log-sum-exp."""
    scores = q.double() @ k.double().T * SCALE
    lse = scores.logsumexp(-1) if lse is None else lse
    shares = torch.nn.functional.pad((scores - lse[:, None]).exp(), (0, 6, 0, 6))
    return shares.unflatten(1, (6, 16)).sum(-1).unflatten(0, (6, 16)).sum(1), lse


@pytest.mark.parametrize("masked", [False, True])
def test_weights_are_exact_and_a_later_search_takes_the_old_normaliser(masked, monkeypatch):
    monkeypatch.setattr(adaspa, "_CHUNK", 1)  # one row of tiles at a time
    (q, k, _), (later_q, later_k, _) = _tensors(), _tensors(1)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    if masked:
        mask[0, 20:50] = False
    tilings = (Tiling.fixed(LENGTH, 16),) * 2
    found, lse = tile_weights(q, k, SCALE, tilings, None, mask if masked else None)
    again, kept = tile_weights(later_q, later_k, SCALE, tilings, lse, mask if masked else None)
    assert torch.equal(kept, lse)
    for b in range(2):
        for h in range(4):
            keys = [x[b, h // 2].masked_fill(~mask[b, :, None], 0) for x in (k, later_k)]
            if masked and b == 0:
                continue
            first, own = _weights(q[b, h], keys[0])
            second, _ = _weights(later_q[b, h], keys[1], own)
            assert torch.allclose(found[b, h].double(), first, atol=1e-5)
            assert torch.allclose(again[b, h].double(), second, rtol=1e-4, atol=1e-5)
    if masked:
        assert float(found[0, :, :, 2].abs().max()) == 0.0


def test_heads_that_hold_their_weight_give_tiles_to_those_that_do_not():
    weights = torch.full((1, 4, 2, 8), 1.0)
    weights[0, 1, :, 3], weights[0, 2, :, 5] = 100.0, 50.0  # recall above 0.8 with any 2 of 8
    kept = chosen(weights, 0.25, 0.8)
    # two of four heads are good: both halve their tiles, the two others get half as many more
    assert kept.sum(-1).tolist() == [[[3, 3], [1, 1], [1, 1], [3, 3]]]
    assert kept[0, 1, 0].nonzero().item() == 3 and kept[0, 2, 1].nonzero().item() == 5
    assert chosen(weights, 0.25, None).sum(-1).unique().tolist() == [2]
    assert bool(chosen(weights, 1.0, 0.0).all()), "not exact at density 1"


def test_it_searches_at_the_last_dense_step_and_where_it_is_told():
    config = AdaSpaConfig(**OPTIONS, density=0.3, searches=(0.6,), dense_steps=3)
    planner, state, reasons = config.planner(), {}, []
    q, k, v = _tensors()
    weights = [_weights(q[0, h], k[0, h // 2])[0] for h in range(4)]
    for index in range(10):
        if index == 4:
            q, k, v = _tensors(2)  # what comes now plays no part until the next search
        plan = planner.plan(q, k, v, SCALE, context_of(LENGTH, index), state)
        reasons.append(plan.reason)
        if index == 2:
            assert "kept" in state
        if index in (3, 5):
            kept = plan.tile_map.to_mask()[0]
            count = kept[:, 0].sum(-1)
            for h in range(4):
                best = weights[h].sort(-1, descending=True).indices[:, : int(count[h])]
                expected = torch.zeros(6, 6, dtype=torch.bool).scatter_(-1, best, True)
                assert torch.equal(kept[h], expected)
            before = kept
        if index == 6:
            assert not torch.equal(plan.tile_map.to_mask()[0], before)
            out = attend(plan, q, k, v, SCALE).output.double()
            reference = masked_softmax(q, k, v, SCALE, computed_pairs(plan, 2, 4, LENGTH))
            assert float((out - reference).norm() / reference.norm()) < 1e-6
    carried = ["carried map"]
    assert reasons == ["dense first steps"] * 3 + carried * 3 + ["searched map"] + carried * 3


def test_without_dense_steps_the_first_call_searches_and_old_maps_are_made_again():
    config = AdaSpaConfig(**OPTIONS, density=0.3, dense_steps=0, searches=(), max_age=4)
    planner, state = config.planner(), {}
    q, k, v = _tensors()
    searched = []
    for index in range(10):
        plan = planner.plan(q, k, v, SCALE, context_of(LENGTH, index), state)
        assert not isinstance(plan, Dense)
        searched.append(plan.reason == "searched map")
    assert [i for i, found in enumerate(searched) if found] == [0, 4, 8]


def test_bad_options():
    for options in ({"density": 0.0}, {"searches": (1.0,)}, {"recall": 2.0}, {"max_age": 0}):
        with pytest.raises(ditaccel.ConfigError, match=next(iter(options))):
            AdaSpaConfig(**options)
