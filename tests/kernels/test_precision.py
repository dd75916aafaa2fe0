"""Kernels compute as their arguments' dtypes say, under autocast too, or with 8-bit scores."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ditaccel.kernels import (
    TileMap,
    Tiling,
    kmeans,
    moment_attention,
    pool_tiles,
    pooled_scores,
    sparse_linear_attention,
    tile_attention,
    tile_moments,
)
from ditaccel.kernels.attention.int8 import quantised
from ditaccel.kernels.fuzz import relative_rmse
from torch import Tensor

SAMPLES = Path(__file__).parents[2] / "samples" / "models"
TILINGS = Tiling.fixed(40, 16), Tiling.fixed(40, 16)


def _mask():
    mask = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    mask[..., 0, 2] = False
    return mask


def _sparse(q, k, v):
    return tile_attention(q, k, v, TileMap.from_mask(_mask(), *TILINGS)).output


def _linear(q, k, v):
    tile_map = TileMap.from_mask(_mask(), *TILINGS)
    out = sparse_linear_attention(q, k, v, tile_map, ~_mask(), q_features=q.exp(), k_features=k)
    return out.linear


def _moments(q, k, v):
    return moment_attention(q, k, v, ~_mask(), *TILINGS)[0]


CALLS = {
    "tile_attention": _sparse,
    "sparse_linear_attention": _linear,
    "moment_attention": _moments,
    "tile_moments": lambda q, k, v: tile_moments(k, v, TILINGS[1]).keys,
    "kmeans": lambda q, k, v: kmeans(k, 4, 3).centroids,
    "pool_tiles": lambda q, k, v: pool_tiles(q, TILINGS[0]),
    "pooled_scores": lambda q, k, v: pooled_scores(q, k, *TILINGS),
}


@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(name):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 40, 16, generator=generator) for _ in range(3))
    expected = CALLS[name](q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = CALLS[name](q, k, v)
    assert result.dtype == expected.dtype and torch.equal(result, expected)


# -- 8-bit scores --


def _by_hand(
    q: Tensor, k: Tensor, v: Tensor, scale: float, listed: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of one head with 8-bit scores: token by token, in float64.

    Args:
        q: `(Lq, D)`.
        k: `(Lk, D)`.
        v: like k.
        scale: of the softmax.
        listed: bool `(Lq, Lk)`, pairs that are computed.
    """
    mean = k.double().mean(0)
    scores = torch.zeros(len(q), len(k), dtype=torch.float64)
    for i, query in enumerate(q.double()):
        a = float(query.abs().max()) / 127
        x = [round(float(value) / a) for value in query]
        for j, key in enumerate(k.double() - mean):
            b = float(key.abs().max()) / 127
            product = sum(x[d] * round(float(value) / b) for d, value in enumerate(key))
            scores[i, j] = a * b * product + float(query @ mean)
    scores = (scores * scale).masked_fill(~listed, -torch.inf)
    return scores.softmax(-1) @ v.double(), scores.logsumexp(-1)


def _listed() -> Tensor:
    return _mask()[0, 0].repeat_interleave(16, 0).repeat_interleave(16, 1)[:40, :40]


@pytest.mark.parametrize("backend", ["naive", "torch"])
def test_8_bit_scores_are_those_worked_out_by_hand(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 40, 16, generator=generator) for n in (2, 1, 1))
    k += 5 * torch.randn(1, 1, 1, 16, generator=generator)
    got = tile_attention(
        *(q, k, v, TileMap.from_mask(_mask(), *TILINGS)),
        scale=0.3,
        return_lse=True,
        precision="int8",
        backend=backend,
    )
    for h in range(2):
        output, lse = _by_hand(q[0, h], k[0, 0], v[0, 0], 0.3, _listed())
        assert relative_rmse(got.output[0, h], output) < 1e-6
        torch.testing.assert_close(got.lse[0, h].double(), lse, rtol=1e-6, atol=1e-5)


def test_integers_by_hand() -> None:
    x = torch.tensor([[254.0, -127.0, 1.0, 3.0, -5.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    integers, scales = quantised(x)
    # halves go to the even neighbour; a token of zeros has a scale that nothing is divided by 0 of
    assert integers.tolist() == [[127.0, -64.0, 0.0, 2.0, -2.0], [0.0] * 5]
    assert scales[0].item() == 2.0 and 0 < scales[1].item() < 1e-20


def _outliers(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `(1, 2, 512, 64)`."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 512, 64, generator=generator) for _ in range(3))
    if kind == "shifted channels":  # as real keys are: a few channels far from 0 in all tokens
        k[..., ::16] += 15 * torch.randn(1, 2, 1, 4, generator=generator)
    elif kind == "wide channels":
        q, k[..., ::16] = q / 3, k[..., ::16] * 8
    return q, k, v


def _recorded() -> tuple[Tensor, Tensor, Tensor]:
    """Those of a layer of shapes-wan, `(1, H, 512, D)`."""
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel.from_pretrained(SAMPLES / "shapes-wan" / "transformer")
    seen = []
    own = torch.nn.functional.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        seen.append((query, key, value))
        return own(query, key, value, **kwargs)

    generator = torch.Generator().manual_seed(0)
    config = transformer.config
    latents = torch.randn(1, config.in_channels, 8, 16, 16, generator=generator)
    text = torch.randn(1, 24, config.text_dim, generator=generator)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
        transformer(latents, torch.tensor([700.0]), text)
    found = [x for x in seen if x[0].shape == x[1].shape]
    return found[len(found) // 2]


def _errors(q: Tensor, k: Tensor, v: Tensor) -> tuple[float, float]:
    """Of dense attention with 8-bit scores, and of bf16 in the same kernel, against float64."""
    tiling = Tiling.fixed(q.shape[2], 64)
    tile_map = TileMap.dense(tiling, tiling)
    exact = tile_attention(q, k, v, tile_map, backend="naive").output
    ours = tile_attention(q, k, v, tile_map, precision="int8").output
    halves = tile_attention(*(x.bfloat16() for x in (q, k, v)), tile_map).output
    return relative_rmse(ours, exact), relative_rmse(halves, exact)


@pytest.mark.parametrize("kind", ["random", "shifted channels", "wide channels", "recorded"])
def test_the_error_of_8_bit_scores_beside_that_of_bf16(kind: str) -> None:
    q, k, v = _recorded() if kind == "recorded" else _outliers(kind)
    eight, sixteen = _errors(q, k, v)
    # Each channel is off by up to 1/254 of the largest of its token; in bf16 by 1/512 of itself
    # (and so are the weights and the values, whose error is all that counts where attention is
    # flat, as it is in the recorded layer).
    assert 0 < eight < 5 * sixteen and eight < 0.02


def test_without_the_mean_taken_off_outliers_would_cost_much_more() -> None:
    q, k, v = _outliers("shifted channels")
    ours, _ = _errors(q, k, v)
    exact = torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in (q, k, v)))
    x, y = (torch.mul(*quantised(t)) for t in (q, k))
    plain = torch.nn.functional.scaled_dot_product_attention(x, y, v)
    assert relative_rmse(plain, exact) > 2 * ours


def test_the_log_sum_exp_is_that_of_the_scores_themselves() -> None:
    q, k, v = _outliers("shifted channels")
    tiling = Tiling.fixed(512, 64)
    tile_map = TileMap.dense(tiling, tiling)
    exact = tile_attention(q, k, v, tile_map, return_lse=True, backend="naive")
    got = tile_attention(q, k, v, tile_map, return_lse=True, precision="int8")
    spread = float(exact.lse.std())
    assert spread > 2 and float((got.lse - exact.lse).abs().max()) < 0.02 * spread


def test_8_bit_scores_keep_the_dtype_and_layout_of_the_model() -> None:
    q, k, v = (x.bfloat16() for x in _outliers("random"))
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    tiling = Tiling.fixed(512, 64)
    got = tile_attention(q, k, v, TileMap.dense(tiling, tiling), precision="int8").output
    assert got.dtype == torch.bfloat16 and got.stride() == q.stride()


def test_8_bit_scores_refuse_gradients_and_other_words() -> None:
    tile_map = TileMap.from_mask(_mask(), *TILINGS)
    q, k, v = (torch.randn(1, 2, 40, 16) for _ in range(3))
    with pytest.raises(ValueError, match="precision must be model or int8, got 'fp8'"):
        tile_attention(q, k, v, tile_map, precision="fp8")  # type: ignore[arg-type]
    for backend in (None, "naive", "torch"):
        with pytest.raises(ValueError, match="8-bit scores have no gradient: train with"):
            tile_attention(q.requires_grad_(), k, v, tile_map, precision="int8", backend=backend)
    with torch.no_grad():
        tile_attention(q, k, v, tile_map, precision="int8")
