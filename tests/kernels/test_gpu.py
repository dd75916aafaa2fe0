"""The same checks on a CUDA or ROCm device, in all dtypes, and what only a device can show."""

import pytest
import torch
import torch.nn.functional as F
from ditaccel.kernels import Marking, TileMap, Tiling, tile_attention
from ditaccel.kernels.fuzz import TOLERANCE, check, check_clusters, draw, relative_rmse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", range(0, 300, 100))
def test_random_calls_agree_with_the_definition(
    backend: str, dtype: torch.dtype, first: int
) -> None:
    wrong = {
        seed: check(draw(seed, "cuda", (dtype,)), (backend,)) for seed in range(first, first + 100)
    }
    assert {seed: text for seed, text in wrong.items() if text} == {}


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_random_tokens_cluster_as_defined(backend: str) -> None:
    wrong = {seed: check_clusters(seed, backend, "cuda") for seed in range(100)}
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
