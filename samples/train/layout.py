"""An auxiliary task for the denoisers: every token must tell what lies where it looks.

Which shape belongs to which colour changes the denoising loss by a percent or so: too little to be
learnt in an hour on a CPU, so that models of this size swap the shapes of two objects. As a
classification of tokens it is worth a whole bit. Supervising hidden states beside the denoising
loss is known to speed training up (REPA, arXiv 2410.06940, which aligns them with the features of
an encoder; here what is on a picture is known). The heads are thrown away after training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from data import COLOURS, DIRECTIONS, SHAPES, SIZE, Scenes
from torch import Tensor, nn

CELL = 8  # pixels that a token looks at, along one side
FRAMES_A_LATENT = 2
OF_BACKGROUND = 0.05  # weight of a token of the background by one of an object


def token_centres(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Time (F, 1, 1), y (1, H, 1) and x (1, 1, W) of the tokens' centres, in frames and pixels."""
    place = torch.arange(SIZE // CELL) * CELL + (CELL - 1) / 2
    return times.float()[:, None, None], place[:, None][None], place[None, None]


def latent_times(frames: Tensor) -> Tensor:
    """Middle, in frames, of what latent frames show: the first shows one frame, others two."""
    return (frames * FRAMES_A_LATENT - 0.5).clamp(min=0)


def objects_at(scenes: Scenes, times: Tensor) -> Tensor:
    """Which object every token sees, (N, F * H * W): 0 for none, else 1 or 2.

    Args:
        scenes: N scenes.
        times: (F,) in frames.
    """
    time, y, x = token_centres(times)
    seen = torch.zeros(len(scenes), len(times), SIZE // CELL, SIZE // CELL, dtype=torch.long)
    for k in range(2):
        centre = scenes.start[:, k, None, None, None] + (
            scenes.velocity[:, k, None, None, None] * time[..., None]
        )
        reach = (torch.maximum((x - centre[..., 0]).abs(), (y - centre[..., 1]).abs())) - CELL / 3
        inside = (reach < scenes.radius[:, k, None, None, None]) & (
            scenes.count[:, None, None, None] > k
        )
        seen[inside] = k + 1
    return seen.flatten(1)


class Layout(nn.Module):
    """Linear heads that read shape, colour and direction off hidden states.

    Args:
        width: channels of the hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (len(SHAPES), len(COLOURS), len(DIRECTIONS))
        self.heads = nn.ModuleList(nn.Linear(width, size + 1) for size in sizes)

    def forward(self, hidden: Tensor, scenes: Scenes, times: Tensor, told: Tensor) -> Tensor:
        """Cross-entropy, mean over tasks and over tokens; the background counts little.

        Args:
            hidden: (N, F * H * W, C) hidden states of the image or video tokens.
            scenes: what is on the N pictures or clips.
            times: (F,) in frames.
            told: (N,) whether the caption was given.
        """
        seen = objects_at(scenes, times)
        weight = torch.where(seen > 0, 1.0, OF_BACKGROUND) * told[:, None]
        weight = (weight / weight.sum().clamp(min=1.0)).to(hidden.device)
        losses = []
        for head, values in zip(
            self.heads, (scenes.shape, scenes.colour, scenes.direction), strict=True
        ):
            # Column 0 is the background; still objects have direction -1, which is its class too.
            classes = F.pad(values + 1, (1, 0))
            target = classes.gather(1, seen).to(hidden.device)
            loss = F.cross_entropy(head(hidden).float().transpose(1, 2), target, reduction="none")
            losses.append((loss * weight).sum())
        return torch.stack(losses).mean()


@contextmanager
def hidden_states(transformer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what enters the final normalisation, the image or video tokens alone."""
    kept: list[Tensor] = []
    hook = transformer.norm_out.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    try:
        yield kept
    finally:
        hook.remove()
