"""Schedulers are probed: one pass of a copy over unit vectors gives the whole response.

Latents of C + 1 numbers that are 0 but for the last one, and unit vectors as outputs, make each
latent of the pass a row of the response. Two samples of the same random outputs go through the same
pass. Where they come out apart, the scheduler draws noise; where they agree, but differ from the
weighted sum, it clips or thresholds. So subclasses and wrappers are served as well.

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

from .response import Probed, Response, euler
from .schedulers import GivenSigmas, is_scheduler

# Responses that are remembered; one of 50 steps takes 20 kB.
_KEPT = 16
_KNOWN: OrderedDict[tuple[Any, ...], Found] = OrderedDict()
_LOCK = threading.Lock()

# Random outputs are of this size, so that whatever clips at 1 does clip.
_SIZE = 3.0
# Rounding that a linear scheduler may show per call, by the sum of the absolute terms: some compute
# in float32 whatever they are given. Seen of linear ones: a fifth of a unit in the last place per
# call; of others: 5000 and more.
_ROUNDING = 8.0 * torch.finfo(torch.float32).eps


# Changes that are too small to be clipped, and large by the rounding of float32.
_SMALL = 1e-2


@dataclass(frozen=True, eq=False)
class Found:
    """What was found of a scheduler.

    Attributes:
        probed: its kind.
        tangent: how its latents answer to small changes of outputs, while the noise that it draws
            stays as it is and nothing more or less is clipped: the response itself where it is
            linear. It serves to measure errors, not to correct them.
    """

    probed: Probed
    tangent: Response | None = None


@dataclass(eq=False)
class Probe:
    """A scheduler as it was when a loop began, to be probed as soon as somebody asks.

    Args:
        scheduler: a copy of its own (`Probe.of`), or noise levels.
        offset: where in its timesteps the loop begins.
        options: further arguments of its `step`.
    """

    scheduler: Any
    offset: int
    options: Mapping[str, float] = field(default_factory=dict)
    _found: Found | None = field(default=None, repr=False)

    @classmethod
    def of(cls, scheduler: Any, offset: int, options: Mapping[str, float] | None = None) -> Probe:
        """Take a copy of a scheduler that is about to run; the scheduler is left alone."""
        if isinstance(scheduler, GivenSigmas):
            return cls(scheduler, offset)
        try:
            return cls(_copied(scheduler, {}), offset, dict(options or {}))
        except Exception:  # of whatever type: not every object can be copied
            return cls(None, offset, _found=Found(Probed.FAILED))

    @property
    def probed(self) -> Probed:
        """What probing has shown."""
        return self._result().probed

    @property
    def response(self) -> Response | None:
        """The response, None unless the scheduler is linear."""
        found = self._result()
        return found.tangent if found.probed is Probed.LINEAR else None

    @property
    def tangent(self) -> Response | None:
        """The response to small changes, None where the scheduler cannot be probed."""
        return self._result().tangent

    def _result(self) -> Found:
        if self._found is not None:
            return self._found
        if isinstance(self.scheduler, GivenSigmas):
            given = self.scheduler
            self._found = Found(Probed.LINEAR, euler(given.sigmas[self.offset :], given.flow))
            return self._found
        key = self._key()
        with _LOCK:
            found = _KNOWN.get(key) if key is not None else None
            if key is not None and found is not None:
                _KNOWN.move_to_end(key)
        if found is None:
            found = _measured(self.scheduler, self.offset, self.options)
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
        options = tuple(sorted(self.options.items()))
        return type(self.scheduler), self.offset, options, digest.digest()


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


def _measured(scheduler: Any, offset: int, options: Mapping[str, float]) -> Found:
    """Step copies of a scheduler through a loop."""
    size = len(scheduler.timesteps[offset:]) + 1
    draw = torch.Generator().manual_seed(size)
    random = _SIZE * torch.randn(size, size, generator=draw).double()
    unit = torch.eye(size).double()
    rows, scales = _stepped(scheduler, offset, torch.stack([unit, random, random], 1), options)
    table, first, second = rows.unbind(1)
    most = _ROUNDING * size * (table.abs() @ random.abs())
    noisy = bool(((first - second).abs() > most).any())
    if len(rows) == size and bool(torch.isfinite(table).all()):
        if not noisy and bool(((table @ random - first).abs() <= most).all()):
            return Found(Probed.LINEAR, Response(table.numpy(), scales))
        small = _SMALL * torch.stack([unit, 0 * unit], 1)
        inputs = small.unbind(1)
        moved, still = (
            _stepped(scheduler, offset, each[:, None], options)[0][:, 0] for each in inputs
        )
        tangent = Response(((moved - still) / _SMALL).numpy(), scales)
        return Found(Probed.STOCHASTIC if noisy else Probed.NONLINEAR, tangent)
    return Found(Probed.STOCHASTIC if noisy else Probed.FAILED)


def _stepped(
    scheduler: Any, offset: int, inputs: torch.Tensor, options: Mapping[str, float]
) -> tuple[torch.Tensor, np.ndarray]:
    """Run a loop on a copy of a scheduler.

    Args:
        scheduler: is left as it is.
        offset: where in its timesteps the loop begins.
        inputs: outputs of all calls and, last, the initial latents, `(C + 1, B, C + 1)`.
        options: further arguments of `step`, those of them that it takes.

    Returns:
        The latents, `(C + 1, B, C + 1)`, fewer where the scheduler did not make it to the end, and
        the scales of the model's inputs.
    """
    scheduler, draw = _copied(scheduler, {}), torch.Generator().manual_seed(0)
    rows, scales, times = [inputs[-1]], [], scheduler.timesteps[offset:]
    try:
        with torch.inference_mode(), torch.device("cpu"):
            for latents, scale in _run(scheduler, times, inputs[:, :, None, None], draw, options):
                rows.append(latents.flatten(1))
                scales.append(scale)
    except Exception:  # of whatever type: a scheduler that wants something else of its caller
        pass
    return torch.stack(rows), np.array(scales)


def _own_numbers(parameters: Any) -> contextlib.AbstractContextManager[None]:
    """Keep the global random numbers where they are, where `step` takes no generator."""
    if "generator" in parameters:
        return contextlib.nullcontext()
    return torch.random.fork_rng(devices=[])


def _run(
    scheduler: Any,
    times: torch.Tensor,
    inputs: torch.Tensor,
    draw: torch.Generator,
    options: Mapping[str, float],
) -> Iterator[tuple[torch.Tensor, float]]:
    """Run a loop as pipelines do.

    Args:
        scheduler: to step.
        times: its timesteps.
        inputs: outputs of all calls and, last, the initial latents, `(C + 1, B, 1, 1, C + 1)`.
        draw: random numbers for `step`.
        options: further arguments of `step`.

    Yields:
        The latents after each call, `(B, 1, 1, C + 1)`, and the scale of its model input.
    """
    latents, before = inputs[-1], None
    parameters = inspect.signature(scheduler.step).parameters
    rest: dict[str, Any] = {name: v for name, v in options.items() if name in parameters}
    rest |= {"generator": draw} if "generator" in parameters else {}
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
