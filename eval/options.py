"""How a comparison is run: the options of `evaluate` as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditaccel.errors import UsageError
from ditaccel.io.arguments import AUTO, SHORT_DTYPES


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a comparison.

    Attributes:
        steps: scheduler steps of the dense run; None takes the model's own, else 50.
        fewer: step counts of the fewer-steps rows; None takes shares of `steps`.
        call: arguments of the pipeline call that override the model's own.
        features: extractor behind the distances and the judge of prompts (see
            `metrics.extractors`); None takes the model's own, "none" switches both off.
        real: folder or npz of real frames, for distances to real data.
        real_n: how many of them, None for all.
        weights: files or folders of weights for the metrics that need some, by the metric's key.
        device: torch device; `auto` is a GPU where there is one.
        dtype: `float32`, `float16` or `bfloat16`; None takes float32 on a CPU, else the model's.
        pipeline: `module:function` or `file.py:function` that makes the pipeline of a model (see
            `ditaccel.io.factory.Factory`); None loads the model's own.
        scheduler: short name of another scheduler with the model's own noise levels (see
            `ditaccel.io.schedulers`); None keeps the model's own.
        threads: CPU threads, None leaves torch's setting.
        pairs: samples that are timed: each row has a dense run of its own there, which
            about doubles what they cost. Quality is measured on all samples.
        workers: processes that share the samples, each on a GPU of its own where there are enough.
            They load each other, which the report tells; time with one where speed is the question.
        quiet: whether to show no progress.

    Raises:
        UsageError: a value that no comparison can be run with.
    """

    steps: int | None = None
    fewer: Sequence[int] | None = None
    call: Mapping[str, Any] | None = None
    features: str | None = None
    real: str | None = None
    real_n: int | None = None
    weights: Mapping[str, str] | None = None
    device: str = AUTO
    dtype: str | None = None
    pipeline: str | None = None
    scheduler: str | None = None
    threads: int | None = None
    pairs: int = 8
    workers: int = 1
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in SHORT_DTYPES:
            raise UsageError(f"dtype {self.dtype!r} is not one of {', '.join(SHORT_DTYPES)}")
        if self.pairs < 1:
            raise UsageError(f"pairs must be >= 1, got {self.pairs}: speed is measured in pairs")
        if self.workers < 1:
            raise UsageError(f"workers must be >= 1, got {self.workers}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be >= 1, got {self.threads}")
