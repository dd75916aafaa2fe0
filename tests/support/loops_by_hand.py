"""Denoising loops written by hand, as functions and generators, and threads that take turns."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


class Broken(RuntimeError):
    """Stops a run in the middle."""


@dataclass(frozen=True)
class Request:
    """One run, by which it can be made again elsewhere.

    Attributes:
        owner: `base`, `copy`, `components`, `from_pipe`, `replaced` (pipelines), `loop`, `plain`
            (loops by hand with a scheduler or with bare numbers).
        scheduler: index into `SCHEDULERS` of the family; 0 is the pipeline's own kind.
        steps: scheduler steps.
        seed: of the latents.
        prompt: which conditioning.
        windows: windows of a loop by hand, 0 for none.
        views: whether windows are views of the latents (else copies).
        guidance: which steps of a loop by hand call the other branch: `all`, `second`, `early`.
        swapped: whether that one is called first.
    """

    owner: str
    scheduler: int = 0
    steps: int = 6
    seed: int = 0
    prompt: int = 0
    windows: int = 0
    views: bool = True
    guidance: str = "all"
    swapped: bool = False

    def guided(self, step: int) -> bool:
        """Whether a step has both branches."""
        if self.guidance == "second":
            return step % 2 == 0
        return self.guidance == "all" or step < self.steps // 2


@functools.cache
def image_ids() -> torch.Tensor:
    ids = torch.zeros(4, 3)
    ids[:, 1], ids[:, 2] = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    return ids


def timestep(bench: Any, t: Any) -> torch.Tensor:
    value = torch.as_tensor(t).reshape(1)
    if bench.family == "flux":
        return value.float() / 1000
    return value.long() if bench.family == "dit" else value.float()


def _pieces(x: torch.Tensor, request: Request) -> list[torch.Tensor]:
    if not request.windows:
        return [x[0]]
    return [x[i] if request.views else x[i].clone() for i in range(request.windows)]


def _guided(outputs: list[torch.Tensor]) -> torch.Tensor:
    return outputs[0] if len(outputs) == 1 else outputs[1] + 3.0 * (outputs[0] - outputs[1])


def _branches(request: Request, conditions: list[Any], step: int) -> list[tuple[int, Any]]:
    named = list(enumerate(conditions))
    if not request.guided(step):
        return named[:1]
    return named[::-1] if request.swapped else named


def scheduled_loop(
    transformer: Any, scheduler: Any, bench: Any, request: Request
) -> Iterator[torch.Tensor | None]:
    scheduler.set_timesteps(request.steps)
    x = bench.latents(request.seed, request.windows)
    conditions = bench.conditions(request)
    for index, t in enumerate(scheduler.timesteps):
        parts = []
        for piece in _pieces(x, request):
            found: dict[int, torch.Tensor] = {}
            for which, condition in _branches(request, conditions, index):
                yield None
                with torch.no_grad():
                    found[which] = transformer(
                        piece, timestep=timestep(bench, t), return_dict=False, **condition
                    )[0]
            parts.append(_guided([found[k] for k in sorted(found)]))
        x = scheduler.step(torch.stack(parts), t, x, return_dict=False)[0]
    yield x


def plain_loop(transformer: Any, bench: Any, request: Request) -> Iterator[torch.Tensor | None]:
    x = bench.latents(request.seed, request.windows)
    conditions = bench.conditions(request)
    for index in range(request.steps):
        t = 987 - 900 * index // request.steps  # of no scheduler here
        parts = []
        for piece in _pieces(x, request):
            found: dict[int, torch.Tensor] = {}
            for which, condition in _branches(request, conditions, index):
                yield None
                with torch.no_grad():
                    found[which] = transformer(
                        piece, timestep=timestep(bench, t), return_dict=False, **condition
                    )[0]
            parts.append(_guided([found[k] for k in sorted(found)]))
        x = x - torch.stack(parts) / request.steps
    yield x


def direct(transformer: Any, bench: Any, request: Request, stop: int | None) -> torch.Tensor:
    x = bench.latents(request.seed, request.windows)
    conditions = bench.conditions(request)
    calls = 0
    for index in range(request.steps):
        t = 987 - 900 * index // request.steps  # of no scheduler here
        parts = []
        for piece in _pieces(x, request):
            found: dict[int, torch.Tensor] = {}
            for which, condition in _branches(request, conditions, index):
                if calls == stop:
                    raise Broken
                calls += 1
                with torch.no_grad():
                    found[which] = transformer(
                        piece, timestep=timestep(bench, t), return_dict=False, **condition
                    )[0]
            parts.append(_guided([found[k] for k in sorted(found)]))
        x = x - torch.stack(parts) / request.steps
    return x


class Turns:
    """Lets threads go on one at a time, in an order drawn beforehand."""

    def __init__(self, rng: random.Random, names: list[int]) -> None:
        self._rng, self._alive = rng, list(names)
        self._condition = threading.Condition()
        self._now = names[0]

    def wait(self, name: int) -> None:
        """Hand the turn on and wait for the next one."""
        with self._condition:
            self._now = self._rng.choice(self._alive)
            self._condition.notify_all()
            assert self._condition.wait_for(lambda: self._now == name, timeout=60)

    def begin(self, name: int) -> None:
        """Wait for the first turn."""
        with self._condition:
            assert self._condition.wait_for(lambda: self._now == name, timeout=60)

    def leave(self, name: int) -> None:
        """There will be no other turn of this thread."""
        with self._condition:
            self._alive.remove(name)
            if self._alive:
                self._now = self._rng.choice(self._alive)
            self._condition.notify_all()
