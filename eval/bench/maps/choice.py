"""Which map serves which head: the least error within a share of dense attention's time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ditaccel.attention.head_wise import HeadWiseConfig
from ditaccel.errors import UsageError

from .curves import Row
from .records import Records

_BISECTIONS = 40


@dataclass(frozen=True)
class _Candidate:
    """A map for the heads of one group, which share keys.

    Attributes:
        spec: of the map.
        error: squared error that these heads add, as a share of their layer's squared output.
        cost: time of planning and computing them, as a share of dense attention's for the same.
    """

    spec: str
    error: float
    cost: float


def _candidates(rows: Sequence[Row], layer: str, heads: Sequence[int]) -> list[_Candidate]:
    """What each map would give to the heads of a group.

    A map is timed for all heads of a layer at once: planning is shared evenly among them, and the
    kernel by the densities of their maps.
    """
    found = []
    for row in rows:
        own = row["layers"].get(layer)
        if own is None or row["planning"] is None:
            continue
        error = sum(own["error"][h] for h in heads)
        density = sum(own["density"][h] for h in heads) / len(heads)
        cost = row["planning"] + row["kernel"] * density / max(row["density"], 1e-9)
        found.append(_Candidate(row["spec"], error, cost))
    return found


def _choose(groups: Sequence[Sequence[_Candidate]], budget: float) -> list[_Candidate]:
    """A candidate per group: the least sum of errors whose mean cost keeps to the budget.

    By Lagrange: the price of cost at which every group's own best choice just keeps to it.
    """

    def at(price: float) -> list[_Candidate]:
        return [min(group, key=lambda c: c.error + price * c.cost) for group in groups]

    def cost(chosen: Sequence[_Candidate]) -> float:
        return sum(c.cost for c in chosen) / len(chosen)

    if cost(at(0.0)) <= budget:
        return at(0.0)
    low, high = 0.0, 1e6
    if cost(at(high)) > budget:
        least = cost(at(high))
        raise UsageError(
            f"{budget:g}: the cheapest maps take {least:.2f} of dense attention's time here; give "
            "more, or measure sparser settings",
            "choose",
        )
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5 if low else high * 1e-3
        low, high = (low, middle) if cost(at(middle)) <= budget else (middle, high)
    return at(high)


def choose(rows: Sequence[Row], records: Records, budget: float) -> HeadWiseConfig:
    """The config whose heads are served by the maps that suit them.

    Layers that were not recorded get the map that is best for all recorded heads together.

    Args:
        rows: figures of all maps on the records.
        records: of all heads of some layers.
        budget: share of dense attention's time that planning and computing may take.

    Raises:
        UsageError: only some heads were recorded, or no maps keep to the budget.
    """
    call = records.read(0)
    layers, count = call.context.layers, call.q.shape[1]
    group = count // call.k.shape[1]
    if records.about["asked"]["heads"] is not None:
        raise UsageError("a choice for each head needs all of them; record without it", "heads")
    # Maps alone, without what a method may add for all heads; the precision is one for all.
    rows = [
        row
        for row in rows
        if row["method"] != HeadWiseConfig.method
        and row["option"]
        and row["precision"] == rows[0]["precision"]
    ]
    if not rows:
        raise UsageError("nothing was measured that has a map alone; name other methods", "methods")
    own = [list(range(start, start + group)) for start in range(0, count, group)]
    recorded = sorted({layer for _, layer in records.layer_names()})
    names = {layer: f"{name}/{layer}" for name, layer in reversed(records.layer_names())}
    groups = [_candidates(rows, names[layer], heads) for layer in recorded for heads in own]
    chosen = _choose(groups, budget)
    by_layer = {
        layer: [c.spec for c in chosen[i * len(own) : (i + 1) * len(own)] for _ in range(group)]
        for i, layer in enumerate(recorded)
    }
    specs = [spec for spec, _ in Counter(c.spec for c in chosen).most_common()]
    numbers = {spec: number for number, spec in enumerate(specs)}
    other = [0] * count  # the map that serves most heads
    served = [
        tuple(numbers[spec] for spec in by_layer[layer]) if layer in by_layer else tuple(other)
        for layer in range(layers)
    ]
    made = HeadWiseConfig(maps=tuple(specs), heads=tuple(served))
    return replace(made, precision=rows[0]["precision"]) if rows[0]["precision"] else made
