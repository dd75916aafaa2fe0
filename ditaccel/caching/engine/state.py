"""What is remembered of a guidance branch, and of the call on its way through the blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...core.denoising.tracker import DenoisingStep
from ...core.ranks import Ranks
from ...core.reasons import Reason
from ...errors import ConfigError
from .forecast import History
from .gaps import GapCorrector


@dataclass(frozen=True)
class Verdict:
    """What was decided for one call.

    Attributes:
        forecast: True to forecast the rest of the step, False to compute it.
        reason: what decided.
        error: the figure that was compared, where there was one.
        detail: the reason in words, where they say more than its own.
        kinds: kinds of modules that are forecast (`BlockContract.kind`), where the gate decides
            for each kind; None for all.
        modules: names of the modules that are forecast, where it decides for each; None for all.
    """

    forecast: bool
    reason: Reason
    error: float | None = None
    detail: str = ""
    kinds: frozenset[str] | None = None
    modules: frozenset[str] | None = None

    @property
    def text(self) -> str:
        """The reason in a word or two, for people."""
        return self.detail or self.reason.value


def nbytes_of(*tensors: torch.Tensor) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def unique_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of tensors, each memory counted once."""
    found = {t.data_ptr(): nbytes_of(t) for t in tensors if t is not None}
    return sum(found.values())


@dataclass
class Snapshot:
    """Bytes of what one computed step leaves behind, of one guidance branch.

    Attributes:
        hidden: of the hidden state after the last block, or of the output where that is forecast.
        first: of the feature of the first blocks.
        modules: of all modules' outputs that are forecast.
        output: of what the transformer returns.
        numbers: how many numbers that is.
        hint: of what blocks that only give hints return.
        gate: of what the gate remembers.
        feedback: whether an error in the latents is felt in outputs (`DenoisingStep.feedback`).
        streams: number of streams of latents.
    """

    hidden: int = 0
    first: int = 0
    modules: int = 0
    output: int = 0
    numbers: int = 0
    hint: int = 0
    gate: int = 0
    feedback: bool = False
    streams: int = 1

    def returned(self, sample: torch.Tensor, streams: int, step: DenoisingStep) -> None:
        """Take note of what the transformer returned on a step."""
        self.output, self.numbers = nbytes_of(sample), sample.numel()
        self.streams = streams
        linear = step.response is not None
        self.feedback = self.feedback or (linear and step.feedback > 0.0)


class BranchState:
    """All that is remembered of one guidance branch of one generation.

    Args:
        order: order of the forecast of the last block or of the output.
        basis: basis of the forecasts.
        first_order: order of the forecast of the first blocks.
        coordinate: what a forecast runs along (`ForecastOptions`).
        memory: what the gate remembers of the branch (`Gate.memory`).
        ranks: that compute the transformer together, None for one alone.

    Attributes:
        last: history of what is forecast.
        first: history of what the first blocks gave.
        modules: histories of modules' outputs, at module granularity.
        computed_at: step at which modules of a kind, and each module by name, were last computed,
            at module granularity.
        samples: latents that the present call was given, where the gate or the correction needs
            them.
        outputs: what the transformer returned on the present call, where the gate needs samples.
        modulated: modulated input of the first block on the present call, where the gate needs it.
        probed: what went into the first block and came out of the last of the gate's first blocks
            on the present call, where the gate runs any (as `Gate.after_blocks` is given it).
        beside: states of all guidance branches of the loop, its own included, during a call.
        text: history of what the blocks add to the text beside the hidden state, where the gate
            runs last blocks.
        embedding: of the timestep on the present call, where the gate needs it.
        volume: the latents on their grid on the present call, where the gate needs them.
        last_index: step of the last call that was computed in full, -1 for none.
        since_computed: computed steps of the first branch since this one was computed.
    """

    def __init__(
        self,
        order: int,
        basis: str = "taylor",
        first_order: int = 0,
        coordinate: str = "index",
        memory: Any = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks
        self.last = History(order, basis)
        self.first = History(first_order)
        self.modules: dict[tuple[str, int], list[History]] = {}
        self.idle: dict[tuple[str, int], Any] = {}
        self.computed_at: dict[str, int] = {}
        self.corrector = GapCorrector()
        self.snapshot = Snapshot()
        self.coordinate = coordinate
        self.memory = memory
        self.samples: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.modulated: torch.Tensor | None = None
        self.probed: tuple[torch.Tensor, torch.Tensor] | None = None
        self.beside: Collection[BranchState] = ()
        self.text = History(order, basis)
        self.embedding: torch.Tensor | None = None
        self.volume: torch.Tensor | None = None
        self.shapes: list[torch.Size] = []
        self.hidden_shapes: list[torch.Size] = []
        self.hint: Any = None
        self.holds_differences = False
        self.last_index = -1
        self.since_computed = 0
        self.form: dict[bool, Callable[[Sequence[torch.Tensor]], Any]] = {}

    @property
    def history_bytes(self) -> int:
        """Bytes of all histories and of the gate's memory, the corrector's apart."""
        modules = sum(h.nbytes for histories in self.modules.values() for h in histories)
        others = nbytes_of(*(self.hint or ())) + self.snapshot.gate
        return self.last.nbytes + self.first.nbytes + self.text.nbytes + modules + others

    def begin_again(self) -> None:
        """Forget what forecasts are made of: from here on it is of another kind."""
        self.last = History(self.last.order, self.last.basis)
        self.corrector = GapCorrector()

    def shrink(self, order: int) -> None:
        """Continue with forecasts of a lower order, and without those of modules."""
        if self.modules:
            self.modules.clear()
            self.idle.clear()
            self.last = History(order, self.last.basis)
        self.last.limit(order)

    def end_call(self) -> bool:
        """Let go of what belongs to the call that ends.

        Returns:
            Whether the gate remembers more, or less, than after the last call.
        """
        self.samples, self.outputs = [], []
        self.modulated = self.embedding = self.volume = None
        self.probed, self.beside = None, ()
        before, self.snapshot.gate = self.snapshot.gate, nbytes_of(*_tensors_in(self.memory))
        return self.snapshot.gate != before

    def distinct_place(self, step: DenoisingStep) -> float:
        """Return `place` where no two calls of a loop share it, else the place among the steps."""
        return step.place if self.coordinate in ("sigma", "timestep") else self.place(step)

    def place(self, step: DenoisingStep) -> float:
        """Return where on the forecasts' coordinate a step lies."""
        if self.coordinate == "index":
            return step.place
        if self.coordinate == "timestep":
            return step.timestep
        if self.coordinate in ("auto", "log_snr"):
            if step.log_snr is not None:
                return step.log_snr
            if self.coordinate == "auto":
                return step.place
            raise ConfigError(
                "coordinate='log_snr' needs a scheduler whose noise levels fall from step to step; "
                "use coordinate='auto' or 'index'"
            )
        if step.sigma is None:
            raise ConfigError(
                "coordinate='sigma' needs a scheduler with sigmas; use coordinate='index'"
            )
        return step.sigma


def _tensors_in(memory: Any) -> Iterator[torch.Tensor]:
    """Tensors that a gate remembers: attributes of its memory, or lists of them."""
    for value in vars(memory).values() if hasattr(memory, "__dict__") else ():
        for each in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(each, torch.Tensor):
                yield each


@dataclass
class Call:
    """One transformer call on its way through the blocks.

    Attributes:
        step: its place in the loop.
        state: of its branch.
        verdict: what was decided, None until then.
        streams: number of streams of latents.
        return_dict: as the transformer was asked.
        fingerprint: shapes, dtypes and devices of its latents.
        given: its arguments.
        base: hidden state that the residual counts from.
        before: hidden state in front of the first block.
        tokens: length of the hidden state, without text that is fused with it.
        text: text behind the gate's first blocks, where the gate runs last blocks.
        leader: feature of the first branch, which a difference is taken to.
        follows: whether the first branch decides.
        order: of its forecast where the gate chooses one for the step, else None.
        alone: whether it has nothing in common with the first branch's call.
        remembers: whether its features may be remembered: of a branch that follows, not always.
        early: whether it is a step of the warm-up that no forecast is made of.
        left: error of the gap that it ended, and the step at which that began.
        visits: calls of each module so far, at module granularity.
        ran: those of them that were computed.
    """

    step: DenoisingStep
    state: BranchState
    verdict: Verdict | None = None
    streams: int = 1
    return_dict: bool = True
    fingerprint: Any = None
    given: tuple[Any, ...] = ()
    base: torch.Tensor | None = None
    before: torch.Tensor | None = None
    tokens: int | None = None
    text: torch.Tensor | None = None
    leader: torch.Tensor | None = None
    follows: bool = False
    order: int | None = None
    alone: bool = False
    remembers: bool = True
    early: bool = False
    blocks_run: int = 0
    cost_run: float = 0
    reached_end: bool = False
    left: tuple[torch.Tensor, int] | None = None
    visits: Counter[str] = field(default_factory=Counter)
    ran: Counter[str] = field(default_factory=Counter)

    @property
    def forecasting(self) -> bool:
        """Whether the step is forecast, at least in part."""
        return self.verdict is not None and self.verdict.forecast

    def forecasts(self, module: str, kind: str) -> bool:
        """Whether a module of this name and kind is forecast."""
        verdict = self.verdict
        if verdict is None or not verdict.forecast:
            return False
        if verdict.modules is not None:
            return module in verdict.modules
        return verdict.kinds is None or kind in verdict.kinds

    def count(self, cost: int) -> None:
        """Count a block that was computed."""
        self.blocks_run += 1
        self.cost_run += cost

    def visit(self, name: str) -> tuple[str, int]:
        """A module and how often it has run in this call (CogView4's MLP: once per stream)."""
        visit = (name, self.visits[name])
        self.visits[name] += 1
        return visit

    @property
    def place(self) -> float:
        """Where on the forecasts' coordinate the call lies."""
        return self.state.place(self.step)
