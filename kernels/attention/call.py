"""What a call of `tile_attention` is made of, and the checks that all backends share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..tile_map import TileMap
from ..tiling import Tiling

LOG2_E = math.log2(math.e)
Precision = Literal["model", "int8"]


@dataclass(frozen=True, eq=False)
class Marking:
    """Find the tiles that the next step may skip (LiteAttention's rule).

    While a query tile visits its key tiles, each valid row compares the largest score of the tile
    with the largest of all tiles visited before. The row wants to keep the tile iff
    `(tile max - running max) * scale * log2(e) > threshold`; the tile may be dropped only if no
    valid row wants to keep it. The first visited tile is never dropped. A tile without a single
    unmasked key for a row is not kept by that row.

    Attributes:
        threshold: below 0, in powers of two, softmax scale included: -10 drops tiles whose
            largest weight is less than 1/1024 of the largest weight so far. Nearer to 0 drops more;
            `-inf` drops only tiles that are masked altogether. A float32 tensor `(H,)` sets it per
            head.
        reverse: visit the lists back to front. Tiles visited early meet a low running max and are
            seldom marked, so callers alternate the direction from step to step.
        skip_now: leave a tile that may be dropped out of the output of this very step (its softmax
            and its product with V), as BLASST does; otherwise the marks cost no accuracy here.
    """

    threshold: float | Tensor
    reverse: bool = False
    skip_now: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.threshold, Tensor):
            if self.threshold.dtype != torch.float32 or self.threshold.ndim != 1:
                raise TypeError(
                    "threshold must be a float or a float32 tensor (heads,), got "
                    f"{self.threshold.dtype} {tuple(self.threshold.shape)}"
                )
            below = bool((self.threshold < 0).all())
        else:
            below = self.threshold < 0
        if not below:
            raise ValueError(
                f"threshold must be below 0 (powers of two, say -10), got {self.threshold}"
            )

    def thresholds(self, heads: int, device: torch.device) -> Tensor:
        """float32 `(H,)`."""
        if isinstance(self.threshold, Tensor):
            return self.threshold.to(device)
        return torch.full((heads,), self.threshold, dtype=torch.float32, device=device)


def row_keeps(tile_max: Tensor, running_max: Tensor, scale: float, threshold: Tensor) -> Tensor:
    """Marking's comparison, in float32 whatever the scores are, so that all backends agree.

    Args:
        tile_max: largest raw score of each row in the tile, -inf where all keys are masked.
        running_max: the same over the tiles visited before; NaN from -inf - -inf is not kept.
        scale: of the softmax.
        threshold: float32, in powers of two.
    """
    gap = (tile_max - running_max).float()
    return gap * torch.tensor(scale * LOG2_E, dtype=torch.float32, device=gap.device) > threshold


class TileAttentionOutput(NamedTuple):
    """What `tile_attention` returns.

    Attributes:
        output: `(B, H, Lq, D)`, in the dtype and memory layout of q; 0 for a query without keys.
        lse: float32 `(B, H, Lq)`, natural log of the sum of exponentials; -inf for a query without
            keys; None unless asked for.
        keep: bool `(B, H, Tq, Tk)`, tiles that were visited and may not be dropped; None without
            marking.
    """

    output: Tensor
    lse: Tensor | None
    keep: Tensor | None


class TileCentroids(NamedTuple):
    """What stands for the keys of a tile where a query tile skips it.

    Attributes:
        keys: `(B, Hkv, Tk, D)`, mean key of each key tile; any finite value for an empty tile.
        values: the same of the values.
        bias: float32 `(B|1, H|1, Tq, Tk)`, added to the scaled scores of the means (besides the
            logarithm of the tile's size, which the kernel adds itself); None for nothing.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """A checked call; `mask` is 4-dimensional, and the map is already turned for `reverse`."""

    q: Tensor
    k: Tensor
    v: Tensor
    tile_map: TileMap
    scale: float
    mask: Tensor | None
    return_lse: bool
    marking: Marking | None
    centroids: TileCentroids | None = None
    precision: Precision = "model"

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.q.shape[1] // self.k.shape[1]

    @property
    def needs_grad(self) -> bool:
        """Whether autograd wants to follow this call."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in (self.q, self.k, self.v))

    def why_no_gradient(self) -> str | None:
        """Why the kernels have no backward for this call, None if they have or none is wanted."""
        if not self.needs_grad:
            return None
        reason = None
        if self.marking is not None or self.centroids is not None:
            reason = "it has no backward with marking or centroids"
        elif not self.tile_map.is_fixed:
            reason = "it has no backward for tiles of variable size"
        elif self.mask is not None and self.mask.shape[1:3] != (1, 1):
            reason = "its backward takes a mask of keys only, (B, Lk)"
        return reason and f"{reason}; call it under torch.no_grad(), or ask for 'naive'"

    def first_kept(self) -> Tensor:
        """Marks ahead of any comparison, bool `(B, H, Tq, Tk)`: only the first visited tile stays.

        All backends begin with these, so that they agree on query tiles without tokens too.
        """
        shape = (*self.q.shape[:2], self.tile_map.q_tiles, self.tile_map.k_tiles)
        keep = torch.zeros(shape, dtype=torch.bool, device=self.q.device)
        if self.tile_map.indices.shape[-1] == 0:
            return keep
        listed = self.tile_map.counts[..., None] > 0
        # Entries beyond the count may be out of range.
        first = torch.where(listed, self.tile_map.indices[..., :1], 0).long()
        return keep.scatter_(-1, first.expand(*shape[:3], 1), listed.expand(*shape[:3], 1))


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tile_map: TileMap,
    scale: float | None,
    mask: Tensor | None,
    return_lse: bool,
    marking: Marking | None,
    centroids: TileCentroids | None = None,
    precision: Precision = "model",
) -> AttentionCall:
    """Turn the arguments of `tile_attention` into a call, or say what is wrong with them."""
    _check_tensors(q, k, v)
    batch, heads, q_len, dim = q.shape
    if not isinstance(tile_map, TileMap):
        raise TypeError(f"tile_map must be a TileMap, got {type(tile_map).__name__}")
    if (tile_map.q_len, tile_map.k_len) != (q_len, k.shape[2]):
        raise ValueError(
            f"tile_map is for {tile_map.q_len} queries and {tile_map.k_len} keys, but q has "
            f"{q_len} and k {k.shape[2]}"
        )
    if tile_map.device != q.device:
        raise ValueError(f"tile_map is on {tile_map.device}, but q on {q.device}")
    _check_shared("tile_map.indices", tile_map.indices, batch, heads)
    for name, tiling in (("q_tiling", tile_map.q_tiling), ("k_tiling", tile_map.k_tiling)):
        if tiling.offsets is not None:
            _check_shared(f"tile_map.{name}.offsets", tiling.offsets, batch, heads)
    if scale is None:
        scale = dim**-0.5
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if mask is not None:
        mask = _check_mask(mask, q, k)
    if marking is not None:
        if not isinstance(marking, Marking):
            raise TypeError(f"marking must be a Marking, got {type(marking).__name__}")
        if isinstance(marking.threshold, Tensor) and marking.threshold.shape[0] != heads:
            raise ValueError(
                f"marking.threshold has {marking.threshold.shape[0]} heads, but q {heads}"
            )
        if marking.reverse:
            tile_map = tile_map.reversed()
    if centroids is not None:
        _check_centroids(centroids, k, tile_map, marking)
    call = AttentionCall(
        q, k, v, tile_map, float(scale), mask, return_lse, marking, centroids, precision
    )
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be {' or '.join(get_args(Precision))}, got {precision!r}")
    if precision != "model" and call.needs_grad:
        raise ValueError(
            "8-bit scores have no gradient: train with precision='model', or call this under "
            "torch.no_grad()"
        )
    return call


def _check_centroids(
    centroids: TileCentroids, k: Tensor, tile_map: TileMap, marking: Marking | None
) -> None:
    if marking is not None:
        raise ValueError(
            "marking and centroids do not go together: a centroid hides what its tile would mark"
        )
    wanted = (*k.shape[:2], tile_map.k_tiles, k.shape[3])
    for name, tensor in (("keys", centroids.keys), ("values", centroids.values)):
        if tuple(tensor.shape) != wanted or tensor.device != k.device:
            raise ValueError(
                f"centroids.{name} must have the shape {wanted}, one for each key tile, and be on "
                f"{k.device}; got {tuple(tensor.shape)} on {tensor.device}"
            )
    bias, tiles = centroids.bias, (tile_map.q_tiles, tile_map.k_tiles)
    if bias is not None and (bias.ndim != 4 or tuple(bias.shape[-2:]) != tiles):
        raise ValueError(
            f"centroids.bias must have the shape (B or 1, H or 1, {tiles[0]}, {tiles[1]}), got "
            f"{tuple(bias.shape)}"
        )


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must have the shape (B, H, L, D), got {tuple(tensor.shape)}; transpose "
                "(B, L, H, D) with .transpose(1, 2), which copies nothing"
            )
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating point tensor, got {tensor.dtype}")
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, but q {q.dtype}; cast them alike")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, but q on {q.device}")
        if tensor.shape[0] != q.shape[0] or tensor.shape[3] != q.shape[3]:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} must have the batch and head dimension of q "
                f"{tuple(q.shape)}"
            )
        if 0 in tensor.shape:
            raise ValueError(f"{name} {tuple(tensor.shape)} holds nothing")
    if k.shape != v.shape:
        raise ValueError(f"v {tuple(v.shape)} must have the shape of k {tuple(k.shape)}")
    if q.shape[1] % k.shape[1]:
        raise ValueError(
            f"q has {q.shape[1]} heads, which must be a multiple of the {k.shape[1]} of k and v"
        )


def _check_shared(name: str, tensor: Tensor, batch: int, heads: int) -> None:
    if tensor.shape[0] not in (1, batch) or tensor.shape[1] not in (1, heads):
        raise ValueError(
            f"{name} is for {tuple(tensor.shape[:2])} batch items and heads, which must be "
            f"{(batch, heads)} or 1 (shared)"
        )


def _check_mask(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be bool (True: attend), got {mask.dtype}; an additive mask of 0 and -inf "
            "becomes one by mask >= 0"
        )
    if mask.device != q.device:
        raise ValueError(f"mask is on {mask.device}, but q on {q.device}")
    if mask.ndim == 2:
        mask = mask[:, None, None, :]
    full = (*q.shape[:3], k.shape[2])
    if mask.ndim != 4 or any(
        size not in (1, of) for size, of in zip(mask.shape[:3], full[:3], strict=True)
    ):
        shape = tuple(mask.shape)
        raise ValueError(f"mask must be (B, Lk), or {full} with 1 where it is shared, got {shape}")
    if mask.shape[3] != full[3]:
        raise ValueError(f"mask is for {mask.shape[3]} keys, but k has {full[3]}")
    return mask


def token_bounds(tiling: Tiling, batch: int, heads: int) -> list[list[list[int]]]:
    """Prefix sums of the tiles as Python ints, for each batch item and head."""
    bounds = tiling.bounds("cpu")
    return bounds.expand(batch, heads, -1).tolist()
