"""How the latents of a loop answer to the transformer's outputs: probed, not known by class name.

A step of a deterministic scheduler is linear in the latents and in the outputs that it was given,
those that it remembers included. So one pass of a copy of the scheduler over unit vectors gives
every latent of the loop as a weighted sum of the outputs before it and of the initial latents:

    x_j = sum_{i < j} R[j, i] v_i + R[j, C] x_0          for a loop of C calls

Two samples of the same random outputs go through the same pass. Where they come out apart, the
scheduler draws noise; where they agree, but differ from the sum, it clips or thresholds. Neither is
known by the name of a class, so subclasses and wrappers are served as well.

The copy never shares anything with the user's scheduler: neither its state, nor its random numbers.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import threading
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch

from .schedulers import GivenSigmas, is_scheduler

# Responses that are remembered; one of 50 steps takes 20 kB.
_KEPT = 16
_KNOWN: OrderedDict[tuple[Any, ...], tuple[Probed, Response | None]] = OrderedDict()
_LOCK = threading.Lock()

# Random outputs are of this size, so that whatever clips at 1 does clip.
_SIZE = 3.0
# Rounding that a linear scheduler may show per call, by the sum of the absolute terms: some compute
# in float32 whatever they are given. Seen of linear ones: a fifth of a unit in the last place per
# call; of others: 5000 and more.
_ROUNDING = 8.0 * torch.finfo(torch.float32).eps


class Probed(Enum):
    """What probing a scheduler has shown.

    Attributes:
        LINEAR: its latents are weighted sums of outputs: there is a `Response`.
        STOCHASTIC: it draws noise (DDPM, ancestral, SDE and consistency samplers).
        NONLINEAR: it clips or thresholds.
        FAILED: it cannot be stepped as pipelines do, or gives NaN.
    """

    LINEAR = "linear"
    STOCHASTIC = "draws noise"
    NONLINEAR = "clips or thresholds"
    FAILED = "cannot be probed"


@dataclass(frozen=True, eq=False)
class Response:
    """Weights of all outputs, and of the initial latents, in all latents of a loop of C calls.

    A stage of a Heun-type step is a call of its own, as in the scheduler's timesteps.

    Attributes:
        latents: `(C + 1, C + 1)`, float64, read-only. Row j: the latents that go into call j,
            before `scale_model_input`; row C: those that the loop ends with. Column i < C: the
            output of call i, as the scheduler is given it; column C: the initial latents. Entries
            with i >= j are 0.
        input_scale: `(C,)`, what `scale_model_input` multiplies the latents of each call by.
    """

    latents: np.ndarray
    input_scale: np.ndarray

    def __post_init__(self) -> None:
        self.latents.setflags(write=False)
        self.input_scale.setflags(write=False)

    @property
    def calls(self) -> int:
        """Transformer calls of the loop, per branch."""
        return len(self.latents) - 1

    def effect(self, j: int, i: int) -> float:
        """Change of the latents before call j (C: of the last ones) per change of output i."""
        return float(self.latents[j, i])

    def width(self, i: int) -> float:
        """Change of the next latents per change of output i: `sigma_next - sigma` under Euler."""
        return float(self.latents[i + 1, i])

    def end(self, i: int) -> float:
        """Change of the last latents per change of output i."""
        return float(self.latents[-1, i])

    def initial(self, j: int) -> float:
        """Weight of the initial latents in those before call j."""
        return float(self.latents[j, -1])

    def moved(self, start: int, end: int) -> np.ndarray:
        """Weights, `(C + 1,)`, of the change of the latents from before call `start` to `end`."""
        moved: np.ndarray = self.latents[end] - self.latents[start]
        return moved

    @property
    def keeps_outputs(self) -> bool:
        """Whether a step uses more than its latents and its output (multistep, Heun)."""
        table = self.latents
        for j in range(1, self.calls):
            now, after = table[j], table[j + 1].copy()
            after[j] = 0.0
            factor = float(after @ now) / max(float(now @ now), 1e-300)
            if np.abs(after - factor * now).max() > 1e-5 * np.abs(table[j + 1]).max():
                return True
        return False


def euler(sigmas: Any, flow: bool) -> Response:
    """The response of Euler steps in closed form: each adds `(sigma_next - sigma) * output`.

    Args:
        sigmas: noise levels before each step and after the last one.
        flow: whether the latents are handed to the transformer as they are, as flow matching does;
            else divided by `sqrt(1 + sigma^2)`.
    """
    levels = np.asarray(sigmas, dtype=np.float64)
    count = len(levels) - 1
    table = np.tril(np.broadcast_to(np.append(np.diff(levels), 0.0), (count + 1, count + 1)), -1)
    table[:, -1] = 1.0
    scale = np.ones(count) if flow else 1.0 / np.hypot(1.0, levels[:-1])
    return Response(table, scale)


@dataclass(eq=False)
class Probe:
    """A scheduler as it was when a loop began, to be probed as soon as somebody asks.

    Args:
        scheduler: a copy of its own (`Probe.of`), or noise levels.
        offset: where in its timesteps the loop begins.
    """

    scheduler: Any
    offset: int
    _found: tuple[Probed, Response | None] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, scheduler: Any, offset: int) -> Probe:
        """Take a copy of a scheduler that is about to run; the scheduler is left alone."""
        if isinstance(scheduler, GivenSigmas):
            return cls(scheduler, offset)
        try:
            return cls(_copied(scheduler, {}), offset)
        except Exception:  # of whatever type: not every object can be copied
            return cls(None, offset, (Probed.FAILED, None))

    @property
    def probed(self) -> Probed:
        """What probing has shown."""
        return self._result()[0]

    @property
    def response(self) -> Response | None:
        """The response, None unless the scheduler is linear."""
        return self._result()[1]

    def _result(self) -> tuple[Probed, Response | None]:
        if self._found is not None:
            return self._found
        if isinstance(self.scheduler, GivenSigmas):
            given = self.scheduler
            self._found = (Probed.LINEAR, euler(given.sigmas[self.offset :], given.flow))
            return self._found
        key = self._key()
        with _LOCK:
            found = _KNOWN.get(key) if key is not None else None
            if key is not None and found is not None:
                _KNOWN.move_to_end(key)
        if found is None:
            found = _measured(self.scheduler, self.offset)
            with _LOCK:
                if key is not None:
                    _KNOWN[key] = found
                while len(_KNOWN) > _KEPT:
                    _KNOWN.popitem(last=False)
        self._found, self.scheduler = found, None
        return found

    def _key(self) -> tuple[Any, ...] | None:
        """All that a run depends on: the class, its tables, timesteps and options."""
        digest = hashlib.sha256()
        try:
            for part in _parts(self.scheduler, 0):
                digest.update(part)
        except TypeError:
            return None  # it is probed each time
        return type(self.scheduler), self.offset, digest.digest()


def _parts(value: Any, depth: int) -> Iterator[bytes]:
    """All that a part of a scheduler holds, as bytes.

    Raises:
        TypeError: it holds what cannot be compared.
    """
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    elif value is None or isinstance(value, (bool, int, float, str, Enum, np.generic)):
        yield repr(value).encode()
    elif depth < 8 and isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield f"{key}:".encode()
            yield from _parts(value[key], depth + 1)
    elif depth < 8 and isinstance(value, (list, tuple)):
        yield str(len(value)).encode()
        for each in value:
            yield from _parts(each, depth + 1)
    elif depth < 8 and is_scheduler(value):
        yield from _parts(vars(value), depth + 1)
    else:
        raise TypeError


def _copied(scheduler: Any, memo: dict[int, Any]) -> Any:
    """A copy of a scheduler, on the CPU, without latents of a run and without patches.

    A function put onto the instance in the place of a method (to watch `step`) would lead back to
    the user's scheduler: the copy has the class's method again.
    """
    twin = object.__new__(type(scheduler))
    memo[id(scheduler)] = twin
    for name, value in vars(scheduler).items():
        own = isinstance(value, types.MethodType) and value.__self__ is scheduler
        if callable(value) and not own and hasattr(type(scheduler), name):
            continue
        twin.__dict__[name] = _part(value, memo)
    return twin


def _part(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of a part of a scheduler."""
    if isinstance(value, torch.Tensor):
        # tables are rows of numbers; anything else is of a run, and may be large
        return value.detach().to("cpu", copy=True) if value.ndim < 2 else None
    if type(value) in (list, tuple):
        return type(value)(_part(each, memo) for each in value)
    if isinstance(value, torch.Generator):
        return None
    if is_scheduler(value):
        return memo.get(id(value)) or _copied(value, memo)
    return copy.deepcopy(value, memo)


def _measured(scheduler: Any, offset: int) -> tuple[Probed, Response | None]:
    """Step a copy of a scheduler through a loop; the copy is used up."""
    times = scheduler.timesteps[offset:]
    size = len(times) + 1
    draw = torch.Generator().manual_seed(size)
    random = _SIZE * torch.randn(size, size, generator=draw).double()
    inputs = torch.stack([torch.eye(size).double(), random, random], 1)
    rows, scales = [inputs[-1]], []
    try:
        with torch.inference_mode(), torch.device("cpu"):
            for latents, scale in _run(scheduler, times, inputs[:, :, None, None], draw):
                rows.append(latents.flatten(1))
                scales.append(scale)
    except Exception:  # of whatever type: a scheduler that wants something else of its caller
        pass
    table, first, second = torch.stack(rows, 1)
    most = _ROUNDING * size * (table.abs() @ random.abs())
    if bool(((first - second).abs() > most).any()):
        return Probed.STOCHASTIC, None
    if len(rows) < size or not bool(torch.isfinite(table).all() and np.isfinite(scales).all()):
        return Probed.FAILED, None
    if bool(((table @ random - first).abs() > most).any()):
        return Probed.NONLINEAR, None
    return Probed.LINEAR, Response(table.numpy(), np.array(scales))


def _own_numbers(parameters: Any) -> contextlib.AbstractContextManager[None]:
    """Keep the global random numbers where they are, where `step` takes no generator."""
    if "generator" in parameters:
        return contextlib.nullcontext()
    return torch.random.fork_rng(devices=[])


def _run(
    scheduler: Any, times: torch.Tensor, inputs: torch.Tensor, draw: torch.Generator
) -> Iterator[tuple[torch.Tensor, float]]:
    """Run a loop as pipelines do.

    Args:
        scheduler: to step.
        times: its timesteps.
        inputs: outputs of all calls and, last, the initial latents, `(C + 1, 3, 1, 1, C + 1)`.
        draw: random numbers for `step`.

    Yields:
        The latents after each call, `(3, 1, 1, C + 1)`, and the scale of its model input.
    """
    latents, before = inputs[-1], None
    parameters = inspect.signature(scheduler.step).parameters
    rest: dict[str, Any] = {"generator": draw} if "generator" in parameters else {}
    for i, now in enumerate(times):
        scale = _input_scale(scheduler, latents, now)
        with _own_numbers(parameters):
            if "old_pred_original_sample" in parameters:  # CogVideoX's own DPM solver
                back = times[i - 1] if i else None
                given: tuple[Any, ...] = (inputs[i].clone(), before, now, back, latents)
                latents, before = scheduler.step(*given, **rest, return_dict=False)
            else:
                out = scheduler.step(inputs[i].clone(), now, latents, **rest)
                latents = out[0] if isinstance(out, tuple) else out.prev_sample
        latents = latents.double()
        yield latents, scale


def _input_scale(scheduler: Any, latents: torch.Tensor, now: torch.Tensor) -> float:
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    scaled = scheduler.scale_model_input(latents.clone(), now).flatten()
    place = int(latents.flatten().abs().argmax())
    return float(scaled[place]) / float(latents.flatten()[place])
