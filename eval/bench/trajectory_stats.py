"""What is measured along the steps of a dense run: changes, predictors, ratios, attention."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ditaccel.pipelines import FamilyAdapter
from torch import Tensor, nn

from ditaccel.attention.engine.planner import LayerContext, State, Watcher
from ditaccel.core.calls import Arguments
from ditaccel.core.outputs import tensors_of

from .sparsity import heaviest, tile_mass

TILE_ROWS = 8  # of an attention map that are looked at, spread over the sequence


class Trajectory:
    """Statistics of what the scheduler is given at each step, over any number of dense runs.

    Three outputs are held at a time, whatever the model's size.
    """

    def __init__(self) -> None:
        self.changes: dict[int, list[float]] = defaultdict(list)
        self.likeness: list[float] = []  # |correlation| of output and latents, per step
        self._moments: dict[int, Tensor] = defaultdict(lambda: torch.zeros(5).double())
        self._last: list[Tensor] = []
        self.steps = 0

    def begin(self) -> None:
        """Start another run."""
        self._last, self.steps = [], 0

    def add(self, output: Tensor, latents: Tensor) -> None:
        """Take the guided output of one step and the latents it was made for."""
        output = output.detach().float()
        if output.shape == latents.shape:
            both = torch.stack([output.flatten(), latents.detach().float().flatten()])
            self.likeness.append(float(torch.corrcoef(both)[0, 1].abs().nan_to_num()))
        if self._last:
            last = self._last[-1]
            change = (output - last).abs().mean() / output.abs().mean().clamp(min=1e-12)
            self.changes[self.steps].append(float(change))
        if len(self._last) == 2:
            older, newer = (o.flatten().double() for o in self._last)
            now = output.flatten().double()
            products = [newer @ newer, newer @ older, older @ older, now @ newer, now @ older]
            # A step weighs what its share of the output is, not how large it happens to be.
            self._moments[self.steps] += torch.stack(products).cpu() / float(now @ now)
        self._last = [*self._last[-1:], output]
        self.steps += 1

    def change(self, start: float, end: float) -> float | None:
        """Mean relative L1 change over the steps from the share `start` to `end` of the run."""
        inside = [v for k in self._within(start, end, self.changes) for v in self.changes[k]]
        return statistics.mean(inside) if inside else None

    def weights(self, start: float, end: float) -> tuple[float, float] | None:
        """Least-squares weights of the newest and the last but one output for the next one."""
        inside = self._within(start, end, self._moments)
        if not inside:
            return None
        nn_, no, oo, xn, xo = sum(self._moments[k] for k in inside).tolist()  # type: ignore[union-attr]
        determinant = nn_ * oo - no * no
        if determinant <= 1e-12 * nn_ * oo:
            return None
        return (xn * oo - xo * no) / determinant, (xo * nn_ - xn * no) / determinant

    def _within(self, start: float, end: float, of: Any) -> list[int]:
        return [k for k in sorted(of) if start * self.steps <= k < end * self.steps]


@contextmanager
def watched(scheduler: Any, trajectory: Trajectory) -> Iterator[None]:
    """Show `trajectory` every step of a scheduler within a `with` block."""
    step, before = scheduler.step, vars(scheduler).get("step")

    def around(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kw: Any) -> Any:
        trajectory.add(model_output, sample)
        return step(model_output, timestep, sample, *args, **kw)

    scheduler.step = around
    try:
        yield
    finally:
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before


class Residuals:
    """MagCache's ratios: how the length of what all blocks add changes from step to step.

    Only the first guidance branch counts. Transformers that take turns (two experts) go on with
    one series.

    Args:
        trajectory: says which step it is.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        self._trajectory = trajectory
        self._lengths: dict[int, Tensor] = {}

    @contextmanager
    def watching(self, transformer: nn.Module, adapter: FamilyAdapter) -> Iterator[None]:
        """Listen to one transformer within a `with` block."""
        contracts = [
            c
            for c in adapter.blocks
            if not c.gives_hints and len(getattr(transformer, c.container, ()))
        ]
        if not contracts:
            yield
            return
        entry, end = contracts[0], contracts[-1]
        entered: list[Any] = [None]

        def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered[0] = Arguments(module).get(entry.hidden, args, kwargs)

        def leaves(module: nn.Module, args: Any, output: Any) -> None:
            begun, entered[0] = entered[0], None
            step = self._trajectory.steps
            left = tensors_of(output, len(end.returns))[end.returns.index("hidden")]
            if begun is None or left.ndim != 3 or step in self._lengths:
                return
            image = begun.shape[1]
            left = left[:, :image] if end.joint_text == "back" else left[:, -image:]
            if left.shape == begun.shape:
                self._lengths[step] = (left - begun).detach().float().norm(dim=-1).cpu()

        first = getattr(transformer, entry.container)[0]
        last = getattr(transformer, end.container)[-1]
        handles = [
            first.register_forward_pre_hook(enters, with_kwargs=True),
            last.register_forward_hook(leaves),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def ratios(self) -> list[float]:
        """Mean over tokens of each step's ratio to the one before; empty where none was seen."""
        series = [self._lengths[k] for k in sorted(self._lengths)]
        pairs = itertools.pairwise(series)
        return [float((b / a.clamp(min=1e-12)).mean()) for a, b in pairs if a.shape == b.shape]


class AttentionWatcher(Watcher):
    """Least share of tiles that carries the mass, and how much of it lasts for another step.

    Args:
        mass: of the softmax.
        tiles: queries and keys of a tile.
        every: look at every n-th step and the one after it.
    """

    def __init__(self, mass: float, tiles: tuple[int, int], every: int) -> None:
        self._mass, self._tiles, self._every = mass, tiles, max(2, every)
        self.density: dict[tuple[int, int], list[float]] = defaultdict(list)
        self.overlap: dict[tuple[int, int], list[float]] = defaultdict(list)

    def look(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """Add up the weights of some rows of tiles of each head, for the first sample."""
        turn = context.step.index % self._every
        if turn > 1:
            return
        height = self._tiles[0]
        rows = -(-q.shape[2] // height)
        chosen = torch.linspace(0, rows - 1, min(rows, TILE_ROWS)).round().long().unique().tolist()
        group = q.shape[1] // k.shape[1]
        for head in range(q.shape[1]):
            keys = k[0, head // group].float().T
            tiles = []
            for row in chosen:
                queries = q[0, head, row * height : (row + 1) * height].float()
                weights = (queries @ keys * scale).softmax(-1)[None]
                tiles.append(tile_mass(weights, *self._tiles))
            kept = heaviest(torch.cat(tiles, 1), self._mass)
            self.density[context.layer, head].append(float(kept.float().mean()))
            last = state.get(("kept", head))
            if turn == 1 and last is not None and last.shape == kept.shape:
                self.overlap[context.layer, head].append(float((kept & last).sum() / kept.sum()))
            state["kept", head] = kept

    def heads(self) -> list[dict[str, Any]]:
        """One row per layer and head."""
        return [
            {
                "layer": layer,
                "head": head,
                "density": round(statistics.mean(values), 4),
                "overlap": round(statistics.mean(self.overlap[layer, head]), 4)
                if self.overlap[layer, head]
                else None,
            }
            for (layer, head), values in sorted(self.density.items())
        ]


@torch.no_grad()
def as_initialised(module: nn.Module) -> bool:
    """Whether the weights look as torch draws them at first: within `1 / sqrt(inputs)`.

    Training takes some weights of nearly every layer out of those bounds.
    """
    layers = [
        m
        for m in module.modules()
        # Quantised weights are of other types, and never random.
        if isinstance(m, nn.Linear) and type(m.weight) is nn.Parameter and m.weight.numel() >= 64
    ]
    inside = [float(m.weight.abs().max()) <= 1.0001 * m.in_features**-0.5 for m in layers]
    return bool(inside) and sum(inside) >= 0.9 * len(inside)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """What a transformer takes or gives, its floating tensors in `dtype`."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(_cast(v, dtype) for v in value)
    if type(value) is dict:
        return {key: _cast(inner, dtype) for key, inner in value.items()}
    if isinstance(value, dict):  # diffusers' outputs
        for key, inner in list(value.items()):
            value[key] = _cast(inner, dtype)
    return value


@contextmanager
def other_precision(transformers: list[nn.Module], dtype: torch.dtype) -> Iterator[torch.dtype]:
    """Let transformers compute in another precision within a `with` block; the rest stays.

    float32 runs under bfloat16 autocast. Half-precision weights are widened to float32, which makes
    the same numbers more exact, and stay so: do this last.

    Args:
        transformers: of one pipeline.
        dtype: of their weights.
    """
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32

    def computing(inner: Any, kind: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if dtype == torch.float32:
                with torch.autocast(kind, dtype=torch.bfloat16):
                    output = inner(*args, **kwargs)
            else:
                output = inner(*_cast(args, torch.float32), **_cast(kwargs, torch.float32))
            return _cast(output, dtype)

        return forward

    forwards = [vars(module).get("forward") for module in transformers]
    for module in transformers:
        kind = next(module.parameters()).device.type
        if dtype != torch.float32:
            module.float()
        module.forward = computing(module.forward, kind)
    try:
        yield other
    finally:
        for module, forward in zip(transformers, forwards, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward
