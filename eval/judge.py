"""The metrics of one run: which can be measured, why others cannot, and what they say."""

from __future__ import annotations

import importlib
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ditaccel.errors import DitaccelError, UsageError
from ditaccel.io.checked import LARGE
from ditaccel.io.given import suggest
from ditaccel.io.models import Sheet, class_label

from .comparison.sampler import Sample
from .metrics import extractors, real
from .metrics.base import ACCURACY, SAME, Estimate, Metric, Need, Per, Run, metrics, score
from .options import Options

_SAME = "share of samples in which the judge sees what it sees in dense's, in the same places"


class Judge:
    """Measures every registered metric that can be measured in this run.

    Args:
        options: of the run; an extractor or weights file that is named must load.
        sheet: of the model.
        class_pipe: the pipeline, where prompts are class names; else None.

    Attributes:
        not_available: what cannot be measured, each with how to get it.
        extractor: of features, None where there is none.
        real: the user's real samples as frames, empty where there are none.

    Raises:
        UsageError: a named file cannot be used.
    """

    def __init__(self, options: Options, sheet: Sheet, class_pipe: Any | None) -> None:
        self.not_available: dict[str, str] = {}
        self.extractor = _extractor(options, sheet)
        self.real = real.load_real(options.real, options.real_n) if options.real else []
        self._class_pipe = class_pipe
        self._prompts = self.extractor.judge if self.extractor is not None else None
        weights = dict(options.weights or {})
        self._runs: dict[str, Run] = {}
        loaded: dict[Any, Run] = {}
        for metric in metrics():
            why = self._missing(metric, weights)
            if why is None:
                run = metric.run
                if metric.load is not None:
                    of = metric.load, weights[metric.weights_name]
                    run = loaded[of] = loaded.get(of) or metric.load(of[1])
                assert run is not None  # `register` refuses a metric without
                self._runs[metric.key] = run
            else:
                self.not_available[metric.key] = why
        if self._prompts is None:
            self.not_available[ACCURACY] = extractors.JUDGE_HOW
        known = {metric.weights_name for metric in metrics()} - {""}
        if unused := sorted(set(weights) - known):
            raise UsageError(
                f"{unused[0]}: no metric of this name takes weights{suggest(unused[0], known)}",
                "weights",
            )

    def _missing(self, metric: Metric, weights: Mapping[str, str]) -> str | None:
        return missing(metric, weights, self.extractor is not None, bool(self.real))

    @property
    def metrics(self) -> list[Metric]:
        """What is measured, the scores of the judge of prompts last."""
        own = [metric for metric in metrics() if metric.key in self._runs]
        if self._prompts is None:
            return own
        same = [score(SAME, _SAME)] if hasattr(self._prompts, SAME) else []
        return [*own, *self._prompts.scores, *same]

    @property
    def features(self) -> dict[str, Any] | None:
        """Name and width of the extractor, for `run.json`."""
        if self.extractor is None:
            return None
        return {"name": self.extractor.name, "dim": self.extractor.dim}

    def judge(self, sample: Sample, reference: np.ndarray, frames: np.ndarray) -> dict[str, Any]:
        """All metrics of one sample.

        Args:
            sample: whose prompt the frames should show.
            reference: the dense run's frames, uint8 (F, H, W, 3).
            frames: the row's frames of the same sample.

        Returns:
            Values by the metric's key; None for what cannot be measured.

        Raises:
            UsageError: the frames differ in size, or a metric fails.
        """
        values: dict[str, Any] = {}
        for metric in metrics():
            if metric.per is Per.SAMPLE:
                values[metric.key] = self.measure(metric, sample, reference, frames)
        if self._prompts is not None:
            pipe = self._class_pipe
            label = class_label(pipe, sample.prompt) if pipe is not None else None
            values |= self._prompts(frames, sample.prompt, label)
            if (same := getattr(self._prompts, SAME, None)) is not None:
                values[SAME] = bool(same(reference, frames))
        return values

    def measure(
        self, metric: Metric, sample: Sample, reference: np.ndarray, frames: np.ndarray
    ) -> Any:
        """One metric of one sample; for the arguments see `judge`.

        Raises:
            UsageError: the frames differ in size, or the metric fails.
        """
        given = {"prompt": sample.prompt} if Need.PROMPT in metric.needs else {}
        return self._measure(metric, sample.id, reference, frames, **given)

    def compare(self, metric: Metric, reference: Any, own: Any) -> Estimate | None:
        """The value of a metric of sets; None where it has none.

        Args:
            metric: one of `metrics`.
            reference: features or frames of the reference set.
            own: the same of the row.

        Raises:
            UsageError: the metric fails.
        """
        value = self._measure(metric, "a set of samples", reference, own)
        return value if value is None or isinstance(value, Estimate) else Estimate(float(value))

    def _measure(self, metric: Metric, where: str, *given: Any, **more: Any) -> Any:
        run = self._runs.get(metric.key)
        if run is None:
            return None
        try:
            value = run(*given, **more)
        except DitaccelError:
            raise
        except Exception as error:
            line = (str(error).strip() or "no message").split("\n")[0][:200]
            raise UsageError(
                f"metric {metric.key} fails on {where}: {type(error).__name__}: {line}"
            ) from error
        if isinstance(value, Estimate):
            return replace(value, value=_number(metric, where, value.value))
        if value is None or isinstance(value, bool | np.bool_):
            return value if value is None else bool(value)
        return _number(metric, where, value)


def missing(metric: Metric, weights: Container[str], features: bool, real_ones: bool) -> str | None:
    """What a metric lacks, as the line that says how to get it; None where it can be measured.

    Args:
        metric: any.
        weights: names of weights that are given.
        features: whether there is a feature extractor.
        real_ones: whether there are real samples.
    """
    if Need.FEATURES in metric.needs and not features:
        return extractors.HOW
    if Need.REFERENCE in metric.needs and not real_ones:
        return real.HOW
    name = metric.weights_name
    if name and name not in weights:
        return f"needs weights (option `weights`, {name}=PATH): {metric.how}"
    if metric.package:
        try:
            importlib.import_module(metric.package)
        except ImportError:
            return metric.how
    return None


def _number(metric: Metric, where: str, value: Any) -> float:
    """A measured value, as files and tables take it."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise UsageError(f"metric {metric.key} must give a number, not a {kind}") from None
    if not abs(number) <= LARGE:
        raise UsageError(
            f"metric {metric.key} gave {number:g} on {where}; it must give a number of at most "
            f"{LARGE:g}, or None where there is no answer"
        )
    return number


def _extractor(options: Options, sheet: Sheet) -> extractors.Extractor | None:
    if options.features == "none":
        return None
    if options.features:
        return extractors.load_extractor(options.features)
    if sheet.features is not None and sheet.features.is_dir():
        return extractors.load_extractor(str(sheet.features))
    return None
