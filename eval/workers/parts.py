"""Results that were made elsewhere, taken into one folder: of workers, and of other machines."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditaccel.errors import UsageError
from ditaccel.io import provenance
from ditaccel.io.checked import read_record
from ditaccel.io.differences import differences, told
from ditaccel.io.files import append_lines, mend_lines

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
Key = tuple[str, int]  # prompt and seed


def _by_sample(lines: Iterable[Line]) -> dict[str, dict[str, Line]]:
    """Lines by sample and row."""
    found: dict[str, dict[str, Line]] = {}
    for line in lines:
        found.setdefault(line["sample"], {})[line["config"]] = line
    return found


@dataclass(frozen=True)
class Part:
    """A run folder whose results are taken.

    Attributes:
        folder: of the run.
        generations: its lines by sample and row.
        results: by sample and row.
        failures: its failures.
    """

    folder: Path
    generations: dict[str, dict[str, Line]]
    results: dict[str, dict[str, Line]]
    failures: list[Line]

    @classmethod
    def read(cls, folder: Path) -> Part:
        """The part in a folder.

        Raises:
            UsageError: a file of it is damaged.
        """
        return cls(
            folder,
            _by_sample(read_all(folder / JOURNAL, GENERATION)),
            _by_sample(read_all(folder / RESULTS, RESULT)),
            read_all(folder / FAILURES, FAILURE),
        )

    def give(self, store: Store, sample: str, name: str = "", more: Line | None = None) -> None:
        """Take a sample into a run: its frames, and then all its lines at once.

        Args:
            store: of the run, open.
            sample: its name here.
            name: its name there: frames are copied, of rows that were judged. "" for the same name:
                frames are moved, and rows that were not judged are taken as well.
            more: what is added to its lines.
        """
        lines, results = [], []
        judged = self.results.get(sample, {})
        for row, line in self.generations.get(sample, {}).items():
            if name and row not in judged:
                continue
            own = {**(more or {}), "sample": name or sample}
            own["media"] = f"media/{row}/{own['sample']}.npz"
            source, target = self.folder / line["media"], store.folder / own["media"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if name:
                shutil.copy2(source, target)
            elif source.is_file():  # else moved before a kill
                source.replace(target)
            lines.append({**line, **own})
            if row in judged:
                results.append({**judged[row], **own})
        store.take(lines, results)


def absorb(store: Store) -> None:
    """Take what workers have made into their run, and remove their folders.

    Of a sample that several of them began (one died over it) only the part with most rows counts:
    its rows belong together. It can be called again after a kill, and nothing is lost.

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
    failures = [line for part in parts for line in part.failures]
    made = {sample for part in parts for sample in part.generations}
    append_lines(
        store.folder / FAILURES, [line for line in failures if line["sample"] not in begun]
    )
    for sample in sorted(made - begun):
        best = max(parts, key=lambda part: len(part.generations.get(sample, ())))
        best.give(store, sample)
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
    parts = [Part.read(path) for path in paths]
    keys = [_keys_of(part, run) for part, run in zip(parts, runs, strict=True)]
    taken, left_out = _who_gives(parts, keys)
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
        names = {(s.prompt, s.seed): s.id for s in make_samples(prompts, seeds)}
        done = {sample for _, sample in store.results}
        for key, (place, sample) in taken.items():
            if names[key] not in done:
                part = parts[place]
                own = next(iter(part.results[sample].values()))
                machine = places[place] + own.get("machine", 0)
                part.give(store, sample, names[key], {"machine": machine})
        _give_failures(store, parts, keys, taken, names)
        if not (store.folder / WARMUPS).exists():
            append_lines(store.folder / WARMUPS, read_all(paths[0] / WARMUPS, WARMUP))
        unavailable, repeats = _of_summaries(paths)
        write_summary(store.folder, judge, unavailable, repeats)
        return store.folder


def _give_failures(
    store: Store,
    parts: Sequence[Part],
    keys: Sequence[Mapping[str, Key]],
    taken: Mapping[Key, tuple[int, str]],
    names: Mapping[Key, str],
) -> None:
    """Take the failures of samples that no other part gives."""
    known = {(x["config"], x["sample"]) for x in read_all(store.folder / FAILURES, FAILURE)}
    found = []
    for place, part in enumerate(parts):
        for line in part.failures:
            key = keys[place].get(line["sample"])
            if key is None or taken.get(key, (place, ""))[0] != place:
                continue
            if (line["config"], names[key]) not in known:
                found.append({**line, "sample": names[key]})
    append_lines(store.folder / FAILURES, found)


def _union(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return list(dict.fromkeys(value for values in lists for value in values))


def unlike(own: Line, there: Line) -> list[str]:
    """What keeps two runs from being one table, as `told` takes it.

    Args:
        own: content of a `run.json`.
        there: of another.
    """
    found: list[str] = []
    for key in SAME:
        long = isinstance(own.get(key), list) and own.get(key) != there.get(key)
        found += [key] if long else differences({key: own.get(key)}, {key: there.get(key)})
    metrics = [{one["key"] for one in run.get("metrics", ())} for run in (own, there)]
    more = sorted(metrics[0] ^ metrics[1]) if all(metrics) else []
    return [*found, f"metrics: {', '.join(more)}"] if more else found


def _check_same(paths: Sequence[Path], runs: Sequence[Line]) -> None:
    """Refuse runs whose rows cannot be in one table.

    Raises:
        UsageError: with what differs.
    """
    for path, run in zip(paths[1:], runs[1:], strict=True):
        if found := unlike(run, runs[0]):
            raise UsageError(
                f"{path} and {paths[0]} cannot be merged: their setups differ ({told(found)})",
                "merge",
            )


def _keys_of(part: Part, run: Line) -> dict[str, Key]:
    """Prompt and seed of each sample of a part.

    Raises:
        UsageError: the part is not whole: some of its results would be lost.
    """
    if (part.folder / WORKERS).is_dir():
        raise UsageError(
            f"{part.folder} was stopped while several workers ran; run its command again first",
            "merge",
        )
    lines = [(s, row) for s, rows in part.results.items() for row in rows]
    if not lines:
        raise UsageError(f"{part.folder} holds no results", "merge")
    bare = 0
    for sample, row in lines:
        line = part.generations.get(sample, {}).get(row)
        bare += line is None or not (part.folder / line["media"]).is_file()
    if bare:
        raise UsageError(
            f"{part.folder} lacks the frames of {bare} of its {len(lines)} results; merge whole "
            f"folders, with media/ and {JOURNAL}",
            "merge",
        )
    samples = make_samples(run.get("prompts") or [], run.get("seeds") or [])
    keys = {sample.id: (sample.prompt, sample.seed) for sample in samples}
    for sample, rows in part.results.items():
        if any(keys.get(sample) != (line["prompt"], line["seed"]) for line in rows.values()):
            raise UsageError(
                f"{part.folder / RESULTS} is damaged: sample {sample} is not one of {RUN}", "merge"
            )
    return keys


def _who_gives(
    parts: Sequence[Part], keys: Sequence[Mapping[str, Key]]
) -> tuple[dict[Key, tuple[int, str]], list[int]]:
    """Which part gives which sample, and how many of each part are left out.

    Raises:
        UsageError: a part gives none.
    """
    taken: dict[Key, tuple[int, str]] = {}
    left_out = []
    for place, (part, known) in enumerate(zip(parts, keys, strict=True)):
        own = {known[sample]: sample for sample in part.results}
        new = {key: (place, sample) for key, sample in own.items() if key not in taken}
        if not new:
            raise UsageError(
                f"{part.folder} adds nothing: all its {len(own)} samples are in the others as "
                "well; to compare machines, compare the reports of both folders",
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
