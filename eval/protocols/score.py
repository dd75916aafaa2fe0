"""The figures of a protocol's rows: finished batch jobs compared with the dense one."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from ditaccel.batch.folder import JobFolder
from ditaccel.batch.manifest import Item
from ditaccel.errors import UsageError
from ditaccel.io.files import append_line, mend_lines, read_lines

from ..comparison.sampler import Sample
from ..judge import Judge
from ..metrics.base import METRICS, Metric, Per

# Row of the job file and seed.
Key = tuple[int, int]


@dataclass(frozen=True)
class Output:
    """One finished item.

    Attributes:
        item: of the manifest.
        record: how it was made.
        folder: of the job.
    """

    item: Item
    record: dict[str, Any]
    folder: JobFolder

    @property
    def key(self) -> Key:
        """Row and seed, which the same item of another config shares."""
        return self.item.row, self.item.seed

    def frames(self) -> np.ndarray:
        """Its frames, uint8 (F, H, W, 3), from a file without loss.

        Raises:
            UsageError: it has none.
        """
        for file in self.record["files"]:
            path = self.folder.outputs / file["path"]
            if file["kind"] == "frames":
                from safetensors.numpy import load_file

                return np.asarray(load_file(path)["frames"])
            if file["kind"] == "png":
                return _pictures(path)
        raise UsageError(f"{self.item.name} has no file without loss (png or frames)")


def _pictures(path: Path) -> np.ndarray:
    from PIL import Image

    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


class _Clips(Sequence[np.ndarray]):
    """Frames of outputs, each read only when it is needed."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = outputs

    def __len__(self) -> int:
        return len(self._outputs)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return _Clips(self._outputs[index])
        return self._outputs[index].frames()


def outputs_of(root: Path) -> tuple[list[Output], int]:
    """The finished items of a job, and how many are not finished."""
    folder = JobFolder(root)
    if not folder.exists:
        return [], 1
    items = folder.chosen(folder.items())
    records = [(item, folder.record(item)) for item in items]
    done = [Output(item, record, folder) for item, record in records if record is not None]
    return done, len(items) - len(done)


class Scores:
    """Compares rows with dense.

    Args:
        judge: of the run.
        metrics: keys of those that the protocol asks for.
        dense: its dense outputs.
    """

    def __init__(self, judge: Judge, metrics: Sequence[str], dense: Sequence[Output]) -> None:
        able = {metric.key for metric in judge.metrics}
        self._judge, self._dense = judge, {output.key: output for output in dense}
        self._metrics = [METRICS[key] for key in metrics if key in able]
        self.missing = {
            key: judge.not_available.get(key, "no such metric")
            for key in metrics
            if key not in able
        }
        self._features: dict[Any, Any] = {}  # by the outputs that they are of

    def row(self, outputs: Sequence[Output], file: Path, is_dense: bool) -> dict[str, Any]:
        """Figures of one row.

        Args:
            outputs: of the row.
            file: where the values of each sample are kept, so that they are measured only once.
            is_dense: whether this is the dense row, which has no distance to itself.
        """
        pairs = [(self._dense[o.key], o) for o in outputs if o.key in self._dense]
        found: dict[str, Any] = {"n": len(pairs), "seconds": _seconds(outputs)}
        if not is_dense:
            found["speedup"] = _seconds([dense for dense, _ in pairs]) / found["seconds"]
            found["same_machine"] = _machines(o for pair in pairs for o in pair) == 1
        values = list(self._samples(pairs, file))
        for metric in self._metrics:
            if metric.per is Per.SAMPLE:
                known = [v[metric.key] for v in values if v.get(metric.key) is not None]
                if known and not (is_dense and metric.key in ("psnr", "mse", "identical")):
                    found[metric.key] = statistics.fmean(known)
                if known and metric.key == "psnr" and not is_dense:
                    found["psnr_min"] = min(known)
            else:
                found |= self._of_sets(metric, pairs)
        return found

    def _samples(
        self, pairs: Sequence[tuple[Output, Output]], file: Path
    ) -> Iterator[dict[str, Any]]:
        """Values of each sample: those that the file has, and the others measured."""
        mend_lines(file)
        wanted = [metric for metric in self._metrics if metric.per is Per.SAMPLE]
        known = {line.get("id"): line for line in read_lines(file)} if file.exists() else {}
        for dense, output in pairs:
            line = known.get(output.item.id, {})
            if line.get("dense") != dense.item.id:
                line = {"id": output.item.id, "dense": dense.item.id}
            todo = [metric for metric in wanted if metric.key not in line]
            if todo:
                frames = dense.frames(), output.frames()
                sample = Sample(output.item.id, output.item.prompt, output.item.seed)
                line |= {m.key: self._judge.measure(m, sample, *frames) for m in todo}
                append_line(file, line)
            yield line

    def _of_sets(self, metric: Metric, pairs: Sequence[tuple[Output, Output]]) -> dict[str, Any]:
        sides = [[dense for dense, _ in pairs], [output for _, output in pairs]]
        if len(pairs) < metric.fewest:
            self.missing[metric.key] = f"it needs at least {metric.fewest} samples"
            return {}
        reference, own = (self._side(metric, side) for side in sides)
        if "reference" in metric.needs:
            reference = self._real(metric)
        try:
            value = self._judge.compare(metric, reference, own)
        except UsageError as error:
            self.missing[metric.key] = str(error)
            return {}
        if value is None:
            return {}
        low, high = value.interval or (None, None)
        return {metric.key: value.value, f"{metric.key}_low": low, f"{metric.key}_high": high}

    def _side(self, metric: Metric, outputs: Sequence[Output]) -> Any:
        if "features" not in metric.needs:
            return _Clips(outputs)
        assert self._judge.extractor is not None  # the judge lists no such metric without
        key = tuple((o.folder.root, o.item.id) for o in outputs)
        if key not in self._features:
            self._features[key] = self._judge.extractor(_Clips(outputs))
        return self._features[key]

    def _real(self, metric: Metric) -> Any:
        if "features" not in metric.needs:
            return self._judge.real
        assert self._judge.extractor is not None
        if "real" not in self._features:
            self._features["real"] = self._judge.extractor(self._judge.real)
        return self._features["real"]


def _seconds(outputs: Sequence[Output]) -> float:
    """Median seconds of denoising and decoding."""
    each = [
        sum(float(o.record["seconds"].get(p, 0)) for p in ("denoise", "decode")) for o in outputs
    ]
    return max(statistics.median(each), 1e-9) if each else float("nan")


def _machines(outputs: Iterator[Output]) -> int:
    return len({(o.record.get("host"), o.record.get("device")) for o in outputs})
