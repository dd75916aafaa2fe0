"""The definition of attention to moments, in float64: one query tile and one key tile at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import why_no_float64
from .call import MomentAttentionCall


def why_not(call: MomentAttentionCall) -> str | None:
    """Why the definition cannot run, None if it can."""
    return why_no_float64(call.q.device)


def run(call: MomentAttentionCall) -> tuple[Tensor, Tensor]:
    """See `moment_attention`; float64 whatever comes in."""
    q, k, v, scale, mask = call.q, call.k, call.v, call.scale, call.mask
    q_tiling, k_tiling, marginal = call.q_tiling, call.k_tiling, call.marginal
    output = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full(q.shape[:3], -torch.inf, dtype=torch.float64)
    q_bounds, k_bounds = (t.bounds("cpu")[0, 0].tolist() for t in (q_tiling, k_tiling))
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q_tiling.tiles):
                rows = slice(q_bounds[i], q_bounds[i + 1])
                queries = q[b, h, rows].double()
                logits, means, covariances, shrinks = [], [], [], []
                for j in range(k_tiling.tiles):
                    own = torch.arange(k_bounds[j], k_bounds[j + 1])
                    if mask is not None:
                        own = own[mask[b, own]]
                    if not marginal[b, h, i, j] or not len(own):
                        continue
                    at = h * k.shape[1] // q.shape[1]
                    keys, values = k[b, at, own].double(), v[b, at, own].double()
                    d, e = keys - keys.mean(0), values - values.mean(0)
                    variance = d.square().mean(0)
                    half = scale**2 * (queries.mean(0).square() * variance).sum() / 2
                    logits.append(scale * queries @ keys.mean(0) + torch.log(len(own) * (1 + half)))
                    means.append(values.mean(0))
                    covariances.append(e.T @ d / len(own))
                    shrinks.append(1 + half)
                if not logits:
                    continue
                lse[b, h, rows] = torch.stack(logits, -1).logsumexp(-1)
                weights = torch.stack(logits, -1).softmax(-1)
                shares = weights.mean(0) / torch.stack(shrinks)
                mixed = (shares[:, None, None] * torch.stack(covariances)).sum(0)
                output[b, h, rows] = weights @ torch.stack(means) + scale * queries @ mixed.T
    return output, lse
