"""Orders of the tokens of a picture or clip by which a tile is a neighbourhood."""

from __future__ import annotations

import itertools
import math
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
    return _ordered(inner, length, start, device, in_front)


@lru_cache(maxsize=32)
def cube_sizes(grid: Grid, cube: Grid) -> tuple[int, ...]:
    """Tokens of each cube, in the order of `cube_order`; those at the far edges may be smaller."""
    axes = [
        [min(step, size - start) for start in range(0, size, step)]
        for size, step in zip(grid, cube, strict=True)
    ]
    return tuple(math.prod(sizes) for sizes in itertools.product(*axes))


@lru_cache(maxsize=32)
def morton_order(
    grid: Grid, length: int, start: int = 0, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Put the tokens of a grid along a Morton curve: neighbours in all axes are near each other.

    The bits of frame, row and column take turns, those of the column last. For the arguments and
    the answer see `cube_order`.
    """
    axes = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    code = torch.zeros_like(axes[0])
    for bit in range(max(grid).bit_length()):
        for place, axis in enumerate(reversed(axes)):
            code |= (axis >> bit & 1) << (3 * bit + place)
    return _ordered(code.flatten().argsort(stable=True), length, start, device)


def _ordered(
    inner: Tensor, length: int, start: int, device: torch.device | str, in_front: bool = False
) -> tuple[Tensor, Tensor]:
    """An order of the grid's tokens as one of all tokens, and its inverse."""
    end = start + inner.numel()
    order = torch.arange(length)
    order[start:end] = start + inner
    if in_front:
        order = torch.cat([order[start:end], order[:start], order[end:]])
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(length)
    return order.to(device), inverse.to(device)
