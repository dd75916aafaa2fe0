"""Options, checks and small decisions that attention methods share."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...config import AttentionConfig, require
from ...errors import ConfigError
from ...io.adapter import Adapter
from ...kernels import Precision, Tiling

Ranges = tuple[tuple[int, int], ...]
Backend = Literal["auto", "triton", "torch", "naive"]
Rest = Literal["nothing", "means", "moments", "average", "agents", "random_features", "norm_aware"]
Sink = Literal["first_frame", "conditions"]
Schedule = tuple[tuple[float, float], ...]
Parts = tuple[tuple[float, float], ...]

# Kept share of the attention matrix above which a layer is faster dense. On a CPU a kept tile costs
# more than its part of dense attention, most at short sequences (measured: `kernels/README.md`). On
# a GPU, kernels in Triton are published to reach 61 to 77 % of the fastest dense ones (H100), which
# is what PyTorch takes; nothing has been measured here.
_BREAK_EVEN = 0.7


@dataclass(frozen=True, kw_only=True)
class TileOptions(AttentionConfig):
    """What every attention method lets its user choose.

    Args:
        rest: what stands for tiles that are not computed, under the same softmax: `nothing`; their
            `means`, one mean key and value per tile, weighted by its size and the spread of its
            keys; their `moments`, whose values follow the query too (`kernels/moments`); or, of
            larger error and there to be compared with, `average`, `agents`, `random_features` or
            `norm_aware` (`attention/engine/rest/companions.py`). None for what the method itself
            does.
        precision: of the scores of tiles that are computed: `model`, or `int8`, 8-bit integers with
            one scale per token (SageAttention, arXiv 2410.02367; `kernels/attention/int8.py`),
            which is meant for GPUs: a CPU computes the same numbers in float32 and gains nothing.
            What `rest` stands for, and layers that stay dense, keep the model's precision.
        schedule: values along the loop of the option that sets how much the method keeps (`swept`
            in its config; a number), `[[share, value], …]`:
            at that share of the steps it has that value, between two shares it changes in a
            straight line, and before the first and behind the last it stays. `[[0, 1.3], [1, 0.8]]`
            runs from 1.3 to 0.8. Empty for the option's own value at every step. Methods without
            such an option take no schedule.
        sinks: tokens that every query attends to, besides those of text: `first_frame` of a clip,
            `conditions` (given images or frames in the same sequence, where there are any).
        sink_tokens: more of them, as token ranges `[[start, end], …]` of the whole sequence.
        sink_queries: whether sinks also attend to every key themselves, as text does.
        dense_steps: first steps that stay dense: a number, or a share of the steps below 1.
        dense_parts: further parts of the loop that stay dense, `[[start, end], …]` in shares of the
            steps, the end exclusive: `[[0.9, 1]]` for the last tenth.
        dense_layers: first layers that stay dense, likewise.
        min_tokens: shorter sequences stay dense.
        break_even: kept share of the attention matrix above which a layer is dense for some steps;
            None for 0.7, less what the method's planning costs, 1 for never.
        backend: of the kernel: `auto`, `triton`, `torch` or `naive`.

    Attributes:
        swept: the option that walks the density of the maps, which `schedule` changes; None for
            none.
    """

    swept: ClassVar[Swept | None] = None

    rest: Rest | None = None
    precision: Precision = "model"
    schedule: Schedule = ()
    sinks: tuple[Sink, ...] = ()
    sink_tokens: Ranges = ()
    sink_queries: bool = False
    dense_steps: int | float = 0.2
    dense_parts: Parts = ()
    dense_layers: int | float = 0
    min_tokens: int = 1024
    break_even: float | None = None
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        for name in ("dense_steps", "dense_layers"):
            value = getattr(self, name)
            require(
                value >= 0 and (isinstance(value, int) or value < 1),
                f"{name} is {value}; give a number of {name[6:]}, or a share of them below 1",
            )
        require(self.min_tokens >= 0, f"min_tokens is {self.min_tokens}; it must be 0 or more")
        share = self.break_even
        require(
            share is None or 0.0 < share <= 1.0,
            f"break_even is {share}; give a share of the attention matrix in (0, 1], 1 for never",
        )
        check_ranges("sink_tokens", self.sink_tokens)
        edges = [edge for part in self.dense_parts for edge in part]
        require(
            all(0 <= edge <= 1 for edge in edges) and edges == sorted(set(edges)),
            f"dense_parts is {self.dense_parts}; give ascending parts of the loop, apart from each "
            "other, in shares from 0 to 1, such as [[0, 0.1], [0.9, 1]]",
        )
        self._check_schedule()

    @classmethod
    def scheduled_option(cls) -> str:
        """Name of the option that `schedule` changes; empty where it is none, or not a number."""
        swept = cls.swept
        numbers = swept is not None and all(isinstance(value, float) for value in swept.values)
        return swept.option if swept is not None and numbers else ""

    def _check_schedule(self) -> None:
        """Check that the schedule ascends, and that each value is one that the option can have."""
        if not self.schedule:
            return
        option, shares = self.scheduled_option(), [share for share, _ in self.schedule]
        require(bool(option), f"{self.method} has no option that a schedule could change")
        require(
            all(0 <= share <= 1 for share in shares) and shares == sorted(set(shares)),
            f"schedule has the shares {shares} of the loop; give them ascending, from 0 to 1",
        )
        for share, value in self.schedule:
            changed: dict[str, Any] = {option: value, "schedule": ()}
            try:
                replace(self, **changed)
            except ConfigError as error:
                raise ConfigError(f"schedule, at {share:g} of the loop: {error}") from None


@dataclass(frozen=True, kw_only=True)
class FixedTileOptions(TileOptions):
    """What a method with tiles of one size lets its user choose besides.

    Args:
        q_tile: query tokens per tile.
        k_tile: key tokens per tile.
    """

    q_tile: int = 128
    k_tile: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("q_tile", "k_tile"):
            value = getattr(self, name)
            require(
                value is None or value >= 16, f"{name} is {value}; tiles have at least 16 tokens"
            )


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(TileOptions):
    """What a method that the model can be fine-tuned for lets its user choose besides.

    Args:
        weights: safetensors file that `ditaccel.finetune` wrote for these options: changes of the
            model's own weights, which are in place during sparse steps only.

    Attributes:
        trained_for: names of the options that weights are trained for.
    """

    trained_for: ClassVar[tuple[str, ...]] = ()

    weights: str | os.PathLike[str] | None = None

    def trained_options(self) -> dict[str, Any]:
        """The options that weights are trained for, as JSON holds them."""
        values = {name: getattr(self, name) for name in self.trained_for}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def adapter(self) -> Adapter | None:
        """What the file of `weights` holds; None without.

        Raises:
            UsageError: the file cannot be read.
            ConfigError: it was trained for another method, or for other options.
        """
        if self.weights is None:
            return None
        made = Adapter.load(os.fspath(self.weights), self.method)
        for name, value in self.trained_options().items():
            known = made.options.get(name)
            require(
                value == known,
                f"{name} is {value}, but {made.source} was trained for {name}={known}; give "
                f"{name}={known}, or train for {value}",
            )
        return made


@dataclass(frozen=True)
class Swept:
    """Which option of a method walks the density of its maps, for `ditaccel bench maps`.

    A value that a model's size does not allow is left out there.

    Attributes:
        option: its name.
        values: from the sparsest to the densest, about 5 to 50 % of the attention matrix on
            sequences of some thousand tokens.
        options: others that hold all the way, such as a floor of the density that is in the way.
    """

    option: str
    values: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibrated:
    """Which option of a method `tune` chooses for each layer and part of the loop.

    Attributes:
        option: its name; it holds one value.
        per_layer: name of the option that takes the chosen values: one per layer, each a tuple of
            one per part of the loop.
        candidates: values to try, the mildest first.
        never: a value that skips nothing.
    """

    option: str
    per_layer: str
    candidates: tuple[float, ...]
    never: float


def break_even_of(chosen: float | None, planning: float = 0.0) -> float:
    """The kept share of the attention matrix above which sparse attention costs time.

    Args:
        chosen: by the config; None for what kernels are known for.
        planning: time of making a map, as a share of that of dense attention.
    """
    return _BREAK_EVEN * (1 - planning) if chosen is None else chosen


def along(schedule: Schedule, share: float) -> float:
    """The value of a schedule at a share of the loop: straight lines between its points."""
    before = [point for point in schedule if point[0] <= share]
    after = [point for point in schedule if point[0] > share]
    if not before or not after:
        return (before[-1] if before else after[0])[1]
    (start, first), (end, last) = before[-1], after[0]
    return first + (last - first) * (share - start) / (end - start)


def is_within(parts: Parts, share: float) -> bool:
    """Whether a share of the loop lies in one of its parts."""
    return any(start <= share < end for start, end in parts)


def share_of(value: int | float, total: int | None) -> int:
    """A number, or a share of `total` rounded down; a share of an unknown total counts as none."""
    if isinstance(value, int):
        return value
    return math.floor(value * total) if total else 0


def check_ranges(name: str, value: Ranges) -> None:
    """Check token ranges `((start, end), …)`: ascending, end exclusive, apart from each other."""
    previous = 0
    for start, end in value:
        require(0 <= start < end, f"{name}: the range {start} to {end} is empty or negative")
        require(
            start >= previous,
            f"{name}: the range {start} to {end} overlaps the one before it, or comes before it",
        )
        previous = end


def check_within(name: str, ranges: Ranges, length: int) -> None:
    """Check that token ranges end inside a sequence."""
    for start, end in ranges:
        require(
            end <= length,
            f"{name}: the range {start} to {end} does not fit into a sequence of {length} tokens",
        )


def whole_tiles(name: str, ranges: Ranges, tiling: Tiling, device: torch.device) -> Tensor:
    """Mark the tiles that lie inside token ranges as a whole, bool `(1, 1, T)`."""
    check_within(name, ranges, tiling.length)
    edges = [0, *(edge for item in ranges for edge in item), tiling.length]
    rest = [pair for pair in zip(edges[::2], edges[1::2], strict=True) if pair[0] < pair[1]]
    require(bool(rest), f"{name} covers the whole sequence of {tiling.length} tokens; leave some")
    inside = ~tiling.touched(rest, "cpu", name)
    require(
        bool(inside.any()),
        f"{name} holds no whole tile of {tiling.tile} tokens, so it would skip nothing; widen it, "
        "or make tiles smaller",
    )
    return inside.to(device)


def touched_tiles(name: str, ranges: Ranges, tiling: Tiling, device: torch.device) -> Tensor:
    """Mark the tiles that token ranges touch, bool `(1, 1, T)`; one at least is left."""
    check_within(name, ranges, tiling.length)
    inside = tiling.touched(list(ranges), "cpu", name)
    require(
        not bool(inside.all()), f"{name} touches every tile of {tiling.tile} tokens; leave some"
    )
    return inside.to(device)
