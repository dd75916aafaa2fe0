"""Attention to tiles through their moments, compared with its definition in float64."""

from __future__ import annotations

import pytest
import torch
from ditaccel.kernels import (
    TileMap,
    Tiling,
    merge_attention,
    moment_attention,
    tile_attention,
    tile_moments,
)


def _tensors(heads=4, kv_heads=2, q_len=45, k_len=37, dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, q_len), (kv_heads, k_len), (kv_heads, k_len))
    return [torch.randn(2, *shape, dim, generator=generator, dtype=dtype) for shape in shapes]


def _marginal(q_tiling, k_tiling, heads=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    marginal = torch.rand(2, heads, q_tiling.tiles, k_tiling.tiles, generator=generator) < 0.6
    marginal[0, 0, 1] = False
    return marginal


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1 << 24, 64])
def test_equals_the_definition_on_odd_sizes(masked, chunk, monkeypatch):
    monkeypatch.setattr("ditaccel.kernels.moments.torch_backend._CHUNK", chunk)
    q, k, v = _tensors()
    tilings = Tiling.fixed(45, 16), Tiling.fixed(37, 8)
    marginal = _marginal(*tilings)
    mask = None
    if masked:
        mask = torch.rand(2, 37, generator=torch.Generator().manual_seed(2)) < 0.7
        mask[1, 8:16] = False  # a tile without keys
    found = moment_attention(q, k, v, marginal, *tilings, mask=mask, scale=0.3)
    wanted = moment_attention(q, k, v, marginal, *tilings, mask=mask, scale=0.3, backend="naive")
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert bool(found[1][0, 0, 16:32].isinf().all()), "a query tile without marginal tiles"
    assert bool((found[0][0, 0, 16:32] == 0).all())


def test_float32_stays_near_the_definition():
    q, k, v = _tensors(dtype=torch.float32)
    tilings = Tiling.fixed(45, 16), Tiling.fixed(37, 8)
    marginal = _marginal(*tilings)
    found, _ = moment_attention(q, k, v, marginal, *tilings)
    wanted, _ = moment_attention(q, k, v, marginal, *tilings, backend="naive")
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6


def test_equal_keys_are_exact():
    """A tile whose keys are all alike has no spread: its moments are the whole truth."""
    q, k, v = _tensors(k_len=40)
    k = k[:, :, ::8].repeat_interleave(8, 2)
    tilings = Tiling.fixed(45, 16), Tiling.fixed(40, 8)
    everything = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    found, _ = moment_attention(q, k, v, everything, *tilings)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_the_error_is_of_second_order_in_the_spread():
    """Halving the spread of the keys leaves a quarter of the error, next to exact tiles too."""
    q, k, v = _tensors(heads=2, q_len=16, k_len=64)
    q = q[:, :, :1].expand_as(q)  # one query a tile: nothing is averaged over different ones
    tilings = Tiling.fixed(16, 16), Tiling.fixed(64, 16)
    critical = torch.zeros(2, 2, 1, 4, dtype=torch.bool)
    critical[..., 0] = True
    means = k.unflatten(2, (-1, 16)).mean(3, keepdim=True).expand(-1, -1, -1, 16, -1).flatten(2, 3)
    errors = []
    for spread in (0.2, 0.1, 0.05):
        keys = means + spread * (k - means)
        exact = tile_attention(
            q, keys, v, TileMap.from_mask(critical, *tilings), return_lse=True, backend="naive"
        )
        part = moment_attention(q, keys, v, ~critical, *tilings)
        out, _ = merge_attention((exact.output, exact.lse), part)
        wanted = torch.nn.functional.scaled_dot_product_attention(q, keys, v)
        errors.append(float((out - wanted).norm()))
    assert 3.5 < errors[0] / errors[1] < 4.5 and 3.5 < errors[1] / errors[2] < 4.5, errors


def test_moments_by_hand():
    k = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 2.0]])[None, None]
    v = torch.tensor([[0.0, 0.0], [0.0, 4.0], [7.0, 7.0]])[None, None]
    moments = tile_moments(k, v, Tiling.fixed(3, 2))
    assert moments.sizes.tolist() == [[[2.0, 1.0]]]
    assert moments.keys[0, 0].tolist() == [[2.0, 0.0], [5.0, 2.0]]
    assert moments.key_variance[0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert moments.value_spread[0, 0].tolist() == [2.0, 0.0]


def test_gradients():
    q, k, v = (x[:1].clone().requires_grad_() for x in _tensors(2, 1, q_len=9, k_len=10, dim=3))
    tilings = Tiling.fixed(9, 4), Tiling.fixed(10, 4)
    marginal = _marginal(*tilings, heads=2)[:1]

    def both(*tensors):
        out, lse = moment_attention(*tensors, marginal, *tilings)
        return out, lse.masked_fill(lse.isinf(), 0.0)

    assert torch.autograd.gradcheck(both, (q, k, v), fast_mode=True)


def test_bad_shapes_are_named():
    q, k, v = _tensors()
    tilings = Tiling.fixed(45, 16), Tiling.fixed(37, 8)
    with pytest.raises(ValueError, match=r"marginal must be bool \(B or 1, H or 1, 3, 5\)"):
        moment_attention(q, k, v, torch.ones(1, 1, 3, 4, dtype=torch.bool), *tilings)
    with pytest.raises(ValueError, match="tilings are for 44 queries"):
        moment_attention(q, k, v, _marginal(*tilings), Tiling.fixed(44, 16), tilings[1])
    offsets = torch.tensor([[[0, 5, 37]]], dtype=torch.int32)
    with pytest.raises(ValueError, match="tiles of fixed size"):
        tile_moments(k, v, Tiling.variable(offsets, 37))
