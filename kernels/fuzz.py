"""Random calls of the kernels, each compared with its definition in float64.

    python -m ditaccel.kernels.fuzz --cases 10000
    TRITON_INTERPRET=1 python -m ditaccel.kernels.fuzz --cases 500 --backend triton

With `--journal FILE`, a run goes on behind the last case that an earlier one with the same backend,
device and operators has checked, until all `--cases` are done. It fails for as long as one of the
cases that failed is among them: run these again by their seeds, and delete the file.

Each operator's `fuzz.py` draws and checks a call: `check(seed, backend, device, dtype)`. A case is
drawn from its seed alone, so one that fails is run again with `--seed N --cases 1`.

A tool for developers, which wheels leave out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SAVED = 20  # cases between two writings of the journal


def operators() -> dict[str, Any]:
    """The modules `<operator>/fuzz.py` by the name of the operator, in the order of the alphabet.

    Each has `check(seed, backend, device="cpu", dtype=None)`, which returns what is wrong with a
    random call, one sentence each, and `INTERPRETED`: the numbers of cases of a quick test in
    Triton's interpreter, and of a slow one.
    """
    return {
        path.parent.name: importlib.import_module(f"{__package__}.{path.parent.name}.fuzz")
        for path in sorted(Path(__file__).parent.glob("*/fuzz.py"))
    }


def relative_rmse(got: Tensor, expected: Tensor) -> float:
    """Root of the mean squared error over that of the expected values; 0 when both are 0."""
    error = (got.double() - expected.double()).square().mean().sqrt()
    size = expected.double().square().mean().sqrt()
    return float(error / size) if float(size) else float(error)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what `torch.empty` and `torch.empty_like` give with NaN, so that nothing read before it
    is written goes unseen."""
    empty, empty_like = torch.empty, torch.empty_like

    def fill(tensor: Tensor) -> Tensor:
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(99)

    def poisoned_empty(*args: Any, **kwargs: Any) -> Tensor:
        return fill(empty(*args, **kwargs))

    def poisoned_empty_like(*args: Any, **kwargs: Any) -> Tensor:
        return fill(empty_like(*args, **kwargs))

    torch.empty, torch.empty_like = poisoned_empty, poisoned_empty_like
    try:
        yield
    finally:
        torch.empty, torch.empty_like = empty, empty_like


class Journal:
    """Which cases were checked, in a file that is written as a whole.

    Args:
        path: of the file; None keeps nothing.
        what: is checked: backend, device and operators.
        seed: of the first case.

    Attributes:
        next: seed of the first case that is not checked yet.
        failed: seeds of those that failed.
    """

    def __init__(self, path: Path | None, what: str, seed: int) -> None:
        self._path, self._what = path, what
        self._every: dict[str, Any] = {}
        if path is not None and path.exists():
            self._every = json.loads(path.read_text())
        known = self._every.get(what, {})
        self.next: int = max(seed, known.get("next", seed))
        self.failed: list[int] = list(known.get("failed", ()))

    def save(self) -> None:
        """Write it, if there is a file."""
        if self._path is None:
            return
        self._every[self._what] = {"next": self.next, "failed": self.failed}
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.write_text(json.dumps(self._every, indent=1) + "\n")
        draft.replace(self._path)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 when a case failed."""
    found = operators()
    parser = argparse.ArgumentParser(prog="python -m ditaccel.kernels.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--backend", choices=("torch", "triton"), default="torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernels", nargs="+", choices=tuple(found), default=tuple(found))
    parser.add_argument("--stop-after", type=int, default=10, help="failures")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case after")
    parser.add_argument("--journal", type=Path, help="file to go on from")
    options = parser.parse_args(arguments)
    began, ran, failures = time.perf_counter(), 0, 0
    what = " ".join((options.backend, options.device, *options.kernels))
    journal = Journal(options.journal, what, options.seed)
    for seed in range(journal.next, options.seed + options.cases):
        if time.perf_counter() - began > options.seconds:
            break
        ran += 1
        wrong = []
        for name in options.kernels:
            reported = found[name].check(seed, options.backend, options.device)
            wrong += [f"{name}: {text}" for text in reported]
        if wrong:
            failures += 1
            journal.failed.append(seed)
            print(f"seed {seed}: {'; '.join(wrong)}", file=sys.stderr)
        journal.next = seed + 1
        if wrong or ran % _SAVED == 0:
            journal.save()
        if failures >= options.stop_after:
            break
    journal.save()
    spent = time.perf_counter() - began
    print(f"{options.backend} on {options.device}: {ran} cases, {failures} failed, {spent:.0f} s")
    left = options.seed + options.cases - journal.next
    if options.journal is not None:
        print(f"{left} left; failed so far: {', '.join(map(str, journal.failed)) or 'none'}")
    return 1 if journal.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
