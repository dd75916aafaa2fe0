"""Features in, prediction out.

All bases here are linear combinations of the features of computed steps. So a history keeps the
features themselves, at most `order + 1` of them, and a basis is only a rule that turns the places
of the computed steps into weights; one pass over the snapshots then makes the forecast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...core.ranks import Ranks
from ...errors import ConfigError

Coefficients = list[float]


def _difference_table(places: Sequence[float], order: int) -> list[Coefficients]:
    """Backward differences of TaylorSeer at the newest place, as weights over the snapshots.

    `D_{i+1} = (D_i(new) - D_i(previous)) / gap` with the gap between the two newest computed steps
    of each level; places are newest first.
    """
    count = len(places)
    level = [[1.0 if i == j else 0.0 for j in range(count)] for i in range(count)]
    table = [level[0]]
    for _ in range(order):
        level = [
            [
                (new - old) / (places[i] - places[i + 1])
                for new, old in zip(level[i], level[i + 1], strict=True)
            ]
            for i in range(len(level) - 1)
        ]
        table.append(level[0])
    return table


def taylor_weights(places: Sequence[float], target: float, order: int) -> Coefficients:
    """TaylorSeer (arXiv 2503.06923): `sum_i D_i x^i / i!`, x = distance to the newest place.

    Beyond order 1 the recursion is biased against the interpolating polynomial, which damps noise.
    """
    x = target - places[0]
    weights = [0.0] * len(places)
    for i, row in enumerate(_difference_table(places, order)):
        factor = x**i / math.factorial(i)
        weights = [w + factor * c for w, c in zip(weights, row, strict=True)]
    return weights


def newton_weights(places: Sequence[float], target: float, order: int) -> Coefficients:
    """Extrapolation of the interpolating polynomial through the newest `order + 1` steps."""
    used = places[: order + 1]
    weights = []
    for i, place in enumerate(used):
        weight = 1.0
        for j, other in enumerate(used):
            if i != j:
                weight *= (target - other) / (place - other)
        weights.append(weight)
    return weights + [0.0] * (len(places) - len(used))


def hermite_weights(places: Sequence[float], target: float, order: int) -> Coefficients:
    """HiCache (arXiv 2508.16984): Taylor's powers replaced by contracted Hermite polynomials.

    `x^i` becomes `s^i H_i(s x)` with the physicists' polynomials and s = 0.5, which bounds the
    growth of high orders at long distances.
    """
    contraction = 0.5
    x = contraction * (target - places[0])
    polynomials = [1.0, 2.0 * x]
    for i in range(1, order):
        polynomials.append(2.0 * x * polynomials[i] - 2.0 * i * polynomials[i - 1])
    weights = [0.0] * len(places)
    for i, row in enumerate(_difference_table(places, order)):
        factor = contraction**i * polynomials[i] / math.factorial(i)
        weights = [w + factor * c for w, c in zip(weights, row, strict=True)]
    return weights


WEIGHTS: dict[str, Callable[[Sequence[float], float, int], Coefficients]] = {
    "taylor": taylor_weights,
    "newton": newton_weights,
    "hermite": hermite_weights,
}
BASES = (*WEIGHTS, "exponential", "auto")


def combine(snapshots: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return `sum_i weights[i] * snapshots[i]`, accumulated in at least float32.

    Args:
        snapshots: tensors of one shape `(B, …)`, dtype and device.
        weights: one number each.
    """
    pairs = [(w, s) for w, s in zip(weights, snapshots, strict=True) if w != 0.0]
    if not pairs:
        return torch.zeros_like(snapshots[0])
    dtype = snapshots[0].dtype
    wide = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
    weight, first = pairs[0]
    total = first.to(wide) * weight
    for weight, snapshot in pairs[1:]:
        total.add_(snapshot, alpha=weight)
    return total.to(dtype)


def relative_l1(
    forecast: torch.Tensor,
    actual: torch.Tensor,
    per_sample: bool = False,
    ranks: Ranks | None = None,
) -> Any:
    """Return mean|forecast - actual| / mean|actual| as a 0-d tensor, or `(B,)` per sample.

    Args:
        forecast: `(B, …)`.
        actual: the same.
        per_sample: one figure for each item of the batch.
        ranks: that have the other tokens, where several compute together.
    """
    dims = tuple(range(1, actual.ndim)) if per_sample else tuple(range(actual.ndim))
    if ranks is not None:
        sums = [x.abs().sum(dims, dtype=torch.float32) for x in (forecast - actual, actual)]
        difference, size = ranks.total(torch.stack(sums))
        return difference / size.clamp_min(1e-12)
    difference = (forecast - actual).abs().mean(dims, dtype=torch.float32)
    return difference / actual.abs().mean(dims, dtype=torch.float32).clamp_min(1e-12)


def features_kept(order: int, basis: str) -> int:
    """Number of features that a full `History` holds."""
    # the exponential basis estimates its decay from three
    return max(order + 1, 3 if basis in ("exponential", "auto") and order else 1)


class History:
    """The newest features of one place in the network, with where on the trajectory they were.

    Args:
        order: highest order of forecast; `order + 1` features are kept.
        basis: one of `BASES`. `auto` takes the basis that forecast the computed steps best so far.

    Attributes:
        nbytes: bytes held.
    """

    def __init__(self, order: int, basis: str = "taylor") -> None:
        if order < 0:
            raise ConfigError(f"order is {order}; give 0 (reuse), 1 (linear) or more")
        if basis not in BASES:
            raise ConfigError(f"unknown basis {basis!r}; known: {', '.join(BASES)}")
        self.order = order
        self.basis = basis
        self._keep = features_kept(order, basis)
        self._features: list[torch.Tensor] = []
        self._places: list[float] = []
        self._errors: dict[str, float] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._features)

    @property
    def newest(self) -> torch.Tensor:
        """The feature of the newest computed step."""
        return self._features[0]

    @property
    def features(self) -> Sequence[torch.Tensor]:
        """Features of computed steps, the newest first."""
        return self._features

    @property
    def places(self) -> Sequence[float]:
        """Where on the trajectory they were."""
        return self._places

    @property
    def chosen(self) -> str:
        """The basis in use."""
        if self.basis != "auto":
            return self.basis
        return min(self._errors, key=self._errors.__getitem__, default="taylor")

    def push(self, place: float, feature: torch.Tensor) -> None:
        """Remember the feature of a computed step.

        The feature is copied: a fused kernel that later writes into its input must not reach it.
        """
        if self.basis == "auto" and len(self) >= 2:
            self._score(place, feature)
        if self._places and place == self._places[0]:
            self._places.pop(0)
            self._features.pop(0)
        self._features.insert(0, feature.detach().clone())
        self._places.insert(0, place)
        del self._features[self._keep :], self._places[self._keep :]
        # every call asks, of every module
        self.nbytes = sum(f.numel() * f.element_size() for f in self._features)

    def limit(self, order: int) -> None:
        """Continue with forecasts of a lower order, and keep no more than they need."""
        self.order = order
        self._keep = features_kept(order, self.basis)
        del self._features[self._keep :], self._places[self._keep :]
        self.nbytes = sum(f.numel() * f.element_size() for f in self._features)

    def _score(self, place: float, feature: torch.Tensor) -> None:
        for basis in (*WEIGHTS, "exponential"):
            error = float(relative_l1(self._forecast(place, basis), feature))
            before = self._errors.get(basis)
            self._errors[basis] = error if before is None else 0.5 * (before + error)

    def forecast(self, place: float, order: int | None = None) -> torch.Tensor:
        """Return the forecast at `place`; the order is limited by the features there are.

        Args:
            place: where on the trajectory.
            order: of this forecast, at most that of the history; None for that of the history.
        """
        return self._forecast(place, self.chosen, order)

    def _forecast(self, place: float, basis: str, order: int | None = None) -> torch.Tensor:
        order = min(self.order if order is None else order, self.order, len(self) - 1)
        if basis == "exponential":
            if order >= 1 and len(self) >= 3:
                return self._exponential(place)
            basis = "taylor"
        return combine(self._features, WEIGHTS[basis](self._places, place, order))

    def _exponential(self, place: float) -> torch.Tensor:
        """A slope that decays (or grows) by one factor per unit, read off the last two slopes."""
        f0, f1, f2 = self._features[:3]
        p0, p1, p2 = self._places[:3]
        new, old = (f0 - f1).float() / (p0 - p1), (f1 - f2).float() / (p1 - p2)
        between = (p0 - p2) / 2
        ratio = ((new * old).sum() / (old * old).sum().clamp_min(1e-20)).clamp(0.05, 1.5)
        decay = (-ratio.log() / between).to(torch.float32)
        x = place - p0
        reach = torch.where(
            (decay * x).abs() < 1e-4, torch.full_like(decay, x), -torch.expm1(-decay * x) / decay
        )
        slope_at_newest = torch.exp(-decay * (p0 - p1) / 2)
        return (f0.float() + new * (slope_at_newest * reach)).to(f0.dtype)
