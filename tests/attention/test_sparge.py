"""SpargeAttn: both stages, the first one worked out by hand in float64."""

import pytest
import torch
from planners import computed_pairs, context_of, masked_softmax

import ditaccel
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.sparge import SpargeConfig

LENGTH, SCALE = 90, 0.4
OPTIONS = {"q_tile": 16, "k_tile": 16, "min_tokens": 0, "dense_steps": 0, "break_even": 1.0}


def _tensors(heads=4, kv_heads=2):
    """Tiles that are alike within, but for a few."""
    generator = torch.Generator().manual_seed(0)
    tile = torch.arange(LENGTH) // 16
    found = []
    for h in (heads, kv_heads, kv_heads):
        centres = 2 * torch.randn(1, h, 6, 16, generator=generator)
        noise = torch.randn(1, h, LENGTH, 16, generator=generator)
        noise = noise * torch.where(tile == 3, 8.0, 0.5)[None, None, :, None]
        found.append(centres[:, :, tile] + noise)
    return found


def _cosine(x):
    x = x / x.norm(dim=-1, keepdim=True)
    return float((x @ x.T).mean())


def _expected(q, k, config):
    """The first stage for one head, tile by tile."""
    q, k = q.double(), k.double()
    q_tiles, k_tiles, smooth = q.split(16), k.split(16), (k - k.mean(0)).split(16)
    trusted_q = [_cosine(x) > config.similarity for x in q_tiles]
    trusted_k = torch.tensor([_cosine(x) > config.similarity for x in smooth])
    kept = torch.zeros(6, 6, dtype=torch.bool)
    for i, queries in enumerate(q_tiles):
        scores = torch.stack([queries.mean(0) @ keys.mean(0) * SCALE for keys in k_tiles])
        shares = scores.masked_fill(~trusted_k, -torch.inf).softmax(-1)
        order = shares.argsort(descending=True)
        if config.top_k is not None:
            count = int(config.top_k * 6)
        else:
            count = int((shares[order].cumsum(0) < config.top_p).sum()) + 1
        kept[i, order[:count]] = True
        kept[i] |= ~trusted_k
        kept[i] |= not trusted_q[i]
    return kept, trusted_q, trusted_k


@pytest.mark.parametrize("options", [{"top_p": 0.7}, {"top_k": 0.34}])
def test_the_first_stage_in_float64(options):
    config = SpargeConfig(**OPTIONS, **options, similarity=0.4)
    q, k, v = _tensors()
    plan = config.planner().plan(q, k, v, SCALE, context_of(LENGTH), {})
    mask, doubted = plan.tile_map.to_mask(), 0
    for h in range(4):
        kept, trusted_q, trusted_k = _expected(q[0, h], k[0, h // 2], config)
        assert torch.equal(mask[0, h], kept)
        doubted += sum(not t for t in trusted_q) + int((~trusted_k).sum())
    assert doubted and plan.tile_map.density() < 0.9
    out = attend(plan, q, k, v, SCALE).output.double()
    reference = masked_softmax(q, k, v, SCALE, computed_pairs(plan, 1, 4, LENGTH))
    assert float((out - reference).norm() / reference.norm()) < 1e-6


def test_the_second_stage_leaves_out_what_is_far_below_the_maximum():
    q, k, v = _tensors()
    dense = masked_softmax(q, k, v, SCALE, torch.ones(1, 4, LENGTH, LENGTH, dtype=torch.bool))
    kept = []
    for limit in (50.0, 4.0):
        config = SpargeConfig(**OPTIONS, top_p=1.0, similarity=-1.0, pv_threshold=limit)
        plan = config.planner().plan(q, k, v, SCALE, context_of(LENGTH), {})
        result = attend(plan, q, k, v, SCALE)
        assert plan.tile_map.density() == 1.0
        kept.append(float(result.keep.float().mean()))
        error = float((result.output.double() - dense).norm() / dense.norm())
        # each tile that is left out weighs less than 2^-limit of the strongest key, for 16 keys
        assert error < 1e-6 + 16 * 6 * 2.0**-limit
    assert 1 > kept[0] > kept[1] > 0.2


def test_keys_that_do_not_count_take_no_part():
    q, k, v = _tensors()
    mask = torch.ones(1, LENGTH, dtype=torch.bool)
    mask[:, 16:32], mask[:, 40:48] = False, False
    config = SpargeConfig(**OPTIONS, top_p=0.7, similarity=0.4)
    plan = config.planner().plan(q, k, v, SCALE, context_of(LENGTH, key_mask=mask), {})
    assert not bool(plan.tile_map.to_mask()[..., 1].any())
    changed = k.clone()
    changed[:, :, 16:32] = 1e3
    changed[:, :, 40:48] = -1e3
    again = config.planner().plan(q, changed, v, SCALE, context_of(LENGTH, key_mask=mask), {})
    assert torch.equal(plan.tile_map.to_mask(), again.tile_map.to_mask())


def test_bad_options():
    for options in ({"top_k": 0.0}, {"similarity": 2.0}, {"pv_threshold": -1.0}):
        with pytest.raises(ditaccel.ConfigError, match=next(iter(options))):
            SpargeConfig(**options)
    with pytest.raises(ditaccel.ConfigError, match="which top_k replaces"):
        SpargeConfig(top_k=0.5, schedule=((0, 0.9),))
