"""An auxiliary task for the denoisers: every token must tell what it shows (see `layout`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scenes.textures import MATERIALS
from scenes.things import THINGS
from scenes.world import COLOURS, MOST, SIZE, Scenes

STILL = torch.zeros(1)


def visible(scenes: Scenes, cell: int, size: int, times: Tensor = STILL) -> Tensor:
    """What each cell shows, (n, F * cells, 3): kind, material and colour, each from 0.

    Things have their own; walls and floors have the kinds after the things', and no colour (the
    number after the colours). The sky is a material of its own.

    Args:
        scenes: n scenes.
        cell: side of a cell in pixels of a picture that is `size` wide.
        size: pixels of the picture's side, which shows what one of `world.SIZE` shows.
        times: (F,) in frames.
    """
    axis = (torch.arange(size // cell) + 0.5) * cell * SIZE / size
    shape = (len(scenes), len(times), len(axis), len(axis))
    below = axis[:, None] > scenes.horizon[:, None, None, None]
    kind = (len(THINGS) + below.long()).expand(shape).clone()
    material = torch.where(
        below, scenes.floor[:, None, None, None], scenes.wall[:, None, None, None]
    )
    material = material.expand(shape).clone()
    colour = torch.full(shape, len(COLOURS))
    for k in range(MOST):
        radius = scenes.radius[:, k, None, None, None]
        travelled = (scenes.speed[:, k] - scenes.pan)[:, None] * times
        px = (scenes.place[:, k, 0, None] + travelled)[..., None, None]
        py = scenes.place[:, k, 1, None, None, None] - 0.9 * radius
        inside = ((axis - px).square() + (axis[:, None] - py).square()).sqrt() < 0.9 * radius
        inside = inside & (scenes.count > MOST - 1 - k)[:, None, None, None]
        for field, name in ((kind, "kind"), (material, "material"), (colour, "colour")):
            own = getattr(scenes, name)[:, k, None, None, None].expand(shape)
            field[inside] = own[inside]
    return torch.stack([kind, material, colour], -1).flatten(1, 3)


class Seen(nn.Module):
    """Linear heads that read what each token shows off hidden states; thrown away after training.

    Args:
        width: channels of the hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (len(THINGS) + 2, len(MATERIALS) + 1, len(COLOURS) + 1)
        self.heads = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(
        self, hidden: Tensor, scenes: Scenes, cell: int, size: int, times: Tensor = STILL
    ) -> Tensor:
        """Cross-entropy, mean over tokens and tasks.

        Args:
            hidden: (N, F * H * W, C) hidden states of the image or video tokens.
            scenes: what is on the N pictures or clips.
            cell: pixels of a token's side.
            size: pixels of the picture's side.
            times: (F,) in frames.
        """
        wanted = visible(scenes, cell, size, times).to(hidden.device)
        losses = [
            F.cross_entropy(head(hidden).float().transpose(1, 2), wanted[..., k])
            for k, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean()
