"""Results that were made elsewhere, taken into one folder: of workers, and of other machines."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditaccel.errors import UsageError
from ditaccel.io import provenance
from ditaccel.io.checked import read_record
from ditaccel.io.differences import differences, told
from ditaccel.io.files import mend_lines

from ..comparison.sampler import make_samples
from ..records import FAILURE, GENERATION, RESULT, SUMMARY, WARMUP, read_all, read_run
from ..store import FAILURES, JOURNAL, RESULTS, RUN, WARMUPS, Store
from ..store import SUMMARY as SUMMARY_FILE
from ..summary.summarise import write_summary
from .sharing import PARTS, WORKERS, wait_for_others

if TYPE_CHECKING:
    from ..judge import Judge

# What must be equal for two runs to be one table; devices and versions may differ, and are named.
SAME = ("fingerprint", "task", "call", "configs", "dtype", "pipeline", "scheduler")

Line = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A run folder whose results are taken.

    Attributes:
        folder: of the run.
        generations: its lines by sample, in their order.
        results: by row and sample.
        failures: its failures.
    """

    folder: Path
    generations: dict[str, list[Line]]
    results: dict[tuple[str, str], Line]
    failures: list[Line]

    @classmethod
    def read(cls, folder: Path) -> Part:
        """The part in a folder.

        Raises:
            UsageError: a file of it is damaged.
        """
        generations: dict[str, list[Line]] = {}
        for line in read_all(folder / JOURNAL, GENERATION):
            generations.setdefault(line["sample"], []).append(line)
        results = read_all(folder / RESULTS, RESULT)
        return cls(
            folder,
            generations,
            {(line["config"], line["sample"]): line for line in results},
            read_all(folder / FAILURES, FAILURE),
        )

    def give(
        self, store: Store, sample: str, name: str, more: Line, move: bool, judged: bool = False
    ) -> None:
        """Take a sample into a run.

        Args:
            store: of the run, open.
            sample: its name here.
            name: its name there.
            more: what is added to its lines.
            move: the frames, in place of copying them.
            judged: leave out rows that were not judged yet.
        """
        for line in self.generations.get(sample, ()):
            row = line["config"]
            result = self.results.get((row, sample))
            source = self.folder / line["media"]
            if (judged and result is None) or not source.is_file():
                continue
            own = {**more, "sample": name, "media": f"media/{row}/{name}.npz"}
            target = store.folder / own["media"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if move:
                source.replace(target)
            else:
                shutil.copy2(source, target)
            store.take({**line, **own}, None if result is None else {**result, **own})


def _give_failures(parts: Iterable[Part], store: Store, sample: str, name: str) -> None:
    for part in parts:
        for failure in part.failures:
            if failure["sample"] == sample:
                store.append(FAILURES, {**failure, "sample": name})


def absorb(store: Store) -> None:
    """Take what workers have made into their run, and remove their folders.

    Of a sample that several of them began (one died over it) the part with most rows counts, and
    only that one: its rows belong together. After a kill it can be called again.

    Args:
        store: of the run, open.

    Raises:
        UsageError: a worker of a killed command still writes.
    """
    root = store.folder / WORKERS
    if not root.is_dir():
        return
    wait_for_others(root)
    parts = []
    for folder in sorted(path for path in (root / PARTS).glob("*") if path.is_dir()):
        for name in (JOURNAL, RESULTS, FAILURES):
            mend_lines(folder / name)
        parts.append(Part.read(folder))
    begun = {sample for _, sample in store.generations}
    failed = {line["sample"] for part in parts for line in part.failures}
    made = {sample for part in parts for sample in part.generations}
    for sample in sorted((made | failed) - begun):
        best = max(parts, key=lambda part: len(part.generations.get(sample, ())))
        best.give(store, sample, sample, {}, move=True)
        _give_failures(parts, store, sample, sample)
    shutil.rmtree(root)


def machines_of(run: Line) -> list[Line]:
    """The machines that a run was timed on: one, or those of merged runs."""
    found: list[Line] | None = run.get("machines")
    if found is not None:
        return found
    return [{key: run.get(key) for key in ("device", "versions", "ceilings")}]


def merge(folders: Sequence[str | Path], out: str | Path, judge: Judge) -> Path:
    """Merge runs of the same rows, made on several machines, into one folder.

    Samples are told apart by prompt and seed. One that several runs have is taken from the first of
    them, so that no sample counts twice.

    Args:
        folders: of finished runs, two or more.
        out: folder of the merged run.
        judge: measures the metrics of sets over all samples.

    Returns:
        `out`, with a summary; `report.page.write_report` makes a page of it.

    Raises:
        UsageError: the runs cannot be one table, or one of them adds nothing.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise UsageError("give two or more folders to merge", "merge")
    runs = [read_run(path / RUN) for path in paths]
    _check_same(paths, runs)
    prompts, seeds = (_union(run.get(key) or () for run in runs) for key in ("prompts", "seeds"))
    names = {(s.prompt, s.seed): s.id for s in make_samples(prompts, seeds)}
    parts = [Part.read(path) for path in paths]
    taken, left_out = _who_gives(paths, parts)
    machines: list[Line] = []
    places = []
    for run, missing in zip(runs, left_out, strict=True):
        places.append(len(machines))
        first, *others = machines_of(run)
        machines += [{**first, "left_out": missing + first.get("left_out", 0)}, *others]
    setup = {
        **runs[0],
        "prompts": prompts,
        "seeds": seeds,
        "machines": machines,
        "merged": [path.name for path in paths],
        "command": provenance.command(),
    }
    with Store(out, setup) as store:
        begun = {sample for _, sample in store.generations}
        for key, (place, sample) in taken.items():
            if names[key] not in begun:
                part = parts[place]
                lines = part.generations.get(sample) or [{}]
                more = {"machine": places[place] + lines[0].get("machine", 0)}
                part.give(store, sample, names[key], more, move=False, judged=True)
                _give_failures([part], store, sample, names[key])
        if not (store.folder / WARMUPS).exists():
            for line in read_all(paths[0] / WARMUPS, WARMUP):
                store.append(WARMUPS, line)
        unavailable, repeats = _of_summaries(paths)
        write_summary(store.folder, judge, unavailable, repeats)
        return store.folder


def _union(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return list(dict.fromkeys(value for values in lists for value in values))


def _check_same(paths: Sequence[Path], runs: Sequence[Line]) -> None:
    """Refuse runs whose rows cannot stand in one table.

    Raises:
        UsageError: with what differs.
    """
    first = runs[0]
    for path, run in zip(paths[1:], runs[1:], strict=True):
        found: list[str] = []
        for key in SAME:
            own, there = run.get(key), first.get(key)
            long = isinstance(own, list) and own != there
            found += [key] if long else differences({key: own}, {key: there})
        if found:
            raise UsageError(
                f"{path} and {paths[0]} cannot be merged: their setups differ ({told(found)})",
                "merge",
            )


def _who_gives(
    paths: Sequence[Path], parts: Sequence[Part]
) -> tuple[dict[tuple[str, int], tuple[int, str]], list[int]]:
    """Which part gives which sample, and how many of each part are left out.

    Raises:
        UsageError: a part gives none.
    """
    taken: dict[tuple[str, int], tuple[int, str]] = {}
    left_out = []
    for place, part in enumerate(parts):
        own = {(line["prompt"], line["seed"]): line["sample"] for line in part.results.values()}
        new = {key: (place, sample) for key, sample in own.items() if key not in taken}
        if not new:
            raise UsageError(
                f"{paths[place]} adds nothing: all its {len(own)} samples are in the others, too; "
                "to compare machines, compare the reports of both folders",
                "merge",
            )
        left_out.append(len(own) - len(new))
        taken |= new
    return taken, left_out


def _of_summaries(paths: Sequence[Path]) -> tuple[dict[str, str], bool | None]:
    """Rows that could not run anywhere, and whether dense always came out the same."""
    unavailable: dict[str, str] = {}
    repeats = []
    for path in paths:
        if (path / SUMMARY_FILE).exists():
            found = read_record(path / SUMMARY_FILE, SUMMARY, "run that evaluation again")
            unavailable |= found.get("unavailable", {})
            repeats.append(found.get("dense_repeats"))
    known = [one for one in repeats if one is not None]
    return unavailable, all(known) if known else None
