"""Sparse-linear attention: its definition against formulas, and every backend against it."""

import pytest
import torch
import torch.nn.functional as F
from ditaccel.kernels import (
    FEATURE_MAPS,
    FeatureMap,
    SparseLinearOutput,
    TileMap,
    Tiling,
    feature_map,
    sparse_linear_attention,
)
from torch import Tensor

Q_LEN, K_LEN, TILES = 37, 45, (8, 16)


def _inputs(
    dtype: torch.dtype = torch.float64, heads: int = 4, kv_heads: int = 2, dim: int = 6
) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, Q_LEN, heads, dim, dtype=dtype).transpose(1, 2)
    k, v = (torch.randn(2, kv_heads, K_LEN, dim, dtype=dtype) for _ in range(2))
    return q, k, v


def _maps(critical: float = 0.3, marginal: float = 0.5) -> tuple[TileMap, TileMap]:
    """Disjoint random maps; the first query tile has no critical tile, the second no marginal."""
    tilings = Tiling.fixed(Q_LEN, TILES[0]), Tiling.fixed(K_LEN, TILES[1])
    draw = torch.rand(2, 4, tilings[0].tiles, tilings[1].tiles)
    kept, linear = draw < critical, (draw >= critical) & (draw < critical + marginal)
    kept[:, :, 0] = False
    linear[:, :, 1] = False
    return TileMap.from_mask(kept, *tilings), TileMap.from_mask(linear, *tilings)


def _all(value: bool) -> TileMap:
    tilings = Tiling.fixed(Q_LEN, TILES[0]), Tiling.fixed(K_LEN, TILES[1])
    mask = torch.full((1, 1, tilings[0].tiles, tilings[1].tiles), value)
    return TileMap.from_mask(mask, *tilings)


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    maps: tuple[TileMap, TileMap],
    backend: str,
    mask: Tensor | None = None,
) -> SparseLinearOutput:
    features = feature_map("softmax")(q, k)
    return sparse_linear_attention(
        *(q, k, v, *maps),
        q_features=features[0],
        k_features=features[1],
        mask=mask,
        backend=backend,
    )


BACKENDS = ["naive"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_tiles_critical_is_dense_attention(backend: str) -> None:
    q, k, v = _inputs()
    got = _call(q, k, v, (_all(True), _all(False)), backend)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.allclose(got.sparse, expected, atol=1e-12)
    assert got.sparse.stride() == q.stride()
    assert float(got.linear.abs().max()) == 0.0 and float(got.mass.abs().max()) == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_tiles_marginal_is_linear_attention(backend: str) -> None:
    q, k, v = _inputs()
    got = _call(q, k, v, (_all(False), _all(True)), backend)
    similar = q.softmax(-1) @ k.softmax(-1).repeat_interleave(2, 1).transpose(-1, -2)
    expected = similar / similar.sum(-1, keepdim=True) @ v.repeat_interleave(2, 1)
    assert torch.allclose(got.linear, expected, atol=1e-5)  # eps of 1e-6 beside a mass of 8
    assert torch.allclose(got.mass.double(), similar.sum(-1), rtol=1e-6)
    assert float(got.sparse.abs().max()) == 0.0
    assert bool((got.lse == -torch.inf).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_keys_are_as_if_they_were_not_there(backend: str) -> None:
    q, k, v = _inputs()
    maps = _maps()
    mask = torch.rand(2, K_LEN) < 0.7
    got = _call(q, k, v, maps, backend, mask)
    k, v = (x.masked_fill(~mask[:, None, :, None], 1e3) for x in (k, v))
    again = _call(q, k, v, maps, backend, mask)
    for one, other in zip(got, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_agree_with_finite_differences(backend: str) -> None:
    torch.manual_seed(3)
    tilings = Tiling.fixed(7, 3), Tiling.fixed(9, 4)
    critical, marginal = (
        TileMap.from_mask(torch.tensor(rows)[None, None], *tilings)
        for rows in (
            [[True, False, False], [False, False, False], [True, True, True]],
            [[False, True, False], [True, False, True], [False, False, False]],
        )
    )
    q, k, v, q_features, k_features = (
        torch.rand(1, heads, length, dim, dtype=torch.float64).requires_grad_()
        for heads, length, dim in ((2, 7, 3), (1, 9, 3), (1, 9, 3), (2, 7, 2), (1, 9, 2))
    )
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 9, dtype=torch.bool)
    mask[0, 5] = False

    def output(*inputs: Tensor) -> Tensor:
        out = sparse_linear_attention(
            *(*inputs[:3], critical, marginal),
            q_features=inputs[3],
            k_features=inputs[4],
            mask=mask,
            backend=backend,
        )
        return out.projected(inputs[5])

    assert torch.autograd.gradcheck(output, (q, k, v, q_features, k_features, weight))


def test_a_map_of_features_is_what_its_source_says() -> None:
    x = torch.tensor([[[[0.5, -2.0, 0.0, 1.0]]]], dtype=torch.float64)
    row = x[0, 0, 0]

    def query(name: str) -> Tensor:
        return feature_map(name)(x, x)[0][0, 0, 0]

    def key(name: str) -> Tensor:
        return feature_map(name)(x, x)[1][0, 0, 0]

    assert torch.allclose(query("softmax"), row.exp() / row.exp().sum())
    assert torch.allclose(key("elu"), torch.tensor([1.5, 0.1353352832, 1.0, 2.0]).double())
    assert torch.equal(query("relu"), torch.tensor([0.5, 0.0, 0.0, 1.0]).double())
    both = torch.cat([row.exp() / row.exp().sum(), (-row).exp() / (-row).exp().sum()])
    assert torch.allclose(key("hedgehog"), both)
    size = (5.25 / 4) ** 0.5
    power = 3 * (0.5 + torch.tensor(size).double().tanh())
    expected = torch.tensor([0.25, 0, 0, 0.5, 0, 1, 0, 0]).double() ** power
    assert torch.allclose(query("norm_aware"), expected)
    assert torch.equal(key("norm_aware"), torch.tensor([0.125, 0, 0, 1, 0, 8, 0, 0]).double())


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_features_are_not_negative_and_have_gradients(name: str) -> None:
    q = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    q[0, 0, 0, 0] = 0.0
    q[0, 0, 1] = 0.0
    for features in feature_map(name)(q, q):
        assert float(features.min()) >= 0.0
    q, k = (torch.randn(1, 1, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda q, k: feature_map(name)(q, k), (q, k))
    at_zero = torch.zeros(1, 1, 1, 4, requires_grad=True)
    sum(f.sum() for f in feature_map(name)(at_zero, at_zero)).backward()  # type: ignore[union-attr]
    assert at_zero.grad is not None and bool(at_zero.grad.isfinite().all())


def test_features_of_half_precision_stay_finite() -> None:
    x = torch.full((1, 1, 2, 8), 300.0, dtype=torch.float16)
    for name in FEATURE_MAPS:
        for features in feature_map(name)(x, -x):
            assert features.dtype == torch.float16 and bool(features.isfinite().all()), name


def test_a_norm_aware_query_is_the_sharper_the_larger_it_is() -> None:
    q = torch.randn(1, 1, 1, 32, dtype=torch.float64)

    def entropy(x: Tensor) -> float:
        features = feature_map("norm_aware")(x, x)[0]
        share = features / features.sum()
        return -float(torch.special.xlogy(share, share).sum())

    assert entropy(0.1 * q) > entropy(q) > entropy(3 * q)


def test_other_maps_hook_in() -> None:
    def double(x: Tensor) -> Tensor:
        return x.square()

    q, k = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 3, 4)
    assert torch.equal(feature_map(double)(q, k)[1], k.square())
    own = FeatureMap(double, torch.abs)
    assert feature_map(own) is own
    with pytest.raises(ValueError, match=r"must be one of softmax, .* got 'cosine'"):
        feature_map("cosine")


def test_bad_arguments_are_named() -> None:
    q, k, v = _inputs(torch.float32)
    critical, marginal = _maps()
    features = {"q_features": q, "k_features": k}

    def call(**changed: object) -> None:
        arguments: dict[str, object] = {
            **{"q": q, "k": k, "v": v, "critical": critical, "marginal": marginal},
            **features,
            **changed,
        }
        sparse_linear_attention(**arguments)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="k_features must have the shape"):
        call(k_features=k[:, :1])
    with pytest.raises(ValueError, match="q_features has 3 channels, but k_features 6"):
        call(q_features=q[..., :3])
    with pytest.raises(TypeError, match=r"q_features is torch\.float16"):
        call(q_features=q.half())
    with pytest.raises(TypeError, match="marginal must be bool"):
        call(marginal=torch.ones(1, 1, 5, 3))
    with pytest.raises(ValueError, match=r"marginal must have the shape \(B or 1, H or 1, 5, 3\)"):
        call(marginal=torch.ones(1, 1, 3, 5, dtype=torch.bool))
    other = TileMap.dense(Tiling.fixed(Q_LEN, 4), Tiling.fixed(K_LEN, TILES[1]))
    with pytest.raises(ValueError, match=r"marginal.q_tiling has 37 tokens in tiles of 4"):
        call(marginal=other)
    offsets = torch.tensor([[[0, 3, K_LEN]]], dtype=torch.int32)
    variable = TileMap.dense(critical.q_tiling, Tiling.variable(offsets, K_LEN))
    with pytest.raises(ValueError, match="tiles of variable size"):
        call(critical=variable)
    with pytest.raises(ValueError, match="mask must be one of keys"):
        call(mask=torch.ones(2, 1, Q_LEN, K_LEN, dtype=torch.bool))
    with pytest.raises(ValueError, match="eps must be positive"):
        call(eps=0.0)
    with pytest.raises(ValueError, match="backend must be one of"):
        call(backend="cuda")
