"""`make demo`: evaluates the shipped sample models and opens the way to the reports."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ditaccel.errors import DitaccelError, UsageError

SAMPLES = Path(__file__).resolve().parent.parent / "samples" / "models"


@dataclass(frozen=True)
class Plan:
    """What the demo measures on one model.

    Attributes:
        model: folder below `samples/models`.
        steps: scheduler steps of dense: fewer than usual, so that the demo takes minutes.
        fewer: step counts of the fewer-steps rows.
        configs: texts as `ditaccel eval --config` takes them.
        prompts: how many of the model's prompts.
    """

    model: str
    steps: int
    fewer: tuple[int, ...]
    configs: tuple[str, ...]
    prompts: int


PRESETS = "presets=safe|balanced|fast"
OURS = (PRESETS, "CG-Taylor (published)=published")
PLANS = (
    Plan("shapes-wan", 20, (10, 7), (PRESETS,), 2),
    Plan(
        "shapes-flux",
        28,
        (20, 14, 9),
        (
            *OURS,
            "TaylorSeer=taylorseer:interval=2|3",
            "reuse=reuse:interval=2",
            "cache-dit=peer/cache_dit:fn=1,threshold=0.1",
        ),
        3,
    ),
    Plan("shapes-dit", 50, (25, 17, 12), (*OURS, "TaylorSeer=taylorseer:interval=3"), 2),
)


def _evaluate(plan: Plan, folder: Path, out: Path) -> Path:
    """Measure one model and write its report; returns the run's folder."""
    from ditaccel.eval.report_html import write_report
    from ditaccel.eval.runs import Options, evaluate

    from ditaccel.models import read_prompts, read_sheet

    sheet = read_sheet(folder)
    if sheet.prompts is None:
        raise UsageError(f"{folder / 'sample.json'} names no prompts: get the samples again")
    prompts = read_prompts(sheet.prompts, plan.prompts)
    options = Options(steps=plan.steps, fewer=plan.fewer)
    run = evaluate(folder, plan.configs, prompts, [0], out / plan.model, options)
    write_report(run)
    return run


def _table(run: Path) -> list[str]:
    """The run's main figures, for a terminal."""
    from ditaccel.eval.html.load import load_evaluation

    evaluation = load_evaluation(run)
    lines = [f"  {'configuration':<22} {'speed-up':>9} {'computed':>9} {'PSNR':>10} {'worst':>10}"]
    for config in evaluation.configs:
        speed = evaluation.number(config, "speedup", "median")
        share = evaluation.number(config, "computed_share")
        psnr = [evaluation.number(config, "psnr", key) for key in ("mean", "min")]
        cells = ["identical" if v is not None and v >= 99 else f"{v or 0:.1f} dB" for v in psnr]
        lines.append(
            f"  {config.label:<22} {speed or 0:>8.2f}x {share or 0:>9.0%} "
            f"{cells[0]:>10} {cells[1]:>10}"
        )
    return lines


def run_demo(samples: Path, out: Path) -> Path:
    """Evaluate every sample model that is there.

    Args:
        samples: folder with the model folders.
        out: gets one folder a model and `index.html`.

    Returns:
        Path of `index.html`.

    Raises:
        UsageError: no sample model is there, or the evaluation cannot run.
    """
    from ditaccel.eval.html.index import write_index
    from ditaccel.eval.html.load import load_evaluation

    plans = [plan for plan in PLANS if (samples / plan.model / "model_index.json").is_file()]
    if not plans:
        raise UsageError(
            f"{samples} holds none of the sample models "
            f"({', '.join(plan.model for plan in PLANS)}): run this from a full clone of the "
            "repository, or train them as samples/README.md says"
        )
    # It warns for each image processor that torchvision is missing, which is on purpose.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    start, runs = time.monotonic(), []
    for number, plan in enumerate(plans, start=1):
        print(f"[{number}/{len(plans)}] {plan.model}", file=sys.stderr, flush=True)
        runs.append(_evaluate(plan, samples / plan.model, out))
    index = write_index(out / "index.html", [load_evaluation(run) for run in runs])
    for plan, run in zip(plans, runs, strict=True):
        print("\n".join(["", f"{plan.model}", *_table(run)]))
    missing = [plan.model for plan in PLANS if plan not in plans]
    if missing:
        print(f"\nnot in this checkout: {', '.join(missing)}")
    minutes = (time.monotonic() - start) / 60
    print(f"\nSpeed-up is wall-clock on this machine; PSNR is to dense. {minutes:.1f} min.")
    print(f"report: {index}")
    return index


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code (2 for a mistake of the user)."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="folder of the sample models")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="where results go")
    args = parser.parse_args(argv)
    try:
        run_demo(args.samples, args.out)
    except DitaccelError as error:
        print(f"ditaccel: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
