"""8-bit scores: queries and keys as integers with one scale per token; means are taken off first.

Of one head, with queries q `(Lq, D)`, keys k `(Lk, D)` and the mean m `(D,)` of all keys, which
real keys are far from zero by (Zhang et al., SageAttention, arXiv 2410.02367),

    q_i . k_j = q_i . (k_j - m) + q_i . m.

The last term is the same for all keys of a query, so no softmax sees it: it is left out of the
scores, and only the log-sum-exp gets it back, times the scale. The first is a product of integers:

    q_i . (k_j - m) ~ a_i b_j (x_i . y_j),  a_i = max |q_i| / 127,  x_i = round(q_i / a_i),

with b and y alike of `k - m`; `x_i . y_j` is exact in 32 bits. Per token is the finest of the
granularities that SageAttention publishes, and the only one that does not depend on how the
sequence is cut into tiles: the scales are one vector of a block's rows and one of its columns, and
a map that changes rounds nothing differently. (On calls recorded from shapes-wan, one scale per 128
queries has 1.2 to 1.5 times the error, and one per 64 keys up to 1.1 times.)

Queries can be centred too. With c_t `(D,)` the mean query of query tile t, for i in t,

    q_i . (k_j - m) = (q_i - c_t) . (k_j - m) + c_t . (k_j - m),

whose last term, `(Tq, Lk)` in float32 per head, differs from key to key and has to be added to the
scores tile by tile. It is left out, as SageAttention leaves it out of its 8-bit kernels: on those
calls it takes up to a third off the error, for a matrix of gigabytes at 75000 tokens.

The product with the values stays in the model's precision, and so do the means that stand for
tiles: they meet the rounded queries, m taken off. (8-bit floats for weights and values are left
out: their formats differ from chip to chip, and there was no such chip to try them on.)

`in_int8` is the definition, and all there is outside of Triton: it rounds, and computes in float32.
So 8 bits save time where a chip multiplies integers faster, and on a CPU they save none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .call import AttentionCall, TileAttentionOutput, TileCentroids

# Of integers that are symmetric about 0.
LARGEST = 127.0
# Scale of a token that is all zeros, whose integers are 0.
_SMALLEST = 1e-30


def key_mean(k: Tensor) -> Tensor:
    """Mean over all keys, `(B, Hkv, L, D)` to float32 `(B, Hkv, 1, D)`.

    A CPU adds in an order that depends on how many heads are side by side in memory: in float64,
    that does not show, and heads are rounded alike however many ranks share them.
    """
    wide = torch.float64 if k.device.type == "cpu" else torch.float32
    return k.mean(2, keepdim=True, dtype=wide).float()


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of -127 to 127 as float32, `(..., D)`, and their scales, `(..., 1)`."""
    x = x.float()
    scale = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=_SMALLEST)
    return (x / scale).round(), scale


def in_int8(
    call: AttentionCall, run: Callable[[AttentionCall], TileAttentionOutput]
) -> TileAttentionOutput:
    """Let `run`, which computes in float32 or more, attend with rounded queries and keys."""
    mean = key_mean(call.k)
    wide = torch.promote_types(call.q.dtype, torch.float32)
    q, k = (x[0].mul_(x[1]).to(wide) for x in (quantised(call.q), quantised(call.k - mean)))
    result = run(replace(call, q=q, k=k, centroids=without_mean(call, mean), precision="model"))
    output = torch.empty_like(call.q).copy_(result.output)
    return result._replace(output=output, lse=true_lse(call, result.lse, mean))


def without_mean(call: AttentionCall, mean: Tensor) -> TileCentroids | None:
    """The means of tiles, m taken off them too, in the dtype that they have."""
    if call.centroids is None:
        return None
    keys = call.centroids.keys
    return call.centroids._replace(keys=(keys - mean).to(keys.dtype))


def true_lse(call: AttentionCall, lse: Tensor | None, mean: Tensor) -> Tensor | None:
    """The log-sum-exp of the scores themselves, `q . m` added back."""
    if lse is None:
        return None
    return lse + row_constants(call.q, mean) * call.scale


def row_constants(q: Tensor, mean: Tensor) -> Tensor:
    """`q . m`, float32 `(B, H, Lq)`: what each query's scores all lack."""
    return (q.float() * mean.repeat_interleave(q.shape[1] // mean.shape[1], 1)).sum(-1)
