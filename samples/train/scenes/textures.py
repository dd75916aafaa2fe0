"""Materials: functions from surface coordinates to colours, with a phase that no prompt tells.

All take `u`, `v` (n, H, W), in which one unit is about one brick, and give (n, 3, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_SIDE = 256
_TABLE = torch.rand(_SIDE * _SIDE, generator=torch.Generator().manual_seed(20))
TAU = 2 * math.pi


def random_at(x: Tensor, y: Tensor) -> Tensor:
    """A number in [0, 1) for each pair of whole numbers, the same one at every call."""
    return _TABLE[(y.long() & (_SIDE - 1)) * _SIDE + (x.long() & (_SIDE - 1))]


def noise(u: Tensor, v: Tensor) -> Tensor:
    """Smooth noise in [0, 1) with one random value for each unit square's corner."""
    x, y = u.floor(), v.floor()
    across, down = u - x, v - y
    across, down = across * across * (3 - 2 * across), down * down * (3 - 2 * down)
    top = torch.lerp(random_at(x, y), random_at(x + 1, y), across)
    bottom = torch.lerp(random_at(x, y + 1), random_at(x + 1, y + 1), across)
    return torch.lerp(top, bottom, down)


def octaves(u: Tensor, v: Tensor, count: int) -> Tensor:
    """Noise of `count` octaves, each at .6 of the amplitude of the one before, in [0, 1)."""
    total, weight, sum_of_weights = torch.zeros_like(u), 1.0, 0.0
    for k in range(count):
        total = total + weight * noise(u * 2**k + 37 * k, v * 2**k + 91 * k)
        sum_of_weights += weight
        weight *= 0.6
    return total / sum_of_weights


def _sharp(x: Tensor, width: float) -> Tensor:
    """A soft step at 0 of the given width."""
    return (x / width + 0.5).clamp(0, 1)


def _mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Colours (n, 3) mixed by `share` (n, H, W)."""
    first, second = first[:, :, None, None], second[:, :, None, None]
    return first + (second - first) * share[:, None]


def _cells(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest of the points strewn one to a unit square, and its random tone."""
    x, y = u.floor(), v.floor()
    nearest = torch.full_like(u, 9.0)
    tone = torch.zeros_like(u)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            cx, cy = x + i, y + j
            px = cx + random_at(cx, cy + 57)
            py = cy + random_at(cx + 113, cy)
            distance = (px - u).square() + (py - v).square()
            closer = distance < nearest
            nearest = torch.where(closer, distance, nearest)
            tone = torch.where(closer, random_at(cx + 31, cy + 17), tone)
    return nearest.sqrt(), tone


def stone(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    rough = octaves(u * 1.5, v * 1.5, 5)
    return _mix(a * 0.35, a * 1.25, ((rough - 0.5) * 2.6 + 0.5).clamp(0, 1))


def wooden(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    bent = octaves(u * 0.35, v * 0.9, 2)
    rings = 0.5 + 0.5 * torch.sin(TAU * (v * 1.2 + 2.2 * bent))
    fibres = noise(u * 1.8, v * 14)
    return _mix(a * 0.45, a * 1.2, (0.65 * rings + 0.55 * fibres - 0.1).clamp(0, 1))


def brick(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    row = (v * 1.6).floor()
    along = u * 0.8 + 0.5 * row
    tone = 0.55 + 0.6 * random_at(along.floor(), row) + 0.35 * (noise(u * 7, v * 7) - 0.5)
    x, y = along - along.floor(), v * 1.6 - row
    gap = torch.minimum(torch.minimum(x, 1 - x) / 0.8, torch.minimum(y, 1 - y) / 1.6)
    face = a[:, :, None, None] * tone[:, None]
    mortar = (b * 0.5 + 0.35)[:, :, None, None]
    return torch.where(gap[:, None] < 0.055, mortar, face)


def woven(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    zero = torch.zeros_like(u)
    warp = _sharp(noise(u * 2.5, zero + 0.5) - 0.5, 0.04)
    weft = _sharp(noise(zero + 7.5, v * 2.5) - 0.5, 0.04)
    thread = torch.sin(TAU * u * 3.5) * torch.sin(TAU * v * 3.5)
    return _mix(a, b, 0.5 * (warp + weft)) * (0.85 + 0.3 * thread)[:, None]


def leafy(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    distance, tone = _cells(u * 1.7, v * 1.7)
    light = (1.15 - distance) * (0.35 + 0.95 * tone) + 0.25 * (noise(u * 9, v * 9) - 0.5)
    return _mix(a * 0.2, a * 1.35, light.clamp(0, 1.1))


def striped(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _mix(a, b, _sharp(torch.sin(TAU * u * 1.3), 0.35)) * (
        0.88 + 0.24 * noise(u * 11, v * 11)
    ).unsqueeze(1)


def dotted(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    row = (v * 1.4).floor()
    x = u * 1.4 + 0.5 * row
    distance = ((x - x.floor() - 0.5).square() + (v * 1.4 - row - 0.5).square()).sqrt()
    return _mix(b, a, _sharp(distance - 0.3, 0.1))


def marble(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    vein = torch.sin(TAU * (0.5 * u + 0.2 * v + 1.6 * octaves(u * 0.8, v * 0.8, 4))).abs()
    return _mix(b * 0.5 + 0.05, a * 0.5 + 0.5, vein.pow(0.6))


def checkered(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    x, y = (u * 1.3).floor(), (v * 1.3).floor()
    tone = 0.75 + 0.4 * random_at(x, y)
    return _mix(a, b, torch.remainder(x + y, 2)) * tone[:, None]


def furry(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    bent = 1.5 * octaves(u * 0.7, v * 0.7, 2)
    hair = 0.6 * noise(u * 7 + 3 * bent, v * 1.2) + 0.4 * noise(u * 13 + 5 * bent, v * 2.5)
    return _mix(a * 0.25, a * 1.35, ((hair - 0.5) * 2.4 + 0.5).clamp(0, 1))


MATERIALS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "stone": stone,
    "wooden": wooden,
    "brick": brick,
    "woven": woven,
    "leafy": leafy,
    "striped": striped,
    "dotted": dotted,
    "marble": marble,
    "checkered": checkered,
    "furry": furry,
}


def painted(material: Tensor, u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Surfaces of mixed materials.

    Args:
        material: (n,) index into `MATERIALS`.
        u: (n, H, W) surface coordinates.
        v: (n, H, W) surface coordinates.
        a: (n, 3) main colours.
        b: (n, 3) second colours, of which some materials make nothing.

    Returns:
        (n, 3, H, W), not bounded: light falls on it later.
    """
    result = u.new_empty(len(u), 3, *u.shape[1:])
    for index, function in enumerate(MATERIALS.values()):
        chosen = (material == index).nonzero()[:, 0]
        if len(chosen):
            result[chosen] = function(u[chosen], v[chosen], a[chosen], b[chosen])
    return result
