"""Dense runs in which every transformer call is also made with sparse attention, and compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...attention.engine.options import TileOptions
from ...attention.engine.planner import (
    Dense,
    DenseReason,
    LayerContext,
    Plan,
    Planner,
    State,
    planner_of,
)
from ...core.denoising.tracker import DenoisingStep
from ...core.outputs import tensors_of
from ...core.patching import PatchLedger
from ...core.transformers import transformers_of
from ...errors import UnsupportedError
from ...kernels import Precision, TileAttentionOutput
from ...pipelines import FamilyAdapter
from ..observe import observed
from ..recording import COLUMNS, Recorder, Recording, record, watch_scheduler

T = TypeVar("T")


def clock(device: torch.device) -> float:
    """Seconds: of the process on a CPU, where other work must not count; else of the device."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class ModeErrors:
    """What sparse attention does to the outputs of a loop of S steps, in M modes besides dense.

    Attributes:
        gram: mean inner products, `(S (1 + M), S (1 + M))`: first of the outputs of all steps, then
            of what each mode adds to the guided output of each step, mode by mode.
        seconds: of a transformer call, dense and in each mode, `(1 + M,)`.
        outside: seconds of a generation outside the transformer.
        dense: seconds of the dense generation itself.
        density: mean computed share of the attention matrix in each mode; 1 where it was never
            sparse.
    """

    gram: np.ndarray
    seconds: tuple[float, ...]
    outside: float
    dense: float
    density: tuple[float, ...]


class _Modes(Planner):
    """Plans a call as the mode that is on does; dense while none is."""

    break_even = 1.0

    def __init__(self, configs: Sequence[TileOptions]) -> None:
        self.planners = [planner_of(config) for config in configs]
        self.on: int | None = None
        self.place: DenoisingStep | None = None
        self.component = ""
        self.densities: list[list[float]] = [[] for _ in configs]

    @property
    def _planner(self) -> Planner | None:
        return None if self.on is None else self.planners[self.on]

    @property
    def backend(self) -> str | None:  # type: ignore[override]
        return None if self._planner is None else self._planner.backend

    @property
    def precision(self) -> Precision:  # type: ignore[override]
        return "model" if self._planner is None else self._planner.precision

    def attach(self, name: str, transformer: nn.Module, ledger: PatchLedger) -> None:
        """See `Planner`."""
        for planner in self.planners:
            planner.attach(name, transformer, ledger)

    def begin(self, name: str, step: DenoisingStep) -> None:
        """See `Planner`."""
        self.component, self.place = name, step

    def plan(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Plan | Dense:
        """See `Planner`."""
        planner, mode = self._planner, self.on
        if planner is None or mode is None or q.shape[2] < planner.least_tokens:
            return Dense(DenseReason.WATCHED)
        found = planner.plan(q, k, v, scale, context, state.setdefault(mode, {}))
        if isinstance(found, Plan):
            self.densities[mode].append(found.tile_map.density())
        return found

    def update(self, plan: Plan, result: TileAttentionOutput, state: State) -> None:
        """See `Planner`."""
        if self._planner is not None:
            self._planner.update(plan, result, state[self.on])


class _ModeRecorder(Recorder):
    """Listens to one dense run, and makes each call once more per mode."""

    def __init__(self, budget: int, modes: _Modes) -> None:
        super().__init__(budget)
        self.modes = modes
        self.seconds: list[list[float]] = [[] for _ in range(1 + len(modes.planners))]
        self._began = 0.0
        self._dense: dict[str, Tensor] = {}
        self._sparse: list[dict[str, Tensor]] = [{} for _ in modes.planners]

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._began = clock(_device(args, kwargs))

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        device, modes = _device(args, kwargs), self.modes
        self.seconds[0].append(clock(device) - self._began)
        place, name = modes.place, modes.component
        if place is None or place.lone is not None:
            return
        dense = tensors_of(output)[0]
        self.called(name, place, dense)
        self._dense[place.branch] = dense.detach().clone()  # pipelines may guide in place
        for mode, planner in enumerate(modes.planners):
            start = clock(device)
            modes.on = mode
            try:
                planner.begin(name, place)
                try:
                    made = module.forward(*args, **kwargs)
                finally:
                    planner.end(name)
            finally:
                modes.on = None
            self.seconds[1 + mode].append(clock(device) - start)
            self._sparse[mode][place.branch] = tensors_of(made)[0].detach().clone()

    def stepped(self, guided: Tensor) -> None:
        super().stepped(guided)
        calls, self._dense = self._dense, {}
        outputs = list(calls.values())
        if len(outputs) not in (1, 2) or any(o.shape != guided.shape for o in outputs):
            raise UnsupportedError(
                "what sparse attention does to the guided output is not known here: the pipeline "
                f"makes it of {len(outputs)} outputs of another shape; leave attention out of the "
                "space"
            )
        weights = _weights(guided, outputs)
        for mode, made in enumerate(self._sparse):
            error = sum(
                weight * (made[branch].double() - calls[branch].double())
                for weight, branch in zip(weights, calls, strict=True)
            )
            self.store.add(f"mode {mode}", torch.as_tensor(error).float())
            made.clear()

    def errors(self, total: float) -> ModeErrors:
        """What was seen, of a run that took `total` seconds."""
        series = "first" if self.paired else "guided"
        names = [series, *(f"mode {mode}" for mode in range(len(self._sparse)))]
        batch, _, values = self.store.shape(series)
        gram: Any = 0.0
        for start in range(0, values, COLUMNS):
            seen = [self.store.columns(name, start, start + COLUMNS) for name in names]
            part = torch.cat(seen, 1)
            gram = gram + (part @ part.mT).sum(0).numpy() / values / batch
        spent = sum(map(sum, self.seconds))
        densities = self.modes.densities
        outside = max(total - spent, 0.0)
        return ModeErrors(
            np.asarray(gram),
            tuple(float(np.median(seconds)) for seconds in self.seconds),
            outside,
            outside + sum(self.seconds[0]),
            tuple(sum(d) / len(d) if d else 1.0 for d in densities),
        )


def _device(args: Any, kwargs: Any) -> torch.device:
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")


def _weights(guided: Tensor, outputs: Sequence[Tensor]) -> list[float]:
    """Weights of one or two outputs in the guided one."""
    base = outputs[0].double()
    if len(outputs) == 1:
        return [float((guided.double() * base).sum() / base.square().sum().clamp(min=1e-20))]
    apart = outputs[1].double() - base
    along = ((guided.double() - base) * apart).sum() / apart.square().sum().clamp(min=1e-20)
    return [1.0 - float(along), float(along)]


def record_modes(
    pipe: Any,
    adapter: FamilyAdapter | None,
    run: Callable[[], T],
    budget: int,
    configs: Sequence[TileOptions],
) -> tuple[T, Recording, ModeErrors]:
    """Run one dense generation, and make every transformer call once more in each mode.

    Each mode carries its own state along the loop, and all begin each step at the dense latents: so
    an error is that of one call.

    Args:
        pipe: an unaccelerated pipeline.
        adapter: of its transformers; by default that of their family.
        run: calls the pipeline once.
        budget: bytes of outputs to hold in memory; the rest goes to a temporary file.
        configs: of the modes.

    Returns:
        What `run` returned, the recording of the dense outputs, and the errors of the modes.

    Raises:
        UnsupportedError: attention cannot be reached, or the guided output is made in a way that is
            not known.
        UsageError: the temporary folder is full.
    """
    if not configs:
        return _record_dense(pipe, adapter, run, budget)
    modes = _Modes(configs)
    recorder, ledger = _ModeRecorder(budget, modes), PatchLedger(object())
    transformers, _ = transformers_of(pipe, adapter)
    with observed(pipe, modes, adapter), _hooked(transformers, recorder.before, recorder.after):
        watch_scheduler(pipe.scheduler, recorder, ledger)
        try:
            result, total = _timed(transformers, run)
        finally:
            ledger.undo()
    return result, recorder.reduced(), recorder.errors(total)


@contextmanager
def _hooked(
    transformers: Mapping[str, nn.Module], before: Callable[..., Any], after: Callable[..., Any]
) -> Iterator[None]:
    """Hooks around the calls of some transformers, for the length of a `with` block."""
    with ExitStack() as stack:
        for transformer in transformers.values():
            for handle in (
                transformer.register_forward_pre_hook(before, with_kwargs=True),
                transformer.register_forward_hook(after, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        yield


def _timed(transformers: Mapping[str, nn.Module], run: Callable[[], T]) -> tuple[T, float]:
    """What a function returns, and the seconds that it took."""
    device = next(next(iter(transformers.values())).parameters()).device
    start = clock(device)
    result = run()
    return result, clock(device) - start


def _record_dense(
    pipe: Any, adapter: FamilyAdapter | None, run: Callable[[], T], budget: int
) -> tuple[T, Recording, ModeErrors]:
    """`record_modes` without any mode: nothing is asked of the attention."""
    transformers, family = transformers_of(pipe, adapter)
    seconds: list[float] = []
    began: list[float] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        began.append(clock(_device(args, kwargs)))

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seconds.append(clock(_device(args, kwargs)) - began.pop())

    with _hooked(transformers, before, after):
        (result, recording), total = _timed(
            transformers, lambda: record(pipe, transformers, family, run, budget)
        )
    products = recording.guided if recording.first is None else recording.first
    outside = max(total - sum(seconds), 0.0)
    return (
        result,
        recording,
        ModeErrors(products.mean(0), (float(np.median(seconds)),), outside, total, ()),
    )
