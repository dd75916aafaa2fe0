"""How close runs come to what their machine can do: the floor of a generation, and its share.

The floor of a row is at most what the row really needs: dense's count of operations and weights,
times the least share of any layer that the row computed. Where that is not known (sparse
attention), attention counts for nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from ..measure.ceilings import Ceilings
from ..measure.timing import Timing

# A run that beats its floor by more than this tells that the ceilings were measured too low.
_BEATEN = 1.1


class Limits:
    """The limits of one run.

    Args:
        run: checked content of `run.json`.
        warmup: of the dense row: what a dense generation took.
    """

    def __init__(self, run: Mapping[str, Any], warmup: Mapping[str, Any]) -> None:
        machines = run.get("machines") or [run]
        known = [machine.get("ceilings") for machine in machines]
        self._ceilings = [None if one is None else Ceilings(**one) for one in known]
        self._names = [(one.get("device") or {}).get("name") or "This device" for one in machines]
        self._flops: float | None = warmup.get("flops")
        self._linear = (self._flops or 0.0) - warmup.get("attention_flops", 0.0)
        self._work: float = warmup.get("work", 0.0)
        self._dtype = str(run.get("dtype", ""))
        self.beaten = False

    def _floor(self, line: Mapping[str, Any]) -> float | None:
        place = line.get("machine", 0)
        ceilings = self._ceilings[place] if place < len(self._ceilings) else None
        if ceilings is None or self._flops is None:
            return None
        least, share = line.get("least_share"), line["computed_share"]
        flops = self._linear * share if least is None else self._flops * least
        moved = self._work * ceilings.itemsize * (share if least is None else least)
        return ceilings.floor(flops, moved)

    def row(self, lines: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
        """Median floor of a row's generations in seconds, and what share of their time it is."""
        floors, shares = [], []
        for line in lines.values():
            floor = self._floor(line)
            timing = Timing.from_dict(line["timing"])
            own = None if timing.parallel else timing.own
            if floor is not None:
                floors.append(floor)
                shares.append(floor / (own or timing.seconds))
        if not floors:
            return {"floor_seconds": None, "floor_share": None}
        share = statistics.median(shares)
        self.beaten |= share > _BEATEN
        return {"floor_seconds": statistics.median(floors), "floor_share": share}

    def described(self) -> dict[str, str]:
        """The ceilings in words for people; empty where they are not known."""
        known = zip(self._names, self._ceilings, strict=True)
        name, ceilings = next((pair for pair in known if pair[1] is not None), ("", None))
        if ceilings is None or self._flops is None:
            return {}
        if self.beaten:
            words = (
                "Physical limits are not shown: a row was faster than they allow, so they were "
                "measured while the machine was busy."
            )
            return {"text": words}  # what `floor_share` would say is left out of the rows
        kind = f" of {self._dtype}" if self._dtype else ""
        words = (
            f"{name} reached {_si(ceilings.flops)}FLOP/s in matrix products{kind} and "
            f"{_si(ceilings.bytes)}B/s in a copy of {_si(ceilings.copied)}B (as much as the "
            "weights), in the process that ran the rows. A dense generation takes "
            f"{_si(self._flops)}FLOP and reads {_si(self._work * ceilings.itemsize)}B of weights: "
            f"at least {ceilings.floor(self._flops, self._work * ceilings.itemsize):.3g} s. What "
            "is missing to 100 % is what better code could gain; a row that computes less has a "
            "lower floor, so the share does not measure its speed."
        )
        return {"text": words}


def _si(value: float) -> str:
    """A number with its prefix: `119 G`."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
