"""Centroid compensation: one mean key and value stand for a skipped cluster.

For a query q and a cluster c of n keys, the exact share in numerator and denominator of the softmax
is sum_j exp(s q.k_j) (v_j, 1). With every key at the cluster's mean it is n exp(s q.mean_k)
(mean_v, 1), to first order in the spread of the keys. These terms go under the same softmax as the
tiles that are computed, so that no mass is lost where much is skipped (compare SVG-EAR, arXiv
2603.08982).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Scores that are held at once, in elements.
_CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class ClusterMeans:
    """Means of clusters.

    Attributes:
        means: float32 `(B, H, C, D)`, 0 for empty clusters.
        sizes: float32 `(B, H, C)`.
    """

    means: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, x: Tensor, labels: Tensor, clusters: int) -> ClusterMeans:
        """Mean of `x` `(B, H, L, D)` by label `(B, H, L)`, without labels from `clusters` up."""
        shape = (*x.shape[:2], clusters + 1, x.shape[-1])
        index = labels.long().clamp(max=clusters)
        sums = torch.zeros(shape, dtype=torch.float32, device=x.device)
        sums.scatter_add_(2, index[..., None].expand(x.shape), x.float())
        sizes = torch.zeros(shape[:3], dtype=torch.float32, device=x.device)
        sizes.scatter_add_(2, index, torch.ones_like(index, dtype=torch.float32))
        sums, sizes = sums[:, :, :clusters], sizes[:, :, :clusters]
        return cls(sums / sizes.clamp(min=1)[..., None], sizes)


@dataclass(frozen=True, eq=False)
class CentroidAttention:
    """Attention of every query to the centroids of the clusters that its tile skips.

    Attributes:
        keys: key clusters `(B, Hkv, C, …)`.
        values: means of the values by the same labels.
        skipped: bool `(B, H, Cq, C)`, by query tile.
        labels: query tile of each query, int32 `(B, H, L)`.
        scale: of the softmax.
    """

    keys: ClusterMeans
    values: ClusterMeans
    skipped: Tensor
    labels: Tensor
    scale: float

    def __call__(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output `(B, H, L, D)`, as q is, and its log-sum-exp, float32 `(B, H, L)`."""
        group = q.shape[1] // self.keys.means.shape[1]
        keys, values, sizes = (
            x.repeat_interleave(group, 1)
            for x in (self.keys.means, self.values.means, self.keys.sizes)
        )
        # -inf for kept clusters, and for empty ones by the log
        bias = sizes.log()[:, :, None, :].masked_fill(~self.skipped, -torch.inf)
        rows = max(1, _CHUNK // max(1, q.shape[0] * q.shape[1] * keys.shape[2]))
        outputs, totals = [], []
        for start in range(0, q.shape[2], rows):
            part = q[:, :, start : start + rows]
            labels = self.labels[:, :, start : start + rows, None].long()
            labels = labels.expand(-1, -1, -1, keys.shape[2])
            product = part @ keys.to(part.dtype).transpose(-1, -2)
            scores = product.float() * self.scale + bias.gather(2, labels)
            total = scores.logsumexp(-1)
            # a query that skips nothing has no share here: weights 0 instead of NaN
            weights = (scores - total.clamp(min=-1e30)[..., None]).exp()
            outputs.append((weights @ values).to(q.dtype))
            totals.append(total)
        return torch.cat(outputs, 2), torch.cat(totals, 2)
