"""`audit`: some calls of an accelerated pipeline are also made dense, and both are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch

from .. import api
from ..config import require
from ..config.option_types import checked_value
from ..core.kinds import pictures_of
from ..errors import UsageError
from ..io.frames import psnr
from ..reports.audited import Audited
from ..warning import warn
from .quality import as_bytes


@dataclass(frozen=True)
class AuditReport:
    """What an audit has found so far; print it to see it.

    Attributes:
        calls: that were made.
        audited: calls that were also made dense.
        levels: PSNR of their samples to the dense ones in dB, in the order of the calls.
    """

    calls: int
    audited: int
    levels: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean of the levels in dB."""
        return Audited(self.levels).mean if self.levels else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean over all calls, in dB."""
        return Audited(self.levels).interval if self.levels else None

    def __str__(self) -> str:
        found = f": {Audited(self.levels)} samples" if self.levels else ""
        return f"{self.audited} of {self.calls} calls audited{found}"


class AuditedPipeline:
    """A pipeline under an audit; call it in place of the pipeline. See `audit`."""

    def __init__(self, pipe: Any, every: int, target: float | None, seed: int) -> None:
        self.pipe = pipe
        self._every, self._target, self._random = every, target, Random(seed)
        self._calls = self._audited = self._next = 0
        self._levels: list[float] = []
        self._warned = False

    @property
    def report(self) -> AuditReport:
        """What the audit has found so far."""
        return AuditReport(self._calls, self._audited, tuple(self._levels))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline; an audited call is then repeated dense with the same noise.

        Callbacks of an audited call are called in both runs.

        Returns:
            What the accelerated pipeline returned.

        Raises:
            UsageError: the pipeline is not accelerated, or an audited call gives latents.
        """
        _check_accelerated(self.pipe)
        if self._calls % self._every == 0:
            self._next = self._calls + self._random.randrange(self._every)
        chosen = self._calls == self._next
        self._calls += 1
        if not chosen:
            return self.pipe(*args, **kwargs)
        if kwargs.get("output_type") == "latent":
            raise UsageError(
                "an audit compares pictures; let the call decode (no output_type latent)"
            )
        before = _draws(args, kwargs)
        output = self.pipe(*args, **kwargs)
        with api.paused(self.pipe), _drawn_again(before):
            dense = self.pipe(*args, **kwargs)
        pairs = zip(_samples(self.pipe, output), _samples(self.pipe, dense), strict=True)
        self._levels += [psnr(ours, theirs) for ours, theirs in pairs]
        self._audited += 1
        self._warn()
        return output

    def _warn(self) -> None:
        target = self._target
        if target is not None and not self._warned and Audited(self._levels).misses(target):
            self._warned = True
            warn(f"audit: below the target of {target:g} dB: {Audited(self._levels)}")


def _check_accelerated(pipe: Any) -> None:
    if not api.is_accelerated(pipe):
        raise UsageError(
            f"this {type(pipe).__name__} is not accelerated, so there is nothing to audit; call "
            "ditaccel.accelerate(pipe) first"
        )


def _draws(args: Sequence[Any], kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Every generator that a call may draw noise from, with its state."""
    given = [*args, *kwargs.values()]
    for value in list(given):
        if isinstance(value, (list, tuple)):
            given += value
    found = [(g, g.get_state()) for g in given if isinstance(g, torch.Generator)]
    found.append((torch.default_generator, torch.default_generator.get_state()))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found += [(g, g.get_state()) for g in torch.cuda.default_generators]
    return found


@contextmanager
def _drawn_again(before: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Draw the same noise once more; afterwards the generators continue as if that had not been."""
    after = [(generator, generator.get_state()) for generator, _ in before]
    for generator, state in before:
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in after:
            generator.set_state(state)


def _samples(pipe: Any, output: Any) -> list[np.ndarray]:
    """The samples of a call's output as uint8, whichever type they have."""
    value = output[0] if isinstance(output, tuple) else pictures_of(pipe, output)
    return [_bytes(sample) for sample in value]


def _bytes(sample: Any) -> np.ndarray:
    if isinstance(sample, (list, tuple)):
        return np.stack([_bytes(frame) for frame in sample])
    if isinstance(sample, torch.Tensor):
        return as_bytes(sample.detach().float().cpu().numpy())
    array = np.asarray(sample)
    return array if array.dtype == np.uint8 else as_bytes(array)


def audit(
    pipe: Any, every: int = 50, *, target: float | None = None, seed: int = 0
) -> AuditedPipeline:
    """Watch the quality of an accelerated pipeline while it is used.

    Of every `every` calls one, chosen at random, is also made dense with the same noise. It takes
    the time of a dense call in addition.

    ```python
    ditaccel.accelerate(pipe, "fast")
    watched = ditaccel.audit(pipe, every=50, target=30)
    image = watched("a red circle").images[0]        # as pipe("a red circle")
    print(watched.report)                            # 1 of 50 calls audited: 38.2 dB to dense, …
    ```

    `ditaccel generate --audit` does the same for the items of a batch job.

    Args:
        pipe: an accelerated pipeline that makes pictures; it stays as it is.
        every: one call of so many is audited; 1 audits every call.
        target: PSNR to dense in dB; one warning is given when the mean is surely below it.
        seed: of the choice of calls.

    Returns:
        What to call in place of the pipeline; its `report` has what was found.

    Raises:
        ConfigError: `every` is below 1.
        UsageError: the pipeline is not accelerated.
    """
    every = checked_value("audit", "every", int, every)
    require(every >= 1, f"audit: every is {every}; it must be 1 or more")
    target = checked_value("audit", "target", float | None, target)
    _check_accelerated(pipe)
    return AuditedPipeline(pipe, every, target, checked_value("audit", "seed", int, seed))
