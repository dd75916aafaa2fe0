"""The same checks on a CUDA or ROCm device, in all dtypes, and what only a device can show."""

import pytest
import torch
import torch.nn.functional as F
from ditaccel.kernels import (
    Marking,
    TileMap,
    Tiling,
    feature_map,
    merge_attention,
    moment_attention,
    sparse_linear_attention,
    tile_attention,
    tile_moments,
)
from ditaccel.kernels.attention.fuzz import TOLERANCE
from ditaccel.kernels.fuzz import operators, relative_rmse
from ditaccel.kernels.moments.fuzz import TOLERANCE as MOMENTS_TOLERANCE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", range(0, 300, 100))
@pytest.mark.parametrize("operator", operators())
def test_random_calls_agree_with_the_definition(
    operator: str, backend: str, dtype: torch.dtype, first: int
) -> None:
    check = operators()[operator].check
    wrong = {seed: check(seed, backend, "cuda", dtype) for seed in range(first, first + 100)}
    assert {seed: text for seed, text in wrong.items() if text} == {}


@pytest.mark.parametrize("dim", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_sequences_agree_with_dense_attention(dim: int, dtype: torch.dtype) -> None:
    q, k, v = (
        torch.randn(1, 5000, 3, dim, device="cuda", dtype=dtype).transpose(1, 2) for _ in range(3)
    )
    tiling = Tiling.fixed(5000, 128)
    dense = TileMap.dense(tiling, tiling, "cuda")
    got = tile_attention(q, k, v, dense, backend="triton")
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    assert got.output.stride() == q.stride()
    assert relative_rmse(got.output, expected) < TOLERANCE[dtype]


def test_addresses_past_two_to_the_31() -> None:
    heads, length, dim = 40, 2**20, 64
    q = torch.randn(1, length, heads, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    q_tiling = Tiling.fixed(length, 128)
    # Only the first and the last key tile of each query tile: what the addresses are put to.
    mask = torch.zeros(1, 1, q_tiling.tiles, q_tiling.tiles, dtype=torch.bool, device="cuda")
    mask[..., [0, -1]] = True
    tile_map = TileMap.from_mask(mask, q_tiling, q_tiling)
    got = tile_attention(q, q, q, tile_map, backend="triton").output[:, -1:, -128:]
    keys = torch.cat([q[:, -1:, :128], q[:, -1:, -128:]], 2).float()
    expected = F.scaled_dot_product_attention(q[:, -1:, -128:].float(), keys, keys)
    assert relative_rmse(got, expected) < TOLERANCE[torch.bfloat16]


def test_a_new_length_compiles_nothing() -> None:
    from ditaccel.kernels.attention.triton_kernel import tile_attention_kernel

    def compiled() -> int:
        return sum(len(cache[0]) for cache in tile_attention_kernel.device_caches.values())

    def call(length: int) -> None:
        q = torch.randn(1, length, 2, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        tiling = Tiling.fixed(length, 128)
        dense = TileMap.dense(tiling, tiling, "cuda")
        tile_attention(q, q, q, dense, marking=Marking(-5.0), backend="triton")

    call(1001)
    before = compiled()
    for length in (1003, 1777, 4097):
        call(length)
    assert compiled() == before


def _sparse_linear(
    length: int, heads: int, dim: int, backend: str | None = None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs and gradients of a call at 95 % sparsity."""
    torch.manual_seed(0)
    inputs = [
        torch.randn(1, length, heads, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for _ in range(3)
    ]
    inputs += feature_map("softmax")(*inputs[:2])
    inputs = [x.detach().requires_grad_() for x in inputs]
    tilings = Tiling.fixed(length, 128), Tiling.fixed(length, 64)
    scores = torch.rand(1, heads, tilings[0].tiles, tilings[1].tiles, device="cuda")
    critical = TileMap.from_mask(scores > 0.95, *tilings)
    out = sparse_linear_attention(
        *(*inputs[:3], critical, (scores > 0.1) & (scores <= 0.95)),
        q_features=inputs[3],
        k_features=inputs[4],
        backend=backend,
    )
    weights = [torch.randn_like(x) for x in out[:2]]
    return list(out[:2]), list(torch.autograd.grad(out[:2], inputs, weights))


@pytest.mark.parametrize("dim", [64, 80, 128])
def test_long_sparse_linear_calls_agree_with_plain_torch(dim: int) -> None:
    got, wanted = (_sparse_linear(5000, 3, dim, backend) for backend in ("triton", "torch"))
    for ours, theirs in zip(got, wanted, strict=True):  # outputs, gradients
        for one, other in zip(ours, theirs, strict=True):
            assert relative_rmse(one, other) < 2e-2


def test_memory_of_the_linear_branch_does_not_grow_with_tiles() -> None:
    """At 32768 tokens of 12 heads, sums of query tiles alone would be 200 MB, saved or not, and
    those of key tiles 400 MB; two buffers, 256 MiB together, hold them in turn."""
    _sparse_linear(4096, 2, 128)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    _sparse_linear(32768, 12, 128)
    tensor = 32768 * 12 * 128 * 2
    # inputs, outputs, weights and gradients; the gradient of V in float32; lists of tiles
    allowed = (5 + 2 + 2 + 5 + 2) * tensor + 256 * 2**20 + 2**27
    assert torch.cuda.max_memory_allocated() < allowed


def test_a_new_length_compiles_no_sparse_linear_kernel() -> None:
    from ditaccel.kernels.attention import triton_backward_kernel
    from ditaccel.kernels.sparse_linear import triton_kernels

    kernels = [
        getattr(module, name)
        for module in (triton_backward_kernel, triton_kernels)
        for name in dir(module)
        if name.endswith("_kernel")
    ]

    def compiled() -> int:
        return sum(len(c[0]) for kernel in kernels for c in kernel.device_caches.values())

    _sparse_linear(1001, 2, 64)
    before = compiled()
    assert before > 0
    for length in (1003, 1777, 4097):
        _sparse_linear(length, 2, 64)
    assert compiled() == before


def test_sparse_linear_attention_compiles_into_one_graph() -> None:
    q, k, v = (
        torch.randn(1, 2, 512, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    tilings = Tiling.fixed(512, 128), Tiling.fixed(512, 64)
    kept = torch.rand(1, 2, 4, 8, device="cuda") < 0.3

    def output(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        features = feature_map("softmax")(q, k)
        out = sparse_linear_attention(
            *(q, k, v, TileMap.from_mask(kept, *tilings), ~kept),
            q_features=features[0],
            k_features=features[1],
        )
        return out.sparse + out.linear

    wanted = torch.autograd.grad(output(q, k, v).sum(), (q, k, v))
    got = torch.autograd.grad(torch.compile(output, fullgraph=True)(q, k, v).sum(), (q, k, v))
    for one, other in zip(got, wanted, strict=True):
        assert relative_rmse(one, other) < 2e-2


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_tile_attention_are_those_of_dense_attention(dtype: torch.dtype) -> None:
    inputs = [
        torch.randn(1, 1000, heads, 128, device="cuda", dtype=dtype).transpose(1, 2)
        for heads in (4, 2, 2)
    ]
    inputs = [x.detach().requires_grad_() for x in inputs]
    tiling = Tiling.fixed(1000, 128)
    got = tile_attention(*inputs, TileMap.dense(tiling, tiling, "cuda"), backend="triton").output
    expected = F.scaled_dot_product_attention(*(x.double() for x in inputs), enable_gqa=True)
    weight = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad(got, inputs, weight),
        torch.autograd.grad(expected, inputs, weight.double()),
        strict=True,
    ):
        assert relative_rmse(one, other) < 2 * TOLERANCE[dtype]


def _training_free(
    length: int, heads: int, dim: int, dtype: torch.dtype, backend: str | None = None
) -> torch.Tensor:
    """Attention at 95 % sparsity, all other tiles through their moments."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, length, heads, dim, device="cuda", dtype=dtype).transpose(1, 2)
        for _ in range(3)
    )
    tilings = Tiling.fixed(length, 128), Tiling.fixed(length, 64)
    critical = torch.rand(1, heads, tilings[0].tiles, tilings[1].tiles, device="cuda") > 0.95
    tile_map = TileMap.from_mask(critical, *tilings)
    exact = tile_attention(q, k, v, tile_map, return_lse=True, backend=backend)
    assert exact.lse is not None
    moments = tile_moments(k, v, tilings[1], backend=backend)
    part = moment_attention(q, k, v, ~critical, *tilings, moments=moments, backend=backend)
    return merge_attention((exact.output, exact.lse), part, backend=backend)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_long_training_free_calls_agree_with_plain_torch(dim: int, dtype: torch.dtype) -> None:
    got, wanted = (_training_free(5000, 3, dim, dtype, b) for b in ("triton", "torch"))
    assert relative_rmse(got, wanted) < MOMENTS_TOLERANCE[dtype]


def test_memory_of_moments_does_not_grow_with_tiles() -> None:
    """At 32768 tokens of 12 heads the covariances of all tiles would be 200 MB in bfloat16, and
    those added up for query tiles 100 MB; 32 MiB hold either, some heads at a time."""
    _training_free(4096, 2, 128, torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    _training_free(32768, 12, 128, torch.bfloat16)
    tensor = 32768 * 12 * 128 * 2
    # inputs, both outputs and the merged one; covariances and sums; maps, means and weights
    allowed = (3 + 3) * tensor + 2 * 2**25 + 2**27
    assert torch.cuda.max_memory_allocated() < allowed


def test_a_new_length_compiles_no_kernel_of_moments() -> None:
    from ditaccel.kernels.moments import triton_kernels

    def compiled() -> int:
        kernels = (getattr(triton_kernels, n) for n in dir(triton_kernels) if n.endswith("_kernel"))
        return sum(len(c[0]) for kernel in kernels for c in kernel.device_caches.values())

    _training_free(1001, 2, 64, torch.bfloat16)
    before = compiled()
    assert before > 0
    for length in (1003, 1777, 4097):
        _training_free(length, 2, 64, torch.bfloat16)
    assert compiled() == before
