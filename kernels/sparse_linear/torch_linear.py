"""Linear attention over marginal tiles in plain torch, forward and backward.

`H_j = phi(K_j)^T V_j` of all key tiles is computed once, and one matrix product of the marginal
mask (0 and 1) with these gives `H_i` of all query tiles. That costs Tq Tk F D multiplications, the
share F / (2 q_tile k_tile) of dense attention: under one percent for tiles of 128 x 64. Published
kernels start from the total over all tiles and subtract those that are not marginal; the product
sums the marginal ones themselves, at the same cost for any number of them, and nothing cancels.

H falls apart by channels of V, so channels are computed in slices: the memory held for H is bounded
by `_BYTES` for any length, not proportional to tiles x F x D. The backward forms H again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..attention.torch_backend import in_tiles
from ..attention.torch_lists import of_head
from .call import SparseLinearCall

# Memory for H of all key tiles and all query tiles; one slice has at least 8 channels.
_BYTES = 64 << 20


def forward(call: SparseLinearCall) -> tuple[Tensor, Tensor]:
    """The linear branch as q is, and its mass, float32 `(B, H, Lq)`."""
    q, v = call.attention.q, call.attention.v
    linear = torch.zeros_like(q)
    mass = torch.zeros(q.shape[:3], dtype=torch.float32, device=q.device)
    for b, group, heads in _groups(call):
        k_features, values = (_k_tiles(call, x, b, group) for x in (call.k_features, v))
        marginal = {h: _weights(call, b, h) for h in heads}
        q_features = {h: _q_tiles(call, call.q_features, b, h) for h in heads}
        z = k_features.sum(1)
        divisor = {}
        for h in heads:
            own = q_features[h] @ (marginal[h] @ z)[..., None]
            mass[b, h] = _rows(own, mass)[:, 0].float()
            divisor[h] = own + call.eps
        for part in _slices(call, values.shape[-1], len(z)):
            sums = k_features.transpose(1, 2) @ values[..., part]
            for h in heads:
                own = q_features[h] @ _mixed(marginal[h], sums) / divisor[h]
                linear[b, h, :, part] = _rows(own, linear).to(linear.dtype)
    return linear, mass


def backward(
    call: SparseLinearCall, linear: Tensor, mass: Tensor, d_linear: Tensor, d_mass: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q_features, k_features and v, each in the layout of its tensor.

    With `N = phi(Q) H`, `m = phi(Q) Z`, `dN = dO / (m + eps)` and `dm = -rowsum(dO * O) / (m +
    eps) + d mass`: `d phi(Q) = dN H^T + dm Z^T`, `dH_i = phi(Q_i)^T dN`, `dH_j` the sum of `dH_i`
    over the query tiles that j is marginal for, `d phi(K_j) = V_j dH_j^T + dZ_j`,
    `dV_j = phi(K_j) dH_j`.
    """
    v = call.attention.v
    d_q, d_k, d_v = (torch.zeros_like(x) for x in (call.q_features, call.k_features, v))
    dtype = _dtype(call)
    divisor = (mass.to(dtype) + call.eps)[..., None]
    d_n = d_linear.to(dtype) / divisor
    d_m = d_mass.to(dtype)[..., None] - (d_n * linear).sum(-1, keepdim=True)
    for b, group, heads in _groups(call):
        k_features, values = (_k_tiles(call, x, b, group) for x in (call.k_features, v))
        z = k_features.sum(1)
        d_z, d_values = torch.zeros_like(z), torch.empty_like(values)
        marginal = {h: _weights(call, b, h) for h in heads}
        q_features = {h: _q_tiles(call, call.q_features, b, h) for h in heads}
        d_queries = {}
        for h in heads:
            own = _q_tiles(call, d_m, b, h)
            d_queries[h] = own @ (marginal[h] @ z)[:, None]
            d_z.addmm_(marginal[h].T, (q_features[h].transpose(1, 2) @ own)[..., 0])
        d_keys = d_z[:, None].expand_as(k_features).contiguous()
        for part in _slices(call, values.shape[-1], len(z)):
            sums = k_features.transpose(1, 2) @ values[..., part]
            d_sums = torch.zeros_like(sums)
            for h in heads:
                own = _q_tiles(call, d_n[..., part], b, h)
                d_queries[h].baddbmm_(own, _mixed(marginal[h], sums).transpose(1, 2))
                of_query_tiles = (q_features[h].transpose(1, 2) @ own).flatten(1)
                d_sums.flatten(1).addmm_(marginal[h].T, of_query_tiles)
            d_values[..., part] = k_features @ d_sums
            d_keys.baddbmm_(values[..., part], d_sums.transpose(1, 2))
        for h in heads:
            d_q[b, h] = _rows(d_queries[h], d_q)
        d_k[b, group], d_v[b, group] = _rows(d_keys, d_k), _rows(d_values, d_v)
    return d_q, d_k, d_v


def _groups(call: SparseLinearCall) -> Iterator[tuple[int, int, list[int]]]:
    """(batch item, key head, its query heads), without heads that have no marginal tile."""
    some = call.marginal.flatten(2).any(-1)
    for b in range(call.attention.q.shape[0]):
        for group in range(call.attention.k.shape[1]):
            heads = range(group * call.attention.group, (group + 1) * call.attention.group)
            held = [h for h in heads if bool(of_head(some, b, h))]
            if held:
                yield b, group, held


def _slices(call: SparseLinearCall, dim: int, k_tiles: int) -> Iterator[slice]:
    """Channels of V whose H is held at a time."""
    of_channel = (k_tiles + call.attention.tile_map.q_tiles) * call.q_features.shape[3] * 4
    width = max(8, _BYTES // of_channel)
    for start in range(0, dim, width):
        yield slice(start, min(start + width, dim))


def _mixed(weights: Tensor, sums: Tensor) -> Tensor:
    """`(T, S)` of 0 and 1 times H of S tiles `(S, F, D)`: `(T, F, D)`."""
    return (weights @ sums.flatten(1)).view(-1, *sums.shape[1:])


def _dtype(call: SparseLinearCall) -> torch.dtype:
    return torch.float64 if call.attention.q.dtype == torch.float64 else torch.float32


def _weights(call: SparseLinearCall, b: int, h: int) -> Tensor:
    return of_head(call.marginal, b, h).to(_dtype(call))


def _q_tiles(call: SparseLinearCall, x: Tensor, b: int, h: int) -> Tensor:
    return in_tiles(x[b, h].to(_dtype(call)), call.q_tile)


def _k_tiles(call: SparseLinearCall, x: Tensor, b: int, group: int) -> Tensor:
    return in_tiles(x[b, group].to(_dtype(call)), call.k_tile)


def _rows(tiles: Tensor, like: Tensor) -> Tensor:
    """Tiles `(T, tile, C)` as rows `(L, C)`, L that of `like`."""
    return tiles.flatten(0, 1)[: like.shape[2]]
