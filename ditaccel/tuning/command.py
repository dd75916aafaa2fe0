"""`ditaccel tune`: search the steps worth computing for a model, and write them as config files."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ditaccel import config as configs
from ditaccel.errors import UsageError
from ditaccel.io import arguments as options
from ditaccel.io import given
from ditaccel.io.arguments import listed, number
from ditaccel.io.asking import asked, calls_of, default_call
from ditaccel.io.factory import Opened
from ditaccel.io.given import whole_argument
from ditaccel.io.models import Sheet, part_of_prompts, prompts_for, read_sheet
from ditaccel.io.opening import choose_device, open_pipeline, use_threads
from ditaccel.io.schedulers import check_scheduler, put_scheduler
from ditaccel.tuning.calibration import calibrate
from ditaccel.tuning.fitting import fitted_on
from ditaccel.tuning.quality import MOST_PSNR, STATISTICS
from ditaccel.tuning.refine import Refine
from ditaccel.tuning.search import calibrated_config, no_saving, scheduler_of
from ditaccel.tuning.space.race import Aim
from ditaccel.tuning.space.search import SpaceTuner
from ditaccel.tuning.space.space import Space
from ditaccel.tuning.target import Target, TuningRun
from ditaccel.tuning.tuner import PAIRS, Tuner, paired

EXAMPLE = """\
examples:
  ditaccel tune samples/models/shapes-wan --psnr 35 --out wan-35db.yaml
  ditaccel tune samples/models/shapes-flux --share 0.2,0.3 --out tuned/
  ditaccel tune MODEL --psnr 30 --space "attention=sla,sol; steps=0.5" --runs runs/ --out joint.yaml
  ditaccel tune MODEL --target ssim=0.95,speedup=2 --runs runs/ --out tuned/
  ditaccel tune MODEL --prompts prompts.txt --psnr 30 --promise 0.9 --out promised.yaml
  ditaccel tune samples/models/shapes-flux --share 0.2 --refine 100 --resume refined.jsonl \\
    --out refined.yaml

then: ditaccel.accelerate(pipe, "wan-35db.yaml")
A file is valid for the scheduler and the step count that it was made with. With several targets
--out is a folder, and the dense runs are made only once.
exit code: 0 all targets reached, 1 not all, 2 the command is wrong.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel tune`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    options.add_model(parser)
    _add_goals(parser)
    parser.add_argument(
        "--statistic",
        choices=STATISTICS,
        default="mean",
        help="what is compared with --psnr: the mean PSNR of the samples less its standard error, "
        "the 10th percentile (p10), or the worst one (default mean)",
    )
    _add_promise(parser)
    _add_space(parser)
    options.add_out(parser, "config file; with several targets, a folder", "PATH")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    options.add_prompts(parser)
    options.add_skip(parser, "all but as many as --limit")
    options.add_limit(parser, PAIRS)
    parser.add_argument(
        "--pairs",
        type=whole_argument("--pairs", 1),
        metavar="N",
        help="prompt-seed pairs to learn from: the prompts in turn, each time with another seed "
        f"(default {PAIRS}, or one per prompt if there are more)",
    )
    options.add_seed(parser, 1000)
    options.add_steps(parser)
    options.add_call(parser)
    options.add_running(parser)
    options.add_scheduler(parser)
    _add_refining(parser)
    parser.add_argument(
        "--memory",
        default="4GB",
        metavar="SIZE",
        help="memory for the outputs of one generation; the rest goes to a file (default 4GB)",
    )


def _add_goals(parser: argparse.ArgumentParser) -> None:
    psnr = listed("--psnr", number("--psnr", 0, MOST_PSNR, open_ends=True), "30,35")
    share = listed("--share", number("--share", 0, 1, open_ends=True), "0.2,0.3")
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--psnr", type=psnr, metavar="DB", help="PSNR to dense to reach, in dB")
    goal.add_argument("--share", type=share, metavar="PART", help="computed share to keep to")
    goal.add_argument(
        "--target",
        type=listed("--target", Target.parse),
        metavar="NAME=VALUE",
        help="psnr=DB, METRIC=LEVEL (any registered metric of single samples), speedup=X or "
        "seconds=S; searched in measured seconds, see --space",
    )
    goal.add_argument(
        "--attention-error",
        type=listed("--attention-error", number("--attention-error", 0, 1, open_ends=True)),
        metavar="SHARE",
        help="calibrate LiteAttention instead: relative L1 error of each layer's output, e.g. 0.02",
    )
    goal.add_argument(
        "--fit",
        metavar="METHOD",
        help="measure the constants of a caching method instead (METHOD or METHOD:option=value): "
        "ratios or a polynomial that it needs of a model",
    )


def _add_space(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--space",
        metavar="TEXT",
        help="what may vary besides the computed steps, in measured seconds: attention=sla,sol; "
        "densities=0.05,0.2; rests=means,moments; steps=0.5,20; caches=balanced; schedules=false",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="keep the runs of a search with --space or --target there: after a kill, or for "
        "another target, they are not made again; `ditaccel report FOLDER` shows what was tried",
    )


def _add_promise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--promise",
        type=number("--promise", 0, 1, open_ends=True),
        metavar="SHARE",
        help="share of the samples that is promised to reach --psnr, also of prompts to come: 0.9; "
        "tested on all prompts of the file that are not learnt from",
    )
    parser.add_argument(
        "--confidence",
        type=number("--confidence", 0, 1, open_ends=True),
        metavar="SHARE",
        help="confidence in --promise (default 0.95)",
    )


def _add_refining(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--refine",
        type=whole_argument("--refine", 0),
        default=0,
        metavar="N",
        help="try N plans around the best one, in closed loop (default 0; 100 is a good start)",
    )
    parser.add_argument(
        "--anneal", action="store_true", help="let --refine accept worse plans on the way"
    )
    parser.add_argument(
        "--minutes",
        type=number("--minutes", 0, 1e6, open_ends=True),
        metavar="N",
        help="after so many minutes --refine tries no further plan, and a search with --space runs "
        "nothing further",
    )
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="remember in FILE what was run; after a kill the same command continues",
    )


def _calls(
    opened: Opened, sheet: Sheet, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The calls of the prompts to learn from, and of all others."""
    prompts = prompts_for(args.model, sheet, args.prompts)
    # Evaluations begin with the first ones, and should not judge what was learnt from.
    skip = max(0, len(prompts) - args.limit) if args.skip is None else args.skip
    learnt = part_of_prompts(prompts, skip, args.limit)
    others = prompts[:skip] + prompts[skip + len(learnt) :]
    given = dict(args.call)
    if args.steps is not None:
        given["num_inference_steps"] = args.steps
    call = default_call(opened.pipe, sheet, given, opened.call)
    made = [[{**call, **asked(opened.pipe, p)} for p in part] for part in (learnt, others)]
    return made[0], made[1]


def _names(args: argparse.Namespace) -> dict[str, Target]:
    """File name without suffix -> target; none where a method's constants are measured."""
    if args.psnr is None and (args.promise or args.confidence) is not None:
        raise UsageError("a promise is about --psnr: give it, too", "promise")
    promised = {"share": args.promise, "confidence": args.confidence}
    goals = [
        (f"psnr-{p:g}", Target(psnr=p, statistic=args.statistic, **promised))
        for p in args.psnr or ()
    ]
    for target in args.target or ():
        goals.append((target.asked.replace(" ", "-"), replace(target, statistic=args.statistic)))
    for share in args.share or ():
        goals.append((f"share-{share:g}", Target(computed_share=share, statistic=args.statistic)))
    for error in args.attention_error or ():
        goals.append((f"attention-error-{error:g}", Target(attention_error=error)))
    return dict(goals)


def _check_used(args: argparse.Namespace, goals: dict[str, Target], in_space: bool) -> None:
    """Refuse options that would change nothing, and targets that a space does not serve.

    Raises:
        ConfigError, UsageError: there is one.
    """
    if args.runs is not None and not in_space:
        raise UsageError("is for a search in seconds: add --space or --target", "runs")
    if not in_space:
        return
    if args.fit is not None:
        raise UsageError("says nothing of a method's constants; leave it out, or --fit", "space")
    for name in ("refine", "anneal", "resume"):
        if getattr(args, name):
            raise UsageError(
                "is for a search of computed steps alone; leave it out (--runs FOLDER keeps what "
                "a search in seconds has run)",
                name,
            )
    for goal in goals.values():
        Aim.of(goal, 1.0)


def _places(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Path]:
    """Where each file goes; looked at before anything runs.

    Raises:
        UsageError: several files for one name, or a file that is there and may not be replaced.
    """
    names = list(names)
    single = args.out.suffix in (".yaml", ".yml", ".json")
    if single and len(names) > 1:
        raise UsageError(f"{args.out} is a file, and {len(names)} targets need a folder", "out")
    given.output_folder(args.out.parent if single else args.out)
    places = {n: given.path(args.out if single else args.out / f"{n}.yaml") for n in names}
    there = [str(path) for path in places.values() if path.exists()]
    if there and not args.overwrite:
        raise UsageError(
            f"{', '.join(there)} exists; give another --out, or --overwrite to replace it"
        )
    return places


class _Files:
    """Writes what was found, and keeps count of what did not reach its target.

    Args:
        places: of the files by name.

    Attributes:
        scheduler: of the pipeline, which goes into the files.
    """

    def __init__(self, places: dict[str, Path]) -> None:
        self.places = places
        self.scheduler = ""
        self.missed: list[str] = []

    def make_folder(self) -> None:
        """Make room for the files, before hours are spent on them.

        Raises:
            UsageError: it cannot be made.
        """
        for path in self.places.values():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"cannot write to {path}: {error}") from None

    def write(self, name: str, config: configs.AccelerationConfig) -> Path:
        """Write a config that reached its target."""
        configs.dump(replace(config, scheduler=self.scheduler), self.places[name])
        return self.places[name]

    def miss(self, name: str, why: str, config: configs.AccelerationConfig | None) -> Path | None:
        """Write a config that did not, unless a file is there: that one may be better."""
        path = self.places[name]
        if config is None:
            self.missed.append(f"{name}: {why}; no file is written")
        elif path.exists():
            self.missed.append(f"{name}: {why}; {path} is left as it was")
        else:
            self.missed.append(f"{name}: {why}; the best plan is in {self.write(name, config)}")
            return path
        return None


def _calibrate(
    pipe: Any, calls: list[dict[str, Any]], goals: dict[str, Target], seed: int, files: _Files
) -> None:
    print(f"{'target':<24}{'density':>9}{'error':>9}  file")
    for name, goal in goals.items():
        error = goal.attention_error or 0.0
        found = calibrate(pipe, calls, target_error=error, seed=seed, progress=_say)
        config = calibrated_config(found, error)
        mean = sum(found.error) / len(found.error)
        path: Path | None
        if not found.saves:
            path = files.miss(name, no_saving(found, error), None)
        elif mean > error:
            path = files.miss(name, f"the mean error of the layers is {mean:.4f}", config)
        else:
            path = files.write(name, config)
        density = sum(found.density) / len(found.density)
        print(f"{name:<24}{density:>9.3f}{mean:>9.4f}  {path or '-'}")


def _search(
    tuner: Tuner, goals: dict[str, Target], files: _Files, held_out: list[dict[str, Any]]
) -> None:
    print(f"{'target':<14}{'computed':>9}{'PSNR':>9}{'worst':>9}  file")
    for name, goal in goals.items():
        if goal.promise is not None:
            came = tuner.promised(goal.promise, held_out)
            if came.held:
                _say(came.words)
                _row(name, came.run, files.write(name, tuner.stamped(came.run)))
            else:
                _row(name, came.run, files.miss(name, came.words, tuner.stamped(came.run)))
            continue
        with warnings.catch_warnings():
            # reported below, with what becomes of the file
            warnings.filterwarnings("ignore", message=".*no plan that was run reaches")
            found = tuner.reach(goal)
        path: Path | None
        if found.reaches(goal):
            path = files.write(name, tuner.stamped(found))
        else:
            path = files.miss(
                name,
                f"no plan that was run reaches {goal.asked}; the best of {len(tuner.runs)} has "
                f"{found.shown(goal.statistic)}",
                tuner.stamped(found),
            )
        _row(name, found, path)


def _search_space(
    pipe: Any,
    calls: list[dict[str, Any]],
    goals: dict[str, Target],
    args: argparse.Namespace,
    files: _Files,
    held_out: list[dict[str, Any]],
) -> None:
    space = replace(Space.parse(args.space or ""), runs=args.runs, minutes=args.minutes)
    tuner = SpaceTuner(pipe, calls, space, args.seed, _say, args.memory)
    print(f"{'target':<24}{'speed-up':>9}{'level':>9}{'worst':>9}  file")
    path: Path | None
    for name, goal in goals.items():
        if goal.promise is not None:
            made = tuner.promised(goal.promise, held_out)
            _say(made.words)
            config = made.config
            path = files.write(name, config) if made.held else files.miss(name, made.words, config)
            print(f"{name:<24}{'':>18}{min(made.levels):>9.4g}  {path or '-'}")
            continue
        came = tuner.reach(goal)
        _say(came.words)
        best, measure = came.best, came.aim.measure
        config = tuner.stamped(came)
        level, worst = (measure.level(best.levels, s) for s in (goal.statistic, "min"))
        path = files.write(name, config) if came.reached else files.miss(name, came.words, config)
        print(f"{name:<24}{came.speedup:>8.2f}x{level:>9.4g}{worst:>9.4g}  {path or '-'}")
    if args.runs is not None:
        _say(f"what was tried: ditaccel report {args.runs}")


def _row(name: str, found: TuningRun, path: Path | None) -> None:
    levels = f"{found.psnr:>6.1f} dB{found.psnr_min:>6.1f} dB"
    print(f"{name:<14}{found.computed_share:>9.3f}{levels}  {path or '-'}")


def _fit(pipe: Any, calls: list[dict[str, Any]], config: Any, seed: int, files: _Files) -> None:
    found = fitted_on(pipe, config, calls, seed, _say)
    name = next(iter(files.places))
    path = files.write(name, configs.AccelerationConfig.of(found.config, label=f"fitted {name}"))
    print("\n".join([*found.notes, f"written: {path}"]))
    for line in found.warnings:
        print(f"ditaccel: warning: {line}", file=sys.stderr)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> int:
    """Run `ditaccel tune`.

    Returns:
        0; 1 where a target was not reached (each is named).

    Raises:
        DitaccelError: unusable input, in one line.
    """
    goals = _names(args)
    in_space = args.space is not None or any(goal.needs_space for goal in goals.values())
    _check_used(args, goals, in_space)
    fitted = None if args.fit is None else configs.parse_spec(args.fit).cache
    check_scheduler(args.scheduler)
    files = _Files(_places(args, goals or [args.fit.partition(":")[0].strip()]))
    use_threads(args.threads, choose_device(args.device))
    opened = open_pipeline(args.model, args.device, args.dtype, args.pipeline)
    put_scheduler(opened.pipe, args.scheduler)
    files.scheduler = scheduler_of(opened.pipe)
    calls, others = _calls(opened, read_sheet(args.model), args)
    for goal in goals.values():
        if goal.promise is not None:
            goal.promise.check_count(len(others), len(calls))
    files.make_folder()  # not before: a wrong model leaves nothing behind
    with calls_of(opened.pipe, "tune"):
        if args.fit is not None:
            _fit(opened.pipe, calls, fitted, args.seed, files)
        elif in_space:
            _search_space(opened.pipe, paired(calls, args.pairs), goals, args, files, others)
        elif args.attention_error:
            _calibrate(opened.pipe, calls, goals, args.seed, files)
        else:
            refine = Refine(
                trials=args.refine, anneal=args.anneal, minutes=args.minutes, resume=args.resume
            )
            calls = paired(calls, args.pairs)
            tuner = Tuner(opened.pipe, calls, args.seed, _say, args.memory, refine, bar=True)
            _search(tuner, goals, files, others)
    for line in files.missed:
        print(f"ditaccel: not reached: {line}", file=sys.stderr)
    return 1 if files.missed else 0
