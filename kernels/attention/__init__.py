"""Attention over the tiles of a map: the public function, its checks and its backends."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Backend, always, choose, reasons
from ..precision import own_precision
from ..tile_map import TileMap
from . import flex_backend, naive, operator, torch_backend, triton_backend
from .call import AttentionCall, Marking, TileAttentionOutput, TileCentroids, check_call
from .merge import merge_attention

__all__ = [
    "Marking",
    "TileAttentionOutput",
    "TileCentroids",
    "merge_attention",
    "tile_attention",
    "tile_attention_backends",
]

BACKENDS: tuple[Backend[AttentionCall], ...] = (
    Backend(
        "triton",
        triton_backend.why_not,
        triton_backend.run,
        by_name_only=lambda call: call.q.device.type == "cpu",
    ),
    Backend("flex", flex_backend.why_not, flex_backend.run, by_name_only=always),
    Backend("torch", torch_backend.why_not, torch_backend.run),
    Backend("naive", naive.why_not, naive.run, by_name_only=always),
)


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
) -> dict[str, str | None]:
    """Why each backend cannot run this call of `tile_attention`; None for those that can.

    The order is the one in which they are asked; takes what `tile_attention` takes.
    """
    call = check_call(q, k, v, tile_map, scale, mask, return_lse, marking, centroids)
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
        backend: `triton`, `flex`, `torch` or `naive`; by default the first that can run the call.
            `tile_attention_backends` gives the reasons.

    Returns:
        Output, lse and marks. Rows without keys are 0, and their lse -inf.

    Raises:
        TypeError: dtypes that differ or do not fit.
        ValueError: shapes or devices that do not fit, or a backend that cannot run the call.
    """
    call = check_call(q, k, v, tile_map, scale, mask, return_lse, marking, centroids)
    chosen = choose("tile_attention", BACKENDS, call, backend)
    if call.needs_grad and chosen.name != "naive":
        return operator.run(call, chosen.name)
    return chosen.run(call)
