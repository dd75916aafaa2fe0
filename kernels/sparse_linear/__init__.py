"""Sparse-linear attention (SLA): softmax over critical tiles, linear attention over marginal ones.

Zhang et al., "SLA: Beyond Sparsity in Diffusion Transformers via Fine-Tunable Sparse-Linear
Attention", arXiv 2509.24006.
"""

from __future__ import annotations

from torch import Tensor

from ..dispatch import own_precision, reasons
from ..tile_map import TileMap
from . import naive, operator
from .backends import BACKENDS
from .call import SparseLinearOutput, check_call
from .features import FEATURE_MAPS, FeatureMap, feature_map

__all__ = [
    "FEATURE_MAPS",
    "FeatureMap",
    "SparseLinearOutput",
    "feature_map",
    "sparse_linear_attention",
    "sparse_linear_backends",
]


def sparse_linear_backends(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    critical: TileMap,
    marginal: TileMap | Tensor,
    *,
    q_features: Tensor,
    k_features: Tensor,
    scale: float | None = None,
    mask: Tensor | None = None,
    eps: float = 1e-6,
) -> dict[str, str | None]:
    """Why each backend cannot run this call of `sparse_linear_attention`; None where it can."""
    call = check_call(q, k, v, critical, marginal, q_features, k_features, scale, mask, eps)
    return reasons(BACKENDS, call)


@own_precision
def sparse_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    critical: TileMap,
    marginal: TileMap | Tensor,
    *,
    q_features: Tensor,
    k_features: Tensor,
    scale: float | None = None,
    mask: Tensor | None = None,
    eps: float = 1e-6,
    backend: str | None = None,
) -> SparseLinearOutput:
    """Softmax attention over critical tiles, and linear attention over marginal ones.

    With `H_i = sum phi(K_j)^T V_j` and `Z_i = sum phi(K_j)^T 1` over the marginal tiles j of query
    tile i, the linear branch is `phi(Q_i) H_i / (phi(Q_i) Z_i + eps)`. Tiles in neither map are
    skipped; a tile in both counts in both branches. SLA's output is `sparse + Proj(linear)`, see
    `SparseLinearOutput.projected`. Autograd follows q, k, v and the features.

    `H_j` of key tiles and `H_i` of query tiles are float32 and held in two buffers of bounded size,
    some heads (or some channels of one) at a time; one product with the marginal mask turns the
    one into the other, at the same cost for any number of marginal tiles, where published kernels
    subtract from a total. None of it is saved for the backward, which forms H again: what is saved
    are the arguments and the outputs.

    Args:
        q: `(B, H, Lq, D)`, any strides.
        k: `(B, Hkv, Lk, D)`; Hkv divides H, and heads `h * H / Hkv ...` share key head `h`.
        v: like k.
        critical: tiles of fixed size for the softmax.
        marginal: tiles for the linear branch, a map over the same tiles or bool
            `(B|1, H|1, Tq, Tk)`.
        q_features: `phi(q)`, `(B, H, Lq, F)` in the dtype of q, 0 or more; see `feature_map`.
        k_features: `phi(k)`, `(B, Hkv, Lk, F)`.
        scale: of the scores ahead of the softmax, positive; `1 / sqrt(D)` by default.
        mask: bool `(B, Lk)`, True to attend: keys left out by both branches.
        eps: added to the denominator of the linear branch.
        backend: `triton`, `torch` or `naive`; by default the first that can run the call.
            `sparse_linear_backends` gives the reasons.

    Returns:
        Both branches, and what they divide by. Queries without keys are 0.

    Raises:
        TypeError: dtypes that differ or do not fit.
        ValueError: shapes or devices that do not fit, or a backend that cannot run the call.
    """
    call = check_call(q, k, v, critical, marginal, q_features, k_features, scale, mask, eps)
    if backend == "naive":
        return naive.run(call)
    return operator.run(call, backend)
