"""The support table: measured results as JSON, and their form in `pipelines/README.md`.

    make support-table                   # the families that have no results yet
    make support-table ARGS="flux wan"   # these again
    make support-table ARGS=--all        # all that were measured at another commit

Results are kept family by family: the same command resumes where a run was stopped. The README's
table is written from the results and from nothing else (`generated_docs.py`); `tests/conformance`
compares the results with what the checks give.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
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
STEPS = 5
UNKNOWN = "not measured yet (make support-table)"
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


def render(results: dict[str, Any]) -> str:
    """The table in Markdown, with a note for every cell that is not `works`."""
    notes: dict[str, int] = {}

    def cell(key: str, text: str) -> str:
        if text == WORKS:
            return "✓"
        text = in_plain_words(key, text)
        # one note for all transformers with the same reason
        return f"[{notes.setdefault(text, len(notes) + 1)}]"

    lines = []
    for keys in (list(METHODS), list(COMPOSITIONS)):
        names = [re.sub(r"(_| )", r"\1<br>", key).replace(" <br>", "<br>") for key in keys]
        lines += ["| pipeline (tiny) | " + " | ".join(names) + " |", "|---|" + ":-:|" * len(keys)]
        for name, row in results.items():
            cells = " | ".join(cell(key, row["cells"].get(key, UNKNOWN)) for key in keys)
            lines.append(f"| {row['pipeline']} ({name}) | {cells} |")
        lines.append("")
    lines += [f"[{number}] {text}  " for text, number in notes.items()]
    return "\n".join(lines).rstrip()


def commit() -> str:
    """What is measured: the last commit of these rooms, with a plus where files differ from it."""
    git = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
    rooms = ["--", "ditaccel", "kernels", "pipelines/*.py", "tests/support"]
    last = git(["git", "log", "-1", "--format=%h", "--abbrev=12", *rooms]).stdout.strip()
    return last + "+" * bool(git(["git", "status", "--porcelain", *rooms]).stdout)


def main() -> int:
    """Measure and write; the results are kept family by family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="tiny pipelines to measure again")
    parser.add_argument(
        "--all", action="store_true", help="measure all that were measured at another commit"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="another file of results")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in FAMILIES]
    if unknown:
        parser.error(f"no tiny pipeline {unknown[0]!r}; known: {', '.join(FAMILIES)}")
    found, now = read(args.results), commit()
    known = {name: row["cells"] for name, row in found.items()}
    again = bool(args.names or args.all)
    if args.all:
        wanted = [name for name in FAMILIES if found.get(name, {}).get("commit") != now]
    else:
        wanted = args.names or [n for n in FAMILIES if list(known.get(n, ())) != columns()]
    warnings.simplefilter("ignore")
    faults = 0
    for number, name in enumerate(wanted, 1):
        begun = time.monotonic()
        try:
            row = measure(name, None if again else known.get(name)) | {"commit": now}
            write({**read(args.results), name: row}, args.results)
            said = "measured"
        except Exception as error:
            faults += 1
            what = ", ".join(getattr(error, "__notes__", []))
            said = f"{what}: {type(error).__name__}: {error}"
        took = time.monotonic() - begun
        print(f"[{number}/{len(wanted)}] {name}: {said} ({took:.0f} s)", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
