"""Methods whose constants are measured on a model: what they look at, and what they make of it.

`ditaccel.tuning.fitting.fit` runs the pipeline dense with a method's recorder in place of its gate,
and hands that back to the method.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

from ...config import CacheConfig
from ...core.denoising.tracker import DenoisingStep
from ...core.reasons import Reason
from .gate import Gate
from .policy import CachePolicy
from .state import BranchState, Verdict


@dataclass(frozen=True)
class Fit:
    """A method's config with its constants measured.

    Attributes:
        config: to be used or saved.
        notes: what was measured, one line each.
        warnings: what speaks against it, one line each.
    """

    config: Any
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Recorder(Gate):
    """Computes every step, and measures.

    Attributes:
        seen: branch -> step -> what was measured there, once per generation.
        total: steps of the loop, 0 before the first call.
    """

    def __init__(self) -> None:
        self.seen: dict[str, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
        self.total = 0

    def skips_nothing(self, total: int | None) -> bool:
        return True

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        return Verdict(False, Reason.OTHER)

    def measured(self, step: DenoisingStep, state: BranchState) -> Any:
        """What is to be remembered of a call that ends, None for nothing."""
        raise TypeError(f"{type(self).__name__} measures nothing")

    def finished(self, step: DenoisingStep, state: BranchState, verdict: Verdict) -> None:
        self.total = step.total or 0
        found = self.measured(step, state)
        if found is not None:
            self.seen[step.branch][step.index].append(found)


class FittedConfig(CacheConfig):
    """A method that has constants to be measured on a model (derive from it besides the options).

    Attributes:
        fits: what is measured, in a word or two.
    """

    fits: ClassVar[str] = ""

    @property
    def is_fitted(self) -> bool:
        """Whether it has its constants, so that it can run."""
        return True

    @abstractmethod
    def recording(self) -> CachePolicy:
        """A policy whose gate is a `Recorder` of its own."""

    @abstractmethod
    def fitted(self, seen: Recorder) -> Fit:
        """This config with what a recorder saw.

        Raises:
            ConfigError: it did not see enough.
        """
