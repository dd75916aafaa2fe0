"""Captions of scenes, their vocabulary, and which prompts are kept from training."""

from __future__ import annotations

import zlib

import torch

from scenes.textures import MATERIALS
from scenes.things import THINGS
from scenes.world import COLOURS, LIGHTS, MOST, Scenes, sample_scenes

TOKENS = 28
WORDS = (
    *("a", "and", "on", "floor", "before", "wall", "under", "cloudy", "sky", "in", "light"),
    *COLOURS,
    *MATERIALS,
    *THINGS,
    *LIGHTS,
)


def captions(scenes: Scenes, generator: torch.Generator) -> list[str]:
    """One caption per scene: one or two of its things, and some of what is around them.

    How many things there are besides, where they stand, where the light comes from, and how large
    the pattern is: all that is left open.
    """
    colours, materials, things = list(COLOURS), list(MATERIALS), list(THINGS)
    chance = torch.rand(len(scenes), 7, generator=generator).tolist()
    kind, colour, material = (getattr(scenes, k).tolist() for k in ("kind", "colour", "material"))
    wall, floor, light = (getattr(scenes, k).tolist() for k in ("wall", "floor", "light"))
    result = []
    for i, draw in enumerate(chance):
        parts = []
        for j in range(1 if draw[0] < 0.5 else 2):
            k = MOST - 1 - j  # the nearest first
            words = ["a"]
            if draw[1 + j] < 0.8:
                words.append(colours[colour[i][k]])
            if draw[1 + j] > 0.4:
                words.append(materials[material[i][k]])
            parts.append(" ".join([*words, things[kind[i][k]]]))
        text = " and ".join(parts)
        if draw[3] < 0.5:
            text += f" on a {materials[floor[i]]} floor"
        if draw[4] < 0.6:
            sky = wall[i] == len(materials)
            text += " under a cloudy sky" if sky else f" before a {materials[wall[i]]} wall"
        if draw[5] < 0.25:
            text += f" in {LIGHTS[light[i]]} light"
        result.append(text)
    return result


def held_out(prompt: str) -> bool:
    """Whether a prompt is kept from training (about one in eight, by checksum)."""
    return zlib.crc32(prompt.encode()) % 8 == 0


def held_out_prompts(n: int, seed: int, *, moving: bool = False) -> list[str]:
    """`n` different prompts that no training picture has."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        scenes = sample_scenes(64, generator, moving=moving)
        found.update((text, None) for text in captions(scenes, generator) if held_out(text))
    return list(found)[:n]
