"""The loss of a fine-tuning run, as a picture in its folder."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from ..io.files import read_lines, write_atomically

LOSSES, CURVE = "loss.jsonl", "loss.png"


def draw_curve(folder: Path) -> Path | None:
    """Draw the loss of a run; None without matplotlib or without steps."""
    lines = read_lines(folder / LOSSES)
    if not lines:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    losses = torch.tensor([x["loss"] for x in lines], dtype=torch.float64)
    smooth, value = [], losses[: min(10, len(losses))].mean()
    for loss in losses:
        value = 0.95 * value + 0.05 * loss
        smooth.append(float(value))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [x["step"] for x in lines]
    axes.plot(steps, losses.tolist(), lw=0.4, alpha=0.4, label="each step")
    axes.plot(steps, smooth, label="running mean, 0.95 of the one before")
    axes.legend(frameon=False)
    axes.set(yscale="log", xlabel="step", ylabel="loss")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    path = folder / CURVE
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
    return path
