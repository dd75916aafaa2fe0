"""Metrics of sets: how far a row's samples as a whole are from dense's, or from real ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ditaccel.errors import UsageError

from .. import store
from ..judge import Judge
from ..metrics.base import Metric, Need, Per

Lines = dict[str, dict[str, dict[str, Any]]]


class _Sets:
    """What metrics of sets are given, read when first asked for."""

    def __init__(self, folder: Path, lines: Lines, dense_id: str, judge: Judge) -> None:
        self._folder, self._lines, self._dense_id, self._judge = folder, lines, dense_id, judge
        self._features: dict[str, dict[str, torch.Tensor]] = {}

    def _frames(self, row: str) -> dict[str, Any]:
        lines = self._lines.get(row, {})
        return {sample: store.load_frames(self._folder / x["media"]) for sample, x in lines.items()}

    def _of(self, row: str, features: bool) -> Mapping[str, Any]:
        if not features:
            return self._frames(row)
        if row not in self._features:
            assert self._judge.extractor is not None  # the judge lists no such metric without
            lines = self._lines.get(row, {})
            frames = (store.load_frames(self._folder / line["media"]) for line in lines.values())
            made = self._judge.extractor(frames) if lines else ()
            self._features[row] = dict(zip(lines, made, strict=True))
        return self._features[row]

    @cached_property
    def _real_features(self) -> torch.Tensor:
        assert self._judge.extractor is not None
        return self._judge.extractor(self._judge.real)

    def pair(self, metric: Metric, row: str) -> tuple[Any, Any]:
        """The reference set and the row's; of dense, only samples that the row has."""
        features = Need.FEATURES in metric.needs
        own = self._of(row, features)
        if Need.REFERENCE in metric.needs:
            reference: Any = self._real_features if features else self._judge.real
            mine = list(own.values())
        else:
            dense = self._of(self._dense_id, features)
            shared = [sample for sample in dense if sample in own]
            reference, mine = [dense[s] for s in shared], [own[s] for s in shared]
        if not features:
            return reference, mine
        stacked = [torch.stack(list(part)) if len(part) else part for part in (reference, mine)]
        return stacked[0], stacked[1]


def add_distances(
    folder: Path, lines: Lines, rows: dict[str, Any], dense_id: str, judge: Judge
) -> tuple[dict[str, Any], dict[str, str]]:
    """Fill the metrics of sets into the rows of a summary.

    Args:
        folder: of the run.
        lines: results by row, then by sample.
        rows: `configs` of the summary; each gets a value per metric, with its standard error and
            interval.
        dense_id: of the dense row.
        judge: of the run.

    Returns:
        By the metric's key: how many samples it was measured on, and why it was left out.
    """
    sets = _Sets(folder, lines, dense_id, judge)
    counts: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for metric in judge.metrics:
        if metric.per is not Per.SET:
            continue
        for slug, row in rows.items():
            reference, own = sets.pair(metric, slug)
            n = min(len(reference), len(own))
            if n < metric.fewest:
                continue
            try:
                found = judge.compare(metric, reference, own)
            except UsageError as error:
                # the samples took hours, and all other figures are good without this one
                missing[metric.key] = str(error)
                break
            if found is None:
                missing[metric.key] = f"{metric.title} has no answer for such samples"
            else:
                low, high = found.interval or (None, None)
                row |= {
                    metric.key: found.value,
                    f"{metric.key}_error": found.error,
                    f"{metric.key}_low": low,
                    f"{metric.key}_high": high,
                }
                few = f"N={n} < {metric.enough}: {metric.few}" if n < metric.enough else None
                counts[metric.key] = {"n": n, "note": few}
        if metric.key not in counts and metric.key not in missing:
            missing[metric.key] = (
                f"a metric of sets needs at least {metric.fewest} samples of each kind, or it "
                "tells nothing but their number: more seeds or prompts"
            )
    return counts, missing
