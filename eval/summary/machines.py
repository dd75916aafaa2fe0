"""Where rows were timed: each against dense runs of its own machine, and what several of them mean.

A machine here is a device of a merged run's machine: two kinds of GPU in one computer are two.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..measure.pairs import Dense, Pair, best_of
from ..measure.timing import Timing, apart
from ..specs import RunConfig
from .distances import Lines
from .verdicts import Kind, Level, Verdict

# Number of the machine in a merged run, and name of the device.
Place = tuple[int, str]


def _place(line: Mapping[str, Any]) -> Place:
    """Which machine and device a line was made on."""
    name = line.get("device", {}).get("name")
    return line.get("machine", 0), name or "unknown device"


class Machines:
    """The machines of one run.

    Args:
        run: checked content of `run.json`.
        lines: results by row and sample.
        dense_id: of the dense row.
    """

    def __init__(self, run: Mapping[str, Any], lines: Lines, dense_id: str) -> None:
        self._run, self._lines = run, lines
        every = [line for group in lines.values() for line in group.values()]
        runs: dict[Place, list[Timing]] = {_place(line): [] for line in every}
        for line in lines[dense_id].values():
            runs[_place(line)].append(Timing.from_dict(line["timing"]))
        for line in every:
            runs[_place(line)] += [Pair.from_dict(pair).dense for pair in line["pairs"]]
        self._dense = {place: Dense.of(found) for place, found in sorted(runs.items())}
        self._all = Dense.of([one for found in runs.values() for one in found])
        self._workers = max((line.get("workers", 1) for line in every), default=1)
        self._samples = {
            place: sum(_place(line) == place for line in lines[dense_id].values())
            for place in self._dense
        }
        names = [device for _, device in self._dense]
        self._speedups = {row: self._speedups_of(row) for row in lines}
        self._names = {
            (machine, name): name if names.count(name) == 1 else f"{name} (run {machine + 1})"
            for machine, name in self._dense
        }

    def dense(self, line: Mapping[str, Any]) -> Dense:
        """The dense runs of a line's machine."""
        return self._dense[_place(line)]

    @property
    def all_dense(self) -> dict[str, Any]:
        """Count and medians of all dense runs."""
        return {"runs": self._all.n, "seconds": self._all.seconds, "own": self._all.own}

    def _speedups_of(self, row: str) -> dict[Place, float]:
        """Median speed-up of a row on each machine that has timed it."""
        found: dict[Place, list[float]] = {}
        for line in self._lines[row].values():
            pairs = [Pair.from_dict(pair) for pair in line["pairs"]]
            if pairs:
                ratio = statistics.median([pair.ratio for pair in best_of(pairs)])
                found.setdefault(_place(line), []).append(ratio)
        return {place: statistics.median(ratios) for place, ratios in found.items()}

    def apart(self, row: str) -> str:
        """How a row's speed-up differs between machines; "" where it does not."""
        found = self._speedups.get(row, {})
        if len(found) < 2 or not apart(max(found.values()), min(found.values())):
            return ""
        each = [f"{value:.2f}× on {self._names[place]}" for place, value in found.items()]
        return f"its machines differ: {', '.join(each)}"

    def rows(self) -> list[dict[str, Any]]:
        """Each machine as `summary.json` holds it."""
        return [
            {
                "name": self._names[place],
                "samples": self._samples[place],
                "dense_seconds": dense.seconds,
                "speedup": {
                    row: found[place] for row, found in self._speedups.items() if place in found
                },
            }
            for place, dense in self._dense.items()
        ]

    def verdicts(self, configs: Sequence[RunConfig]) -> list[Verdict]:
        """What a reader has to know about where the rows were timed."""
        found = []
        if self._workers > 1:
            words = (
                f"{self._workers} workers shared this machine while rows were timed. A row and its "
                "dense run met the same load, but seconds are longer than those of one worker "
                "alone, and speed-ups are those of a loaded machine: to publish timings, run with "
                "one worker."
            )
            found.append(Verdict(Kind.SHARED_MACHINE, Level.WARNING, words))
        if len(self._dense) > 1:
            found.append(Verdict(Kind.SEVERAL_MACHINES, Level.WARNING, self._several(configs)))
        return found

    def _several(self, configs: Sequence[RunConfig]) -> str:
        each = [
            f"{self._names[place]}, {n} sample{'s' * (n != 1)}"
            for place, n in self._samples.items()
        ]
        kinds = {device for _, device in self._dense}
        where = f"on {len(each)} machines" if len(kinds) == len(each) else f"in {len(each)} runs"
        differ = [config.label for config in configs if self.apart(config.id)]
        twice = sum(machine.get("left_out", 0) for machine in self._run.get("machines", ()))
        words = (
            f"Rows were timed {where}: {'; '.join(each)}. Each is paired with dense runs of its "
            "own machine and run; seconds are of all of them together, and a row's "
            "speed-up is the median over samples of all of them."
        )
        if differ:
            words += (
                f" The machines do not agree on {', '.join(differ)}: go by the speed-ups of each "
                "machine."
            )
        if twice:
            words += f" {twice} samples that several runs had were taken from one of them."
        return words
