"""Report: what was skipped, where, and what it took, per step, block and branch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .attention.records import AttentionLog


@dataclass(frozen=True)
class CallRecord:
    """One transformer call.

    Attributes:
        generation: denoising loop since `accelerate`, from 0.
        step: scheduler step within the loop, from 0.
        branch: guidance branch.
        transformer: component that was called.
        timestep: timestep argument.
        sigma: noise level, where the scheduler has one.
        action: `compute` or `forecast`.
        reason: why.
        error: what the gate compared, where it compared.
        blocks_run: blocks that ran.
        blocks_total: blocks there are.
        share: parameters of the blocks that ran, by those of all blocks.
    """

    generation: int
    step: int
    branch: str
    transformer: str
    timestep: float
    sigma: float | None
    action: str
    reason: str
    error: float | None
    blocks_run: int
    blocks_total: int
    share: float

    @classmethod
    def computed(cls, transformer: str, step: Any, reason: str) -> CallRecord:
        """A call that ran in full."""
        return cls(
            generation=step.generation,
            step=step.index,
            branch=step.branch,
            transformer=transformer,
            timestep=step.timestep,
            sigma=step.sigma,
            action="compute",
            reason=reason,
            error=None,
            blocks_run=1,
            blocks_total=1,
            share=1.0,
        )


@dataclass(frozen=True, eq=False)
class Report:
    """What happened since `accelerate` (or in one generation of it), up to when it was asked for.

    Attributes:
        family: the pipeline's family.
        method: names of the methods.
        config: the config as plain data, whole.
        filled: options of it that nobody gave and the family did: option -> value.
        calls: the newest calls (at most `journal.MAX_CALLS`).
        total_calls: number of all calls.
        forecasts: number of all forecast calls.
        share_sum: sum of all calls' shares.
        cache_bytes: most bytes that the histories held at once.
        tensors_per_branch: tensors that the histories hold per branch when full.
        tensors: what they are: `hidden states` or `outputs`.
        correction: what became of `correction="auto"`, empty where it was not asked for.
        warnings: lines that were shown.
        assumed: what was taken for granted, or learnt, of a transformer of no known family.
        attention: the log of each transformer whose attention is replaced.
        is_on: whether the methods are still on.
    """

    family: str
    method: str
    config: dict[str, Any]
    filled: dict[str, Any] = field(default_factory=dict)
    calls: tuple[CallRecord, ...] = ()
    total_calls: int = 0
    forecasts: int = 0
    share_sum: float = 0.0
    cache_bytes: int = 0
    tensors_per_branch: int = 0
    tensors: str = "hidden states"
    correction: str = ""
    warnings: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    attention: tuple[AttentionLog, ...] = ()
    is_on: bool = True

    @property
    def computed_share(self) -> float:
        """Block computation done, by that of dense runs; 1.0 before the first call."""
        return self.share_sum / self.total_calls if self.total_calls else 1.0

    def last_generation(self) -> Report:
        """Return the report of the newest denoising loop alone."""
        newest = self.calls[-1].generation if self.calls else 0
        calls = tuple(call for call in self.calls if call.generation == newest)
        return replace(
            self,
            calls=calls,
            total_calls=len(calls),
            forecasts=sum(call.action == "forecast" for call in calls),
            share_sum=sum(call.share for call in calls),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        data = asdict(replace(self, attention=()))
        data["computed_share"] = self.computed_share
        data["attention"] = [row for log in self.attention for row in log.rows()]
        return data

    def to_json(self) -> str:
        """Return JSON."""
        return json.dumps(self.to_dict(), indent=1)

    def verdict(self) -> str:
        """One line in plain words."""
        if not self.total_calls:
            return (
                "No transformer call was seen: run the pipeline first. If you did, its transformer "
                "was replaced or compiled as a whole after accelerate()."
            )
        if "cache" not in self.config:
            return f"{self.total_calls} transformer calls were computed; no caching method is on."
        if not self.forecasts:
            reasons = Counter(c.reason for c in self.calls).most_common(1)
            return (
                f"Nothing was skipped: all {self.total_calls} transformer calls were computed "
                f"(mostly: {reasons[0][0]}). Raise the threshold, tolerance or interval, or use "
                "more steps."
            )
        return (
            f"{self.forecasts} of {self.total_calls} transformer calls were forecast; blocks did "
            f"{100 * self.computed_share:.0f} % of the dense computation."
        )

    def __str__(self) -> str:
        off = "" if self.is_on else " (off now)"
        lines = [f"ditaccel report: {self.family}, {self.method or 'no method'}{off}"]
        for kind in ("cache", "attention"):
            options = dict(self.config.get(kind) or {})
            options.pop("method", None)
            if options:
                lines.append("  " + ", ".join(f"{k}={v}" for k, v in options.items()))
        if self.filled:
            own = ", ".join(f"{k}={v}" for k, v in self.filled.items())
            lines.append(f"  (not given, so {self.family}'s own: {own})")
        lines.append(self.verdict())
        if self.calls and "cache" in self.config:
            lines.append(
                f"Cache: {self.cache_bytes / 1e6:.2f} MB at most "
                f"({self.tensors_per_branch} {self.tensors} per branch)."
            )
            if self.correction:
                lines.append(f"Gap correction: {self.correction}.")
            lines += _table(self.last_generation().calls)
        for log in self.attention:
            lines += log.lines()
        lines += [f"Assumed: {a}" for a in self.assumed]
        lines += [f"Warning: {w}" for w in self.warnings]
        return "\n".join(lines)


def _table(calls: Iterable[CallRecord]) -> list[str]:
    """The last generation: a hit map per transformer and branch, then the reasons."""
    calls = list(calls)
    rows: dict[tuple[str, str], list[CallRecord]] = {}
    for call in calls:
        rows.setdefault((call.transformer, call.branch), []).append(call)
    width = max(len(f"{t} {b}") for t, b in rows)
    lines = [f"Last generation, one sign a step (# computed, . forecast, {len(rows)} branch(es)):"]
    for (transformer, branch), group in rows.items():
        marks = {c.step: "#" if c.action == "compute" else "." for c in group}
        text = "".join(marks.get(step, " ") for step in range(max(marks) + 1))
        computed = sum(c.action == "compute" for c in group)
        name = f"{transformer} {branch}"
        lines.append(f"  {name:<{width}}  {text}  {computed}/{len(group)} computed")
    reasons = Counter((c.action, c.reason.split(" of ")[0]) for c in calls)
    for (action, reason), count in reasons.most_common():
        errors = [
            c.error
            for c in calls
            if c.error is not None and (c.action, c.reason.split(" of ")[0]) == (action, reason)
        ]
        span = f", error {min(errors):.2g} to {max(errors):.2g}" if errors else ""
        lines.append(f"  {action:<8} {count:>4} x {reason}{span}")
    return lines
