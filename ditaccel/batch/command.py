"""`ditaccel generate`: the pictures or videos of a job file, on one machine or many."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import config as configs
from ..errors import ConfigError, DitaccelError, UsageError
from ..io import given, provenance
from ..io.arguments import AUTO
from ..io.asking import check_taken
from ..io.factory import Factory, read_factory
from ..io.progress import Progress, duration
from ..io.schedulers import check_scheduler
from . import names
from .arguments import add_arguments, choose
from .audit import Audit, Watch, plan_audit
from .encode import MAX_CRF, check_codec
from .facts import Facts, read_facts
from .folder import FAILED, JOB, MANIFEST, RESULTS, JobFolder
from .jobs import RawRow, read_rows
from .manifest import Item, Planner, Settings, write_manifest
from .rows import check_call
from .run import Run, join, new_name, recover
from .state import describe, summarise
from .workers.claims import Claims
from .workers.devices import choose_devices, kind_of
from .workers.local import Warnings, run_local
from .workers.shards import Rank, find_rank
from .workers.worker import WorkerOptions, part_of

_CRF = {"h264": 18, "av1": 24}
# Bad rows that are named before anything is made.
_NAMED = 10


def _settings(
    args: argparse.Namespace, facts: Facts, device: str, factory: Factory | None
) -> Settings:
    check_scheduler(args.scheduler)
    save = args.save or (("mp4",) if facts.is_video else ("png",))
    if "mp4" in save and not facts.is_video:
        raise ConfigError(f"mp4: {facts.pipeline} makes pictures; save png instead", "save")
    crf = _CRF[args.codec] if args.crf is None else args.crf
    if crf > MAX_CRF[args.codec]:
        raise ConfigError(f"{crf}: for {args.codec} it must be 0 to {MAX_CRF[args.codec]}", "crf")
    if "mp4" in save:
        check_codec(args.codec, crf)
    if args.fps is not None and not 0.1 <= args.fps <= 1000:
        raise ConfigError(f"{args.fps}: it must be 0.1 to 1000", "fps")
    call = dict(args.call)
    if args.steps is not None:
        call["num_inference_steps"] = args.steps
    check_taken(call, facts.arguments, facts.pipeline)
    default = "float32" if device == "cpu" else "bfloat16"
    if factory is not None:
        default = AUTO  # which is the function's to choose
    return Settings(
        config=args.config,
        seeds=tuple(args.seeds),
        call=check_call(call),
        save=save,
        codec=args.codec,
        crf=crf,
        fps=args.fps,
        name=names.check_template(args.name),
        dtype=args.dtype or default,
        allow_remote=args.allow_remote,
        pipeline="" if factory is None else factory.reference,
        max_input=args.max_input,
        scheduler=args.scheduler or "",
    )


def _config_line(text: str, config: Any) -> str:
    """The text as given, and what it stands for where that is another one."""
    if config is None:
        return "none (dense)"
    spec = configs.spec_of(configs.from_dict(config))
    return spec if spec == text else f"{text}, which is {spec}"


def _plan_lines(
    facts: Facts, run: Run, config: Any, items: Sequence[Item], ours: Sequence[Item], out: str
) -> list[str]:
    settings, options = run.settings, run.options
    good = [item for item in ours if not item.error]
    bad = sum(bool(item.error) for item in items)
    lines = [
        f"model: {facts.model} ({facts.pipeline}, {facts.family or 'no known family'})",
        f"config: {_config_line(settings.config, config)}",
        f"items: {len(items)}, {bad} of them bad rows",
        f"this command: {len(ours)} of them"
        + (
            f", shard {run.rank.index}/{run.rank.count} ({run.rank.source})"
            if run.rank.source
            else ""
        ),
        f"workers: {run.workers or 'all that fit'} on {', '.join(run.devices)}, {settings.dtype}, "
        + (f"{options.threads} thread(s) each" if options.threads else "torch's threads")
        + ("" if options.lanes > 1 else ", no overlap")
        + (f", batches of {options.batch}" if options.batch > 1 else ""),
        f"files: {', '.join(settings.save)}"
        + (f" ({settings.codec}, crf {settings.crf}, yuv420p)" if "mp4" in settings.save else "")
        + f" in {out}/outputs",
        *_audit_lines(options.audit, good),
    ]
    for item in good[:3]:
        call = ", ".join(f"{k}={v}" for k, v in item.call.items())
        lines.append(f"  {item.name}: {item.prompt!r}, seed {item.seed}, {call}")
    if len(good) > 3:
        lines.append(f"  … and {len(good) - 3} more")
    return lines


def _audit_lines(audit: Audit | None, good: Sequence[Item]) -> list[str]:
    if audit is None:
        return []
    count = sum(map(audit.chooses, good))
    then = "the next safer preset follows" if not audit.stop else "no more are made"
    below = "" if audit.target is None else f"; below {audit.target:g} dB {then}"
    return [f"audit: {count} of them are made dense, too{below}"]


def _make_run(
    args: argparse.Namespace, facts: Facts, items: list[Item], settings: Settings, rank: Rank
) -> tuple[Run, list[Item]]:
    chosen = choose(items, args.filter, args.limit)
    ours = part_of(chosen, rank.index, rank.count)
    devices: tuple[str, ...]
    if args.engine == "ray":  # which places what it has where it likes
        devices, workers = (kind_of(args.device, remote=True),), args.workers or 0
    else:
        devices = choose_devices(args.device, args.workers, rank, len(ours), facts.model)
        workers = len(devices)
    on_cpu = devices[0] == "cpu"
    options = WorkerOptions(
        device=devices[0],
        # Fixed, whatever the machine and the number of workers: sums depend on it.
        threads=args.threads or (1 if on_cpu else None),
        lanes=1 if args.no_overlap else 2,
        batch=args.batch,
        retry_before=time.time() if args.retry_failed else 0.0,
        verify=args.verify,
        audit=plan_audit(
            args.audit, args.audit_target, args.audit_stop, facts, ours, settings.save
        ),
    )
    run = Run(
        name=new_name(),
        model=facts.model,
        settings=settings,
        rank=rank,
        ids=tuple(item.id for item in chosen),
        workers=workers,
        devices=devices,
        options=options,
    )
    return run, ours


def run(args: argparse.Namespace) -> int:
    """Run `ditaccel generate`.

    Returns:
        0; 1 where an audit stopped it; 3 where items failed (they are listed); 130 where it was
        interrupted.

    Raises:
        DitaccelError: unusable input, in one line.
    """

    def note(text: str) -> None:
        if not args.quiet:
            print(f"generate: {given.one_line(text)}", file=sys.stderr, flush=True)

    rows = read_rows(args.jobs, note)
    planned = plan_job(args, rows, given.path(args.jobs).resolve().parent, note)
    if args.dry_run:
        _show_plan(args, planned)
        return 3 if any(item.error for item in planned.ours) else 0
    summary, interrupted = make_job(args, planned, note)
    _show(args, planned, summary)
    if interrupted:
        note("interrupted; run the same command again to resume")
        return 130
    if summary["stopped"]:
        return 1
    return 3 if summary["failed"] else 0


def _show_plan(args: argparse.Namespace, planned: PlannedJob) -> None:
    """What would be done, on the terminal."""
    facts, work, ours = planned.facts, planned.work, planned.ours
    if args.json:
        plan = {"run": asdict(work), "items": [asdict(item) for item in ours]}
        print(json.dumps(plan, indent=1, default=str))
        return
    config = facts.resolve(work.settings.config)
    lines = _plan_lines(facts, work, config, planned.items, ours, str(args.out))
    folder = JobFolder(args.out)
    folder.check_scheduler(work.settings.scheduler)
    if folder.exists:
        done = sum(folder.record(item, args.verify) is not None for item in ours)
        lines.append(f"done already: {done} of {len(ours)}")
    print("\n".join(lines))


def _show(args: argparse.Namespace, planned: PlannedJob, summary: dict[str, Any]) -> None:
    """What was done, on the terminal."""
    if args.json:
        print(json.dumps(summary, indent=1))
        return
    bad = [item for item in planned.ours if item.error]
    said = set() if args.quiet else {item.id for item in bad[:_NAMED]}
    print("\n".join(describe(summary, said)))
    print(f"made {summary['made']} in {duration(summary['wall_seconds'])}")
    folder = JobFolder(args.out)
    others = folder.foreign(planned.items)
    if others:
        print(f"{others} outputs of other rows or configs lie in {folder.outputs}, untouched")
    print(f"results: {folder.root / RESULTS}; gallery: ditaccel report {folder.root}")


@dataclass(frozen=True)
class PlannedJob:
    """A job before anything of it is made.

    Attributes:
        facts: of the model.
        work: the run that makes it.
        items: of the whole job.
        ours: those that this command makes.
    """

    facts: Facts
    work: Run
    items: list[Item]
    ours: list[Item]


def plan_job(
    args: argparse.Namespace,
    rows: Sequence[RawRow],
    base: Path,
    note: Callable[[str], Any],
    facts: Facts | None = None,
) -> PlannedJob:
    """Check a job's rows and options; nothing is loaded or written.

    Args:
        args: what `add_arguments` declares.
        rows: of the job.
        base: folder that paths in rows are relative to.
        note: told, in one line each, what the caller may want to know.
        facts: of a pipeline that is loaded; None reads them from `args.model`.

    Raises:
        DitaccelError: unusable input, in one line.
    """
    rank = find_rank(args.shard)
    factory = read_factory(args.pipeline) if args.pipeline else None
    facts = facts or read_facts(args.model, factory)
    kind = kind_of(args.device, remote=args.engine == "ray")
    settings = _settings(args, facts, kind, factory)
    items, repeated = Planner(facts, settings, base).plan(rows)
    work, ours = _make_run(args, facts, items, settings, rank)
    if factory is not None and len(set(work.devices)) > 1 and not factory.takes("device"):
        raise UsageError(
            f"{args.pipeline}: there are workers on {', '.join(work.devices)}, and the function "
            "takes no `device`; let it take one, or ask for one worker",
            "pipeline",
        )
    if repeated:
        note(f"{repeated} rows repeat earlier ones exactly: made once (--seeds makes more of each)")
    bad = [item for item in ours if item.error]
    for item in bad[:_NAMED]:
        note(f"row {item.row} cannot be made: {item.error}")
    if len(bad) > _NAMED:
        note(f"{len(bad) - _NAMED} more rows cannot be made")
    return PlannedJob(facts, work, items, ours)


def make_job(
    args: argparse.Namespace, planned: PlannedJob, note: Callable[[str], Any], pipe: Any = None
) -> tuple[dict[str, Any], bool]:
    """Make what is left of a planned job.

    Args:
        args: what `add_arguments` declares.
        planned: what to make.
        note: told, in one line each, what the caller may want to know.
        pipe: the pipeline where the caller has loaded it.

    Returns:
        The summary, and whether it was interrupted.
    """
    facts, work, items, ours = planned.facts, planned.work, planned.items, planned.ours
    folder = JobFolder(args.out)
    folder.check_scheduler(work.settings.scheduler)
    folder.make()
    started = time.time()
    claims = join(folder, work)
    try:
        write_manifest(folder.root / MANIFEST, items, folder.drafts)
        folder.write(folder.root / JOB, _job(args, facts, work, items))
        recover(folder, items, claims)
        audit = work.options.audit
        before = summarise(folder, ours, folder.merged(ours, args.verify))
        if before["done"]:
            note(f"{before['done']} of {before['items']} items are done already")
        settled = before["done"] + (0 if args.retry_failed else before["failed"])
        made = _Made(len(ours), settled, args.quiet, audit)
        if settled < len(ours) or work.rank.count > 1:
            made.work(args.engine, folder, work, items, claims, pipe)
        recover(folder, items, claims)  # behind workers that died on the way
        folder.write_results(items)
        summary = summarise(folder, ours, folder.merged(ours))
        del summary["working"]  # ourselves
        stopped = bool(summary["left"]) and audit is not None and Watch(folder, audit).stopped
        summary |= {"made": made.done, "wall_seconds": time.time() - started, "run": work.name}
        summary["stopped"] = stopped
        folder.write(folder.root / "runs" / f"{work.name}.json", _run_facts(work, summary, started))
    finally:
        with contextlib.suppress(DitaccelError):  # the folder may be gone, and that was said
            claims.sweep()
        claims.close()
    return summary, made.interrupted


def _run_facts(work: Run, summary: dict[str, Any], started: float) -> dict[str, Any]:
    return {
        **{key: value for key, value in summary.items() if key != "failures"},
        "workers": work.workers,
        "threads": work.options.threads,
        "devices": work.devices,
        "started": started,
    }


def _job(args: argparse.Namespace, facts: Facts, work: Run, items: list[Item]) -> dict[str, Any]:
    audit = work.options.audit
    return {
        "kind": "job",
        "schema": 1,
        "model": facts.model,
        "pipeline": facts.pipeline,
        "family": facts.family,
        "fingerprint": facts.fingerprint,
        "jobs": str(args.jobs),
        "settings": asdict(work.settings),
        "config": facts.resolve(work.settings.config),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "command": provenance.command(),
        "items": len(items),
        "audit": None if audit is None else {"share": audit.share, "target": audit.target},
        # `--limit` and `--filter`: what else is in the job file is not left to do.
        "chosen": None if len(work.ids) == len(items) else list(work.ids),
    }


class _Made:
    """Counts what a command makes, and shows it.

    Args:
        total: items of the command.
        settled: those that need nothing any more.
        quiet: show nothing.
        audit: of the job.
    """

    def __init__(self, total: int, settled: int, quiet: bool, audit: Audit | None = None) -> None:
        self._total, self._settled, self._quiet = total, settled, quiet
        self._audit, self._safer = audit, set[str]()
        self._calls = self._forecasts = 0
        self.done = 0
        self.interrupted = False

    def work(
        self,
        engine: str,
        folder: JobFolder,
        work: Run,
        items: list[Item],
        claims: Claims,
        pipe: Any = None,
    ) -> None:
        """Make what is left."""
        self._progress = Progress(
            self._total, self._settled, self._quiet, name="generate", unit="items"
        )
        try:
            if engine == "ray":
                from .workers.ray_engine import run_ray

                with Warnings().caught():
                    run_ray(folder, work, items, claims, self.book)
            else:
                said = Warnings()
                with said.caught():
                    run_local(folder, work, items, claims, self.book, said, pipe)
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self._progress.close()

    def book(self, record: dict[str, Any]) -> None:
        """One result line."""
        steps = record.get("steps") or {}
        self._calls += steps.get("calls", 0)
        self._forecasts += steps.get("forecast", 0)
        if record.get("status") == FAILED:
            self._progress.note(f"row {record.get('row')} failed: {record.get('reason')}")
        else:
            self.done += 1
            self._note_safer(record)
        share = f"hit rate {100 * self._forecasts / self._calls:.0f} %" if self._calls else ""
        self._progress.step(share)

    def _note_safer(self, record: dict[str, Any]) -> None:
        """Report once that items are made with a safer config."""
        name = record.get("safer")
        if name and name not in self._safer and self._audit is not None:
            self._safer.add(name)
            self._progress.note(
                f"audit: items are below {self._audit.target:g} dB on average; those that were "
                f"not begun are made with {name}"
            )


__all__ = ["add_arguments", "run"]
