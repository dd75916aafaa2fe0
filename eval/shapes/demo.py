"""`make demo`: evaluates the shipped sample models and opens the way to the reports."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditaccel.errors import DitaccelError, UsageError

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "models"


@dataclass(frozen=True)
class Plan:
    """What the demo measures on one model.

    Attributes:
        model: folder below `samples/models`.
        steps: scheduler steps of dense: fewer than usual, so that the demo takes minutes.
        fewer: step counts of the fewer-steps rows.
        configs: texts as `ditaccel eval --config` takes them.
        prompts: how many of the model's prompts.
        call: arguments of the pipeline call that differ from the model's own.
    """

    model: str
    steps: int
    fewer: tuple[int, ...]
    configs: tuple[str, ...]
    prompts: int
    call: dict[str, Any] | None = None


PRESETS = "presets=safe|balanced|fast"
PLANS = (
    Plan(
        "shapes-flux",
        28,
        (20, 14, 9),
        (PRESETS, "cache-dit=peer/cache_dit:fn=1,threshold=0.1"),
        6,
    ),
    # A shorter clip than the model's own: a second of work in place of ten.
    Plan("shapes-wan", 20, (13, 10), ("balanced",), 3, {"num_frames": 21}),
)


def _evaluate(plan: Plan, folder: Path, out: Path) -> Path:
    """Measure one model and write its report; returns the run's folder."""
    from ditaccel.eval.options import Options
    from ditaccel.eval.report.page import write_report
    from ditaccel.eval.runs import evaluate

    from ditaccel.io.models import read_prompts, read_sheet

    sheet = read_sheet(folder)
    if sheet.prompts is None:
        raise UsageError(f"{folder / 'sample.json'} names no prompts: get the samples again")
    prompts = read_prompts(sheet.prompts, plan.prompts)
    # One thread: such small models gain little from more, and threads wait for one another as soon
    # as the machine does something else, which made the demo ten times as slow.
    options = Options(steps=plan.steps, fewer=plan.fewer, call=plan.call, threads=1)
    run = evaluate(folder, plan.configs, prompts, [0], out / plan.model, options)
    write_report(run)
    return run


def _table(run: Path) -> list[str]:
    """The run's main figures, its noise and its best row, for a terminal."""
    from ditaccel.eval.report.load import load_evaluation
    from ditaccel.eval.report.text_table import main_lines, terminal_table

    evaluation = load_evaluation(run)
    return [f"  {line}" for line in (*terminal_table(evaluation), *main_lines(evaluation))]


def run_demo(samples: Path, out: Path) -> Path:
    """Evaluate every sample model that is there.

    Args:
        samples: folder with the model folders.
        out: gets one folder per model and `index.html`.

    Returns:
        Path of `index.html`.

    Raises:
        UsageError: no sample model is there, or the evaluation cannot run.
    """
    from ditaccel.eval.report.index import write_index
    from ditaccel.eval.report.load import load_evaluation

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
    print(
        "\nSpeed-up: seconds of a paired dense run / own seconds; median and middle half."
        "\nPSNR: to dense, same seed. Kept: samples that stay the same picture (25 dB or more)."
        f"\n{minutes:.1f} min."
    )
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
        print("interrupted: the same command resumes where this one stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
