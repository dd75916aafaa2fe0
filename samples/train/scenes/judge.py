"""Training of the network that judges the scenes: it must name every cell of a picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from ditaccel.eval.shapes.scene_net import CELL, SceneNet
from judge_task import degraded
from loop import device
from torch import Tensor, nn

from scenes.seen import visible
from scenes.textures import MATERIALS
from scenes.things import THINGS
from scenes.world import COLOURS, SIZE, Scenes, render, sample_scenes

_CARD = """# scenes-features

A small network that judges the scenes models: it names thing, material and colour of every cell of
{cell} x {cell} pixels, from which follow the scores of prompts, and whether a sample still shows
what the dense one shows ("kept"). The mean of its last layer ({features} numbers) serves distances
of distributions. Loads with `ditaccel.eval.shapes.scene_net.SceneNet`; `--features FOLDER` of
`ditaccel eval` takes it, and the `sample.json` of the scenes models names it.

- **Size**: {size:.2f} M parameters, float16.
- **Trained** on pictures that are drawn on the way, of which half are blurred and noised:
  `python samples/train/train.py scenes-features`, {steps} steps.

Right cells of {count} fresh pictures:

| | things, walls and floors | materials | colours |
|---|---|---|---|
{table}
"""


def build_judge() -> SceneNet:
    return SceneNet(tuple(THINGS), tuple(MATERIALS), tuple(COLOURS))


def right_cells(net: SceneNet, pictures: Tensor, scenes: Scenes) -> list[float]:
    """Shares of the cells whose thing, material and colour are named right.

    Args:
        net: the judge.
        pictures: (N, 3, 128, 128) in [0, 1].
        scenes: what is on them.
    """
    seen = net.see(pictures)[1].flatten(2).transpose(1, 2)
    right = seen == visible(scenes, CELL, SIZE).to(seen.device)
    return [float(x) for x in right.float().mean((0, 1))]


def judge_card(net: SceneNet, steps: int, count: int = 256) -> str:
    """The card of the trained network."""
    generator = torch.Generator().manual_seed(31)
    scenes = sample_scenes(count, generator)
    clean = render(scenes)[:, 0]
    worse = (degraded(clean * 2 - 1, generator) / 2 + 0.5).clamp(0, 1)
    rows = {"as drawn": clean, "blurred and noised": worse}
    lines = []
    for label, pictures in rows.items():
        shares = right_cells(net, pictures, scenes)
        lines.append(f"| {label} | {' | '.join(f'{100 * x:.1f} %' for x in shares)} |")
    return _CARD.format(
        cell=CELL,
        features=net.num_features,
        size=sum(p.numel() for p in net.parameters()) / 1e6,
        steps=steps,
        count=count,
        table="\n".join(lines),
    )


def judge_loss(batch: int = 16) -> Callable:
    """Cross-entropy of thing, material and colour, on pictures of which half are degraded.

    Drawing the pictures takes longer than the network does, so each counts twice: clean, and as
    autoencoders and samplers might make it.

    Args:
        batch: pictures that are drawn per step.
    """

    def loss(model: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        scenes = sample_scenes(batch, generator)
        clean = render(scenes)[:, 0].to(device()) * 2 - 1
        _, logits = model(torch.cat([clean, degraded(clean, generator)]))
        target = visible(scenes, CELL, SIZE).to(device())
        losses = [
            F.cross_entropy(x.flatten(2).float(), target[..., k].repeat(2, 1))
            for k, x in enumerate(logits)
        ]
        return torch.stack(losses).sum()

    return loss
