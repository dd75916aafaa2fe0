"""XAttention: antidiagonal sums worked out by hand in float64."""

from dataclasses import replace

import pytest
import torch
from ditaccel.kernels import Tiling
from planners import computed_pairs, context_of, masked_softmax

import ditaccel
from ditaccel.attention import xattention
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.xattention import XAttentionConfig, antidiagonal_weights

LENGTH, SCALE, STRIDE = 75, 0.3, 4
CONFIG = XAttentionConfig(
    q_tile=16, k_tile=16, stride=STRIDE, threshold=0.5, min_tokens=0, dense_steps=0, break_even=1.0
)


def _tensors(heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        3 * torch.randn(2, h, LENGTH, 8, generator=generator) for h in (heads, kv_heads, kv_heads)
    )


def _weights(q, k, mask=None):
    """Of one head: each antidiagonal added up by hand, one softmax per row of squares."""
    scores = torch.zeros(76, 76, dtype=torch.float64)
    keys = k.double() if mask is None else k.double() * mask[:, None]
    scores[:LENGTH, :LENGTH] = q.double() @ keys.T
    squares = scores.unflatten(1, (19, STRIDE)).unflatten(0, (19, STRIDE)).transpose(1, 2)
    sums = sum(squares[:, :, STRIDE - 1 - j, j] for j in range(STRIDE)) * SCALE / STRIDE
    if mask is not None:
        empty = ~torch.cat([mask, torch.zeros(1, dtype=torch.bool)]).unflatten(0, (19, -1)).any(-1)
        sums[:, empty] = -torch.inf
    shares = torch.nn.functional.pad(sums.softmax(-1), (0, 1, 0, 1))
    return shares.unflatten(1, (5, 4)).sum(-1).unflatten(0, (5, 4)).sum(1)


@pytest.mark.parametrize("masked", [False, True])
def test_weights_by_hand_in_float64(masked, monkeypatch):
    monkeypatch.setattr(xattention, "_CHUNK", 1)  # one row of tiles at a time
    q, k, _ = _tensors()
    mask = None
    if masked:
        mask = torch.ones(2, LENGTH, dtype=torch.bool)
        mask[0, 17:30], mask[1, 60:] = False, False
    tilings = (Tiling.fixed(LENGTH, 16),) * 2
    found = antidiagonal_weights(q, k, SCALE, STRIDE, tilings, mask)
    for b in range(2):
        for h in range(4):
            expected = _weights(q[b, h], k[b, h // 2], None if mask is None else mask[b])
            assert torch.allclose(found[b, h].double(), expected, atol=1e-5)


def test_a_row_keeps_the_fewest_tiles_that_reach_the_threshold():
    q, k, v = _tensors()
    plan = CONFIG.planner().plan(q, k, v, SCALE, context_of(LENGTH, text=(70, LENGTH)), {})
    kept = plan.tile_map.to_mask()
    for b in range(2):
        for h in range(4):
            weights = _weights(q[b, h], k[b, h // 2])
            for i in range(4):  # the last row holds text
                order = weights[i].argsort(descending=True)
                count = int((weights[i][order].cumsum(0) < 0.5 * weights[i].sum()).sum()) + 1
                expected = {*order[:count].tolist(), 4}
                assert set(kept[b, h, i].nonzero().flatten().tolist()) == expected
    pairs = computed_pairs(plan, 2, 4, LENGTH)
    out = attend(plan, q, k, v, SCALE).output.double()
    reference = masked_softmax(q, k, v, SCALE, pairs)
    assert float((out - reference).norm() / reference.norm()) < 1e-6
    assert float(pairs.float().mean()) < 0.7


def test_a_slanted_line_is_seen_where_means_see_nothing():
    """Keys that only single queries meet: the mean of the tile is 0, its antidiagonals are not."""
    signs = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)
    q, k = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 64, 8)
    # queries of tile 0 and keys of tile 2 alternate alike along antidiagonals
    q[0, 0, :16, 0], k[0, 0, 32:48, 0] = signs[:16], -signs[:16]
    tilings = (Tiling.fixed(64, 16),) * 2
    weights = antidiagonal_weights(q, k, 4.0, STRIDE, tilings)
    assert int(weights[0, 0, 0].argmax()) == 2
    assert float(q[0, 0, :16].mean(0).abs().max()) == 0.0


def test_published_settings_keep_the_first_tile():
    published = XAttentionConfig(**XAttentionConfig.published[""])
    config = replace(published, q_tile=16, k_tile=16, threshold=0.1)
    q, k, v = _tensors()
    kept = config.planner().plan(q, k, v, SCALE, context_of(LENGTH), {}).tile_map.to_mask()
    assert bool(kept[..., 0].all()) and not bool(kept.all())


def test_bad_options():
    with pytest.raises(ditaccel.ConfigError, match="q_tile is 40; it must be a multiple of stride"):
        XAttentionConfig(q_tile=40)
    with pytest.raises(ditaccel.ConfigError, match=r"threshold is 1\.5; give a share"):
        XAttentionConfig(threshold=1.5)
