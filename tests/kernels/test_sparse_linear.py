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


BACKENDS = ["naive", "torch"]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_keeps_the_rules_of_torch(dtype: torch.dtype) -> None:
    q, k, v = _inputs(dtype)
    critical, marginal = (x.to_mask() for x in _maps())
    # The check differentiates the log-sum-exp too, which rows without keys do not have.
    critical[..., 0] = True
    tile_map = TileMap.from_mask(
        critical, Tiling.fixed(Q_LEN, TILES[0]), Tiling.fixed(K_LEN, TILES[1])
    )
    features = [x.detach() for x in feature_map("softmax")(q, k)]
    inputs = [x.requires_grad_() for x in (q, k, v, *features)]
    rest = (tile_map.indices, tile_map.counts, marginal, None, *TILES, 0.3, 1e-6, "torch")
    torch.library.opcheck(torch.ops.ditaccel.sparse_linear_attention, (*inputs, *rest))


def test_a_compiled_graph_has_one_node_for_it_and_the_same_gradients() -> None:
    q, k, v = (x.detach().requires_grad_() for x in _inputs(torch.float32))
    graphs = []

    def collect(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    def output(
        q: Tensor, k: Tensor, v: Tensor, kept: Tensor, linear: Tensor, weight: Tensor
    ) -> Tensor:
        tilings = Tiling.fixed(q.shape[2], TILES[0]), Tiling.fixed(k.shape[2], TILES[1])
        features = feature_map("elu")(q, k)
        out = sparse_linear_attention(
            *(q, k, v, TileMap.from_mask(kept, *tilings), linear),
            q_features=features[0],
            k_features=features[1],
        )
        return out.projected(weight)

    critical, marginal = (x.to_mask() for x in _maps())
    weight = torch.randn(6, 6, requires_grad=True)
    arguments = (q, k, v, critical, marginal, weight)
    plain = output(*arguments)
    wanted = torch.autograd.grad(plain.square().sum(), (q, k, v, weight))
    compiled = torch.compile(output, fullgraph=True, backend=collect)
    got = compiled(*arguments)
    assert torch.equal(got, plain)
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), (q, k, v, weight)), wanted, strict=True
    ):
        assert torch.equal(one, other)
    nodes = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum("sparse_linear_attention" in node for node in nodes) == 1


@pytest.mark.slow
def test_it_compiles_with_inductor() -> None:
    torch._dynamo.reset()
    q, k, v = (x.detach().requires_grad_() for x in _inputs(torch.float32))
    critical, marginal = _maps()

    @torch.compile(fullgraph=True)
    def output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _call(q, k, v, (critical, marginal), "torch").projected(torch.eye(6))

    plain = _call(q, k, v, (critical, marginal), "torch").projected(torch.eye(6))
    got = output(q, k, v)
    assert torch.allclose(got, plain, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), (q, k, v)),
        torch.autograd.grad(plain.square().sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-4)


def test_a_backward_saves_nothing_that_grows_with_tiles_by_features() -> None:
    q, k, v = (x.detach().requires_grad_() for x in _inputs(torch.float32))
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    critical, marginal = _maps()
    features = [x.detach().requires_grad_() for x in feature_map("softmax")(q, k)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        sparse_linear_attention(
            *(q, k, v, critical, marginal), q_features=features[0], k_features=features[1]
        )
    allowed = [q, k, v, *features, critical.indices, critical.counts, marginal.to_mask()]
    of_rows = 2 * q.numel() + 2 * q[..., 0].numel()
    assert sum(x.numel() for x in saved) == sum(x.numel() for x in allowed) + of_rows


def test_slices_of_channels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ditaccel.kernels.sparse_linear import torch_linear

    q, k, v = (x.detach().requires_grad_() for x in _inputs(dim=20))
    maps = _maps()
    whole = _call(q, k, v, maps, "torch").linear
    wanted = torch.autograd.grad(whole.square().sum(), (q, k, v))
    monkeypatch.setattr(torch_linear, "_BYTES", 0)
    got = _call(q, k, v, maps, "torch").linear
    assert torch.allclose(got, whole)
    for one, other in zip(torch.autograd.grad(got.square().sum(), (q, k, v)), wanted, strict=True):
        assert torch.allclose(one, other)


def test_padding_of_a_short_last_tile_stays_finite_beside_tiny_sums() -> None:
    """Scores of -300 have sums whose exponential is beyond float32 next to a padded score of 0."""
    q, k = torch.full((1, 1, 5, 4), 10.0), torch.full((1, 1, 5, 4), -15.0)
    v = torch.randn(1, 1, 5, 4)
    tiling = Tiling.fixed(5, 4)
    dense = TileMap.dense(tiling, tiling)
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def gradients(backend: str) -> tuple[Tensor, ...]:
        out = sparse_linear_attention(
            *(*inputs, dense, dense), q_features=v.abs(), k_features=v.abs(), backend=backend
        )
        return torch.autograd.grad(out.sparse.square().sum(), inputs)

    for got, wanted in zip(gradients("torch"), gradients("naive"), strict=True):
        assert torch.allclose(got, wanted, atol=1e-4)


def test_projection_of_each_head() -> None:
    q, k, v = _inputs()
    out = _call(q, k, v, _maps(), "torch")
    weight, bias = torch.randn(4, 6, 6).double(), torch.randn(6).double()
    expected = out.sparse + torch.einsum("bhld,hed->bhle", out.linear, weight) + bias
    assert torch.allclose(out.projected(weight, bias), expected)
    shared = out.sparse + F.linear(out.linear, weight[0], bias)
    assert torch.allclose(out.projected(weight[0], bias), shared)


def test_gradients_are_the_same_each_time() -> None:
    inputs = [x.detach().requires_grad_() for x in _inputs(torch.float32)]
    maps = _maps()

    def gradients() -> tuple[Tensor, ...]:
        out = _call(*inputs, maps, "torch")
        return torch.autograd.grad((out.sparse + out.linear).square().sum(), inputs)

    for one, other in zip(gradients(), gradients(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads"), [(4096, 3, 3), (32768, 12, 4), (131072, 2, 1)]
)
def test_buffers_of_the_kernels_are_bounded_and_their_parts_cover_all(
    length: int, heads: int, kv_heads: int
) -> None:
    from ditaccel.kernels.sparse_linear import triton_linear
    from ditaccel.kernels.sparse_linear.call import check_call

    q = torch.empty(2, heads, length, 128, device="meta", dtype=torch.bfloat16)
    k = torch.empty(2, kv_heads, length, 128, device="meta", dtype=torch.bfloat16)
    dense = TileMap.dense(Tiling.fixed(length, 128), Tiling.fixed(length, 64), "meta")
    call = check_call(q, k, k, dense, dense.to_mask(), q, k, None, None, 1e-6)
    run = triton_linear._Linear(call, 90)
    assert sum(4 * x.numel() for x in run.sums.values()) <= triton_linear.BYTES
    seen = torch.zeros(2 * kv_heads, 128)
    for part in run.parts:
        channels = slice(part.channel, part.channel + part.channels)
        seen[part.first : part.first + part.groups, channels] += 1
    assert bool((seen == 1).all())
