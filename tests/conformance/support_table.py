"""The support table: measured results as JSON, and their form in `pipelines/README.md`.

    make support-table                   # the families that have no results yet
    make support-table ARGS="flux wan"   # these again
    make support-table ARGS=--all        # all again (half an hour on one core)

The README's table is written from the results and from nothing else; `tests/conformance` checks the
results against what the checks give, and the README against the results.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from compositions import COMPOSITIONS
from conformance import METHODS, WORKS, Subject, check_method
from tiny import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "conformance" / "support.json"
README = ROOT / "pipelines" / "README.md"
BEGIN, END = "<!-- generated: support table -->", "<!-- end of support table -->"
STEPS = 5
SHORT = {
    "adaptive_taylor": "AT",
    "confidence_gated_taylor": "CG",
    "first_block_residual": "FB",
    "taylorseer": "TS",
    "taylorseer last_block": "TL",
    "reuse": "R",
    "step_mask": "SM",
    "lite_attention": "LA",
    "svg2": "S2",
    "sla": "SL",
    "compiled blocks": "cb",
    "compiled as a whole": "cw",
    "group offload": "go",
    "model offload": "mo",
    "sequential offload": "so",
    "fp8 storage": "f8",
    "fused QKV": "fq",
    "LoRA": "lo",
    "int8 weights": "i8",
}


# What the checks write where the dense pipeline raises under something; the JSON keeps the rest.
FAILS = "the dense pipeline fails under it: "
PLAIN = {
    "sequential offload": "diffusers' sequential offload fails on this pipeline",
    "fused QKV": "diffusers' fuse_qkv_projections fails on this transformer",
    "int8 weights": "torchao's int8 weights lack an operation that this transformer uses",
}


def in_plain_words(what: str, text: str) -> str:
    """A result as the README says it: no exception of another library's.

    Args:
        what: the method or composition.
        text: what the check gave.
    """
    if text.endswith("is not installed"):
        return f"not measured: {text}".replace("is not", "was not")
    if not text.startswith(FAILS):
        return text
    return f"{PLAIN.get(what, f'{what} fails on this pipeline')}, with or without ditaccel"


def columns() -> list[str]:
    """Methods, then compositions."""
    return [*METHODS, *COMPOSITIONS]


def measure(name: str, known: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run the checks of one tiny pipeline; a fault is an exception.

    Args:
        name: of the tiny pipeline.
        known: results that need not be measured again.
    """
    family = FAMILIES[name]
    subject = Subject(family, STEPS)
    checks = {method: partial(check_method, subject, method) for method in METHODS}
    checks |= {what: partial(check, family) for what, check in COMPOSITIONS.items()}
    cells = {}
    for what, check in checks.items():
        try:
            cells[what] = (known or {}).get(what) or check()
        except Exception as error:
            error.add_note(what)
            raise
    return {"pipeline": type(subject.pipe).__name__, "family": family.family, "cells": cells}


def read(path: Path = RESULTS) -> dict[str, Any]:
    """Results by tiny pipeline."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write(results: dict[str, Any], path: Path = RESULTS) -> None:
    """Write the results, in the order of the families."""
    ordered = {name: results[name] for name in FAMILIES if name in results}
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def write_readme() -> None:
    """Write the README's table from the results."""
    README.write_text(with_table(README.read_text(), render(read())))


def with_table(text: str, table: str) -> str:
    """A text with the part between the marks exchanged."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def render(results: dict[str, Any]) -> str:
    """The table in Markdown, with a note for every cell that is not `works`."""
    notes: dict[str, int] = {}

    def cell(key: str, text: str) -> str:
        if text == WORKS:
            return "✓"
        text = in_plain_words(key, text)
        # one note for all transformers with the same reason
        return f"[{notes.setdefault(text, len(notes) + 1)}]"

    keys = columns()
    lines = [
        "| pipeline (tiny) | " + " | ".join(SHORT[key] for key in keys) + " |",
        "|---|" + ":-:|" * len(keys),
    ]
    for name, row in results.items():
        cells = " | ".join(cell(key, row["cells"][key]) for key in keys)
        lines.append(f"| {row['pipeline']} ({name}) | {cells} |")
    legend = ", ".join(f"{SHORT[key]} {key}" for key in keys)
    lines += ["", f"{legend}.", ""]
    lines += [f"[{number}] {text}  " for text, number in notes.items()]
    return "\n".join(lines).rstrip()


def main() -> int:
    """Measure and write; the results are kept family by family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="tiny pipelines to measure again")
    parser.add_argument("--all", action="store_true", help="measure all of them again")
    parser.add_argument("--readme", action="store_true", help="only write the README's table")
    parser.add_argument("--results", type=Path, default=RESULTS, help="another file of results")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in FAMILIES]
    if unknown:
        parser.error(f"no tiny pipeline {unknown[0]!r}; known: {', '.join(FAMILIES)}")
    found = {name: row["cells"] for name, row in read(args.results).items()}
    missing = [name for name in FAMILIES if list(found.get(name, ())) != columns()]
    again = args.names or args.all
    wanted = list(FAMILIES) if args.all else args.names or missing
    warnings.simplefilter("ignore")
    faults = 0
    for name in [] if args.readme else wanted:
        print(name, flush=True)
        try:
            row = measure(name, None if again else found.get(name))
            write({**read(args.results), name: row}, args.results)
        except Exception as error:
            faults += 1
            what = ", ".join(getattr(error, "__notes__", []))
            print(f"{name}: {what}: {type(error).__name__}: {error}", flush=True)
    if args.results == RESULTS:
        write_readme()
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
