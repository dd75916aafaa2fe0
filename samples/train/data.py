"""Scenes of coloured shapes on smooth backgrounds, as images and clips with captions.

Everything is drawn from one `torch.Generator`, so a seed fixes the data on one torch version.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
DIRECTIONS = ("left", "right", "up", "down")
SIZE = 64
FRAMES = 63
GRID = 4
_TRIES = 24

_RGB = torch.tensor(
    [
        [0.88, 0.12, 0.12],
        [0.10, 0.68, 0.18],
        [0.12, 0.22, 0.92],
        [0.96, 0.84, 0.08],
        [0.58, 0.14, 0.74],
        [0.10, 0.80, 0.86],
    ]
)
_STEP = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
_SMALL_BELOW = {False: 12.0, True: 9.75}


@dataclass
class Scenes:
    """A batch of N scenes with up to two objects each.

    Shapes: count (N,), colour/shape/direction/radius (N, 2), start/velocity (N, 2, 2) in pixels and
    pixels per frame, rgb (N, 2, 3), background (N, 2, 3) for the two ends of the gradient, angle
    (N,), dark (N,). Still scenes have direction -1.
    """

    count: Tensor
    colour: Tensor
    shape: Tensor
    direction: Tensor
    radius: Tensor
    start: Tensor
    velocity: Tensor
    rgb: Tensor
    background: Tensor
    angle: Tensor
    dark: Tensor

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index: Tensor | slice) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def sample_scenes(
    n: int,
    generator: torch.Generator,
    *,
    moving: bool = False,
    two_share: float = 0.5,
    snap: bool = False,
) -> Scenes:
    """Draw scenes whose objects stay inside the picture and, where there are two, apart.

    Args:
        n: number of scenes.
        generator: source of all randomness.
        moving: give every object one of the four directions; else objects stand still.
        two_share: probability of two objects.
        snap: the world of the samples: objects start on a grid of four pixels, which is one latent
            pixel, and move half a pixel a frame, which is one pixel a latent frame. It is far
            cheaper to learn. The judge and the autoencoders see any position and speed.
    """

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    def integer(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    count = 1 + (uniform(n) < two_share).long()
    colour = torch.stack([integer(6, n), integer(5, n)], 1)
    colour[:, 1] = (colour[:, 0] + 1 + colour[:, 1]) % 6
    shape, direction = integer(4, n, 2), integer(4, n, 2) if moving else torch.full((n, 2), -1)
    least, most = (8.0 if snap else 7.0), (11.0 if moving else 16.0)
    radius = uniform(n, 2, low=least, high=most)
    if not moving:
        radius = torch.where(count[:, None] == 2, least + (radius - least) * 0.5, radius)
    speed = uniform(n, 2, low=0.3, high=0.5)
    if snap:
        speed.fill_(0.5)
    velocity = (
        _STEP[direction] * speed[..., None] if moving else torch.zeros(n, 2, 2, dtype=torch.float)
    )

    start = _apart(radius, velocity, uniform(_TRIES, n, 2, 2), snap)
    rgb = (_RGB[colour] + uniform(n, 2, 3, low=-0.05, high=0.05)).clamp(0, 1)
    dark = uniform(n) < 0.5
    level = torch.where(dark, uniform(n, low=0.06, high=0.22), uniform(n, low=0.72, high=0.9))
    background = level[:, None, None] + uniform(n, 2, 3, low=-0.05, high=0.05)
    background = (background + uniform(n, 2, 1, low=-0.06, high=0.06)).clamp(0, 1)
    angle = uniform(n, high=2 * math.pi)
    return Scenes(
        count, colour, shape, direction, radius, start, velocity, rgb, background, angle, dark
    )


def _apart(radius: Tensor, velocity: Tensor, places: Tensor, snap: bool) -> Tensor:
    """Where objects start: the first of some places at which two are apart all the time.

    Args:
        radius: (n, 2).
        velocity: (n, 2, 2), pixels per frame.
        places: (tries, n, 2, 2), from 0 to 1 in what each object's size and way leave.
        snap: on the grid.
    """
    travel = velocity * (FRAMES - 1)
    margin = radius[..., None] * 1.1 + 1
    low = margin - travel.clamp(max=0)
    high = SIZE - 1 - margin - travel.clamp(min=0)
    starts = low + (high - low) * places
    if snap:
        starts = (starts / GRID).round() * GRID
    when = torch.linspace(0, 1, 8)[:, None, None, None, None]
    path = starts + when * travel
    gap = (path[..., 0, :] - path[..., 1, :]).abs().amax(-1).amin(0) - radius.sum(1)
    good = (gap > 3).long()
    best = torch.where(good.any(0), good.argmax(0), gap.argmax(0))
    return starts[best, torch.arange(len(radius))]


def _distance(x: Tensor, y: Tensor, radius: Tensor, shape: Tensor) -> Tensor:
    """Signed distance in pixels to the outline of each object; all inputs broadcast."""
    ax, ay = x.abs(), y.abs()
    circle = (x * x + y * y).sqrt() - radius
    square = torch.maximum(ax, ay) - 0.86 * radius
    triangle = torch.maximum(y, ax * (math.sqrt(3) / 2) - y / 2) - 0.58 * radius
    bar = 0.33 * radius
    cross = torch.minimum(
        torch.maximum(ax - radius, ay - bar), torch.maximum(ay - radius, ax - bar)
    )
    return torch.where(
        shape < 2,
        torch.where(shape == 0, circle, square),
        torch.where(shape == 2, triangle, cross),
    )


def render(scenes: Scenes, frames: Tensor | int = 1) -> Tensor:
    """Draw scenes.

    Args:
        scenes: N scenes.
        frames: number of frames from time 0, or times (F,) in frames.

    Returns:
        (N, F, 3, 64, 64) in [0, 1].
    """
    times = torch.arange(frames).float() if isinstance(frames, int) else frames.float()
    axis = torch.arange(SIZE).float()
    ramp = (axis / (SIZE - 1) - 0.5) * math.sqrt(0.5)
    across = (
        scenes.angle.cos()[:, None, None] * ramp + scenes.angle.sin()[:, None, None] * ramp[:, None]
    ) + 0.5
    first, second = scenes.background[:, 0, :, None, None], scenes.background[:, 1, :, None, None]
    picture = (first + (second - first) * across[:, None])[:, None].expand(
        -1, len(times), -1, -1, -1
    )
    for k in range(2):
        centre = scenes.start[:, k, None] + scenes.velocity[:, k, None] * times[:, None]
        x = axis - centre[..., 0, None, None]
        y = axis[:, None] - centre[..., 1, None, None]
        radius = scenes.radius[:, k, None, None, None]
        distance = _distance(x, y, radius, scenes.shape[:, k, None, None, None])
        cover = (0.5 - distance).clamp(0, 1) * (scenes.count > k)[:, None, None, None]
        colour = scenes.rgb[:, k, None, :, None, None]
        picture = picture + (colour - picture) * cover[:, :, None]
    return picture


def held_out(prompt: str) -> bool:
    """Whether a prompt is kept from training (about one in eight, by checksum)."""
    return zlib.crc32(prompt.encode()) % 8 == 0


def captions(scenes: Scenes, generator: torch.Generator, *, detail: float = 0.3) -> list[str]:
    """One caption a scene; size and background words appear with probability `detail` each."""
    draw = torch.rand(len(scenes), 3, generator=generator).lt(detail).tolist()
    result = []
    columns = zip(
        scenes.count.tolist(),
        scenes.colour.tolist(),
        scenes.shape.tolist(),
        scenes.direction.tolist(),
        scenes.radius.tolist(),
        scenes.dark.tolist(),
        draw,
        strict=True,
    )
    for count, colour, shape, direction, radius, dark, words in columns:
        parts = []
        for k in range(count):
            # Radii of two objects and of moving ones span less, so "small" means less there.
            limit = _SMALL_BELOW[count == 2 or direction[k] >= 0]
            size = ("small " if radius[k] < limit else "large ") if words[k] else ""
            motion = f" moving {DIRECTIONS[direction[k]]}" if direction[k] >= 0 else ""
            parts.append(f"a {size}{COLOURS[colour[k]]} {SHAPES[shape[k]]}{motion}")
        text = " and ".join(parts)
        if words[2]:
            text += f" on a {'dark' if dark else 'light'} background"
        result.append(text)
    return result


def held_out_prompts(n: int, seed: int, *, moving: bool) -> list[str]:
    """`n` different held-out prompts: one and two objects in turn as long as there are any."""
    generator = torch.Generator().manual_seed(seed)
    piles: list[dict[str, None]] = [{}, {}]
    # There are few single still objects, so this must not wait for a full pile.
    for _ in range(60):
        for two, pile in enumerate(piles):
            scenes = sample_scenes(128, generator, moving=moving, two_share=float(two), snap=True)
            pile.update((text, None) for text in captions(scenes, generator) if held_out(text))
    ones, twos = (list(pile) for pile in piles)
    ones = ones[: n // 2]
    mixed = [text for pair in zip(ones, twos, strict=False) for text in pair]
    return [*mixed, *twos[len(ones) :]][:n]
