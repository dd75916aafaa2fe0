"""Attention over the tiles of a map: the public functions."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import choose, own_precision, reasons
from ..tile_map import TileMap
from . import operator
from .backends import BACKENDS
from .call import Marking, Precision, TileAttentionOutput, TileCentroids, check_call
from .merge import merge_attention

__all__ = [
    "Marking",
    "Precision",
    "TileAttentionOutput",
    "TileCentroids",
    "merge_attention",
    "tile_attention",
    "tile_attention_backends",
]


def tile_attention_backends(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tile_map: TileMap,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    return_lse: bool = False,
    marking: Marking | None = None,
    centroids: TileCentroids | None = None,
    precision: Precision = "model",
) -> dict[str, str | None]:
    """Why each backend cannot run this call of `tile_attention`; None for those that can.

    The order is the one in which they are asked; takes what `tile_attention` takes.
    """
    call = check_call(q, k, v, tile_map, scale, mask, return_lse, marking, centroids, precision)
    return reasons(BACKENDS, call)


@own_precision
def tile_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tile_map: TileMap,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    return_lse: bool = False,
    marking: Marking | None = None,
    centroids: TileCentroids | None = None,
    precision: Precision = "model",
    backend: str | None = None,
) -> TileAttentionOutput:
    """Softmax attention over the tiles of a map.

    Autograd follows q, k and v for tiles of fixed size, without marking, centroids and masks that
    differ from query to query; the backward skips what the forward skips.

    Args:
        q: `(B, H, Lq, D)`, any strides: a transposed view of `(B, Lq, H, D)` is not copied.
        k: `(B, Hkv, Lk, D)`; Hkv divides H, and heads `h * H / Hkv ...` share key head `h`.
        v: like k.
        tile_map: which tiles to compute, in which order. Its values are not checked here; see
            `TileMap.validate`.
        scale: of the scores ahead of the softmax, positive; `1 / sqrt(D)` by default.
        mask: bool, True to attend: a padding mask of the keys `(B, Lk)`, or
            `(B|1, H|1, Lq|1, Lk)`.
        return_lse: also return the log-sum-exp of each row, to merge with other keys.
        marking: find the tiles that the next step may skip; see `Marking`.
        centroids: what stands for skipped tiles under the same softmax; a mask is no concern of
            theirs. Not together with marking.
        precision: of the scores: `model`, that of q and k, or `int8`, integers with one scale per
            token, the mean of the keys taken off (`int8.py` has the formula); products with v
            stay in the model's precision. Faster where a chip multiplies integers faster; a CPU
            computes the same numbers in float32. Without gradients.
        backend: `triton`, `flex`, `torch` or `naive`; by default the first that can run the call.
            `tile_attention_backends` gives the reasons.

    Returns:
        Output, lse and marks. Rows without keys are 0, and their lse -inf.

    Raises:
        TypeError: dtypes that differ or do not fit.
        ValueError: shapes or devices that do not fit, or a backend that cannot run the call.
    """
    call = check_call(q, k, v, tile_map, scale, mask, return_lse, marking, centroids, precision)
    chosen = choose("tile_attention", BACKENDS, call, backend)
    if call.needs_grad and chosen.backward is not None:
        return operator.run(call, chosen.name)
    return chosen.run(call)
