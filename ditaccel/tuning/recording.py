"""Dense runs, one at a time, reduced to the inner products that a schedule search needs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ..core._compat import ContextListener
from ..core.calls import Arguments
from ..core.denoising.tracker import DenoisingStep, DenoisingTracker
from ..core.outputs import tensors_of
from ..core.patching import PatchLedger, unwrapped
from ..errors import UsageError
from ..pipelines import FamilyAdapter

T = TypeVar("T")

COLUMNS = 1 << 16


class OutputStore:
    """The outputs of one dense run, by series; what exceeds a budget lies in a temporary file.

    Args:
        budget: bytes to hold in memory.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held = 0
        self._file: Any = None
        self._series: dict[str, list[torch.Tensor]] = {}

    @property
    def spooled(self) -> bool:
        """Whether a part lies in a file."""
        return self._file is not None

    def add(self, series: str, output: torch.Tensor) -> None:
        """Append a copy of an output `(B, …)`, in its own dtype, on the CPU.

        Raises:
            UsageError: the temporary folder is full.
        """
        kept = output.detach().to("cpu", copy=True).contiguous()
        size = kept.numel() * kept.element_size()
        if self._held + size > self._budget:
            kept = self._spool(kept)
        else:
            self._held += size
        self._series.setdefault(series, []).append(kept)

    def _spool(self, output: torch.Tensor) -> torch.Tensor:
        raw = output.flatten().view(torch.uint8).numpy()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="ditaccel-tune-")  # noqa: SIM115
            offset = self._file.seek(0, 2)
            self._file.write(raw.data)
            self._file.flush()
        except OSError as error:
            raise UsageError(
                f"tune cannot spool recorded outputs to {tempfile.gettempdir()}: {error}; name a "
                "folder with room in TMPDIR, or raise memory_budget"
            ) from None
        mapped = np.memmap(self._file, np.uint8, "r+", offset, raw.shape)
        return torch.from_numpy(mapped).view(output.dtype).reshape(output.shape)

    def drop(self, *series: str) -> None:
        """Forget some series."""
        for name in series:
            self._series.pop(name, None)

    def shape(self, series: str) -> tuple[int, int, int]:
        """Samples, outputs, and values in an output of one sample."""
        outputs = self._series.get(series, [])
        first = outputs[0] if outputs else torch.empty(0, 0)
        return len(first), len(outputs), first[0].numel() if len(first) else 0

    def columns(self, series: str, start: int, end: int) -> torch.Tensor:
        """Values `start` to `end` of all outputs, `(B, S, end - start)`, in float64."""
        # costs are small differences of large products: float32 would rank noise
        parts = [o.flatten(1)[:, start:end].double() for o in self._series[series]]
        return torch.stack(parts, 1)


@dataclass(frozen=True)
class Recording:
    """What is kept of one dense run of B samples over S steps.

    Attributes:
        steps: of the denoising loop.
        guided: mean products of the outputs that the scheduler got, `(B, S, S)`.
        first: the same of the first branch's outputs, None unless every step called the
            transformer for two branches and the scheduler got something of the same shape.
        difference: the same of the second branch's outputs less the first one's.
        along: per step, sum of products of `guided - first` with that difference, `(S,)`.
        length: per step, sum of squares of that difference, `(S,)`.
        names: of the transformer that computed each step.
    """

    steps: tuple[DenoisingStep, ...]
    guided: np.ndarray
    first: np.ndarray | None = None
    difference: np.ndarray | None = None
    along: np.ndarray | None = None
    length: np.ndarray | None = None
    names: tuple[str, ...] = ()


class Recorder:
    """Listens to one dense run."""

    def __init__(self, budget: int) -> None:
        self.steps: list[DenoisingStep] = []
        self.names: list[str] = []
        self.store = OutputStore(budget)
        self.calls: dict[str, torch.Tensor] = {}
        self._branches: list[str] | None = None
        self.paired = True

    def called(self, name: str, place: DenoisingStep, output: torch.Tensor) -> None:
        if not self.steps or self.steps[-1].index != place.index:
            self.steps.append(place)
            self.names.append(name)
        if self.paired:
            # pipelines may guide in place
            self.calls[place.branch] = output.detach().clone()

    def stepped(self, guided: torch.Tensor) -> None:
        self.store.add("guided", guided)
        calls, self.calls = self.calls, {}
        if not self.paired:
            return
        names = list(calls)
        shapes = {tuple(c.shape) for c in calls.values()}
        self._branches = names if self._branches is None else self._branches
        if len(names) == 2 and names == self._branches and shapes == {tuple(guided.shape)}:
            for series, output in zip(("first", "other"), calls.values(), strict=True):
                self.store.add(series, output)
        else:
            self.paired = False
            self.store.drop("first", "other")

    def reduced(self) -> Recording:
        batch, count, values = self.store.shape("guided")
        guided, first, difference = (torch.zeros(batch, count, count).double() for _ in range(3))
        along, length = torch.zeros(count).double(), torch.zeros(count).double()
        for start in range(0, values, COLUMNS):
            part = (start, start + COLUMNS)
            seen = self.store.columns("guided", *part)
            guided += seen @ seen.mT / values
            if not self.paired:
                continue
            base = self.store.columns("first", *part)
            first += base @ base.mT / values
            apart = self.store.columns("other", *part) - base
            difference += apart @ apart.mT / values
            along += ((seen - base) * apart).sum((0, 2))
            length += (apart * apart).sum((0, 2))
        steps, names = tuple(self.steps), tuple(self.names)
        if not self.paired:
            return Recording(steps, guided.numpy(), names=names)
        pair = first.numpy(), difference.numpy(), along.numpy(), length.numpy()
        return Recording(steps, guided.numpy(), *pair, names)


def record(
    pipe: Any,
    transformers: Mapping[str, nn.Module],
    adapter: FamilyAdapter,
    run: Callable[[], T],
    budget: int,
) -> tuple[T, Recording]:
    """Run one dense generation and reduce its outputs; nothing is left on the pipeline.

    Args:
        pipe: the pipeline.
        transformers: component name -> transformer, of one loop.
        adapter: their family.
        run: calls the pipeline once.
        budget: bytes of outputs to hold in memory at a time; the rest goes to a temporary file.

    Returns:
        What `run` returned, and the recording.

    Raises:
        UsageError: the temporary folder is full.
    """
    if budget < 0:
        raise UsageError(f"memory_budget is {budget}; it must be 0 bytes or more")
    recorder, ledger = Recorder(budget), PatchLedger(object())
    try:
        _watch_transformers(pipe, transformers, adapter, recorder, ledger)
        watch_scheduler(pipe.scheduler, recorder, ledger)
        result = run()
    finally:
        ledger.undo()
    return result, recorder.reduced()


def _watch_transformers(
    pipe: Any,
    transformers: Mapping[str, nn.Module],
    adapter: FamilyAdapter,
    recorder: Recorder,
    ledger: PatchLedger,
) -> None:
    """Tell the recorder of each call, with its place in the loop, until the ledger is undone."""
    tracker = DenoisingTracker(pipe)
    # (pictures alone are looked at: that sound has a scheduler of its own makes no difference)
    in_sight = adapter.second_stream is None

    def watch(name: str, transformer: nn.Module) -> None:
        listener, arguments = ContextListener(unwrapped(transformer)), Arguments(transformer)
        ledger.on_undo(listener.detach)

        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            timestep = adapter.timestep_in(arguments.named(args, kwargs))
            place = tracker.observe(
                name,
                timestep,
                listener.current(),
                adapter.preconditioned,
                in_sight and adapter.is_converted(unwrapped(transformer)),
            )
            recorder.called(name, place, tensors_of(output)[0])
            return output

        ledger.intercept(transformer, around)

    for name, transformer in transformers.items():
        watch(name, transformer)


def watch_scheduler(scheduler: Any, recorder: Recorder, ledger: PatchLedger) -> None:
    """Tell the recorder what each `scheduler.step` is given, until the ledger is undone."""
    step, before = scheduler.step, vars(scheduler).get("step")

    def watched(model_output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        recorder.stepped(model_output)
        return step(model_output, *args, **kwargs)

    def put_back() -> None:
        if before is None:
            vars(scheduler).pop("step", None)
        else:
            scheduler.step = before

    ledger.on_undo(put_back)
    scheduler.step = watched
