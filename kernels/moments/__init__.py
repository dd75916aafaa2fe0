"""Attention to tiles through their moments: what stands for tiles that are not computed.

The keys of a tile are its mean plus `d`, the values its mean plus `e`, over `n` keys. For a query
`q` and the softmax scale `s`, the tile adds to numerator and denominator of the softmax

    sum exp(s q.k) (v, 1) = n exp(s q.mean_k) E[exp(s q.d) (mean_v + e, 1)].

To second order in `d`, `E[exp(s q.d)] = 1 + u/2` with `u = s^2 q'Var(k)q`, and to first order
`E[exp(s q.d) e] = s Cov(v, k) q`. So the tile is one key `mean_k` with the logit

    s q.mean_k + log n + log(1 + u/2)

and the value `mean_v + s Cov(v, k) q / (1 + u/2)`. Its logit is one of the softmax of the tiles
that are computed exactly (`merge_attention` puts both under one denominator), so nothing has to be
trained, and a tile of equal keys, or of one key, is exact.

Two things are taken at the mean `Q` of a query tile instead of at each query. The spread `u`, with
the diagonal of Var(k) for the matrix. And the weights with which covariances add up: let `a_j` be
the mean weight of tile j over the queries of the query tile; then

    output = sum_j w_j(q) mean_v_j + s C q,    C = sum_j a_j / (1 + u_j/2) Cov_j(v, k).

C is one D x D matrix for each query tile, as the state of linear attention is: the second term is
linear attention, centred on its tiles. It costs a share `D / (2 tile)` of one exact tile per query
tile and key tile, instead of a multiple of it.
"""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Backend, anywhere, choose, own_precision, reasons
from ..tiling import Tiling
from . import naive, torch_backend, triton_backend, triton_moments
from .call import MomentAttentionCall, TileMomentsCall, check_call
from .moments import TileMoments, score_variance, tile_of

__all__ = [
    "TileMoments",
    "moment_attention",
    "moment_attention_backends",
    "score_variance",
    "tile_moments",
]

BACKENDS: tuple[Backend[MomentAttentionCall], ...] = (
    Backend("triton", triton_backend.why_not, triton_backend.run),
    Backend("torch", anywhere, torch_backend.run),
    Backend("naive", naive.why_not, naive.run, by_name_only=True),
)
# Plain torch is the definition of moments too: there is nothing simpler to compare it with.
MOMENTS_BACKENDS: tuple[Backend[TileMomentsCall], ...] = (
    Backend("triton", triton_moments.why_not, triton_moments.run),
    Backend("torch", anywhere, torch_backend.moments_of),
)


@own_precision
def tile_moments(
    k: Tensor, v: Tensor, tiling: Tiling, mask: Tensor | None = None, *, backend: str | None = None
) -> TileMoments:
    """Means and spreads of the keys and values of each tile; autograd follows.

    Args:
        k: `(B, H, L, D)`, any strides.
        v: the same.
        tiling: tiles of fixed size.
        mask: bool `(B, L)`, True for keys that count.
        backend: `triton` or `torch`; by default the first that can run the call. A gradient takes
            the latter.

    Raises:
        ValueError: the tiles vary in size, or a backend that cannot run the call.
    """
    tile_of(tiling)
    call = TileMomentsCall(k, v, tiling, mask)
    return choose("tile_moments", MOMENTS_BACKENDS, call, backend).run(call)


def moment_attention_backends(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    marginal: Tensor,
    q_tiling: Tiling,
    k_tiling: Tiling,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    moments: TileMoments | None = None,
) -> dict[str, str | None]:
    """Why each backend cannot run this call of `moment_attention`; None for those that can."""
    call = check_call(q, k, v, marginal, q_tiling, k_tiling, scale, mask, moments)
    return reasons(BACKENDS, call)


@own_precision
def moment_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    marginal: Tensor,
    q_tiling: Tiling,
    k_tiling: Tiling,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    moments: TileMoments | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention to the tiles of `marginal` alone, each through its moments; autograd follows.

    Args:
        q: `(B, H, Lq, D)`, any strides.
        k: `(B, Hkv, Lk, D)`; Hkv divides H.
        v: like k.
        marginal: bool `(B|1, H|1, Tq, Tk)`, the tiles to attend to.
        q_tiling: of the queries, of fixed size.
        k_tiling: of the keys, of fixed size.
        scale: of the softmax; `1 / sqrt(D)` by default.
        mask: bool `(B, Lk)`, True for keys that count.
        moments: `tile_moments(k, v, k_tiling, mask)`, where they are known already.
        backend: `triton`, `torch` or `naive`; by default the first that can run the call. A
            gradient takes one of the latter. `moment_attention_backends` gives the reasons.

    Returns:
        Output `(B, H, Lq, D)` in the dtype of q, and log-sum-exp `(B, H, Lq)` in float32 (float64
        for float64 inputs): a part for `merge_attention`. Queries without marginal tiles get 0 and
        -inf.

    Raises:
        ValueError: tiles that vary in size, shapes that do not fit, or a backend that cannot run
            the call.
    """
    call = check_call(q, k, v, marginal, q_tiling, k_tiling, scale, mask, moments)
    return choose("moment_attention", BACKENDS, call, backend).run(call)
