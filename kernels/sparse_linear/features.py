"""Feature maps of linear attention: `phi(q) . phi(k)` stands for `exp(q . k)`.

A map turns queries and keys `(B, H, L, D)` into features `(B, H, L, F)` that are 0 or more. The
scale of a query's features cancels in linear attention; that of the keys' does not.

| name | features | F | source |
|---|---|---|---|
| `softmax` | softmax over the channels | D | SLA, arXiv 2509.24006 |
| `elu` | elu(x) + 1 | D | Katharopoulos et al., arXiv 2006.16236 |
| `relu` | max(x, 0) | D | Cai et al., EfficientViT, arXiv 2205.14756 |
| `hedgehog` | softmax of x, then softmax of -x | 2D | Zhang et al., arXiv 2402.04347 |
| `norm_aware` | powers of both signs; a query's norm sets its power | 2D | NaLaFormer, 2506.21137 |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureMap:
    """How queries and keys become features.

    Both maps are handed float32 (float64 for float64 inputs) and must return values of 0 or more,
    equally many channels for queries and keys. A module with weights is trained along.

    Attributes:
        query: `(B, H, Lq, D)` to `(B, H, Lq, F)`.
        key: `(B, Hkv, Lk, D)` to `(B, Hkv, Lk, F)`.
    """

    query: Map
    key: Map

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Features of queries and keys, in their dtype."""
        return _of(self.query, q), _of(self.key, k)


def _of(function: Map, x: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return function(wide).to(x.dtype)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the channels."""
    return x.softmax(-1)


def elu(x: Tensor) -> Tensor:
    """elu(x) + 1: x + 1 above 0, exp(x) below."""
    return torch.nn.functional.elu(x) + 1


def hedgehog(x: Tensor) -> Tensor:
    """Softmax of x, then softmax of -x; the learned projection ahead of it is left to the user."""
    return torch.cat([x.softmax(-1), (-x).softmax(-1)], -1)


# The power of the keys, and its range for queries: half of it and up, as published.
_POWER = 3.0


def _by_sign(x: Tensor, magnitude: Tensor) -> Tensor:
    """What is positive, then what is negative: channels of unlike sign do not meet."""
    nothing = torch.zeros_like(magnitude)
    return torch.cat(
        [torch.where(x > 0, magnitude, nothing), torch.where(x < 0, magnitude, nothing)], -1
    )


def norm_aware_query(q: Tensor) -> Tensor:
    """`|q / max|q||^p` by sign, where p = 3 (0.5 + tanh(norm)) grows with the norm of q.

    The softmax of a query is the sharper, the larger its norm; linear attention divides the norm
    out again. Here it comes back as a power. The norm is the root mean square of the channels: a
    head's Euclidean norm is about sqrt(D) and tanh of that is 1 for all queries. Dividing by the
    largest channel instead of the norm, as published, changes a row's scale only, which cancels.
    """
    tiny = torch.finfo(q.dtype).tiny
    size = q.square().mean(-1, keepdim=True).add(tiny).sqrt()
    # 0 to a power has no derivative by the power; `_by_sign` leaves out what is clamped.
    share = (q.abs() / q.abs().amax(-1, keepdim=True).clamp(min=tiny)).clamp(min=1e-12)
    return _by_sign(q, share ** (_POWER * (0.5 + size.tanh())))


def norm_aware_key(k: Tensor) -> Tensor:
    """`|k|^3` by sign; magnitudes whose power float16 does not hold are clamped (at 40)."""
    return _by_sign(k, k.abs().clamp(max=40.0) ** _POWER)


FEATURE_MAPS: dict[str, FeatureMap] = {
    "softmax": FeatureMap(softmax, softmax),
    "elu": FeatureMap(elu, elu),
    "relu": FeatureMap(torch.relu, torch.relu),
    "hedgehog": FeatureMap(hedgehog, hedgehog),
    "norm_aware": FeatureMap(norm_aware_query, norm_aware_key),
}


def feature_map(name: str | FeatureMap | Map) -> FeatureMap:
    """A map by its name, or one of your own.

    Args:
        name: a key of `FEATURE_MAPS`, a `FeatureMap`, or one function for queries and keys alike.

    Raises:
        ValueError: no map has that name.
    """
    if isinstance(name, FeatureMap):
        return name
    if callable(name):
        return FeatureMap(name, name)
    if name not in FEATURE_MAPS:
        raise ValueError(f"feature map must be one of {', '.join(FEATURE_MAPS)}, got {name!r}")
    return FEATURE_MAPS[name]
