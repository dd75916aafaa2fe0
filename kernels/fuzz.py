"""Random calls of the kernels, each compared with its definition in float64.

    python -m ditaccel.kernels.fuzz --cases 10000
    TRITON_INTERPRET=1 python -m ditaccel.kernels.fuzz --cases 500 --backend triton

Each operator's `fuzz.py` draws and checks a call: `check(seed, backend, device, dtype)`. A case is
drawn from its seed alone, so one that fails is run again with `--seed N --cases 1`.

A tool for developers, which wheels leave out.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
    options = parser.parse_args(arguments)
    began, ran, failures = time.perf_counter(), 0, 0
    for seed in range(options.seed, options.seed + options.cases):
        if time.perf_counter() - began > options.seconds:
            break
        ran += 1
        wrong = []
        for name in options.kernels:
            reported = found[name].check(seed, options.backend, options.device)
            wrong += [f"{name}: {text}" for text in reported]
        if wrong:
            failures += 1
            print(f"seed {seed}: {'; '.join(wrong)}", file=sys.stderr)
            if failures >= options.stop_after:
                break
    spent = time.perf_counter() - began
    print(f"{options.backend} on {options.device}: {ran} cases, {failures} failed, {spent:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
