"""Does a sample of the scenes models show what its prompt asks for, and what dense shows?"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..metrics.base import score
from ..metrics.extractors import Extractor, register_folder
from ..metrics.frames import to_frames
from .scene_net import KIND, SceneNet

# Cells, of 256: with fewer a thing is not there, and with fewer than the other it may be hidden.
_SEEN, _LARGE = 3, 8
_OVERLAP = 0.5  # of a thing's cells that still show it
_SKY = "under a cloudy sky"


@dataclass(frozen=True)
class Wanted:
    """What a prompt asks for, as numbers of the network's classes; None is left open.

    Attributes:
        things: kind, material and colour of each.
        grounds: kind (wall or floor) and material of each that is named.
    """

    things: tuple[tuple[int, int | None, int | None], ...]
    grounds: tuple[tuple[int, int], ...]


def wanted(net: SceneNet, prompt: str) -> Wanted | None:
    """What a prompt of the scenes asks for; None where it names no thing.

    Args:
        net: knows the words.
        prompt: such as "a red furry ball and a box on a brick floor under a cloudy sky".
    """
    text = prompt.lower()
    colours, materials, things = ("|".join(x) for x in (net.colours, net.materials, net.things))
    found = re.findall(rf"\ba (?:({colours}) )?(?:({materials}) )?({things})\b", text)
    if not found:
        return None
    wall, floor = len(net.things), len(net.things) + 1
    grounds = [(floor, net.materials.index(m)) for m in re.findall(rf"on a ({materials}) fl", text)]
    grounds += [
        (wall, net.materials.index(m)) for m in re.findall(rf"before a ({materials}) wall", text)
    ]
    if _SKY in text:
        grounds.append((wall, len(net.materials)))
    return Wanted(
        tuple(
            (
                net.things.index(thing),
                net.materials.index(material) if material else None,
                net.colours.index(colour) if colour else None,
            )
            for colour, material, thing in found
        ),
        tuple(grounds),
    )


def found_in(labels: Tensor, asked: Wanted) -> dict[str, float]:
    """Shares of what is asked for that a picture shows.

    Args:
        labels: (3, 16, 16) thing, material and colour of each cell.
        asked: of `wanted`.

    Returns:
        "thing", and "material", "colour" and "background" where any is asked for, in [0, 1]: a
        material or colour counts where the thing that is asked for has it.
    """
    hits: dict[str, list[bool]] = {"thing": [], "material": [], "colour": [], "background": []}
    for kind, material, colour in asked.things:
        there = labels[0] == kind
        hits["thing"].append(int(there.sum()) >= _SEEN)
        for name, field, value in (("material", 1, material), ("colour", 2, colour)):
            if value is not None:
                hits[name].append(int((there & (labels[field] == value)).sum()) >= _SEEN)
    for kind, material in asked.grounds:
        there = labels[0] == kind
        right = (labels[1] == material) & there
        hits["background"].append(int(right.sum()) > int(there.sum()) / 2)
    return {name: sum(values) / len(values) for name, values in hits.items() if values}


def same_labels(one: Tensor, other: Tensor, things: int) -> bool:
    """Whether two pictures show the same in the same places.

    Every large thing of either has at least half of its cells in the other, and there the same
    material and colour; wall and floor have the same material. Small things may come and go.

    Args:
        one: labels (3, 16, 16).
        other: the same of the other picture.
        things: how many kinds are things; the two after them are wall and floor.
    """
    for a, b in ((one, other), (other, one)):
        for kind in range(things + 2):
            here = a[0] == kind
            if int(here.sum()) < _LARGE:
                continue
            both = here & (b[0] == kind)
            if int(both.sum()) < _OVERLAP * int(here.sum()):
                return False
            fields = (1, 2) if kind < things else (1,)
            if any(a[k][both].mode().values != b[k][both].mode().values for k in fields):
                return False
    return True


class SceneJudge:
    """The judge of textured scenes, for `ditaccel eval`.

    Of a clip the first, the middle and the last frame count.

    Args:
        net: the trained network.
    """

    scores = (
        score("thing", "share of the things that the prompt names which are there"),
        score("material", "share of the materials that the prompt gives things, on these things"),
        score("colour", "share of the colours that the prompt gives things, on these things"),
        score("background", "share of the walls and floors that are as the prompt says"),
    )

    def __init__(self, net: SceneNet) -> None:
        self._net = net

    def _labels(self, frames: Any) -> Tensor:
        clip = to_frames(frames).float()
        last = len(clip) - 1
        return self._net.see(clip[sorted({0, last // 2, last})])[1]

    def __call__(self, frames: Any, prompt: str, label: int | None) -> dict[str, float]:
        """Shares of what the prompt asks for; empty where it names nothing known."""
        asked = wanted(self._net, prompt)
        if asked is None:
            return {}
        found = [found_in(labels, asked) for labels in self._labels(frames)]
        return {name: sum(f[name] for f in found) / len(found) for name in found[0]}

    def same(self, reference: Any, frames: Any) -> bool:
        """Whether two samples show the same things in the same places (see `same_labels`)."""
        pairs = zip(self._labels(reference), self._labels(frames), strict=True)
        return all(same_labels(a, b, len(self._net.things)) for a, b in pairs)


def scene_net(folder: Path) -> Extractor | None:
    """The extractor of a folder with a `SceneNet`; None for another folder."""
    config = folder / "config.json"
    if not config.is_file() or json.loads(config.read_text()).get("network") != KIND:
        return None
    net = SceneNet.from_pretrained(folder)

    def features(images: Tensor) -> Tensor:
        clip = images[0] if images.ndim == 5 else images
        return net.see(clip)[0].mean(0, keepdim=True)

    return Extractor(folder.resolve().name, net.num_features, features, judge=SceneJudge(net))


register_folder(KIND, scene_net)
