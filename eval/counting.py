"""What a generation really ran: block work, transformer calls and time, counted from outside.

The same probes sit on every row of a comparison (dense, fewer steps, methods, peers), so that no
method reports on itself. A probe hangs on the layers inside the blocks: a cache may call a block
and return a stored value, but a layer that is called has been computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

_MINOR = 0.05


@dataclass
class Call:
    """One call of a transformer.

    Attributes:
        transformer: component name.
        timestep: the timestep argument as it came.
        work: parameters of the block layers that ran in it.
    """

    transformer: str
    timestep: Any
    work: float = 0.0


class Moment:
    """A point in time: of the clock, or on a CUDA device of the work queued so far.

    Asking the clock there would time the queueing, and waiting for the device at every call would
    slow the run down.

    Args:
        module: whose device is meant.
    """

    def __init__(self, module: nn.Module) -> None:
        self._clock = time.perf_counter()
        self._device = _device(module)
        self._event: Any = None
        if self._device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(self._device))

    def since(self, other: Moment) -> float:
        """Return the seconds between two moments; waits for the device."""
        if self._event is None or self._device != other._device:
            return self._clock - other._clock
        self._event.synchronize()
        return float(other._event.elapsed_time(self._event)) / 1000.0


def _device(module: nn.Module) -> torch.device:
    """Where a module computes: under offloading its weights may rest elsewhere."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@dataclass
class Tally:
    """The counts of one generation."""

    calls: list[Call] = field(default_factory=list)
    first: Moment | None = None
    last: Moment | None = None

    @property
    def work(self) -> float:
        """Block work of the whole generation, in parameters × calls."""
        return sum(call.work for call in self.calls)

    @property
    def denoise_seconds(self) -> float | None:
        """Seconds from the first transformer call to the end of the last."""
        return None if self.first is None or self.last is None else self.last.since(self.first)

    def timeline(self) -> list[tuple[int, int, Call]]:
        """(step, branch, call): the same timestep again is the next branch of the step."""
        rows, step, branch, before = [], -1, 0, None
        for call in self.calls:
            now = _scalar(call.timestep)
            step, branch = (step, branch + 1) if now == before else (step + 1, 0)
            before = now
            rows.append((step, branch, call))
        return rows


def _scalar(timestep: Any) -> float | None:
    if isinstance(timestep, torch.Tensor):
        return float(timestep.detach().float().max())
    return None if timestep is None else float(timestep)


def transformers_of(pipe: Any) -> dict[str, nn.Module]:
    """The denoisers of a pipeline: its components named `transformer…` (or `unet`)."""
    return {
        name: part
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module) and name.split("_")[0] in ("transformer", "unet")
    }


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: the members of its block lists, in order."""
    return [
        block
        for name, child in transformer.named_children()
        if isinstance(child, nn.ModuleList) and "block" in name
        for block in child
    ]


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _probe(part: nn.Module) -> nn.Module | None:
    """One layer of a part that runs whenever the part is computed."""
    layers = [m for m in part.modules() if list(m.parameters(recurse=False))]
    if not layers:
        return None
    named = dict(part.named_modules())
    # Fused projections leave to_q uncalled; the output projection always runs.
    out = named.get("to_out.0")
    return out if out is not None and _size(out) else max(layers, key=_size)


def probes_of(transformer: nn.Module) -> list[tuple[nn.Module, float]]:
    """Layers to watch, each with the parameters it stands for.

    Norms are left out: their modulation layers run on one token, and DiT calls the first block's
    again for its last layer. So are parts below 5 % of a block: they cost a hook and say nothing.
    """
    found = []
    for block in blocks_of(transformer):
        parts = {n: part for n, part in block.named_children() if not n.startswith("norm")}
        whole = sum(_size(part) for part in parts.values())
        for part in parts.values():
            size = _size(part)
            layer = _probe(part)
            if layer is not None and size >= _MINOR * whole:
                found.append((layer, float(size)))
    return found


def _inner_forward(layer: nn.Module) -> Any | None:
    """Where a diffusers hook keeps the layer's own forward, if one sits on the layer itself.

    Such a hook answers in the layer's place, after torch's hooks have counted the call.
    """
    registry = vars(layer).get("_diffusers_hook")
    references = [ref for ref in getattr(registry, "_fn_refs", []) if ref.original_forward]
    return references[0] if references else None


def _and_then(count: Callable[..., None], forward: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        count(None, args)
        return forward(*args, **kwargs)

    return both


@contextmanager
def counted(pipe: Any, between: Callable[[int], None] | None = None) -> Iterator[Tally]:
    """Count what the generations inside the block run.

    Args:
        pipe: the pipeline that will be called.
        between: called before each transformer call with its number (costs time: warm-up only).

    Yields:
        The tally, filled as the generation goes.
    """
    tally = Tally()
    handles: list[Any] = []
    wrapped: list[tuple[Any, Any]] = []

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if between is not None:
                between(len(tally.calls))
            if tally.first is None:
                tally.first = Moment(module)
            timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
            tally.calls.append(Call(name, timestep))

        return hook

    def after(module: nn.Module, args: Any, output: Any) -> None:
        tally.last = Moment(module)

    def count(weight: float) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if tally.calls:
                tally.calls[-1].work += weight

        return hook

    try:
        for name, transformer in transformers_of(pipe).items():
            handles.append(transformer.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(transformer.register_forward_hook(after))
            for layer, weight in probes_of(transformer):
                inner = _inner_forward(layer)
                if inner is None:
                    handles.append(layer.register_forward_pre_hook(count(weight)))
                else:
                    wrapped.append((inner, inner.original_forward))
                    inner.original_forward = _and_then(count(weight), inner.original_forward)
        yield tally
    finally:
        for handle in handles:
            handle.remove()
        for inner, original in wrapped:
            inner.original_forward = original
