"""Attention to moments in plain torch, some heads and query tiles at a time; differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from .call import MomentAttentionCall, TileMomentsCall
from .moments import TileMoments, centred, counted, covariances, in_tiles, wide

# Elements of the largest tensors that are held at once.
_CHUNK = 1 << 24


def moments_of(call: TileMomentsCall) -> TileMoments:
    """See `tile_moments`."""
    count = counted(call.k, call.tiling, call.mask)
    sizes = count.sum(3).squeeze(-1)
    least = sizes.clamp(min=1)
    keys, key_part = centred(call.k, count)
    values, value_part = centred(call.v, count)
    return TileMoments(
        sizes,
        keys,
        values,
        key_part.square().sum(3) / least[..., None],
        (value_part.square().sum((3, 4)) / least).sqrt(),
    )


def run(call: MomentAttentionCall) -> tuple[Tensor, Tensor]:
    """See `moment_attention`."""
    moments = call.moments or moments_of(call.moments_call)
    half = call.half_variance(moments)
    bias = call.bias(half, moments)
    count = counted(call.k, call.k_tiling, call.mask)
    batch, kv_heads = call.k.shape[:2]
    group = call.group
    tiles, dim = call.k_tiling.tiles, call.q.shape[-1]
    step = max(1, _CHUNK // (batch * tiles * dim * call.v.shape[-1]))
    outputs, sums = [], []
    for start in range(0, kv_heads, step):
        own = slice(start, start + step)
        shared = slice(start * group, (start + step) * group)
        covariance = covariances(call.k[:, own], call.v[:, own], count)
        output, total = _heads(
            call.q[:, shared],
            moments.keys[:, own],
            moments.values[:, own],
            covariance,
            bias[:, shared],
            half[:, shared],
            call.q_tile,
            call.scale,
        )
        outputs.append(output.to(call.q.dtype))
        sums.append(total)
    return torch.cat(outputs, 1), torch.cat(sums, 1)


def _heads(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    covariance: Tensor,
    bias: Tensor,
    half: Tensor,
    tile: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Query heads `(B, H, Lq, D)` of the key heads `(B, Hkv, T, D)`: heads that share keys stand
    behind each other, as more query tiles."""
    length, kv_heads = q.shape[2], keys.shape[1]
    queries = in_tiles(q.to(wide(q)), tile).unflatten(1, (kv_heads, -1)).flatten(2, 3)
    short = queries.shape[2] * tile > length * (q.shape[1] // kv_heads)
    real = in_tiles(queries.new_ones(1, 1, length, 1), tile) if short else None
    bias, half = (x.unflatten(1, (kv_heads, -1)).flatten(2, 3) for x in (bias, half))
    if real is not None:
        real = real.repeat(1, 1, queries.shape[2] // real.shape[2], 1, 1)
    flat = covariance.flatten(3)
    rows_at_once = q.shape[0] * kv_heads * max(tile * bias.shape[-1], flat.shape[-1])
    step = max(1, _CHUNK // rows_at_once)
    outputs, sums = [], []
    for start in range(0, queries.shape[2], step):
        rows = slice(start, start + step)
        own = queries[:, :, rows]
        scores = (scale * own).flatten(2, 3) @ keys.mT
        scores = scores.unflatten(2, own.shape[2:4]) + bias[:, :, rows, None]
        # A query tile without marginal tiles: weights of 0, and no NaN in their gradients.
        some = (bias[:, :, rows] > -torch.inf).any(-1)[..., None]
        scores = scores.masked_fill(~some[..., None], 0.0)
        # The largest weight is exp(top - lse), so one pass of exponentials gives both.
        weights = scores.softmax(-1)
        total = scores.amax(-1) - weights.amax(-1).log()
        weights = weights.masked_fill(~some[..., None], 0.0)
        if real is None:
            mean = weights.mean(3)
        else:
            valid = real[:, :, rows]
            mean = (weights * valid).sum(3) / valid.sum(3)
        mixed = (mean / (1 + half[:, :, rows]) @ flat).unflatten(-1, covariance.shape[-2:])
        output = (weights.flatten(2, 3) @ values).unflatten(2, own.shape[2:4])
        outputs.append(output + scale * (own @ mixed.mT))
        sums.append(total.masked_fill(~some, -torch.inf))
    output, total = torch.cat(outputs, 2), torch.cat(sums, 2)
    tiles = -(-length // tile)
    output = output.unflatten(2, (-1, tiles)).flatten(1, 2).flatten(2, 3)
    total = total.unflatten(2, (-1, tiles)).flatten(1, 2).flatten(2, 3)
    return output[:, :, :length], total[:, :, :length]
