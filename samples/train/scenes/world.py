"""Scenes of textured things before a textured wall, drawn as pictures and as clips.

Everything is drawn from one `torch.Generator`, so a seed fixes the data on one torch version.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from scenes.textures import MATERIALS, octaves, painted
from scenes.things import PARTS, REACH, SIDE, THINGS, forms, square

SIZE = 128
MOST = 5  # things
COLOURS = {
    "red": (0.85, 0.15, 0.12),
    "orange": (0.95, 0.52, 0.10),
    "yellow": (0.94, 0.85, 0.20),
    "green": (0.20, 0.62, 0.20),
    "blue": (0.15, 0.30, 0.85),
    "purple": (0.55, 0.22, 0.70),
    "pink": (0.95, 0.55, 0.70),
    "white": (0.92, 0.92, 0.90),
}
LIGHTS = ("cold", "plain", "warm")
_TINTS = torch.tensor([[0.78, 0.95, 1.20], [1.0, 1.0, 1.0], [1.22, 0.98, 0.70]])
_RGB = torch.tensor(list(COLOURS.values()))
_SKY = len(MATERIALS)  # the wall may be a sky instead
# Pictures show the middle of a canvas that is this much wider on either side, for clips.
MARGIN = 64


@dataclass
class Scenes:
    """A batch of N scenes, things from the farthest to the nearest.

    Shapes: count (N,) things, the last ones of K = MOST; kind, colour, material, radius, spin
    (N, K); place (N, K, 2) of the feet in pixels; speed (N, K) and pan (N,) sideways, in pixels per
    frame; rgb, rgb2 (N, K, 3); wall, floor (N,) materials, the wall's may be the sky; tones
    (N, 4, 3) colours of wall and floor; horizon (N,) in pixels; light (N,) index into LIGHTS; sun
    (N, 3) direction; surface (N, K + 2, 4) scale, angle and origin of the textures.
    """

    count: Tensor
    kind: Tensor
    colour: Tensor
    material: Tensor
    radius: Tensor
    spin: Tensor
    place: Tensor
    speed: Tensor
    pan: Tensor
    rgb: Tensor
    rgb2: Tensor
    wall: Tensor
    floor: Tensor
    tones: Tensor
    horizon: Tensor
    light: Tensor
    sun: Tensor
    surface: Tensor

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index: Tensor | slice) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def sample_scenes(n: int, generator: torch.Generator, *, moving: bool = False) -> Scenes:
    """Draw scenes.

    Args:
        n: number of scenes.
        generator: source of all randomness.
        moving: give things a speed and the camera a pan, so that most stay on a clip; else none.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    def integer(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    count = 2 + integer(MOST - 1, n)
    horizon = uniform(n, low=0.34, high=0.66) * SIZE
    # Nearness from 0 (at the wall) to 1; the last thing stands in front and is never small.
    near = uniform(n, MOST).sort(1).values
    near[:, -1] = uniform(n, low=0.7, high=1.0)
    feet = horizon[:, None] + (SIZE - 3 - horizon[:, None]) * (0.12 + 0.88 * near)
    radius = (10 + 17 * near) * uniform(n, MOST, low=0.8, high=1.15)
    # Neighbours in depth take different parts of the width, so that little is hidden.
    lane = torch.rand(n, MOST, generator=generator).argsort(1) + uniform(
        n, MOST, low=0.15, high=0.85
    )
    across = 8 + (SIZE - 16) * lane / MOST
    speed = uniform(n, MOST, low=0.25, high=1.0) * (2 * integer(2, n, MOST) - 1)
    pan = uniform(n, low=-0.6, high=0.6)
    colour = integer(len(COLOURS), n, MOST)
    other = (colour + 1 + integer(len(COLOURS) - 1, n, MOST)) % len(COLOURS)
    tones = 0.15 + 0.75 * uniform(n, 4, 3)
    tones = tones.mean(2, keepdim=True) + (tones - tones.mean(2, keepdim=True)) * 0.75
    azimuth = uniform(n, low=-1.2, high=1.2)
    sun = torch.stack([azimuth.sin(), -uniform(n, low=0.3, high=0.9), azimuth.cos()], 1)
    surface = uniform(n, MOST + 2, 4)
    surface[..., 0] = 0.75 + 0.6 * surface[..., 0]
    surface[..., 1] = (surface[..., 1] - 0.5) * math.pi
    surface[:, MOST:, 1] *= 0.06  # bricks of walls lie nearly level
    surface[..., 2:] *= 240
    return Scenes(
        count=count,
        kind=integer(len(THINGS), n, MOST),
        colour=colour,
        material=integer(len(MATERIALS), n, MOST),
        radius=radius,
        spin=uniform(n, MOST, low=-0.16, high=0.16),
        place=torch.stack([across, feet], 2),
        speed=speed if moving else torch.zeros(n, MOST),
        pan=pan if moving else torch.zeros(n),
        rgb=(_RGB[colour] + uniform(n, MOST, 3, low=-0.07, high=0.07)).clamp(0, 1),
        rgb2=_RGB[other] * uniform(n, MOST, 1, low=0.4, high=1.0),
        wall=integer(_SKY + 3, n).clamp(max=_SKY),
        floor=integer(len(MATERIALS), n),
        tones=tones,
        horizon=horizon,
        light=integer(3, n),
        sun=F.normalize(sun, dim=1),
        surface=surface,
    )


def _laid(u: Tensor, v: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
    """Turn, scale and shift surface coordinates (n, H, W) by `surface` (n, 4)."""
    scale, angle, left, top = (x[:, None, None] for x in surface.unbind(1))
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return u * cos - v * sin + left, u * sin + v * cos + top


def _backdrop(scenes: Scenes, margin: int) -> Tensor:
    """Wall or sky, and floor, (n, 3, SIZE, SIZE + 2 margin)."""
    n, width = len(scenes), SIZE + 2 * margin
    x = (torch.arange(width) - margin - SIZE / 2).float().expand(n, SIZE, width)
    y = torch.arange(SIZE).float()[:, None].expand(n, SIZE, width)
    horizon = scenes.horizon[:, None, None]
    u, v = _laid(x / 15, (y - horizon) / 15, scenes.surface[:, MOST])
    wall = painted(scenes.wall.clamp(max=_SKY - 1), u, v, scenes.tones[:, 0], scenes.tones[:, 1])
    sky = scenes.wall == _SKY
    if sky.any():
        height = (y / horizon)[sky].clamp(0, 1)
        cloud = ((octaves(u[sky] * 0.45, v[sky] * 0.9, 5) - 0.48) * 5).clamp(0, 1)
        blue = torch.stack([0.25 + 0.4 * height, 0.45 + 0.35 * height, 0.85 + 0.05 * height], 1)
        wall[sky] = blue + (0.95 - blue) * cloud[:, None]
    # The floor runs away from the eye: one row down is ever nearer.
    depth = SIZE * 0.55 / (y - horizon + 9).clamp(min=9)
    u, v = _laid(x * depth / 26, depth * 5, scenes.surface[:, MOST + 1])
    floor = painted(scenes.floor, u, v, scenes.tones[:, 2], scenes.tones[:, 3])
    haze = ((depth - 2.2) / 8).clamp(0, 0.55)[:, None]
    floor = floor + (scenes.tones[:, 2, :, None, None] * 0.8 - floor) * haze
    seam = (1 - (y - horizon).abs() / 5).clamp(0, 1)[:, None] * 0.45
    picture = torch.where((y < horizon)[:, None], wall, floor)
    return picture * (1 - seam * ~sky[:, None, None, None])


def _sprites(scenes: Scenes) -> Tensor:
    """The things on squares of their own, lit: colours times cover, and cover, (n, K, 4, S, S)."""
    n = len(scenes)
    flat = {k: getattr(scenes, k).flatten(0, 1) for k in ("kind", "material", "rgb", "rgb2")}
    cover, normals, parts = forms(flat["kind"])
    x, y = (a.expand(n * MOST, SIDE, SIDE) for a in square())
    # Textures bulge with what they lie on; their grain is the same on large and small things.
    bulge = 1 + 0.35 * (1 - normals[:, 2])
    scale = (scenes.radius / 11).flatten()[:, None, None]
    u, v = _laid(x * bulge * scale, y * bulge * scale, scenes.surface[:, :MOST].flatten(0, 1))
    skin = painted(flat["material"], u, v, flat["rgb"], flat["rgb2"])
    own = PARTS[parts].permute(0, 3, 1, 2)
    skin = torch.where((parts == 0)[:, None], skin, own)
    sun = scenes.sun.repeat_interleave(MOST, 0)[:, :, None, None]
    light = 0.42 + 0.75 * (normals * sun).sum(1).clamp(min=0)
    gleam = (normals * F.normalize(sun + sun.new_tensor([0, 0, 1.0])[:, None, None], dim=1)).sum(1)
    lit = skin * light[:, None] + 0.3 * gleam.clamp(0, 1).pow(24)[:, None]
    return torch.cat([lit * cover[:, None], cover[:, None]], 1).unflatten(0, (n, MOST))


def _centres(scenes: Scenes, time: float) -> Tensor:
    """Middle of each thing's square in pixels, (n, K, 2), at a time in frames."""
    place = scenes.place.clone()
    place[..., 0] += (scenes.speed - scenes.pan[:, None]) * time
    place[..., 1] -= scenes.radius * 0.9
    return place


def _pasted(sprites: Tensor, centre: Tensor, radius: Tensor, spin: Tensor, size: int) -> Tensor:
    """One thing of each scene where it stands, (n, 4, SIZE, SIZE); `sprites` is (n, 4, S, S)."""
    scale = SIZE / 2 / (radius * REACH)
    cos, sin = spin.cos() * scale, spin.sin() * scale
    x, y = (centre / (SIZE / 2) - 1).unbind(1)
    theta = torch.stack(
        [
            torch.stack([cos, sin, -cos * x - sin * y], 1),
            torch.stack([-sin, cos, sin * x - cos * y], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [len(radius), 4, size, size], align_corners=False)
    return F.grid_sample(sprites, grid, padding_mode="zeros", align_corners=False)


def _shadow(scenes: Scenes, k: int, centre: Tensor) -> Tensor:
    """How much light thing `k` leaves to the floor, (n, 1, SIZE, SIZE)."""
    axis = torch.arange(SIZE).float()
    radius = scenes.radius[:, k, None, None]
    lean = -scenes.sun[:, 0, None, None] * radius
    y = (axis[:, None] - scenes.place[:, k, 1, None, None] + 0.06 * radius) / (0.32 * radius)
    x = (axis - centre[:, 0, None, None] - lean * 0.6) / (0.95 * radius)
    dark = (
        0.72 * torch.exp(-(x * x + y * y).pow(1.5)) * (scenes.count > MOST - 1 - k)[:, None, None]
    )
    return (1 - dark * (axis[:, None] > scenes.horizon[:, None, None]))[:, None]


def _panned(canvas: Tensor, shift: Tensor, margin: int) -> Tensor:
    """The part of a wide canvas that the camera sees after moving `shift` (n,) pixels."""
    if margin == 0:
        return canvas
    width = canvas.shape[-1]
    theta = torch.zeros(len(canvas), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = SIZE / width, 1
    theta[:, 0, 2] = shift / (width / 2)
    grid = F.affine_grid(theta, [len(canvas), 3, SIZE, SIZE], align_corners=False)
    return F.grid_sample(canvas, grid, padding_mode="reflection", align_corners=False)


def _lit(scenes: Scenes, picture: Tensor) -> Tensor:
    """Light of a colour, that falls off across the picture."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE - 0.5
    fall = 1.05 + scenes.sun[:, 0, None, None] * axis * 0.7 - 0.35 * axis[:, None].abs()
    return (picture * _TINTS[scenes.light][:, :, None, None] * fall[:, None]).clamp(0, 1)


def render(scenes: Scenes, frames: int = 1) -> Tensor:
    """Draw scenes.

    Args:
        scenes: n scenes.
        frames: of a clip; one is a picture.

    Returns:
        (n, F, 3, 128, 128) in [0, 1].
    """
    margin = MARGIN if frames > 1 else 0
    backdrop, sprites = _backdrop(scenes, margin), _sprites(scenes)
    clip = []
    for frame in range(frames):
        picture = _panned(backdrop, scenes.pan * frame, margin)
        centres = _centres(scenes, frame)
        for k in range(MOST):
            picture = picture * _shadow(scenes, k, centres[:, k])
        for k in range(MOST):
            thing = _pasted(
                sprites[:, k], centres[:, k], scenes.radius[:, k], scenes.spin[:, k], SIZE
            )
            thing = thing * (scenes.count > MOST - 1 - k)[:, None, None, None]
            picture = picture * (1 - thing[:, 3:]) + thing[:, :3]
        clip.append(_lit(scenes, picture))
    return torch.stack(clip, 1)
