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

from ditaccel.core.transformers import denoisers_of

_MINOR = 0.05


@dataclass
class Call:
    """One call of a transformer.

    Attributes:
        transformer: component name.
        timestep: the timestep argument as it came.
        work: parameters of the block layers that ran in it.
        begin: when the pipeline called it.
        end: when the pipeline had its output, None where it raised.
    """

    transformer: str
    timestep: Any
    work: float = 0.0
    begin: Moment | None = None
    end: Moment | None = None

    @property
    def seconds(self) -> float | None:
        """What the call took; waits for the device."""
        return None if self.begin is None or self.end is None else self.end.since(self.begin)


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
    """The counts of one generation.

    Attributes:
        calls: calls of transformers, in order.
        layers: how often each watched layer ran, by transformer and place.
        weights: parameters that each of them stands for.
    """

    calls: list[Call] = field(default_factory=list)
    layers: dict[tuple[str, int], int] = field(default_factory=dict)
    weights: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def work(self) -> float:
        """Block work of the whole generation, in parameters × calls."""
        return sum(call.work for call in self.calls)

    def least_share(self, dense: Tally) -> float | None:
        """The share of dense's time that this generation takes at the very least.

        Parameters say how much work a layer is, not how long it takes: attention has none and may
        take most of the time. But what ran least tells how little of the time was left, whatever
        each layer takes: the least share of any layer, of each transformer by its work.

        Returns:
            None where the layers differ from dense's, or there are none.
        """
        if not dense.layers or self.weights.keys() != dense.weights.keys():
            return None
        least: dict[str, float] = {}
        work: dict[str, float] = {}
        for key, count in dense.layers.items():
            share = self.layers.get(key, 0) / count
            least[key[0]] = min(least.get(key[0], share), share)
            work[key[0]] = work.get(key[0], 0.0) + count * dense.weights[key]
        whole = sum(work.values())
        return sum(least[name] * part for name, part in work.items()) / whole if whole else None

    @property
    def denoise_seconds(self) -> float | None:
        """Seconds from the first transformer call to the end of the last."""
        first = next((call.begin for call in self.calls if call.begin is not None), None)
        last = next((call.end for call in reversed(self.calls) if call.end is not None), None)
        return None if first is None or last is None else last.since(first)

    @property
    def denoiser_seconds(self) -> float | None:
        """Seconds inside transformer calls: no scheduler, text encoder or VAE."""
        seconds = [call.seconds for call in self.calls if call.seconds is not None]
        return sum(seconds) if seconds else None

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
def _called_through(
    modules: dict[str, nn.Module], around: Callable[[str, nn.Module, Callable[[], Any], Any], Any]
) -> Iterator[None]:
    """Put `around` in front of all that a call of these modules runs into.

    Hooks of a module would not do: a cache that stands before them answers in their place, and a
    forecast step would not be seen. So it is the class whose `__call__` is exchanged meanwhile.
    """
    names = {id(module): name for name, module in modules.items()}
    kinds = {type(module) for module in modules.values()}
    running: set[int] = set()  # a `__call__` that leads to its base class's is one call

    def exchanged(original: Any) -> Callable[..., Any]:
        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = names.get(id(self))
            if name is None or id(self) in running:
                return original(self, *args, **kwargs)
            timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
            running.add(id(self))
            try:
                return around(name, self, lambda: original(self, *args, **kwargs), timestep)
            finally:
                running.discard(id(self))

        return call

    before: dict[Any, Any] = {kind: kind.__call__ for kind in kinds}
    own = [kind for kind in kinds if "__call__" in vars(kind)]
    try:
        for kind, original in before.items():
            kind.__call__ = exchanged(original)
        yield
    finally:
        for kind, original in before.items():
            if kind in own:
                kind.__call__ = original
            else:
                del kind.__call__


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

    def around(name: str, module: nn.Module, run: Callable[[], Any], timestep: Any) -> Any:
        if between is not None:
            between(len(tally.calls))
        call = Call(name, timestep, begin=Moment(module))
        tally.calls.append(call)
        output = run()
        call.end = Moment(module)
        return output

    def count(key: tuple[str, int], weight: float) -> Callable[..., None]:
        tally.weights[key] = weight

        def hook(module: nn.Module, args: Any) -> None:
            if tally.calls:
                tally.calls[-1].work += weight
                tally.layers[key] = tally.layers.get(key, 0) + 1

        return hook

    try:
        transformers = denoisers_of(pipe)
        for name, transformer in transformers.items():
            for place, (layer, weight) in enumerate(probes_of(transformer)):
                inner, hook = _inner_forward(layer), count((name, place), weight)
                if inner is None:
                    handles.append(layer.register_forward_pre_hook(hook))
                else:
                    wrapped.append((inner, inner.original_forward))
                    inner.original_forward = _and_then(hook, inner.original_forward)
        with _called_through(transformers, around):
            yield tally
    finally:
        for handle in handles:
            handle.remove()
        for inner, original in wrapped:
            inner.original_forward = original
