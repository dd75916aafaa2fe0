"""Tile attention on a CPU: exactness, marks, masks, merging, gates and bad input."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ditaccel.kernels import (
    Marking,
    TileCentroids,
    TileMap,
    Tiling,
    merge_attention,
    tile_attention,
    tile_attention_backends,
)
from ditaccel.kernels.fuzz import poisoned, relative_rmse
from torch import Tensor


def _qkv(*shape: int, kv_heads: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length, dim = shape
    kv = (batch, kv_heads or heads, length, dim)
    return torch.randn(shape), torch.randn(kv), torch.randn(kv)


def _dense(length: int, tile: int = 16) -> TileMap:
    tiling = Tiling.fixed(length, tile)
    return TileMap.dense(tiling, tiling)


@pytest.mark.parametrize("backend", ["torch", "naive"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_all_tiles_are_dense_attention(backend: str, kv_heads: int) -> None:
    q, k, v = _qkv(2, 4, 83, 24, kv_heads=kv_heads)
    got = tile_attention(q, k, v, _dense(83), backend=backend).output
    expected = F.scaled_dot_product_attention(*(x.double() for x in (q, k, v)), enable_gqa=True)
    assert relative_rmse(got, expected) < 1e-6


def test_half_precision_is_computed_in_float32() -> None:
    q, k, v = (x.bfloat16() for x in _qkv(1, 2, 64, 32))
    got = tile_attention(q, k, v, _dense(64)).output
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert got.dtype == torch.bfloat16
    # What is left is the rounding of the result: 8 bits.
    assert relative_rmse(got, expected) < 2**-8


def test_all_tiles_and_a_threshold_of_minus_infinity_are_bit_identical() -> None:
    q, k, v = _qkv(1, 2, 70, 16)
    plain = tile_attention(q, k, v, _dense(70)).output
    marked = tile_attention(q, k, v, _dense(70), marking=Marking(-torch.inf, skip_now=True))
    assert torch.equal(plain, marked.output)
    assert marked.keep is not None and bool(marked.keep.all())


def test_output_is_laid_out_like_q() -> None:
    q, k, v = (torch.randn(2, 40, 3, 16).transpose(1, 2) for _ in range(3))
    output = tile_attention(q, k, v, _dense(40)).output
    assert output.stride() == q.stride()


def test_rows_without_keys_are_zero_and_their_lse_minus_infinity() -> None:
    q, k, v = _qkv(1, 1, 32, 16)
    tiling = Tiling.fixed(32, 16)
    nothing_first = TileMap.from_mask(
        torch.tensor([[[[False, False], [True, True]]]]), tiling, tiling
    )
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 20, :] = False
    with poisoned():
        got = tile_attention(q, k, v, nothing_first, mask=mask, return_lse=True)
    assert got.lse is not None
    empty = torch.tensor([*range(16), 20])
    assert torch.equal(got.output[0, 0, empty], torch.zeros(17, 16))
    assert torch.equal(got.lse[0, 0, empty], torch.full((17,), -torch.inf))
    assert bool(got.output.isfinite().all())


def test_what_is_not_listed_is_not_read() -> None:
    q, k, v = _qkv(1, 1, 48, 16)
    tiling = Tiling.fixed(48, 16)
    tile_map = TileMap.from_mask(torch.tensor([[[[True, False, True]] * 3]]), tiling, tiling)
    expected = tile_attention(q, k, v, tile_map).output
    k[:, :, 16:32], v[:, :, 16:32] = torch.nan, torch.inf
    assert torch.equal(tile_attention(q, k, v, tile_map).output, expected)


@pytest.mark.parametrize("backend", ["torch", "naive"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_centroids_are_exact_where_keys_and_values_equal_them(
    backend: str, masked: bool, fixed: bool
) -> None:
    q, means, values = _qkv(2, 4, 48, 16, kv_heads=2)
    tiling = Tiling.fixed(48, 8)
    if not fixed:
        offsets = torch.tensor([[[0, 3, 3, 20, 31, 46, 48]]], dtype=torch.int32)
        tiling = Tiling.variable(offsets, 48)
    means, values = means[:, :, : tiling.tiles], values[:, :, : tiling.tiles]
    tile_of = tiling.tile_of_token("cpu")[0, 0]
    k, v = means[:, :, tile_of], values[:, :, tile_of]
    keep = torch.rand(2, 4, tiling.tiles, tiling.tiles, generator=torch.manual_seed(1)) < 0.4
    keep[0, 0, 0], keep[0, 0, 2] = False, True
    tile_map = TileMap.from_mask(keep, tiling, tiling)
    # a mask for every pair takes another way
    mask = torch.ones(48, 48, dtype=torch.bool)[None, None] if masked else None
    got = tile_attention(
        q,
        k,
        v,
        tile_map,
        mask=mask,
        return_lse=True,
        centroids=TileCentroids(means, values),
        backend=backend,
    )
    whole = tile_attention(q, k, v, _dense(48), return_lse=True, backend="naive")
    assert float((got.output - whole.output).abs().max()) < 2e-6
    assert float((got.lse - whole.lse).abs().max()) < 2e-6


@pytest.mark.parametrize("backend", ["torch", "naive"])
def test_centroids_of_computed_tiles_are_not_read(backend: str) -> None:
    q, k, v = _qkv(1, 2, 48, 16)
    nothing = torch.full((1, 2, 3, 16), 1e4)
    got = tile_attention(
        q, k, v, _dense(48), centroids=TileCentroids(nothing, nothing), backend=backend
    )
    assert float((got.output - tile_attention(q, k, v, _dense(48)).output).abs().max()) < 2e-6


@pytest.mark.parametrize("backend", ["torch", "naive"])
@pytest.mark.parametrize("reverse", [False, True])
def test_marks_worked_out_by_hand(backend: str, reverse: bool) -> None:
    # One query 1, keys of 4 tiles with the largest scores 8, 0, 9, 4; scale ln 2, so that a score
    # is a power of two.
    q = torch.ones(1, 1, 1, 1)
    k = torch.tensor([8.0, 1, 0, -3, 9, 2, 4, 4]).view(1, 1, 8, 1)
    tile_map = TileMap.dense(Tiling.fixed(1, 1), Tiling.fixed(8, 2))
    marking = Marking(-5.0, reverse=reverse)
    keep = tile_attention(
        q, k, k, tile_map, scale=0.6931471805599453, marking=marking, backend=backend
    ).keep
    assert keep is not None
    # Forward: 0 - 8 is below -5; 9 is a new maximum; 4 - 9 is -5, which is not above -5.
    # Back to front: 4 is first, 9 and 8 follow, 0 - 9 is below.
    expected = [True, False, True, True] if reverse else [True, False, True, False]
    assert keep.flatten().tolist() == expected


@pytest.mark.parametrize("backend", ["torch", "naive"])
def test_one_row_that_wants_a_tile_keeps_it_and_rows_past_the_end_do_not_count(
    backend: str,
) -> None:
    # Rows of a tile of 2 queries: the second wants the second tile; the last tile has one row.
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).view(1, 1, 3, 2)
    k = torch.tensor([[8.0, 0.0], [0.0, 8.0]]).view(1, 1, 2, 2)
    tile_map = TileMap.dense(Tiling.fixed(3, 2), Tiling.fixed(2, 1))
    keep = tile_attention(q, k, k, tile_map, scale=1.0, marking=Marking(-3.0), backend=backend).keep
    assert keep is not None
    assert keep[0, 0].tolist() == [[True, True], [True, False]]


def test_a_threshold_for_each_head() -> None:
    q, k, v = _qkv(1, 2, 64, 16)
    threshold = torch.tensor([-torch.inf, -1e-6])
    keep = tile_attention(q, k, v, _dense(64, 4), marking=Marking(threshold)).keep
    assert keep is not None
    assert bool(keep[0, 0].all()) and not bool(keep[0, 1].all())


@pytest.mark.parametrize("backend", ["torch", "naive"])
def test_skip_now_leaves_out_just_what_it_marks(backend: str) -> None:
    q, k, v = _qkv(1, 2, 60, 16)
    marking = Marking(-0.5, skip_now=True)
    got = tile_attention(q * 2, k, v, _dense(60, 8), marking=marking, backend=backend)
    assert got.keep is not None and 0.2 < float(got.keep.float().mean()) < 0.9
    tiling = Tiling.fixed(60, 8)
    kept = TileMap.from_mask(got.keep, tiling, tiling)
    expected = tile_attention(q * 2, k, v, kept, backend="naive").output
    assert relative_rmse(got.output, expected) < 1e-6


def test_parts_merge_to_the_whole() -> None:
    q, k, v = _qkv(2, 2, 64, 16)
    tiling = Tiling.fixed(64, 16)
    chosen = torch.rand(2, 2, 4, 4) < 0.5
    parts = [
        tile_attention(q, k, v, TileMap.from_mask(mask, tiling, tiling), return_lse=True)
        for mask in (chosen, ~chosen)
    ]
    whole = tile_attention(q, k, v, _dense(64), return_lse=True)
    output, lse = merge_attention(*((p.output, p.lse) for p in parts if p.lse is not None))
    assert relative_rmse(output, whole.output) < 1e-6
    assert whole.lse is not None and torch.allclose(lse, whole.lse, atol=1e-5)


def test_merging_ignores_what_stands_in_a_part_without_keys() -> None:
    nothing = torch.full((1, 1, 2, 4), torch.nan), torch.full((1, 1, 2), -torch.inf)
    some = torch.ones(1, 1, 2, 4), torch.tensor([[[0.0, -torch.inf]]])
    output, lse = merge_attention(nothing, some)
    assert output[0, 0].tolist() == [[1.0] * 4, [0.0] * 4]
    assert lse[0, 0].tolist() == [0.0, -torch.inf]
    with pytest.raises(ValueError, match=r"part 1 .* but the first part"):
        merge_attention(some, (some[0], some[1][0]))


def test_batch_items_do_not_see_each_other() -> None:
    q, k, v = _qkv(2, 2, 50, 16)
    tiling = Tiling.fixed(50, 8)
    mask = torch.rand(2, 2, 7, 7) < 0.4
    both = tile_attention(q, k, v, TileMap.from_mask(mask, tiling, tiling)).output
    alone = TileMap.from_mask(mask[1:], tiling, tiling)
    assert torch.equal(both[1:], tile_attention(q[1:], k[1:], v[1:], alone).output)


def test_inputs_are_left_as_they_were() -> None:
    tensors = _qkv(1, 2, 32, 16)
    before = [x.clone() for x in tensors]
    tile_attention(*tensors, _dense(32), marking=Marking(-1.0, skip_now=True))
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


def test_gates_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q, k, v = _qkv(1, 1, 16, 16)
    reasons = tile_attention_backends(q, k, v, _dense(16))
    assert reasons["torch"] is None and reasons["naive"] is None
    assert "triton" in reasons and reasons["triton"] is not None
    with pytest.raises(ValueError, match=r"'triton' cannot run this tile_attention: .*[Tt]riton"):
        tile_attention(q, k, v, _dense(16), backend="triton")
    with pytest.raises(ValueError, match="backend must be one of triton"):
        tile_attention(q, k, v, _dense(16), backend="cuda")


def test_gradients_agree_with_finite_differences() -> None:
    q, k, v = (x.double().requires_grad_() for x in _qkv(1, 2, 11, 3, kv_heads=1))
    mask = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])[None, None]
    tile_map = TileMap.from_mask(mask, Tiling.fixed(11, 4), Tiling.fixed(11, 3))
    keys = torch.ones(1, 11, dtype=torch.bool)
    keys[0, 4] = False

    def output(*inputs: Tensor) -> Tensor:
        return tile_attention(*inputs, tile_map, mask=keys).output

    assert torch.autograd.gradcheck(output, (q, k, v))


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_gradients_of_all_tiles_are_those_of_dense_attention(kv_heads: int) -> None:
    inputs = [x.requires_grad_() for x in _qkv(2, 4, 37, 16, kv_heads=kv_heads)]
    q, k, v = (x.double() for x in inputs)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    lse = (q @ k.repeat_interleave(4 // kv_heads, 1).transpose(-1, -2) / 4).logsumexp(-1)
    wanted = torch.autograd.grad(expected.square().sum() + lse.square().sum(), inputs)
    got = tile_attention(*inputs, _dense(37), return_lse=True)
    assert got.lse is not None
    gradients = torch.autograd.grad(got.output.square().sum() + got.lse.square().sum(), inputs)
    for one, other in zip(gradients, wanted, strict=True):
        assert relative_rmse(one, other) < 1e-5


def test_a_row_without_keys_has_no_gradient_whatever_becomes_of_its_lse() -> None:
    q, k, v = (x.requires_grad_() for x in _qkv(1, 1, 20, 8))
    keys = torch.ones(1, 20, dtype=torch.bool)
    keys[0, 16:] = False
    rows = torch.tensor([[True, False], [False, True]])[None, None]
    tile_map = TileMap.from_mask(rows, Tiling.fixed(20, 16), Tiling.fixed(20, 16))
    out = tile_attention(q, k, v, tile_map, mask=keys, return_lse=True)
    assert out.lse is not None and bool((out.lse[:, :, 16:] == -torch.inf).all())
    # -inf - -inf: the gradient of these rows' lse is NaN
    shares = (out.lse - out.lse.detach()).exp()
    gradients = torch.autograd.grad(out.output.sum() + shares.sum(), (q, k, v))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert float(gradients[0][:, :, 16:].abs().max()) == 0.0


def test_the_operator_keeps_the_rules_of_torch() -> None:
    q, k, v = (x.requires_grad_() for x in _qkv(1, 2, 40, 16))
    tile_map = _dense(40)
    torch.library.opcheck(
        torch.ops.ditaccel.tile_attention,
        (q, k, v, tile_map.indices, tile_map.counts, None, 16, 16, 0.25, "torch"),
    )


def test_gradients_that_no_kernel_has_are_refused_but_by_the_definition() -> None:
    q, k, v = _qkv(1, 1, 16, 16)
    q.requires_grad_()
    marking = Marking(-1.0)
    with pytest.raises(ValueError, match=r"no backward with marking or centroids; .*no_grad"):
        tile_attention(q, k, v, _dense(16), marking=marking)
    with torch.no_grad():
        tile_attention(q, k, v, _dense(16), marking=marking)
    pairs = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="takes a mask of keys only"):
        tile_attention(q, k, v, _dense(16), mask=pairs)
    tile_attention(q, k, v, _dense(16), mask=pairs, backend="naive").output.sum().backward()
    assert q.grad is not None
    ends = Tiling.variable(torch.tensor([[[0, 5, 16]]], dtype=torch.int32), 16)
    with pytest.raises(ValueError, match="no backward for tiles of variable size"):
        tile_attention(q, k, v, TileMap.dense(ends, ends))


_GOOD: dict[str, Any] = {
    "q": torch.zeros(1, 2, 16, 8),
    "k": torch.zeros(1, 2, 16, 8),
    "v": torch.zeros(1, 2, 16, 8),
    "tile_map": TileMap.dense(Tiling.fixed(16, 8), Tiling.fixed(16, 8)),
}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": torch.zeros(2, 16, 8)}, ValueError, r"q must have the shape \(B, H, L, D\)"),
        ({"k": torch.zeros(1, 2, 16, 8).half()}, TypeError, "k is torch.float16, but q"),
        ({"q": torch.zeros(1, 2, 16, 8).int()}, TypeError, "q must be a floating point"),
        ({"k": torch.zeros(1, 2, 16, 4)}, ValueError, "head dimension of q"),
        ({"v": torch.zeros(1, 2, 15, 8)}, ValueError, "v .* must have the shape of k"),
        ({"q": torch.zeros(1, 3, 16, 8)}, ValueError, "multiple of the 2"),
        ({"q": torch.zeros(1, 2, 17, 8)}, ValueError, "tile_map is for 16 queries"),
        ({"tile_map": torch.ones(2, 2)}, TypeError, "must be a TileMap"),
        ({"scale": 0.0}, ValueError, "scale must be positive"),
        ({"mask": torch.zeros(1, 16)}, TypeError, "mask must be bool .* mask >= 0"),
        ({"mask": torch.ones(1, 15).bool()}, ValueError, "mask is for 15 keys"),
        ({"mask": torch.ones(3, 16).bool()}, ValueError, r"mask must be \(B, Lk\)"),
        ({"marking": -10.0}, TypeError, "must be a Marking"),
        (
            {"centroids": TileCentroids(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 2, 8))},
            ValueError,
            r"centroids.keys must have the shape \(1, 2, 2, 8\)",
        ),
        (
            {
                "centroids": TileCentroids(torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 2, 8)),
                "marking": Marking(-3.0),
            },
            ValueError,
            "do not go together",
        ),
        ({"marking": Marking(torch.tensor([-1.0]))}, ValueError, "threshold has 1 heads, but q 2"),
        (
            {
                "tile_map": TileMap.from_mask(
                    torch.ones(1, 3, 2, 2).bool(), *[Tiling.fixed(16, 8)] * 2
                )
            },
            ValueError,
            r"indices is for \(1, 3\)",
        ),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tile_attention(**{**_GOOD, **changes})


@pytest.mark.parametrize("threshold", [0.0, 3.0, float("nan"), torch.tensor([-1.0, 0.0])])
def test_a_threshold_must_be_below_zero(threshold: Any) -> None:
    with pytest.raises(ValueError, match="threshold must be below 0"):
        Marking(threshold)
