"""How well the last block's output can be forecast along the steps of one generation."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn


def _blocks(transformer: nn.Module) -> list[nn.Module]:
    """All blocks in the order of the forward pass."""
    names = ("blocks", "transformer_blocks", "single_transformer_blocks")
    return [block for name in names for block in getattr(transformer, name, [])]


class Recorder:
    """Keeps the output of the first and last block of every transformer call.

    Outputs of blocks with two streams are the picture's tokens.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.first: list[Tensor] = []
        self.last: list[Tensor] = []
        blocks = _blocks(transformer)
        self._handles = [
            blocks[0].register_forward_hook(self._keep(self.first)),
            blocks[-1].register_forward_hook(self._keep(self.last)),
        ]

    @staticmethod
    def _keep(store: list[Tensor]) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            # Flux returns (text, picture).
            store.append((output[1] if isinstance(output, tuple) else output).detach().float())

        return hook

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().mean() / b.abs().mean()).item()


def _forecast(history: list[Tensor], interval: int, ahead: int, order: int) -> Tensor:
    """TaylorSeer: repeated backward differences of the full steps, newest last in `history`."""
    differences = [history[-1]]
    level = list(history)
    for _ in range(order):
        level = [(b - a) / interval for a, b in itertools.pairwise(level)]
        differences.append(level[-1])
    result = differences[0]
    factor = 1.0
    for k in range(1, order + 1):
        factor *= ahead / k
        result = result + factor * differences[k]
    return result


def measure(features: list[Tensor], interval: int) -> dict[str, Any]:
    """Relative L1 forecast errors of orders 0, 1 and 2 with a full step every `interval` steps.

    Args:
        features: one tensor a step, of one guidance branch.
        interval: spacing of full steps.

    Returns:
        "mean" per order (over all distances 1 … interval and all steps where order 2 is possible)
        and "per_step" {order: {step: error}}.
    """
    errors: dict[int, dict[int, list[float]]] = {o: defaultdict(list) for o in range(3)}
    for now in range(2 * interval, len(features) - 1):
        history = [features[now - 2 * interval], features[now - interval], features[now]]
        for ahead in range(1, min(interval, len(features) - 1 - now) + 1):
            for order in range(3):
                guess = _forecast(history, interval, ahead, order)
                errors[order][now + ahead].append(_relative(guess, features[now + ahead]))
    flat = {o: [e for row in steps.values() for e in row] for o, steps in errors.items()}
    return {
        "mean": {o: sum(v) / len(v) for o, v in flat.items()},
        "per_step": {
            o: {s: sum(row) / len(row) for s, row in sorted(steps.items())}
            for o, steps in errors.items()
        },
    }


def curves(recorder: Recorder, branches: int, batch: int, interval: int = 3) -> dict[str, Any]:
    """Smoothness of one recorded generation.

    Args:
        recorder: its transformer was called steps × branches times.
        branches: transformer calls a step (1 where guidance doubles the batch).
        batch: pictures; with one call a step the first `batch` rows are the conditional ones.
        interval: spacing of full steps.
    """
    half = slice(0, batch)
    last = [x[half] for x in recorder.last[::branches]]
    first = [x[half] for x in recorder.first[::branches]]
    residual = [b - a for a, b in zip(first, last, strict=True)]
    pairs = itertools.pairwise(residual)
    return {
        "change": [_relative(a, b) for a, b in pairs],
        "last": measure(last, interval),
        "residual": measure(residual, interval),
        "steps": len(last),
    }


def summary(result: dict[str, Any]) -> str:
    mean = result["last"]["mean"]
    return (
        f"last block, interval 3: reuse {mean[0]:.4f}, linear {mean[1]:.4f}, quadratic "
        f"{mean[2]:.4f}; linear / reuse {mean[1] / mean[0]:.2f}"
    )


def record(name: str, pipe: Any, call: dict[str, Any], prompts: list[str]) -> dict[str, Any]:
    """Generate once in float32 and measure."""
    from judge import generate

    recorder = Recorder(pipe.transformer)
    try:
        with torch.no_grad():
            generate(name, pipe, call, prompts, seed=500, batch=len(prompts), exact=True)
    finally:
        recorder.close()
    return curves(recorder, branches=1 if name in ("dit", "flux-few") else 2, batch=len(prompts))


if __name__ == "__main__":
    import argparse

    from judge import CLASSES, load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=CLASSES)
    parser.add_argument("--n", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    pipe, call, prompts = load(arguments.model)
    print(summary(record(arguments.model, pipe, call, prompts[: arguments.n])))
