"""Outlines of things and how high they rise towards the eye, on a square of their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SIDE = 64  # pixels of the square
REACH = 1.1  # its edges, in units of the thing's radius

# Each gives the signed distance to the outline, the height and the part: 0 is made of the thing's
# material, 1 to 3 have colours of their own (`PARTS`). y points down.
Form = tuple[Tensor, Tensor, Tensor]
PARTS = torch.tensor([[0.0, 0.0, 0.0], [0.38, 0.24, 0.12], [0.95, 0.80, 0.20], [0.15, 0.42, 0.14]])


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _dome(distance: Tensor, radius: float) -> Tensor:
    """Height of something round whose middle lies `radius` inside its outline."""
    depth = (-distance).clamp(0, radius)
    return (depth * (2 * radius - depth)).clamp(min=0).sqrt()


def _whole(distance: Tensor, height: Tensor) -> Form:
    return distance, height, torch.zeros_like(distance, dtype=torch.long)


def ball(x: Tensor, y: Tensor) -> Form:
    distance = (x * x + y * y).sqrt() - 0.95
    return _whole(distance, _dome(distance, 0.95))


def box(x: Tensor, y: Tensor) -> Form:
    # A cube seen from above its edge: two faces that slope away and a lid.
    distance = torch.maximum(x.abs() - 0.85, (y.abs() + x.abs() * 0.4) - 0.98)
    lid = y + 0.98 - 0.4 * x.abs() - 0.62 + 0.8 * x.abs() < 0
    height = torch.where(lid, 0.9 * y, -0.9 * x.abs() * torch.where(x < 0, 1.0, 0.35) - 0.3)
    return _whole(distance, height)


def cone(x: Tensor, y: Tensor) -> Form:
    half = (y + 0.95) * 0.42
    distance = torch.maximum(x.abs() - half, y - 0.9 + 0.12 * (x / 0.8).square())
    return _whole(distance, (half.square() - x * x).clamp(min=0).sqrt())


def pillar(x: Tensor, y: Tensor) -> Form:
    distance = _box(x, y, 0.42, 0.95)
    cap = y.abs() > 0.75
    distance = torch.minimum(distance, _box(x, y.abs() - 0.85, 0.55, 0.1))
    radius = torch.where(cap, 0.55, 0.42)
    return _whole(distance, (radius.square() - x * x).clamp(min=0).sqrt())


def star(x: Tensor, y: Tensor) -> Form:
    angle = torch.atan2(x, -y)
    sector = torch.remainder(angle + math.pi / 5, TAU_5) - math.pi / 5
    radius = (x * x + y * y).sqrt()
    px, py = radius * sector.cos(), radius * sector.sin().abs()
    # The line from a point of the star (.98, 0) to its notch at 36 degrees.
    nx, ny = 0.42 * math.cos(math.pi / 5), 0.42 * math.sin(math.pi / 5)
    length = math.hypot(0.98 - nx, ny)
    distance = ((px - 0.98) * ny + py * (0.98 - nx)) / length
    return _whole(distance, _dome(distance, 0.5) * 1.2)


def heart(x: Tensor, y: Tensor) -> Form:
    ax = x.abs()
    lobe = ((ax - 0.42).square() + (y + 0.35).square()).sqrt() - 0.5
    point = torch.maximum((ax * 0.78 + y * 0.62) - 0.56, -y - 0.35)
    distance = torch.minimum(lobe, point)
    return _whole(distance, _dome(distance, 0.5) * 1.2)


def ring(x: Tensor, y: Tensor) -> Form:
    distance = ((x * x + y * y).sqrt() - 0.64).abs() - 0.3
    return _whole(distance, _dome(distance, 0.3) * 1.3)


def tree(x: Tensor, y: Tensor) -> Form:
    trunk = _box(x, y - 0.55, 0.13, 0.42)
    crown = ((x / 0.85).square() + ((y + 0.3) / 0.68).square()).sqrt() - 1
    crown = (crown + 0.09 * torch.sin(7 * torch.atan2(y + 0.3, x))) * 0.7
    part = torch.where(crown < 0, 0, 1)
    return torch.minimum(trunk, crown), _dome(torch.minimum(trunk, crown), 0.6), part


def house(x: Tensor, y: Tensor) -> Form:
    walls = _box(x, y - 0.35, 0.7, 0.58)
    roof = torch.maximum((x.abs() - 1.1 * (y + 1.0)) * 0.67, y + 0.2)
    windows = _box(x.abs() - 0.36, y - 0.2, 0.15, 0.17)
    door = _box(x, y - 0.65, 0.14, 0.28)
    part = torch.where(roof < 0, 1, 0)
    part = torch.where(windows < 0, 2, torch.where(door < 0, 1, part))
    height = torch.where(roof < 0, 0.9 * y, -0.25 * x)
    return torch.minimum(walls, roof), height, part


def flower(x: Tensor, y: Tensor) -> Form:
    cx, cy = x, y + 0.35
    radius = (cx * cx + cy * cy).sqrt()
    petals = radius - 0.45 - 0.17 * torch.cos(6 * torch.atan2(cy, cx))
    stem = _box(x - 0.06 * torch.sin(4 * y), y - 0.55, 0.07, 0.42)
    part = torch.where(radius < 0.2, 2, torch.where(petals < 0, 0, 3))
    distance = torch.minimum(petals, stem)
    return distance, _dome(distance, 0.45) - 0.5 * (radius < 0.2), part


TAU_5 = 2 * math.pi / 5
THINGS: dict[str, Callable[[Tensor, Tensor], Form]] = {
    "ball": ball,
    "box": box,
    "cone": cone,
    "pillar": pillar,
    "star": star,
    "heart": heart,
    "ring": ring,
    "tree": tree,
    "house": house,
    "flower": flower,
}


def square() -> tuple[Tensor, Tensor]:
    """Coordinates x and y (SIDE, SIDE) on a thing's square."""
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 * REACH - REACH
    return axis.expand(SIDE, SIDE), axis[:, None].expand(SIDE, SIDE)


def forms(kind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cover (n, S, S) in [0, 1], surface normals (n, 3, S, S) and parts (n, S, S) of n things.

    Args:
        kind: (n,) index into `THINGS`.
    """
    x, y = square()
    pixel = 2 * REACH / SIDE
    cover, normals, parts = [], [], []
    for function in THINGS.values():
        distance, height, part = function(x, y)
        dx, dy = (height.diff(dim=axis, append=height.narrow(axis, -1, 1)) for axis in (1, 0))
        normal = torch.stack([-dx / pixel, -dy / pixel, torch.ones_like(height)])
        cover.append((0.5 - distance / (1.5 * pixel)).clamp(0, 1))
        normals.append(normal / normal.square().sum(0).sqrt())
        parts.append(part)
    return torch.stack(cover)[kind], torch.stack(normals)[kind], torch.stack(parts)[kind]
