"""What a report holds: what was skipped, where, and what it took, per step, block and branch."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Self

from ..attention.engine.records import AttentionLog
from ..calls.engine.method import CallLog
from ..core.reasons import Reason, advice, deciding
from .drift import Drift, drift_of
from .expectation import MEASURED, Expectation
from .step_choice import StepChoice


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
        reason: why, in words.
        error: what the gate compared, where it compared.
        blocks_run: blocks that ran.
        blocks_total: blocks there are.
        share: parameters of the blocks that ran, by those of all blocks.
        cause: what decided; of a branch that follows another one, what decided over that.
        seconds: time that the call took, of the device; None where that is not known.
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
    cause: Reason = Reason.NO_METHOD
    seconds: float | None = None

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
            cause=Reason.NO_METHOD if step.lone is None else Reason.NO_LOOP,
        )


@dataclass(frozen=True, eq=False, repr=False)
class ReportData:
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
        memory: most bytes that the cache held at once, by what they were for.
        tensors_per_branch: tensors that the histories hold per branch when full.
        tensors: what they are: `hidden states` or `outputs`.
        modules: computed share of the calls of each module whose output can be forecast, since
            `accelerate`; empty where no method looks at modules.
        correction: what became of `correction="auto"`, empty where it was not asked for.
        left: error that the newest generation's forecasts were seen to leave in the latents
            (`expectation`), by their size; None where that is not known.
        refused: why the newest call was refused, empty where it was not.
        warnings: lines that were shown.
        assumed: what was taken for granted, or learnt, of a transformer of no known family.
        notes: what else a reader may want to know.
        step_choice: how many steps the newest call ran, and why, where the config may choose.
        errors: where the config was tuned, step -> error that the gap which it ended left in the
            latents, of the newest generation's first branch (`drift`).
        latents: likewise, shape of one sample's latents.
        loop_steps: likewise, steps of its loop.
        attention: the log of each transformer whose attention is replaced.
        call_logs: the log of each transformer whose calls a call method carries out.
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
    memory: dict[str, int] = field(default_factory=dict)
    tensors_per_branch: int = 0
    tensors: str = "hidden states"
    modules: dict[str, float] = field(default_factory=dict)
    correction: str = ""
    left: float | None = None
    refused: str = ""
    warnings: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    step_choice: StepChoice | None = None
    errors: dict[int, float] = field(default_factory=dict)
    latents: tuple[int, ...] = ()
    loop_steps: int | None = None
    attention: tuple[AttentionLog, ...] = ()
    call_logs: tuple[CallLog, ...] = ()
    is_on: bool = True

    @property
    def cache_bytes(self) -> int:
        """Most bytes that the cache held at once."""
        return sum(self.memory.values())

    @property
    def computed_share(self) -> float:
        """Block computation done, by that of dense runs; 1.0 before the first call."""
        return self.share_sum / self.total_calls if self.total_calls else 1.0

    @property
    def newest(self) -> tuple[CallRecord, ...]:
        """The calls of the newest denoising loop."""
        last = self.calls[-1].generation if self.calls else 0
        return tuple(call for call in self.calls if call.generation == last)

    def last_generation(self) -> Self:
        """Return the report of the newest denoising loop alone; it shares nothing with this one."""
        calls = self.newest
        return replace(
            self,
            config=copy.deepcopy(self.config),
            filled=copy.deepcopy(self.filled),
            memory=dict(self.memory),
            modules=dict(self.modules),
            attention=tuple(log.copy() for log in self.attention),
            call_logs=tuple(copy.copy(log) for log in self.call_logs),
            calls=calls,
            total_calls=len(calls),
            forecasts=sum(call.action == "forecast" for call in calls),
            share_sum=sum(call.share for call in calls),
        )

    @property
    def timing(self) -> Timing | None:
        """Time that the newest calls took; None where no call of them was timed."""
        return Timing.of(self.calls)

    @property
    def causes(self) -> dict[tuple[str, Reason], int]:
        """Steps of the newest generation per (action, cause): computed ones first.

        A step counts once for each cause that one of its branches had.
        """
        return steps_per_cause(self.newest)

    def verdict(self) -> str:
        """One line in plain words."""
        if self.refused:
            return f"The newest run was refused: {self.refused}"
        if not self.total_calls:
            return (
                "No transformer call was seen: run the pipeline first. If you did, its transformer "
                "was replaced or compiled as a whole after accelerate()."
            )
        if "cache" not in self.config:
            return (
                f"{self.total_calls} transformer calls were computed; no caching method of "
                "ditaccel is on."
            )
        if not self.forecasts:
            found = {cause: n for (_, cause), n in steps_per_cause(self.calls).items()}
            most = deciding(found)
            return (
                f"Nothing was skipped: all {self.total_calls} transformer calls were computed "
                f"(mostly: {most.value}). To skip steps, {advice(most)}."
            )
        return (
            f"{self.forecasts} of {self.total_calls} transformer calls were forecast; blocks did "
            f"{100 * self.computed_share:.0f} % of the dense computation."
        )

    @property
    def drift(self) -> Drift | None:
        """How the newest generation compares with the runs that its config was tuned on.

        None where the config holds no profile of them, or nothing was judged yet.
        """
        tuned = self.config.get("tuned", {})
        profile, runs = tuned.get("profile", ()), tuned.get("prompts", 0)
        return drift_of(profile, self.errors, runs) if self.errors else None

    @property
    def expected(self) -> Expectation | None:
        """PSNR of the newest generation against dense; None where its error is not known, or 0."""
        return MEASURED.expect(self.left) if self.left else None


def steps_per_cause(calls: Iterable[CallRecord]) -> dict[tuple[str, Reason], int]:
    """Number of steps per (action, cause): computed ones first, then the most frequent."""
    steps = {(c.transformer, c.generation, c.step, c.action, c.cause) for c in calls}
    counts = Counter((action, cause) for *_, action, cause in steps)
    return dict(sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0])))


@dataclass(frozen=True)
class Timing:
    """Time of transformer calls, measured.

    Attributes:
        calls: how many were timed.
        seconds: of all of them together.
        computed: seconds of a computed call, the median; None where there is none.
        forecast: the same of a forecast call.
        speedup: time of as many computed calls, by the time of these: an estimate of what caching
            saves within the transformer, from the medians of each branch. None where nothing was
            forecast.
    """

    calls: int
    seconds: float
    computed: float | None
    forecast: float | None
    speedup: float | None

    @classmethod
    def of(cls, calls: Iterable[CallRecord]) -> Timing | None:
        """From the calls that were timed."""
        groups: dict[tuple[str, str], dict[str, list[float]]] = {}
        actions: dict[str, list[float]] = {"compute": [], "forecast": []}
        for call in calls:
            if call.seconds is not None:
                group = groups.setdefault((call.transformer, call.branch), {})
                group.setdefault(call.action, []).append(call.seconds)
                actions[call.action].append(call.seconds)
        number = sum(map(len, actions.values()))
        if not number:
            return None
        dense = spent = 0.0
        for group in groups.values():
            computed, forecast = group.get("compute", []), group.get("forecast", [])
            if not computed:
                continue
            # medians: the first call of a process, or one that compiles, says nothing of the others
            dense += median(computed) * (len(computed) + len(forecast))
            spent += median(computed) * len(computed)
            spent += median(forecast) * len(forecast) if forecast else 0.0
        return cls(
            calls=number,
            seconds=sum(sum(seconds) for seconds in actions.values()),
            computed=median(actions["compute"]) if actions["compute"] else None,
            forecast=median(actions["forecast"]) if actions["forecast"] else None,
            speedup=dense / spent if actions["forecast"] and spent else None,
        )
