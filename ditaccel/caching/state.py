"""What is remembered of a guidance branch, and of the call on its way through the blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.denoising.tracker import DenoisingStep
from ..core.ranks import Ranks
from ..errors import ConfigError
from .budget import Snapshot, nbytes_of
from .correction import GapCorrector
from .forecast import History
from .gate import Verdict
from .policy import CachePolicy


class BranchState:
    """All that is remembered of one guidance branch of one generation."""

    def __init__(self, policy: CachePolicy, ranks: Ranks | None = None) -> None:
        self.ranks = ranks
        self.last = History(policy.order, policy.basis)
        self.first = History(policy.first_order)
        self.modules: dict[tuple[str, int], list[History]] = {}
        self.idle: dict[tuple[str, int], Any] = {}
        self.corrector = GapCorrector()
        self.snapshot = Snapshot()
        self.coordinate = policy.coordinate
        self.samples: list[torch.Tensor] = []
        self.shapes: list[torch.Size] = []
        self.hidden_shapes: list[torch.Size] = []
        self.hint: Any = None
        self.holds_differences = False
        self.last_index = -1
        self.form: dict[bool, Callable[[Sequence[torch.Tensor]], Any]] = {}
        self.scratch: dict[str, Any] = {}

    @property
    def history_bytes(self) -> int:
        """Bytes of all histories, the corrector's apart."""
        modules = sum(h.nbytes for histories in self.modules.values() for h in histories)
        return self.last.nbytes + self.first.nbytes + modules + nbytes_of(*(self.hint or ()))

    def shrink(self, policy: CachePolicy) -> None:
        """Go on with a policy that remembers less."""
        if self.modules:
            self.modules.clear()
            self.idle.clear()
            self.last = History(policy.order, policy.basis)
        self.last.limit(policy.order)

    def place(self, step: DenoisingStep) -> float:
        """Return where on the forecasts' coordinate a step lies."""
        if self.coordinate == "index":
            return float(step.index)
        if self.coordinate == "timestep":
            return step.timestep
        if step.sigma is None:
            raise ConfigError(
                "coordinate='sigma' needs a scheduler with sigmas; use coordinate='index'"
            )
        return step.sigma


@dataclass
class Call:
    """One transformer call on its way through the blocks."""

    step: DenoisingStep
    state: BranchState
    verdict: Verdict | None
    streams: int = 1
    return_dict: bool = True
    fingerprint: Any = None
    base: torch.Tensor | None = None
    tokens: int | None = None
    leader: torch.Tensor | None = None
    follows: bool = False
    alone: bool = False
    remembers: bool = True
    blocks_run: int = 0
    cost_run: int = 0
    reached_end: bool = False
    left: tuple[torch.Tensor, int] | None = None  # error of the gap it ended, and where that began
    visits: Counter[str] = field(default_factory=Counter)

    @property
    def forecasting(self) -> bool:
        return self.verdict is not None and self.verdict.forecast


@dataclass
class Leader:
    """The first branch of the present step."""

    key: tuple[int, int]
    branch: str
    fingerprint: Any
    verdict: Verdict
    feature: torch.Tensor | None
    output: torch.Tensor | None = None
    correction: torch.Tensor | None = None

    @property
    def tensors(self) -> list[torch.Tensor | None]:
        """What is held for the branches that follow."""
        return [self.feature, self.output, self.correction]
