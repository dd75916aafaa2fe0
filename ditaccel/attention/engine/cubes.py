"""Tokens in the order of small cubes of a picture or clip, so that a tile is a neighbourhood."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ...pipelines.grids import Grid


@lru_cache(maxsize=32)
def cube_order(
    grid: Grid,
    cube: Grid,
    length: int,
    start: int = 0,
    device: torch.device | str = "cpu",
    in_front: bool = False,
) -> tuple[Tensor, Tensor]:
    """Put the tokens of a grid in the order of its cubes.

    Cubes at the far edges of a grid that they do not divide are smaller, so later tiles straddle
    two neighbouring cubes: that costs a little likeness within a tile, and nothing else.

    Args:
        grid: frames, rows and columns of the tokens, which follow each other in that order.
        cube: frames, rows and columns of a cube.
        length: tokens of the whole sequence.
        start: the first token of the grid; tokens ahead of it and behind it (text) stay in place.
        device: of the answer.
        in_front: whether the others go behind the grid instead, so that tiles of a cube's size
            hold one cube each.

    Returns:
        Order and its inverse, int64 `(length,)`: token `order[i]` goes to place `i`.
    """
    axes = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    cubes = [axis // min(step, size) for axis, step, size in zip(axes, cube, grid, strict=True)]
    number = torch.zeros_like(axes[0])
    for of_axis in cubes:
        number = number * (int(of_axis.max()) + 1) + of_axis
    inner = torch.argsort(number.flatten(), stable=True)
    order = torch.arange(length)
    order[start : start + inner.numel()] = start + inner
    if in_front:
        end = start + inner.numel()
        order = torch.cat([order[start:end], order[:start], order[end:]])
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(length)
    return order.to(device), inverse.to(device)
